//! Noise as input: the answer is always a result or a well-formed error object, never a panic.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use proptest::prelude::*;
use serde_json::json;

use crate::plugin::Call;

/// A configuration that is nearly in order: some of its bytes are others.
fn damaged_config() -> impl Strategy<Value = Vec<u8>> {
    let config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "podwire", "runtimeDir": "/nonexistent",
        "dns": { "nameservers": ["10.0.0.1"] }, "runtimeConfig": { "ips": ["10.244.1.7"], "mac": "02:00:00:00:00:01" },
        "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }],
        "prevResult": { "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [{ "address": "10.0.0.1/24" }] } })
    .to_string()
    .into_bytes();
    prop::collection::vec((0..config.len(), any::<u8>()), 0..4).prop_map(move |changes| {
        let mut config = config.clone();
        for (at, byte) in changes {
            config[at] = byte;
        }
        config
    })
}

fn config() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => damaged_config(), 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// Any bytes that can stand in an environment, or something usable.
fn variable(usable: &'static str) -> impl Strategy<Value = Option<OsString>> {
    let noise = prop::collection::vec(1..=u8::MAX, 0..40).prop_map(|bytes| Some(OsString::from_vec(bytes)));
    prop_oneof![2 => Just(Some(usable.into())), 1 => noise, 1 => Just(None)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn noise_is_answered_in_the_form_of_the_specification(
        command in prop::sample::select(vec!["ADD", "DEL", "CHECK", "VERSION", "STATUS", "GC", "x"]),
        config in config(),
        container in variable("c1"),
        netns in variable("/run/netns/c1"),
        ifname in variable("eth0"),
        args in variable("IgnoreUnknown=1;IP=10.244.1.7"),
    ) {
        let variables = [("CNI_CONTAINERID", container), ("CNI_NETNS", netns), ("CNI_IFNAME", ifname), ("CNI_ARGS", args)];
        let mut call = Call::bare(command, config);
        for (name, value) in variables {
            if let Some(value) = value {
                call = call.set(name, value);
            }
        }
        let outcome = call.run_here();
        match (command, outcome.code) {
            ("VERSION", _) => prop_assert!(outcome.result()["supportedVersions"].is_array()),
            ("DEL", Some(0)) => outcome.is_silent_success(),
            _ => prop_assert!(outcome.error().0 > 0),
        }
    }
}
