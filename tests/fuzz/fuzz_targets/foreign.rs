//! Files of other plugins: host-local's addresses, Flannel's `subnet.env`, what libcni remembers, network configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::cni::calls_podwire;
use podwire::control::fuzz;

fuzz_target!(|text: &str| {
    fuzz::foreign(text);
    if calls_podwire(text.as_bytes()) {
        let again: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert!(calls_podwire(again.to_string().as_bytes()), "{text}");
    }
});
