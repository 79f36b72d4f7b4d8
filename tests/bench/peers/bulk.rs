//! `scripts/bench bulk`: TCP as fast as it gets, what it costs, and what a ping-pong feels beside it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::machine::{CpuTime, as_f64};
use super::report::{Figures, Measure};
use super::systems::{Node, Rig};
use crate::harness::{EndOnDrop, Pod, histogram, try_iperf3};

/// What is asked of each system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub mtu: u32,
    pub flows: u32,
    /// From the second node to the first.
    pub backwards: bool,
    /// With a ping-pong between other pods of the same nodes.
    pub beside: bool,
}

impl Scenario {
    pub fn all(mtu: u32, flows: &[u32]) -> Vec<Self> {
        let ways = |&flows: &u32| [false, true].map(|backwards| Self { mtu, flows, backwards, beside: false });
        let beside = Self { mtu, flows: 8, backwards: false, beside: true };
        flows.iter().flat_map(ways).chain([beside]).collect()
    }

    pub fn name(self) -> String {
        let Self { mtu, flows, backwards, beside } = self;
        let way = if backwards { "second node to first" } else { "first node to second" };
        let beside = if beside { ", a ping-pong beside" } else { "" };
        format!("TCP, MTU {mtu}, {flows} flow{}, {way}{beside}", if flows == 1 { "" } else { "s" })
    }

    pub fn measure(self, rig: &Rig, seconds: u32) -> Result<Figures, String> {
        let [a, b] = rig.nodes.each_ref().map(Node::pods);
        let (from, to) = if self.backwards { (b, a) } else { (a, b) };
        if !self.beside {
            return bulk(rig, &from[0], &to[0], self.flows, seconds);
        }
        let (bulk, trips) = ping_pong_during(&from[1], &to[1], || bulk(rig, &from[0], &to[0], self.flows, seconds));
        let (figures, trips) = (bulk?.into_iter().filter(|(measure, _)| measure.compared), trips?);
        let us = |quantile| as_f64(trips.value_at_quantile(quantile)) / 1e3;
        Ok(figures.chain([(P50, us(0.5)), (P99, us(0.99))]).collect())
    }
}

const THROUGHPUT: Measure = Measure { name: "Gbit/s", digits: 2, compared: true };
const COST: Measure = Measure { name: "CPU s/Gbit", digits: 3, compared: true };
const P50: Measure = Measure { name: "p50 µs", digits: 0, compared: true };
const P99: Measure = Measure { name: "p99 µs", digits: 0, compared: true };

const fn part(name: &'static str) -> Measure {
    Measure { name, digits: 3, compared: false }
}

const RETRANSMITS: Measure = Measure { name: "retransmits", digits: 0, compared: false };

fn bulk(rig: &Rig, from: &Pod, to: &Pod, flows: u32, seconds: u32) -> Result<Figures, String> {
    let worker_s = || rig.nodes.iter().map(|node| node.worker_time().as_secs_f64()).sum::<f64>();
    let (worker_before, before) = (worker_s(), CpuTime::now());
    let tcp = try_iperf3(from, to, to.v4.into(), seconds, &format!("-P {flows}"))?;
    let (spent, worker_s) = (CpuTime::now() - before, worker_s() - worker_before);
    let gbit = tcp.bits_per_second * tcp.seconds / 1e9;
    Ok(vec![
        (THROUGHPUT, tcp.bits_per_second / 1e9),
        (COST, spent.busy / gbit),
        (part("workers"), worker_s / gbit),
        (part("pods"), tcp.system_s / gbit),
        (part("load tool"), tcp.user_s / gbit),
        (part("softirqs"), spent.softirq / gbit),
        (RETRANSMITS, as_f64(tcp.retransmits)),
    ])
}

/// Round trips in nanoseconds of one byte there and back at a time, over TCP, while `load` runs.
fn ping_pong_during<T>(from: &Pod, to: &Pod, load: impl FnOnce() -> T) -> (T, Result<Histogram<u64>, String>) {
    const LIMIT: Duration = Duration::from_secs(1);
    let listener = to.netns.within(|| TcpListener::bind((to.v4, 0))).expect("bind in the pod");
    let address = listener.local_addr().expect("bound");
    let mut client = from.netns.within(|| TcpStream::connect_timeout(&address, LIMIT)).expect("connect to the pod");
    let (mut server, _) = listener.accept().expect("a connection");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while server.read_exact(&mut byte).and_then(|()| server.write_all(&byte)).is_ok() {}
        });
        // The other end sees when the client goes.
        let ended = &ended;
        let pinging = scope.spawn(move || {
            let mut trips = histogram();
            while !ended.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answered = client.write_all(&[0]).and_then(|()| client.read_exact(&mut [0]));
                answered.map_err(|error| format!("the ping-pong beside, within {LIMIT:?}: {error}"))?;
                trips.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            Ok(trips)
        });
        let ends = EndOnDrop(ended);
        let outcome = load();
        drop(ends);
        (outcome, pinging.join().expect("no panic"))
    })
}
