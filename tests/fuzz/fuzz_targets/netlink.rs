//! Messages of the kernel's packet filter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::control::fuzz;

fuzz_target!(|input: &[u8]| fuzz::netlink(input));
