use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Fate, Filter, Flow, Hop, Point, Sampler, Trace};
use crate::counters::DropReason;
use crate::fib::{LocalPod, Remote};
use crate::ids::IfIndex;

/// The most bytes of a frame that are kept: all headers, outer and inner, and some of what they carry.
pub const SNAP: usize = 256;

/// Records that may wait for the reader: some milliseconds of a busy worker's packets, in 1.3 MB.
const RECORDS: usize = 4096;

/// A packet as a worker saw it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When its burst was taken, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    pub point: Point,
    pub fate: Fate,
    /// Bytes of the whole frame.
    pub length: usize,
    kept: usize,
    bytes: [u8; SNAP],
}

impl Record {
    fn new(time_ns: u64, point: Point, fate: Fate, frame: &[u8], snap: usize) -> Self {
        let kept = frame.len().min(snap).min(SNAP);
        let mut bytes = [0; SNAP];
        if let (Some(to), Some(from)) = (bytes.get_mut(..kept), frame.get(..kept)) {
            to.copy_from_slice(from);
        }
        Self { time_ns, point, fate, length: frame.len(), kept, bytes }
    }

    /// The frame's first bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.kept).unwrap_or_default()
    }
}

/// A queue of records from one worker to one reader, lock-free, with what decides on them.
#[derive(Debug)]
pub struct Feed {
    filter: Filter,
    /// Of so many packets that the filter lets through, one is taken.
    sample: u32,
    /// Bytes of each frame that are kept.
    snap: usize,
    records: ArrayQueue<Record>,
    lost: AtomicU64,
}

impl Feed {
    pub fn new(filter: Filter, sample: u32, snap: usize) -> Self {
        Self { filter, sample, snap, records: ArrayQueue::new(RECORDS), lost: AtomicU64::new(0) }
    }

    /// The oldest record.
    pub fn take(&self) -> Option<Record> {
        self.records.pop()
    }

    /// How many records found no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A worker's end of a feed.
#[derive(Debug)]
pub struct Tap {
    feed: Arc<Feed>,
    now_ns: u64,
    sampler: Sampler,
}

impl Tap {
    pub fn new(feed: Arc<Feed>) -> Self {
        Self { sampler: Sampler::new(feed.sample), feed, now_ns: 0 }
    }

    /// Says when what follows is seen, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn stamp(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    fn saw(&mut self, point: Point, frame: &[u8], fate: Fate) {
        let Feed { filter, snap, records, lost, .. } = &*self.feed;
        let flow = || Flow::read(frame, filter.vxlan_port);
        if !filter.fates.contains(fate) || !filter.matches(point.direction(), IfIndex::NONE, flow().as_ref()) {
            return;
        }
        if self.sampler.takes() && records.push(Record::new(self.now_ns, point, fate, frame, *snap)).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Trace for Tap {
    fn pod_rx(&mut self, frame: &[u8], fate: Result<&Remote, DropReason>) {
        self.saw(Point::PodRx, frame, to_node(fate));
    }

    fn wire_tx(&mut self, frame: &[u8], remote: &Remote) {
        self.saw(Point::WireTx, frame, to_node(Ok(remote)));
    }

    fn wire_rx(&mut self, frame: &[u8], fate: Result<&LocalPod, DropReason>) {
        self.saw(Point::WireRx, frame, to_pod(fate));
    }

    fn pod_tx(&mut self, frame: &[u8], fate: Result<&LocalPod, DropReason>) {
        self.saw(Point::PodTx, frame, to_pod(fate));
    }
}

fn to_node(fate: Result<&Remote, DropReason>) -> Fate {
    fate.map_or_else(Fate::Dropped, |remote| Fate::Forwarded(Hop::Vtep(remote.outer.remote())))
}

fn to_pod(fate: Result<&LocalPod, DropReason>) -> Fate {
    fate.map_or_else(Fate::Dropped, |pod| Fate::Forwarded(Hop::Pod(pod.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Fates;

    fn feed(sample: u32, snap: usize) -> Arc<Feed> {
        let filter = Filter {
            vxlan_port: 8472,
            fates: Fates::all_dropped(),
            direction: None,
            parties: Vec::new(),
            port: None,
            protocols: &[],
        };
        Arc::new(Feed::new(filter, sample, snap))
    }

    #[test]
    fn a_record_keeps_the_first_bytes_and_tells_of_all() {
        let feed = feed(1, 4);
        let mut tap = Tap::new(Arc::clone(&feed));
        tap.stamp(7);
        for length in [2, 4, 5, 5000] {
            let frame: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            tap.wire_rx(&frame, Err(DropReason::WireTruncated));
            let record = feed.take().unwrap();
            assert_eq!((record.time_ns, record.length, record.bytes()), (7, length, &frame[..length.min(4)]));
            assert_eq!((record.point, record.fate), (Point::WireRx, Fate::Dropped(DropReason::WireTruncated)));
        }
        let huge = Record::new(0, Point::PodTx, Fate::Dropped(DropReason::NoPod), &[9; 5000], usize::MAX);
        assert_eq!(huge.bytes(), [9; SNAP]);
    }

    #[test]
    fn one_of_so_many_is_taken() {
        let feed = feed(3, SNAP);
        let mut tap = Tap::new(Arc::clone(&feed));
        (0..10u8).for_each(|n| tap.pod_tx(&[n], Err(DropReason::PodRefused)));
        let taken: Vec<_> = std::iter::from_fn(|| feed.take()).map(|record| record.bytes()[0]).collect();
        assert_eq!((taken, feed.lost()), (vec![0, 3, 6, 9], 0));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let feed = feed(1, SNAP);
        let mut tap = Tap::new(Arc::clone(&feed));
        (0..RECORDS + 5).for_each(|_| tap.pod_rx(&[1], Err(DropReason::NoRoute)));
        assert_eq!(feed.lost(), 5);
        assert_eq!(std::iter::from_fn(|| feed.take()).count(), RECORDS);
        tap.pod_rx(&[2], Err(DropReason::NoRoute));
        assert_eq!(feed.take().unwrap().bytes(), [2]);
    }
}
