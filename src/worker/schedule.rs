//! A worker's place on its core: a worker that waits for its core is taken for hung, and its ring fills meanwhile.

#![allow(unsafe_code, reason = "sched_setattr(2) has no face in std, libc or rustix")]

use std::mem;

use core_affinity::CoreId;

/// The worker's nice value. About three times a thread's usual share. Much further down a worker that spins can starve
/// what the kernel defers to ksoftirqd on its core, and with it its own frames.
const NICE: i32 = -5;

/// How long a worker runs at a time where others want its core: with a shorter slice than theirs it takes the core from
/// them as soon as it wakes (`wakeup_preempt_fair` in `kernel/sched/fair.c`, Linux 6.12), instead of when theirs is
/// used up, which takes milliseconds. It gets no more of the core by it. The least that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// Pins the calling thread and puts it before others on its core. Without the privilege it runs as any thread. Returns
/// whether it is pinned.
pub fn settle_on(core: CoreId) -> bool {
    let _unprivileged = put_first(NICE) || put_first(0);
    core_affinity::set_for_current(core)
}

/// Gives the calling thread a nice value and the slice; says whether the kernel has.
fn put_first(nice: i32) -> bool {
    // SAFETY: all-zero bytes are valid attributes.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    attributes.size = u32::try_from(mem::size_of::<libc::sched_attr>()).unwrap_or(0);
    attributes.sched_policy = libc::SCHED_OTHER.cast_unsigned();
    attributes.sched_nice = nice;
    // Before Linux 6.12 it is not looked at.
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads as many bytes of the attributes as they say that they are.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}
