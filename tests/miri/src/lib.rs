//! The layers of podwire that hold `unsafe` and need no kernel, with their own tests, for Miri:
//!
//! ```text
//! PROPTEST_CASES=4 MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --manifest-path tests/miri/Cargo.toml \
//!     --target-dir target/miri --lib -- dir24::tests::the frame:: ledger:: publish:: ring:: shared:: tests::packets trace::
//! ```
//!
//! Miri ends at the first system call that it does not know: tests of other modules make one, or take hours.
#![allow(dead_code, unused_imports, reason = "what uses them stands in layers above")]

// The tests of the pipeline call the crate by its name.
extern crate self as podwire;

#[path = "../../../src/confine/mod.rs"]
pub mod confine;
#[path = "../../../src/counters.rs"]
pub mod counters;
#[path = "../../../src/fib/mod.rs"]
pub mod fib;
#[path = "../../../src/frame/mod.rs"]
pub mod frame;
#[path = "../../../src/ids.rs"]
pub mod ids;
#[path = "../../../src/offload/mod.rs"]
pub mod offload;
#[path = "../../../src/packet/mod.rs"]
pub mod packet;
#[path = "../../../src/pipeline/mod.rs"]
pub mod pipeline;
#[path = "../../../src/port/mod.rs"]
pub mod port;
#[path = "../../../src/shared/mod.rs"]
pub mod shared;
#[path = "../../../src/trace/mod.rs"]
pub mod trace;
#[path = "../../../src/wire/mod.rs"]
pub mod wire;
#[path = "../../../src/worker/mod.rs"]
pub mod worker;
#[path = "../../../src/xsk/mod.rs"]
pub mod xsk;

#[cfg(test)]
#[path = "../../pipeline/world.rs"]
mod world;

#[cfg(test)]
mod tests {
    use crate::world::*;

    /// Super-packets are cut and merged on their way.
    #[test]
    fn packets_go_from_pod_to_pod_over_memory_ports() {
        let (mut sender, mut receiver) = (worker(1, Underlay::V4), worker(2, Underlay::V4));
        from_pod(&mut sender, &udp_v4(b"one", 64));
        let request = [1, 1, 0, 0, 8, 0, 34, 0, 16, 0];
        with_request(&mut sender, &tcp_v4(&[7; 24]), request);
        sender.poll_once();
        assert_conserved(&sender);
        let frames = sent(&mut sender);
        assert_eq!(frames.len(), 4);
        for frame in frames {
            assert!(receiver.wire.offer(&frame, &mut receiver.pool));
        }
        receiver.poll_once();
        assert_conserved(&receiver);
        let delivered = delivered(&mut receiver);
        assert_eq!(delivered.len(), 2);
        assert!(delivered[0].ends_with(b"one") && delivered[1].ends_with(&[7; 24]));
    }
}
