//! Lines of the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::control::fuzz;

fuzz_target!(|input: &[u8]| fuzz::request(input));
