//! A worker's place on its core: a worker that waits for its core is taken for hung, and its ring fills meanwhile.
//!
//! Invariants:
//! 1. The kernel reads or writes as many bytes of the attributes as it is told that they are, during the call only.

#![allow(unsafe_code, reason = "sched_setattr(2) has no face in std, libc or rustix")]

use std::{mem, ptr};

use core_affinity::CoreId;
use libc::sched_attr;

/// The worker's nice value. About three times a thread's usual share. Much further down a worker that spins can starve
/// what the kernel defers to ksoftirqd on its core, and with it its own frames.
const NICE: i32 = -5;

/// How long a worker runs at a time where others want its core. With a shorter slice than theirs it takes the core from
/// them as soon as it wakes, unless it has had more than its share (`PREEMPT_SHORT` in `kernel/sched/features.h`, Linux
/// 6.12), and not when theirs is used up, milliseconds later. It gets no more of the core by it. The least that the
/// kernel takes. Of 200,000 packets beside a busy control thread 0 to 53 were lost with it, and 2 to 432 without
/// (`scripts/bench kubernetes`, five pairs of runs in turn).
const SLICE_NS: u64 = 100_000;

const SIZE: u32 = 48;
const _: () = assert!(SIZE as usize == mem::size_of::<sched_attr>());

/// Pins the calling thread and puts it before others on its core; without the privilege it gets the slice alone. Where
/// whoever started it has chosen another policy than the usual one, that stays. Returns whether it is pinned.
pub fn settle_on(core: CoreId) -> bool {
    let own = get().filter(|own| own.sched_policy == libc::SCHED_OTHER.cast_unsigned());
    if let Some(own) = own {
        let short = sched_attr { sched_runtime: SLICE_NS, ..own };
        let first = sched_attr { sched_nice: own.sched_nice.min(NICE), ..short };
        let _unprivileged = set(&first) || set(&short);
    }
    core_affinity::set_for_current(core)
}

/// How the calling thread is scheduled.
fn get() -> Option<sched_attr> {
    let mut attributes = sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: invariant 1.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    (got == 0).then_some(attributes)
}

/// Schedules the calling thread by `attributes`; says whether the kernel does. Before Linux 6.12 it ignores the slice.
fn set(attributes: &sched_attr) -> bool {
    // SAFETY: invariant 1.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(attributes), 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_is_pinned_and_gets_the_slice_where_the_kernel_knows_of_it() {
        let core = core_affinity::get_core_ids().unwrap()[0];
        let settle = move || {
            let before = get().unwrap();
            assert!(settle_on(core));
            (before, get().unwrap())
        };
        let (before, after) = thread::spawn(settle).join().unwrap();
        // Since Linux 6.12 it tells of the slice.
        let slice = if before.sched_runtime > 0 { SLICE_NS } else { 0 };
        assert_eq!(after.sched_runtime, slice);
        assert!(after.sched_nice == NICE || after.sched_nice == before.sched_nice, "{after:?}");
    }
}
