//! Pods that send all that one core can make them send, and what others get beside them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::ClockId;

use super::site::Pod;
use super::stream::{Delivery, Flow, LINGER, PORT, Receiver, Sends, judge, now_ns, number, open};
use super::traffic::{ping_pong, with_reflector};

/// Numbered datagrams of one pod.
#[derive(Clone, Copy)]
pub struct Flood<'a> {
    pub flow: Flow<'a>,
    /// How many datagrams it sends whenever it is its turn.
    pub burst: usize,
}

impl<'a> Flood<'a> {
    /// One of each flow, every second one of three times as much as the others.
    pub fn uneven(flows: impl Iterator<Item = Flow<'a>>) -> Vec<Self> {
        flows.zip([1, 3].into_iter().cycle()).map(|(flow, burst)| Self { flow, burst }).collect()
    }
}

/// Runs all `floods`, in turn, without pause, on one core for `time`; each has a port of its own. Returns what became of
/// each, in their order.
fn flood(core: usize, floods: &[Flood<'_>], time: Duration) -> Vec<Delivery> {
    let ports = || PORT..;
    let receivers: Vec<_> = floods.iter().zip(ports()).map(|(flood, port)| Receiver::bind(&flood.flow, port)).collect();
    let receiving = AtomicBool::new(true);
    thread::scope(|scope| {
        let arrivals: Vec<_> = receivers.iter().map(|receiver| scope.spawn(|| receiver.run(&receiving))).collect();
        let sends = scope.spawn(|| send(core, floods, time)).join();
        thread::sleep(LINGER);
        receiving.store(false, Ordering::Relaxed);
        let arrivals = arrivals.into_iter().map(|thread| thread.join().expect("a receiver"));
        sends.expect("the sender").iter().zip(arrivals).map(|(sends, arrivals)| judge(sends, &arrivals, 0)).collect()
    })
}

fn send(core: usize, floods: &[Flood<'_>], time: Duration) -> Vec<Sends> {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let sockets: Vec<_> = (0..)
        .zip(floods)
        .zip(PORT..)
        .map(|((stream, Flood { flow, burst }), port)| {
            let socket = open(flow.from, flow.from.address_like(flow.address), 0);
            socket.connect(SocketAddr::new(flow.address, port)).expect("a route");
            (socket, stream, *burst)
        })
        .collect();
    let mut sends = vec![Sends::new(); floods.len()];
    let end = Instant::now() + time;
    while Instant::now() < end {
        for ((socket, stream, burst), sends) in sockets.iter().zip(&mut sends) {
            let now_ns = now_ns(ClockId::CLOCK_REALTIME);
            for _ in 0..*burst {
                // What the pod's own stack refuses was not sent.
                if socket.send(&number(*stream, sends.len() as u64)).is_ok() {
                    sends.push(now_ns);
                }
            }
        }
    }
    sends
}

/// What became of floods, and of a ping-pong beside them.
pub struct Beside {
    /// In the order of the floods.
    pub floods: Vec<Delivery>,
    /// Answers that did not come.
    pub lost: u64,
    /// Round trips of the others.
    pub trips: Histogram<u64>,
}

impl Beside {
    /// Runs all `floods` and, between two other pods, a ping-pong for `time`.
    pub fn measure([from, to]: [&Pod; 2], core: usize, floods: &[Flood<'_>], time: Duration) -> Self {
        let beside = with_reflector(from, to, |socket, target| {
            thread::scope(|scope| {
                let flooding = scope.spawn(|| flood(core, floods, time));
                let (lost, trips) = ping_pong(socket, target, time)?;
                Ok(Self { floods: flooding.join().expect("the floods"), lost, trips })
            })
        });
        beside.expect("requests are sent")
    }

    /// How many datagrams of each flood arrived.
    pub fn arrived(&self) -> impl Iterator<Item = u64> {
        self.floods.iter().map(|flood| flood.sent - flood.lost)
    }

    /// Jain's index of what the floods sent, and of what of it arrived.
    pub fn fairness(&self) -> [f64; 2] {
        [jain(self.floods.iter().map(|flood| flood.sent)), jain(self.arrived())]
    }
}

/// Jain's index of fairness: 1 when all have the same, and 1/n when one of n has all (DEC-TR-301, 1984).
#[expect(clippy::cast_precision_loss, reason = "packet counts are far below 2^52")]
fn jain(shares: impl IntoIterator<Item = u64>) -> f64 {
    let shares: Vec<f64> = shares.into_iter().map(|share| share as f64).collect();
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn equal_shares_are_fair_and_all_for_one_is_not() {
    let is = |shares: &[u64], wanted: f64| assert!((jain(shares.iter().copied()) - wanted).abs() < 1e-9, "{shares:?}");
    is(&[7; 5], 1.0);
    is(&[9, 0, 0, 0], 0.25);
    is(&[1, 2, 3], 36.0 / 42.0);
}
