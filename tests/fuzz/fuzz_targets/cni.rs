//! The input of the CNI plugin: five variables of the environment and the network configuration, with a zero byte
//! between them; a variable that is empty is not set. Whatever they are, there is a call or a well-formed error object.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use libfuzzer_sys::fuzz_target;
use podwire::cni::{Call, Variables, Version};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(6, |byte| *byte == 0);
    let mut variable = || parts.next().filter(|part| !part.is_empty()).map(|part| OsString::from_vec(part.to_vec()));
    let variables = Variables {
        command: variable(),
        container_id: variable(),
        netns: variable(),
        ifname: variable(),
        args: variable(),
    };
    let config = parts.next().unwrap_or_default();
    if let Err(failure) = Call::parse(&variables, config) {
        for version in Version::ALL {
            let object = failure.to_json(version).expect("an error object");
            let object: serde_json::Value = serde_json::from_str(&object).expect("JSON");
            assert!(object["code"].as_u64().is_some_and(|code| code > 0), "{object}");
            assert!(object["msg"].as_str().is_some_and(|message| !message.is_empty()), "{object}");
        }
    }
});
