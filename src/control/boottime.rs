//! The time since the machine was booted: what nobody can set, and what goes on while the machine sleeps.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME` in milliseconds (clock_gettime(2)).
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel since 2.6.39 has this clock");
    u64::try_from(now.tv_sec()).unwrap_or_default() * 1000
        + u64::try_from(now.tv_nsec()).unwrap_or_default() / 1_000_000
}
