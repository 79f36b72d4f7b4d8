//! `scripts/bench rate`: packets a second of one node, between its pods and the wire.

use std::collections::BTreeSet;
use std::time::Duration;
use std::{io, iter};

use clap::{Args, ValueEnum};

use super::alone::{Alone, WIRE};
use super::load::{Load, Packet, Trial};
use super::report::{Figures, Measure};
use super::routes;
use super::senders::Senders;

/// UDP flows of each direction.
const FLOWS: u16 = 4000;

/// Frame sizes without check sequence that follow each other: 64 with it is Ethernet's least. IMIX is the usual mix
/// of 7 : 4 : 1, with the largest that all tunnels carry.
const SMALL: &[usize] = &[60];
const LARGE: &[usize] = &[1400];
const IMIX: &[usize] = &[60, 590, 60, 590, 60, 60, 590, 60, 60, 590, 60, 1400];

/// Until sockets, routes and neighbours of all pods are in use.
const WARM_UP: Duration = Duration::from_secs(1);

/// How often a rate is halved down on: 1/64 of the peak.
const STEPS: u32 = 6;

/// A rate of which all arrives by the one that is tried next.
const GROWTH: f64 = 1.25;

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

/// What sends for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sender {
    /// A program that puts frames on their devices: more than any node takes, but the kernel looks after each device apart
    Frames,
    /// Sockets of theirs, as programs in pods do: at most what a core sends
    Sockets,
}

#[derive(Args)]
pub struct Options {
    /// Only this way; can be repeated
    #[arg(long, value_enum, default_values_t = [Way::Out, Way::In, Way::Both])]
    way: Vec<Way>,
    /// Only this size; can be repeated
    #[arg(long, value_enum, default_values_t = [Size::Small, Size::Imix, Size::Large])]
    size: Vec<Size>,
    /// Pods of the node; can be repeated
    #[arg(long, value_name = "N", default_values_t = [1, 16, 128, 250], value_parser = 1..=250)]
    pods: Vec<i64>,
    /// Routes of the node; can be repeated
    #[arg(long, value_name = "N", default_values_t = [1, 10_000], value_parser = 1..=i64::from(routes::MOST))]
    routes: Vec<i64>,
    /// Nodes that packets from pods go to, one a route at most; can be repeated
    #[arg(long, value_name = "N", default_values_t = [1, 4000], value_parser = clap::value_parser!(u32).range(1..=4000))]
    nodes: Vec<u32>,
    /// Packets of a pod that follow each other, before the next pod's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    train: u16,
    /// What sends for pods; sockets send pods to wire only
    #[arg(long, value_enum, default_value_t = Sender::Frames)]
    pub sender: Sender,
}

/// What is built for each group of scenarios: pods and routes.
pub type Extent = (usize, u32);

impl Options {
    /// The scenarios of each extent: each number of pods with the first number of routes, and the first of pods with each
    /// further one of routes. What more of them cost shows with one size.
    pub fn groups(&self) -> Vec<(Extent, Vec<Scenario>)> {
        let Self { pods, routes, size, .. } = self;
        let by_pods = pods.iter().map(|&pods| (pods, routes[0]));
        let by_routes = routes[1..].iter().map(|&routes| (pods[0], routes));
        let scenarios = |(n, (pods, routes)): (usize, (i64, i64))| {
            let extent = (usize::try_from(pods).expect("positive"), u32::try_from(routes).expect("at most 2^16"));
            (extent, self.scenarios(extent, if n == 0 { size } else { &size[..1] }))
        };
        by_pods.chain(by_routes).enumerate().map(scenarios).collect()
    }

    /// With each number of nodes that there can be, where packets go to some.
    fn scenarios(&self, (pods, routes): Extent, sizes: &[Size]) -> Vec<Scenario> {
        let (train, sender) = (self.train.into(), self.sender);
        let nodes_of = |way| -> BTreeSet<u32> {
            if way == Way::In { [1].into() } else { self.nodes.iter().map(|&nodes| nodes.min(routes)).collect() }
        };
        let of_size = |way, size| {
            nodes_of(way).into_iter().map(move |nodes| Scenario { way, size, pods, routes, nodes, train, sender })
        };
        let ways = self.way.iter().filter(|way| sender == Sender::Frames || **way == Way::Out);
        ways.flat_map(|&way| sizes.iter().flat_map(move |&size| of_size(way, size))).collect()
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
    pub sender: Sender,
}

const PEAK: Measure = Measure { name: "peak Mpps", digits: 3, compared: true };
const NDR: Measure = Measure { name: "NDR Mpps", digits: 3, compared: true };
const OFFERED: Measure = Measure { name: "offered", digits: 2, compared: false };

impl Scenario {
    pub fn name(self) -> String {
        let Self { way, size, pods, routes, nodes, train, sender } = self;
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
        let by = if sender == Sender::Sockets { ", by sockets" } else { "" };
        format!(
            "UDP, {way}{by}, {size}, {pods} pod{}{rows}, {routes} route{}{to}",
            plural(pods > 1),
            plural(routes > 1)
        )
    }

    pub fn measure(self, rig: &Alone, load: &mut Load, seconds: u32) -> Result<Figures, String> {
        let time = Duration::from_secs(seconds.into());
        let found = match self.sender {
            Sender::Frames => {
                load.packets(&self.packets(rig))?;
                search(|rate| load.run(rate, time))?
            }
            Sender::Sockets => {
                let mut senders = self.senders(rig).map_err(|error| error.to_string())?;
                load.trial(|_| senders.send(None, WARM_UP));
                search(|rate| load.trial(|_| senders.send(rate, time)))?
            }
        };
        Ok(vec![(PEAK, found.peak), (NDR, found.ndr), (OFFERED, found.offered)])
    }

    /// Of each packet the flow, the pod, and the bytes.
    fn flows(self) -> impl Iterator<Item = (u16, usize, usize)> + Clone {
        let sizes = self.size.frames().iter().cycle().copied();
        let pods = (0..self.pods).flat_map(move |pod| iter::repeat_n(pod, self.train)).cycle();
        (0..FLOWS).zip(pods).zip(sizes).map(|((flow, pod), size)| (flow, pod, size))
    }

    fn senders(self, rig: &Alone) -> io::Result<Senders> {
        let mut senders = Senders::default();
        for pod in 0..self.pods {
            let of_pod = self.flows().enumerate().filter(|(_, (_, of, _))| *of == pod);
            let flows = of_pod.map(|(turn, (flow, _, size))| (turn, rig.flow(pod, flow, self.nodes), size));
            senders.add(&rig.node.pods()[pod].netns, flows)?;
        }
        Ok(senders)
    }

    fn packets(self, rig: &Alone) -> Vec<Packet> {
        let flows = self.flows();
        let out = flows.clone().map(|(flow, pod, size)| Packet {
            device: u32::try_from(pod).expect("few pods"),
            bytes: rig.out(pod, flow, size, self.nodes),
        });
        let inwards = flows.map(|(flow, pod, size)| Packet { device: WIRE, bytes: rig.inwards(pod, flow, size) });
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

/// Floods, then looks for the highest rate of which nothing is lost, by trials of so many packets a second: first at the
/// rate that arrived of the flood, upwards from there as long as all arrives, for a node that is overrun may carry less
/// than it can, and then by halves.
pub fn search(mut trial: impl FnMut(Option<f64>) -> Trial) -> Result<Found, String> {
    let flood = trial(None);
    if flood.arrived == 0 {
        return Err(format!("nothing of {} packets arrives", flood.sent));
    }
    let mut found = Found { peak: flood.arrived_mpps(), ndr: 0.0, offered: flood.offered_mpps() };
    let mut all_arrives_at = |rate: f64, found: &mut Found| {
        let mut run = || trial(Some(rate * 1e6));
        // A machine that stands still for a moment loses what no switch would.
        let outcome = Some(run()).filter(|outcome| outcome.lost() == 0).unwrap_or_else(run);
        found.peak = f64::max(found.peak, outcome.arrived_mpps());
        if outcome.lost() == 0 {
            found.ndr = f64::max(found.ndr, outcome.arrived_mpps());
        }
        outcome.lost() == 0
    };
    let mut most = found.peak;
    while most < found.offered && all_arrives_at(most, &mut found) {
        most = f64::min(most * GROWTH, found.offered);
    }
    for _ in 0..STEPS {
        let rate = f64::midpoint(found.ndr, most);
        if !all_arrives_at(rate, &mut found) {
            most = rate;
        }
    }
    Ok(found)
}
