//! `scripts/bench latency`: round trips between pods of two nodes, while other pods load the same nodes.

use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{fs, io, thread};

use hdrhistogram::Histogram;
use podwire::latency::{self, Load as Requests, MIN_BYTES};

use super::alone::{frame, let_leave, macs_of};
use super::load::{Load, Packet};
use super::machine::as_f64;
use super::rate::search;
use super::report::{Figures, Measure};
use super::systems::{Rig, System};
use crate::harness::{Wire, ping_pong, with_reflector_on};

/// Requests a second of the open loop.
const RATE: u32 = 5000;

/// So seldom that all has gone to sleep meanwhile.
const SELDOM: u32 = 20;

/// Flows and frame size of the load.
const FLOWS: u16 = 4000;
const SIZE: usize = 60;

/// Of a trial of the search for the load's NDR.
const TRIAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// The next request follows the answer.
    PingPong(Place),
    WakeUp,
    /// An open loop beside a load of so many percent of the NDR.
    Beside(u8),
}

/// Where the pods of a ping-pong run: with few cores who wakes whom on another one decides how long a round trip takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where the kernel puts them.
    Anywhere,
    /// On the core of the thread that carries their own node's packets, where there is one.
    Own,
    /// On the other node's.
    Other,
    /// Both on the first node's.
    First,
}

const QUANTILES: [(Measure, f64); 5] = [
    (us("p50 µs"), 0.5),
    (us("p99 µs"), 0.99),
    (us("p99.9 µs"), 0.999),
    (us("p99.99 µs"), 0.9999),
    (us("max µs"), 1.0),
];
const LOST: Measure = Measure { name: "lost", digits: 0, compared: false };
const LOAD: Measure = Measure { name: "load Mpps", digits: 3, compared: false };

const fn us(name: &'static str) -> Measure {
    Measure { name, digits: 1, compared: true }
}

/// Two nodes, and a load from the first one's first pod to the other's.
pub struct Loaded {
    rig: Rig,
    load: Load,
    /// In packets a second, once it has been asked for.
    ndr: Option<f64>,
}

impl System {
    pub fn build_loaded(&self) -> Result<Loaded, String> {
        let rig = self.build(Wire::default(), 2)?;
        let [node, other] = &rig.nodes;
        let (from, to) = (&node.pods()[0], &other.pods()[0]);
        let mut load = Load::new(rig.dir())?;
        let_leave(&mut load, 0, node, from)?;
        load.sink(&to.netns, "eth0")?;
        let [mac, gateway] = macs_of(from, to.v4);
        let packet = |flow| Packet { device: 0, bytes: frame(mac, gateway, from.v4, to.v4, flow, SIZE) };
        load.packets(&(0..FLOWS).map(packet).collect::<Vec<_>>())?;
        Ok(Loaded { rig, load, ndr: None })
    }
}

impl Scenario {
    pub const ALL: [Self; 9] = [
        Self::PingPong(Place::Anywhere),
        Self::PingPong(Place::Own),
        Self::PingPong(Place::Other),
        Self::PingPong(Place::First),
        Self::WakeUp,
        Self::Beside(0),
        Self::Beside(10),
        Self::Beside(50),
        Self::Beside(90),
    ];

    pub fn name(self) -> String {
        match self {
            Self::PingPong(Place::Anywhere) => "ping-pong".to_owned(),
            Self::PingPong(Place::Own) => "ping-pong, pods on their own nodes' cores".to_owned(),
            Self::PingPong(Place::Other) => "ping-pong, pods on each other's nodes' cores".to_owned(),
            Self::PingPong(Place::First) => "ping-pong, both pods on the first node's core".to_owned(),
            Self::WakeUp => format!("wake-up: {SELDOM} requests a second"),
            Self::Beside(0) => format!("{RATE} requests a second, no load"),
            Self::Beside(percent) => format!("{RATE} requests a second beside {percent} % of the NDR"),
        }
    }

    /// A short name.
    pub fn stem(self) -> &'static str {
        match self {
            Self::PingPong(Place::Anywhere) => "ping-pong",
            Self::PingPong(Place::Own) => "ping-pong-own",
            Self::PingPong(Place::Other) => "ping-pong-other",
            Self::PingPong(Place::First) => "ping-pong-first",
            Self::WakeUp => "wake-up",
            Self::Beside(0) => "load-0",
            Self::Beside(10) => "load-10",
            Self::Beside(50) => "load-50",
            Self::Beside(_) => "load-90",
        }
    }

    pub fn measure(self, loaded: &mut Loaded, seconds: u32) -> Result<(Figures, Histogram<u64>), String> {
        let Loaded { rig, load, ndr } = loaded;
        let [from, to] = rig.nodes.each_ref().map(|node| &node.pods()[1]);
        let share = if let Self::Beside(percent) = self { f64::from(percent) / 100.0 } else { 0.0 };
        let rate = if share > 0.0 {
            let ndr = match *ndr {
                Some(ndr) => ndr,
                None => *ndr.insert(search(|rate| load.run(rate, TRIAL))?.ndr * 1e6),
            };
            if ndr == 0.0 {
                return Err("its NDR is nothing".to_owned());
            }
            share * ndr
        } else {
            0.0
        };
        let requests = Requests {
            rate: if self == Self::WakeUp { SELDOM } else { RATE },
            requests: u64::from(seconds) * u64::from(if self == Self::WakeUp { SELDOM } else { RATE }),
            bytes: MIN_BYTES,
        };
        let ask = |socket: &UdpSocket, target| match self {
            Self::PingPong(_) => ping_pong(socket, target, Duration::from_secs(seconds.into())),
            _ => latency::measure(socket, target, requests, &AtomicBool::new(false))
                .map(|outcome| (outcome.lost(), outcome.round_trips)),
        };
        let [own, others] = rig.nodes.each_ref().map(|node| node.host().core(0));
        let cores = match self {
            Self::PingPong(Place::Own) => Some([own, others]),
            Self::PingPong(Place::Other) => Some([others, own]),
            Self::PingPong(Place::First) => Some([own; 2]),
            _ => None,
        };
        let mut offered = 0.0;
        let (lost, trips) = with_reflector_on(cores, from, to, |socket, target| {
            if rate == 0.0 {
                return ask(socket, target);
            }
            thread::scope(|scope| {
                let asking = scope.spawn(|| ask(socket, target));
                offered = load.run(Some(rate), Duration::from_secs(seconds.into())).offered_mpps();
                asking.join().unwrap_or_else(|panic| resume_unwind(panic))
            })
        })
        .map_err(|error| error.to_string())?;
        if trips.is_empty() {
            return Err("no answer came".to_owned());
        }
        // One that fewer samples than it takes would show is but their greatest.
        let at = |at: f64| {
            if (1.0 - at) * as_f64(trips.len()) < 1.0 && at < 1.0 {
                f64::NAN
            } else {
                as_f64(trips.value_at_quantile(at)) / 1e3
            }
        };
        let figures = QUANTILES.iter().map(|&(measure, quantile)| (measure, at(quantile)));
        Ok((figures.chain([(LOST, as_f64(lost)), (LOAD, offered)]).collect(), trips))
    }
}

/// Round trips of all rounds, to be drawn.
#[derive(Default)]
pub struct Pictures(Vec<(Scenario, String, Histogram<u64>)>);

impl Pictures {
    pub fn add(&mut self, scenario: Scenario, system: &System, trips: Histogram<u64>) {
        let is_it = |(s, name, _): &&mut (Scenario, String, _)| (*s, &**name) == (scenario, system.name);
        match self.0.iter_mut().find(is_it) {
            Some((.., all)) => all.add(trips).expect("it grows as needed"),
            None => self.0.push((scenario, system.name.to_owned(), trips)),
        }
    }

    /// Draws a picture of each scenario, with all systems, into a directory.
    pub fn draw(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for scenario in Scenario::ALL {
            let of_it = self.0.iter().filter(|(s, ..)| *s == scenario);
            let lines: Vec<_> = of_it.map(|(_, name, trips)| (name.clone(), trips)).collect();
            if !lines.is_empty() {
                let picture = latency::svg(&lines).map_err(|error| io::Error::other(error.to_string()))?;
                fs::write(dir.join(scenario.stem()).with_extension("svg"), picture)?;
            }
        }
        Ok(())
    }
}
