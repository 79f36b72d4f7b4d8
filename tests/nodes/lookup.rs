//! `podwire routes --lookup` says what then happens.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::cluster;
use super::harness::{Options, Wire, pings};

in_both_modes! {
    each_kind_of_address_is_told_from_the_others,
}

fn each_kind_of_address_is_told_from_the_others(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (a, b) = (&cluster.a, &cluster.b);
    let (path, device) = if options.is_kernel() { ("kernel", "podwire.1") } else { ("fast", "eth0") };
    let (own, local, remote) = (&a.pods[0], &a.pods[1], &b.pods[0]);
    let (local_v4, remote_v4, remote_v6) = (local.v4.to_string(), remote.v4.to_string(), remote.v6.to_string());
    // What it is, the prefix that decides, whose it is, the device towards it, the path.
    let cases: [(&str, &str, Value, Value, Value, Value); 10] = [
        (&local_v4, "pod", json!(format!("{local_v4}/32")), json!("a2"), Value::Null, json!(path)),
        (&remote_v4, "peer", json!("10.244.2.0/24"), json!("node-b"), json!(device), json!(path)),
        (&remote_v6, "peer", json!("fd00:244:2::/64"), json!("node-b"), json!(device), json!(path)),
        ("192.168.1.3", "peer", json!("192.168.1.3/32"), json!("node-b"), json!(device), json!(path)),
        ("192.168.1.2", "node", Value::Null, Value::Null, Value::Null, json!("kernel")),
        ("10.244.1.0", "node", Value::Null, Value::Null, Value::Null, json!("kernel")),
        ("192.168.1.99", "outside", Value::Null, Value::Null, json!("eth0"), json!("kernel")),
        ("8.8.8.8", "outside", Value::Null, Value::Null, Value::Null, Value::Null),
        ("10.244.1.200", "unassigned", json!("10.244.1.0/24"), Value::Null, Value::Null, Value::Null),
        ("224.0.0.1", "not-unicast", Value::Null, Value::Null, Value::Null, Value::Null),
    ];
    for (address, to, prefix, name, device, path) in cases {
        let output = a.try_cli(&format!("routes --lookup {address} --output json"));
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&found["to"], &found["prefix"], &found["name"]), (&json!(to), &prefix, &name), "{found}");
        assert_eq!((&found["path"], output.status.success()), (&path, !path.is_null()), "{found}");
        assert!(device.is_null() || found["device"] == device, "{found}");
        assert!(found["why"].as_str().is_some_and(|why| !why.is_empty()), "{found}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains(address), "{said}");
    }
    for (reached, address) in [(true, remote.v4), (true, local.v4), (false, "10.244.1.200".parse().unwrap())] {
        assert_eq!(pings(own, IpAddr::from(address), ""), reached, "{address}");
    }
    let table = a.cli(&format!("routes --lookup {remote_v4}"));
    assert!(table.starts_with("ADDRESS") && table.contains("peer node-b") && table.contains(path), "{table}");
}
