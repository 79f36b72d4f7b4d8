//! What a packet costs between the rings: encapsulation and decapsulation of 64-byte packets over memory ports, in
//! bursts of several sizes; cutting a super-packet of 64 KiB and merging its segments again; and what moving a packet
//! through the memory ports alone costs, which is in those figures.

#[path = "../tests/pipeline/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod world;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podwire::pipeline::BURST;
use podwire::pipeline::decap::Arrival;

use world::{MemoryWorker, Underlay, encapsulated, from_pod, sent, tcp_v4, this, udp_v4, with_request, worker};

/// A UDP packet that makes a frame of 64 bytes, check sequence included.
fn small() -> Vec<u8> {
    udp_v4(&[7; 18], 64)
}

/// Packets of one measurement; a multiple of every burst size.
const ROUND: usize = 128;

const BURSTS: [usize; 4] = [1, 32, 64, BURST];

fn encap(c: &mut Criterion) {
    let mut group = c.benchmark_group("encap 64 B");
    for burst in BURSTS {
        let mut sender = worker(1, Underlay::V4);
        sender.wire.sent = None;
        for _ in 0..burst {
            from_pod(&mut sender, &small());
        }
        group.throughput(Throughput::Elements(burst as u64));
        group.bench_function(BenchmarkId::from_parameter(burst), |b| {
            b.iter(|| {
                sender.pods.rewind();
                sender.poll_once()
            });
        });
    }
}

fn decap(c: &mut Criterion) {
    let frame = encapsulated(&small(), Underlay::V4);
    let mut group = c.benchmark_group("decap 64 B");
    for burst in BURSTS {
        let mut receiver = worker(2, Underlay::V4);
        receiver.pods.delivered = None;
        receiver.wire.most = burst;
        group.throughput(Throughput::Elements(ROUND as u64));
        group.bench_function(BenchmarkId::from_parameter(burst), |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| decap_round(&mut receiver, &frame)).sum());
        });
    }
}

/// A super-packet of 44 segments, and those segments on the wire.
fn bulk(c: &mut Criterion) {
    let frame = tcp_v4(&vec![7; 44 * 1400]);
    let mut sender = worker(1, Underlay::V4);
    let [low, high] = 1400u16.to_le_bytes();
    with_request(&mut sender, &frame, [1, 1, 54, 0, low, high, 34, 0, 16, 0]);
    sender.poll_once();
    let segments = sent(&mut sender);
    let mut group = c.benchmark_group("bulk TCP, a segment");
    group.throughput(Throughput::Elements(segments.len() as u64));
    sender.wire.sent = None;
    group.bench_function("cut", |b| {
        b.iter(|| {
            sender.pods.rewind();
            sender.poll_once()
        });
    });
    let mut receiver = worker(2, Underlay::V4);
    receiver.pods.delivered = None;
    group
        .bench_function("merge", |b| b.iter_custom(|rounds| (0..rounds).map(|_| pass(&mut receiver, &segments)).sum()));
}

/// The time that a pass over these frames takes, but for putting them on the wire.
fn pass(receiver: &mut MemoryWorker, frames: &[Vec<u8>]) -> Duration {
    for frame in frames {
        assert!(receiver.wire.offer(frame, &mut receiver.pool));
    }
    let start = Instant::now();
    receiver.poll_once();
    start.elapsed()
}

/// The time that [`ROUND`] frames take, but for putting them on the wire.
fn decap_round(receiver: &mut MemoryWorker, frame: &[u8]) -> Duration {
    for _ in 0..ROUND {
        assert!(receiver.wire.offer(frame, &mut receiver.pool));
    }
    let start = Instant::now();
    while receiver.poll_once() > 0 {}
    start.elapsed()
}

fn stages(c: &mut Criterion) {
    let frame = encapsulated(&small(), Underlay::V4);
    let node = this(2, Underlay::V4);
    let mut group = c.benchmark_group("stage");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse a frame from the wire", |b| b.iter(|| Arrival::parse(black_box(&frame), &node)));
    let mut idle = worker(1, Underlay::V4);
    group.bench_function("a pass that finds nothing", |b| b.iter(|| idle.poll_once()));
}

criterion_group!(benches, encap, decap, bulk, stages);
criterion_main!(benches);
