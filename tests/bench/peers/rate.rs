//! `scripts/bench rate`: packets a second of one node, between its pods and the wire.

use std::collections::BTreeSet;
use std::iter;
use std::time::Duration;

use clap::ValueEnum;

use super::alone::{Alone, WIRE};
use super::load::{Load, Packet};
use super::report::{Figures, Measure};

/// UDP flows of each direction.
const FLOWS: u16 = 4000;

/// Frame sizes without check sequence that follow each other: 64 with it is Ethernet's least. IMIX is the usual mix
/// of 7 : 4 : 1, with the largest that all tunnels carry.
const SMALL: &[usize] = &[60];
const LARGE: &[usize] = &[1400];
const IMIX: &[usize] = &[60, 590, 60, 590, 60, 60, 590, 60, 60, 590, 60, 1400];

/// How often a rate is halved down on: 1/64 of the peak.
const STEPS: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Pods to wire
    Out,
    /// Wire to pods
    In,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
    #[value(name = "64")]
    Small,
    Imix,
    #[value(name = "1400")]
    Large,
}

impl Size {
    fn frames(self) -> &'static [usize] {
        match self {
            Self::Small => SMALL,
            Self::Imix => IMIX,
            Self::Large => LARGE,
        }
    }
}

/// What is asked of each system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub way: Way,
    pub size: Size,
    pub pods: usize,
    pub routes: u32,
    /// To which packets from pods go.
    pub nodes: u32,
    /// Packets of a pod that follow each other, before the next pod's.
    pub train: usize,
}

const PEAK: Measure = Measure { name: "peak Mpps", digits: 3, compared: true };
const NDR: Measure = Measure { name: "NDR Mpps", digits: 3, compared: true };
const OFFERED: Measure = Measure { name: "offered", digits: 2, compared: false };

impl Scenario {
    /// With each number of nodes that there can be, where packets go to some.
    pub fn all(ways: &[Way], sizes: &[Size], (pods, routes): (usize, u32), nodes: &[u32], train: usize) -> Vec<Self> {
        let nodes_of = |way| -> BTreeSet<u32> {
            if way == Way::In { [1].into() } else { nodes.iter().map(|&nodes| nodes.min(routes)).collect() }
        };
        let of_size =
            |way, size| nodes_of(way).into_iter().map(move |nodes| Self { way, size, pods, routes, nodes, train });
        ways.iter().flat_map(|&way| sizes.iter().flat_map(move |&size| of_size(way, size))).collect()
    }

    pub fn name(self) -> String {
        let Self { way, size, pods, routes, nodes, train } = self;
        let way = match way {
            Way::Out => "pods to wire",
            Way::In => "wire to pods",
            Way::Both => "both ways",
        };
        let size = match size {
            Size::Small => "64 B",
            Size::Imix => "IMIX",
            Size::Large => "1400 B",
        };
        let to = if nodes > 1 { format!(", to {nodes} nodes") } else { String::new() };
        let rows = if pods > 1 && train > 1 { format!(", {train} of each in a row") } else { String::new() };
        format!("UDP, {way}, {size}, {pods} pod{}{rows}, {routes} route{}{to}", plural(pods > 1), plural(routes > 1))
    }

    pub fn measure(self, rig: &Alone, load: &mut Load, seconds: u32) -> Result<Figures, String> {
        load.packets(&self.packets(rig))?;
        let Found { peak, ndr, offered } = search(load, Duration::from_secs(seconds.into()))?;
        Ok(vec![(PEAK, peak), (NDR, ndr), (OFFERED, offered)])
    }

    fn packets(self, rig: &Alone) -> Vec<Packet> {
        let sizes = self.size.frames().iter().cycle().copied();
        let pods = (0..self.pods).flat_map(|pod| iter::repeat_n(pod, self.train)).cycle();
        let flows = (0..FLOWS).zip(pods).zip(sizes);
        let out = flows.clone().map(|((flow, pod), size)| Packet {
            device: u32::try_from(pod).expect("few pods"),
            bytes: rig.out(pod, flow, size, self.nodes),
        });
        let inwards = flows.map(|((flow, pod), size)| Packet { device: WIRE, bytes: rig.inwards(pod, flow, size) });
        match self.way {
            Way::Out => out.collect(),
            Way::In => inwards.collect(),
            Way::Both => out.zip(inwards).flat_map(|(out, inwards)| [out, inwards]).collect(),
        }
    }
}

fn plural(many: bool) -> &'static str {
    if many { "s" } else { "" }
}

/// In millions of packets a second.
pub struct Found {
    /// The most that arrived.
    pub peak: f64,
    /// The highest rate of which nothing was lost.
    pub ndr: f64,
    /// When all was offered that could be.
    pub offered: f64,
}

/// Floods, then halves its way to the highest rate of which nothing is lost; each trial lasts for `time`.
pub fn search(load: &mut Load, time: Duration) -> Result<Found, String> {
    let flood = load.run(None, time);
    if flood.arrived == 0 {
        return Err(format!("nothing of {} packets arrives", flood.sent));
    }
    let mut found = Found { peak: flood.arrived_mpps(), ndr: 0.0, offered: flood.offered_mpps() };
    let mut most = found.peak;
    for _ in 0..STEPS {
        let rate = f64::midpoint(found.ndr, most);
        let mut run = || load.run(Some(rate * 1e6), time);
        // A machine that stands still for a moment loses what no switch would.
        let trial = Some(run()).filter(|trial| trial.lost() == 0).unwrap_or_else(run);
        found.peak = f64::max(found.peak, trial.arrived_mpps());
        if trial.lost() == 0 {
            found.ndr = trial.arrived_mpps();
        } else {
            most = rate;
        }
    }
    Ok(found)
}
