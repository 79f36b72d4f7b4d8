//! What is refused before the daemon is asked, with which code.

use serde_json::{Value, json};

use crate::plugin::Call;

/// A call that is in order, but for a daemon.
fn call(command: &str, members: &Value) -> Call {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "podwire", "runtimeDir": "/nonexistent",
        "prevResult": {}, "cni.dev/valid-attachments": [] });
    for (key, value) in members.as_object().expect("an object") {
        config[key] = value.clone();
    }
    Call::new(command, "c1", "/run/netns/c1".as_ref(), &config)
}

const ATTACHING: [&str; 2] = ["ADD", "CHECK"];
const ABOUT_A_CONTAINER: [&str; 3] = ["ADD", "CHECK", "DEL"];
const ALL: [&str; 5] = ["ADD", "CHECK", "DEL", "STATUS", "GC"];

#[test]
fn calls_in_order_fail_for_want_of_a_daemon_only() {
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("STATUS", 50), ("GC", 11)] {
        call(command, &json!({})).run_here().fails(code, "no daemon answers at /nonexistent/control.sock");
    }
}

#[test]
fn variables_that_are_missing_or_malformed_are_named() {
    let long = "x".repeat(300);
    for (commands, variable, values) in [
        (&ABOUT_A_CONTAINER[..], "CNI_CONTAINERID", &["", "-a", "../../x", "a/b", "a b", "a:b", "a\nb", &long][..]),
        (&ABOUT_A_CONTAINER, "CNI_IFNAME", &["", ".", "..", "a/b", "a:b", "a b", "eth%d", "0123456789abcdef"]),
        (&ATTACHING, "CNI_NETNS", &["", "netns", "./netns", &long]),
        (&ATTACHING[..1], "CNI_ARGS", &["x", ";", "IP=1;IP=2", "IP=x", "FOO=1", "IgnoreUnknown=x", "=1"]),
    ] {
        for command in commands {
            for value in values {
                call(command, &json!({})).set(variable, value).run_here().fails(4, variable);
            }
            if variable != "CNI_ARGS" {
                call(command, &json!({})).unset(variable).run_here().fails(4, variable);
            }
        }
    }
    for command in ["", "add", "FLY", "ADD "] {
        call(command, &json!({})).run_here().fails(4, "CNI_COMMAND");
    }
}

#[test]
fn configurations_that_are_malformed_are_refused_whatever_the_verb() {
    let cases: [(Value, u64, &str); 10] = [
        (json!({ "cniVersion": null }), 1, "0.1.0"),
        (json!({ "cniVersion": "0.2.0" }), 1, "0.2.0"),
        (json!({ "cniVersion": "2.0.0" }), 1, "2.0.0"),
        (json!({ "cniVersion": 1 }), 7, "integer"),
        (json!({ "name": null }), 7, "null"),
        (json!({ "name": "" }), 7, "`name`"),
        (json!({ "name": "a/b" }), 7, "`name`"),
        (json!({ "name": "x".repeat(1000) }), 7, "`name`"),
        (json!({ "type": 1 }), 7, "integer"),
        (json!({ "runtimeDir": "relative" }), 7, "`runtimeDir`"),
    ];
    for command in ALL {
        for (members, code, words) in &cases {
            call(command, members).run_here().fails(*code, words);
        }
        for text in ["", "{", "null", "[]", "\u{feff}{}", "{} {}"] {
            let (code, _) = call_with_text(command, text).run_here().error();
            assert!([1, 6, 7].contains(&code), "{command} {text}: {code}");
        }
        call_with_text(command, &"[".repeat(100_000)).run_here().fails(7, "a list");
        call_with_text(command, &" ".repeat((1 << 20) + 1)).run_here().fails(7, "longer than 1048576 bytes");
        call_with_text(command, &" ".repeat(64 << 20)).run_here().fails(7, "longer than 1048576 bytes");
    }
}

fn call_with_text(command: &str, text: &str) -> Call {
    let call = Call::bare(command, text).set("CNI_CONTAINERID", "c1");
    call.set("CNI_NETNS", "/run/netns/c1").set("CNI_IFNAME", "eth0")
}

#[test]
fn what_a_verb_needs_of_the_configuration_is_checked() {
    let cases: [(&str, Value, u64, &str); 12] = [
        ("ADD", json!({ "ipam": { "type": "host-local" } }), 2, "host-local"),
        ("ADD", json!({ "ipMasq": true }), 2, "ipMasq"),
        ("ADD", json!({ "dns": { "nameservers": [1] } }), 7, "integer"),
        ("ADD", json!({ "runtimeConfig": { "ips": ["x"] } }), 7, "`runtimeConfig.ips`"),
        ("ADD", json!({ "runtimeConfig": { "mac": "x" } }), 7, "`runtimeConfig.mac`"),
        ("ADD", json!({ "args": { "cni": { "ips": [1] } } }), 7, "integer"),
        ("ADD", json!({ "prevResult": { "interfaces": [{}] } }), 7, "`name`"),
        ("ADD", json!({ "prevResult": { "ips": [{ "address": "x" }] } }), 7, "invalid"),
        ("CHECK", json!({ "prevResult": null }), 7, "`prevResult` is missing"),
        ("CHECK", json!({ "prevResult": "x" }), 7, "not valid"),
        ("GC", json!({ "cni.dev/valid-attachments": 7 }), 7, "not valid"),
        ("GC", json!({ "cni.dev/valid-attachments": [{ "containerID": "a/b", "ifname": "eth0" }] }), 7, "a/b"),
    ];
    for (command, members, code, words) in cases {
        call(command, &members).run_here().fails(code, words);
    }
    for (command, version) in [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0")] {
        call(command, &json!({ "cniVersion": version })).run_here().fails(1, command);
    }
}
