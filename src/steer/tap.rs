//! What the programs tell of frames to whoever traces: the reader's side of `bpf/trace.h`.

use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::{RingBuffer, RingBufferBuilder};

use super::maps::Map;
use super::{Program, SteerError, Verdict};
use crate::ids::IfIndex;
use crate::shared::TraceOrder;

/// How long the programs go on telling a reader that has not said for that long that it is there.
const PATIENCE_NS: u64 = 2_000_000_000;

/// A set of what programs decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts([u64; Program::ALL.len()]);

const _: () = assert!(Verdict::ALL.len() <= 64, "a bit for each verdict");

impl Verdicts {
    /// What is true of `holds`.
    pub fn such_as(holds: impl Fn(Program, Verdict) -> bool) -> Self {
        let mut set = Self::default();
        for (&program, word) in Program::ALL.iter().zip(&mut set.0) {
            let held = Verdict::ALL.iter().filter(|&&verdict| holds(program, verdict));
            *word = held.fold(0, |word, &verdict| word | 1 << verdict as u32);
        }
        set
    }
}

/// A frame as a program saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Where it came in.
    pub device: IfIndex,
    pub program: Program,
    pub verdict: Verdict,
    /// Bytes of the whole frame.
    pub length: usize,
    /// The first of them.
    pub bytes: Vec<u8>,
}

/// The reader of what the programs tell. They stop telling when it is dropped, or soon after its process has ended.
#[derive(Debug)]
pub struct ProgramTap {
    order: TraceOrder,
    wanted: Verdicts,
    ring: RingBuffer<'static>,
    /// Filled by `ring` while it is read.
    told: Arc<Mutex<Vec<Sighting>>>,
    /// Frames that had been lost before this reader came.
    lost_before: u64,
}

impl ProgramTap {
    /// Reads the ring from where it is now. The programs begin to tell at the first [`ProgramTap::renew`].
    pub(super) fn open(order: TraceOrder, ring: &Map, wanted: Verdicts) -> Result<Self, SteerError> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let ring = ring.reader(move |record| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend(sighting(record));
        })?;
        let tap = Self { lost_before: order.lost(), order, wanted, ring, told };
        while !tap.take(usize::MAX).is_empty() {}
        Ok(tap)
    }

    /// Says that the reader is there at `now_ns`. Due several times a second.
    pub fn renew(&self, now_ns: u64) {
        self.order.want(self.wanted.0, now_ns.saturating_add(PATIENCE_NS));
    }

    /// The oldest sightings, `most` of them at most. What the ring, of about 3,600, does not hold is lost.
    pub fn take(&self, most: usize) -> Vec<Sighting> {
        self.ring.consume_raw_n(most);
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many wanted frames found no room in the ring.
    pub fn lost(&self) -> u64 {
        self.order.lost().wrapping_sub(self.lost_before)
    }
}

impl Drop for ProgramTap {
    fn drop(&mut self) {
        self.order.want(Verdicts::default().0, 0);
    }
}

impl Map {
    /// Has `each` be called with the records of a ring buffer, as it is read.
    fn reader(&self, mut each: impl FnMut(&[u8]) + 'static) -> Result<RingBuffer<'static>, SteerError> {
        let mut builder = RingBufferBuilder::new();
        let added = builder.add(self.handle(), move |record| {
            each(record);
            0
        });
        let added = added.map(drop);
        added.and_then(|()| builder.build()).map_err(|error| self.error("read", &"records", &error))
    }
}

/// `struct trace_record`.
fn sighting(record: &[u8]) -> Option<Sighting> {
    let (time_ns, rest) = record.split_first_chunk()?;
    let (device, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (kept, rest) = rest.split_first_chunk()?;
    let (program, rest) = rest.split_first_chunk()?;
    let (verdict, bytes) = rest.split_first_chunk()?;
    Some(Sighting {
        time_ns: u64::from_ne_bytes(*time_ns),
        device: IfIndex(u32::from_ne_bytes(*device)),
        program: *Program::ALL.get(usize::from(u16::from_ne_bytes(*program)))?,
        verdict: *Verdict::ALL.get(usize::from(u16::from_ne_bytes(*verdict)))?,
        length: usize::try_from(u32::from_ne_bytes(*length)).ok()?,
        bytes: bytes.get(..usize::try_from(u32::from_ne_bytes(*kept)).ok()?)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::btf;

    #[test]
    fn records_are_read_where_the_programs_write_them() {
        let (size, offsets) = btf::layout("trace_record");
        let mut record = vec![0; size];
        let members: [(&str, &[u8]); 7] = [
            ("time_ns", &7_u64.to_ne_bytes()),
            ("ifindex", &0x0102_0304_u32.to_ne_bytes()),
            ("length", &1400_u32.to_ne_bytes()),
            ("kept", &3_u32.to_ne_bytes()),
            ("program", &(Program::Pod as u16).to_ne_bytes()),
            ("verdict", &(Verdict::Ttl as u16).to_ne_bytes()),
            ("bytes", &[9, 8, 7, 6]),
        ];
        for (member, value) in members {
            record[offsets[member]..][..value.len()].copy_from_slice(value);
        }
        let expected = Sighting {
            time_ns: 7,
            device: IfIndex(0x0102_0304),
            program: Program::Pod,
            verdict: Verdict::Ttl,
            length: 1400,
            bytes: vec![9, 8, 7],
        };
        assert_eq!(sighting(&record), Some(expected));
        assert_eq!(sighting(&record[..20]), None);
        record[offsets["kept"]..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(sighting(&record), None, "more than there is");
    }

    #[test]
    fn an_order_lies_where_the_programs_read_it() {
        let (size, words) = btf::layout("trace");
        assert_eq!((size, words["wanted"], words["until_ns"], words["lost"]), (128, 0, 24, 64));
        let [nic, pod, _] = Verdicts::such_as(|program, verdict| {
            (program, verdict) == (Program::Nic, Verdict::Claimed) || verdict == Verdict::ForeignTc
        })
        .0;
        assert_eq!((nic, pod), (1 | 1 << Verdict::ForeignTc as u32, 1 << Verdict::ForeignTc as u32));
    }
}
