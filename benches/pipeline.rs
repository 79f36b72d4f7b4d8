//! What super-packets cost between the rings, over memory ports: cutting one of 64 KiB, and merging its segments again;
//! and a pass that finds nothing. Single packets are in `stages`.

#[path = "../tests/pipeline/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod world;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use world::{MemoryWorker, Underlay, sent, tcp_v4, with_request, worker};

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

/// What a worker does while there is no traffic.
fn idle(c: &mut Criterion) {
    let mut worker = worker(1, Underlay::V4);
    c.bench_function("a pass that finds nothing", |b| b.iter(|| worker.poll_once()));
}

criterion_group!(benches, bulk, idle);
criterion_main!(benches);
