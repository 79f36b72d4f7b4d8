//! Tunnel packets from the uplink, as the probes look at them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::control::fuzz;

fuzz_target!(|input: &[u8]| fuzz::witness(input));
