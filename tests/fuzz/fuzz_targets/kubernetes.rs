//! The API server: `net-conf.json`, Node objects, and the file that keeps them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::control::fuzz;

fuzz_target!(|input: &[u8]| fuzz::kubernetes(input));
