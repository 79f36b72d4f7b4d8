//! What happens to a packet, stage by stage: each on its own and the whole pipeline, over memory ports. A [`Stage`] has
//! the packets of one round, and takes them through in bursts, again and again.

use std::hint::black_box;
use std::iter;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podwire::fib::{Fib, LocalPod, NONE, NextHop, Remote};
use podwire::frame::{Frame, HEADROOM, Region};
use podwire::offload::{VirtioNetHdr, copy_plain};
use podwire::packet::VIRTIO_HEADER;
use podwire::pipeline::BURST;
use podwire::pipeline::decap::Arrival;
use podwire::pipeline::encap::Departure;
use podwire::port::Slot;
use podwire::wire::{Ecn, Entropy, EtherType, Inner, Sum, inner_sum};
use podwire::xsk::Ledger;

use super::rings::Ring;
use crate::world::{self, FRAMES, MemoryWorker, Underlay, encapsulated, from_pod, pod, this, udp_v4, worker};

/// Packets of one round; a multiple of every burst.
pub const ROUND: usize = BURST;

/// The same, to divide by.
#[expect(clippy::cast_precision_loss, reason = "some")]
pub const PACKETS: f64 = ROUND as f64;

/// Packets that go through a stage together.
pub const BURSTS: [usize; 4] = [1, 32, 64, BURST];

/// Other nodes in the table that look-ups search, a range of each family each.
const NODES: u16 = 5_000;

/// Slots of a ring: as many as an uplink has.
const SLOTS: u32 = 2048;

/// One stage with the packets of a round.
pub trait Stage {
    /// Whether a round moves its packets or changes them, so that the next one wants [`Stage::prepare`] first.
    fn uses_up(&self) -> bool {
        false
    }

    /// Makes the packets what they were. Not part of what is measured.
    fn prepare(&mut self) {}

    /// Takes [`ROUND`] packets through, in bursts; returns how many got through.
    fn run(&mut self) -> usize;
}

impl<F: FnMut() -> usize> Stage for F {
    fn run(&mut self) -> usize {
        self()
    }
}

/// Makes a stage for bursts of a size.
pub type Make = fn(usize) -> Box<dyn Stage>;

/// All stages with their names. Packets are frames of 64 bytes but where the name says otherwise.
pub const STAGES: [(&str, Make); 13] = [
    ("parse, from a pod", parse_departures),
    ("parse, from the wire", parse_arrivals),
    ("look-up, IPv4", look_up_v4),
    ("look-up, IPv6", look_up_v6),
    ("copy from a pod", copy),
    ("put outer headers on", put_on),
    ("take outer headers off", take_off),
    ("checksum of 64 B", |burst| checksum(burst, 64)),
    ("checksum of 1,500 B", |burst| checksum(burst, 1500)),
    ("ring", ring),
    ("ring and ledger", ring_and_ledger),
    ("encap, whole", encap),
    ("decap, whole", decap),
];

/// A UDP packet that makes a frame of 64 bytes, check sequence included.
fn small() -> Vec<u8> {
    udp_v4(&[7; 18], 64)
}

/// A stage that does something with each of a round's frames. What it returns says that the frame got through.
fn for_each(burst: usize, frame: &[u8], mut act: impl FnMut(&mut [u8]) -> bool + 'static) -> Box<dyn Stage> {
    let mut frames = vec![frame.to_vec(); ROUND];
    Box::new(move || {
        let bursts = frames.chunks_mut(burst);
        bursts.map(|burst| burst.iter_mut().map(|frame| usize::from(act(black_box(frame)))).sum::<usize>()).sum()
    })
}

fn parse_departures(burst: usize) -> Box<dyn Stage> {
    for_each(burst, &small(), |frame| {
        let slot = Slot { virtio: &[0; VIRTIO_HEADER], vlan: 7, from_wire: false, frame: Some(frame) };
        black_box(Departure::parse(Some(&slot), Entropy::Full)).is_ok()
    })
}

fn parse_arrivals(burst: usize) -> Box<dyn Stage> {
    let node = this(2, Underlay::V4);
    for_each(burst, &encapsulated(&small(), Underlay::V4), move |frame| {
        black_box(Arrival::parse(frame, black_box(&node))).is_ok()
    })
}

/// What node 1 has of node 2.
fn remote() -> Remote {
    match world::table(1, Underlay::V4).lookup_v4(u32::from_be_bytes(world::pod_v4(2))) {
        Some(NextHop::Remote(remote)) => remote.clone(),
        _ => unreachable!("node 1 has a route to node 2"),
    }
}

/// The ranges of another node.
fn ranges(node: u16) -> (Ipv4Net, Ipv6Net) {
    let [high, low] = node.to_be_bytes();
    let v4 = Ipv4Net::new([10, high, low, 0].into(), 24);
    let v6 = Ipv6Net::new([0xfd00, 0x244, node, 0, 0, 0, 0, 0].into(), 64);
    (v4.expect("a length"), v6.expect("a length"))
}

/// The table of a cluster, and an address of each family on each of [`ROUND`] of its nodes.
fn cluster() -> (Fib, Vec<u32>, Vec<u128>) {
    let hop = NextHop::Remote(remote());
    let nets = (0..NODES).map(ranges).flat_map(|(v4, v6)| [IpNet::V4(v4), IpNet::V6(v6)]);
    let fib = Fib::build(nets.map(|net| (net, hop.clone())));
    let far_apart = (0..NODES).step_by(usize::from(NODES) / ROUND).take(ROUND);
    let (v4, v6) = far_apart.map(ranges).map(|(v4, v6)| (v4.addr().to_bits() | 5, v6.addr().to_bits() | 5)).unzip();
    (fib, v4, v6)
}

fn look_up_v4(burst: usize) -> Box<dyn Stage> {
    let (fib, addresses, _) = cluster();
    look_up(burst, fib, addresses, Fib::lookup_v4_burst)
}

fn look_up_v6(burst: usize) -> Box<dyn Stage> {
    let (fib, _, addresses) = cluster();
    look_up(burst, fib, addresses, Fib::lookup_v6_burst)
}

fn look_up<A: 'static>(
    burst: usize,
    fib: Fib,
    addresses: Vec<A>,
    search: impl Fn(&Fib, &[A], &mut [u32]) + 'static,
) -> Box<dyn Stage> {
    let mut hops = [NONE; BURST];
    Box::new(move || {
        let bursts = addresses.chunks(burst);
        let found = bursts.map(|burst| {
            search(&fib, black_box(burst), &mut hops);
            hops[..burst.len()].iter().filter(|hop| black_box(fib.next_hop(**hop)).is_some()).count()
        });
        found.sum()
    })
}

fn copy(burst: usize) -> Box<dyn Stage> {
    let mut out = [0; 2048];
    let virtio = VirtioNetHdr::parse(&[0; VIRTIO_HEADER]).expect("asks for nothing");
    for_each(burst, &small(), move |frame| black_box(copy_plain(frame, black_box(&virtio), &mut out)).is_ok())
}

fn put_on(burst: usize) -> Box<dyn Stage> {
    let outer = remote().outer;
    let mut ip_id = 0;
    for_each(burst, &encapsulated(&small(), Underlay::V4), move |frame| {
        let packet = &frame[outer.len()..];
        let inner = Inner {
            ethertype: EtherType::IPV4,
            l3_len: packet.len(),
            ecn: Ecn::NotEct,
            source_port: 50_000,
            ip_id,
            sum: outer.needs_sum().then(|| inner_sum(packet)),
        };
        ip_id = ip_id.wrapping_add(1);
        outer.write(frame, &inner)
    })
}

/// Frames of packet memory for a round, all with the same packet.
fn frames(packet: &[u8]) -> Vec<Frame> {
    let (_region, mut pool) = Region::map(FRAMES).expect("memory");
    let filled = iter::from_fn(|| pool.take()).take(ROUND).map(|mut frame| {
        refill(&mut frame, packet);
        frame
    });
    filled.collect()
}

fn refill(frame: &mut Frame, packet: &[u8]) {
    frame.reset(HEADROOM);
    assert!(frame.set_len(packet.len()), "a chunk holds the packet");
    frame.copy_from_slice(packet);
}

struct TakeOff {
    burst: usize,
    packet: Vec<u8>,
    arrival: Arrival,
    pod: LocalPod,
    frames: Vec<Frame>,
}

fn take_off(burst: usize) -> Box<dyn Stage> {
    let packet = encapsulated(&small(), Underlay::V4);
    let (arrival, ..) = Arrival::parse(&packet, &this(2, Underlay::V4)).expect("for node 2");
    Box::new(TakeOff { burst, arrival, pod: pod(2), frames: frames(&packet), packet })
}

impl Stage for TakeOff {
    fn uses_up(&self) -> bool {
        true
    }

    fn prepare(&mut self) {
        for frame in &mut self.frames {
            refill(frame, &self.packet);
        }
    }

    fn run(&mut self) -> usize {
        let Self { burst, arrival, pod, frames, .. } = self;
        let deliver = |frame| usize::from(black_box(&*arrival).deliver(frame, black_box(pod)).is_ok());
        frames.chunks_mut(*burst).map(|burst| burst.iter_mut().map(deliver).sum::<usize>()).sum()
    }
}

fn checksum(burst: usize, len: usize) -> Box<dyn Stage> {
    for_each(burst, &vec![0xa5; len], |bytes| {
        black_box(Sum::of(bytes).checksum());
        true
    })
}

/// A burst is written and published at one end of a ring, and read and released at the other.
fn ring(burst: usize) -> Box<dyn Stage> {
    let Ring { mut producer, mut consumer, mapping } = Ring::new(SLOTS);
    Box::new(move || {
        let _mapped = &mapping;
        let mut through = 0;
        for _ in 0..ROUND / burst {
            for address in 0..burst as u64 {
                let desc = libc::xdp_desc { addr: black_box(address), len: 64, options: 0 };
                through += usize::from(producer.push(desc).is_ok());
            }
            producer.publish();
            for _ in 0..burst {
                through -= usize::from(black_box(consumer.pop().map(|desc| desc.addr)).is_none());
            }
            consumer.release();
        }
        through
    })
}

/// The same of frames, which the ledger holds while they are in the ring: what a socket does to send a burst, and to
/// take its frames back.
fn ring_and_ledger(burst: usize) -> Box<dyn Stage> {
    let Ring { mut producer, mut consumer, mapping } = Ring::new(SLOTS);
    let (region, mut pool) = Region::map(FRAMES).expect("memory");
    let mut ledger = Ledger::new(region);
    Box::new(move || {
        let _mapped = &mapping;
        let mut through = 0;
        for _ in 0..ROUND / burst {
            for _ in 0..burst {
                let Some(frame) = pool.take() else { break };
                let desc = libc::xdp_desc { addr: frame.address(), len: 64, options: 0 };
                ledger.lend_send(frame);
                through += usize::from(producer.push(desc).is_ok());
            }
            producer.publish();
            while let Some(desc) = consumer.pop() {
                match ledger.take_sent(desc.addr) {
                    Some(frame) => pool.put(frame),
                    None => through -= 1,
                }
            }
            consumer.release();
        }
        through
    })
}

/// From a pod's ring to the wire: a pass of the worker for each burst.
fn encap(burst: usize) -> Box<dyn Stage> {
    let mut sender = worker(1, Underlay::V4);
    sender.wire.sent = None;
    for _ in 0..burst {
        from_pod(&mut sender, &small());
    }
    Box::new(move || {
        let passes = (0..ROUND / burst).map(|_| {
            sender.pods.rewind();
            sender.poll_once()
        });
        passes.sum()
    })
}

struct Decap {
    burst: usize,
    packet: Vec<u8>,
    receiver: MemoryWorker,
}

/// From the wire to a pod: a pass of the worker for each burst.
fn decap(burst: usize) -> Box<dyn Stage> {
    let mut receiver = worker(2, Underlay::V4);
    receiver.pods.delivered = None;
    receiver.wire.most = burst;
    Box::new(Decap { burst, packet: encapsulated(&small(), Underlay::V4), receiver })
}

impl Stage for Decap {
    fn uses_up(&self) -> bool {
        true
    }

    fn prepare(&mut self) {
        for _ in 0..ROUND {
            assert!(self.receiver.wire.offer(&self.packet, &mut self.receiver.pool), "the pool has a frame");
        }
    }

    fn run(&mut self) -> usize {
        (0..ROUND / self.burst).map(|_| self.receiver.poll_once()).sum()
    }
}
