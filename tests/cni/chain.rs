//! podwire among Debian's reference plugins, which read its result as theirs and hand theirs to it.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Attachment, CniRuntime, Netns, Options, cni_dir};
use crate::plugin::{Call, Lab, VERSIONS, addresses, reference, with};

/// The versions that the reference plugins of Debian 12 speak.
const THEIRS: &[&str] = VERSIONS.split_at(4).0;

#[test]
fn reference_plugins_read_a_result_as_it_was_written() {
    let (Some(tuning), Some(lab)) = (reference("tuning"), Lab::start(Options::KERNEL)) else { return };
    for version in THEIRS {
        let pod = lab.prefix.netns(&version.replace('.', ""));
        let config =
            with(&lab.config(version), &json!({ "dns": { "nameservers": ["10.96.0.10"], "search": ["a.b"] } }));
        let result = lab.call("ADD", "c1", &pod, &config).result();
        let next = json!({ "cniVersion": version, "name": "net", "type": "tuning", "prevResult": result });
        let read = Call::new("ADD", "c1", &pod.path(), &next).run(&tuning, &lab.node.host.netns).result();
        assert_eq!(read, result, "{version}");
        lab.call("DEL", "c1", &pod, &config).is_silent_success();
    }
}

#[test]
fn results_of_earlier_plugins_are_kept() {
    let (Some(loopback), Some(lab)) = (reference("loopback"), Lab::start(Options::KERNEL)) else { return };
    for (turn, version) in (1..).zip(THEIRS) {
        let pod = lab.prefix.netns(&version.replace('.', ""));
        let first = json!({ "cniVersion": version, "name": "net", "type": "loopback" });
        let call = Call::new("ADD", "c1", &pod.path(), &first).set("CNI_IFNAME", "lo");
        let previous = call.run(&loopback, &lab.node.host.netns).result();
        let config = with(&lab.config(version), &json!({ "prevResult": previous }));
        let result = lab.call("ADD", "c1", &pod, &config).result();
        assert_eq!(result["interfaces"][0], previous["interfaces"][0], "{version}");
        let own = [format!("10.244.1.{turn}"), format!("fd00:244:1::{turn}")];
        let ips = [&addresses(&previous)[..], &own].concat();
        assert_eq!(addresses(&result), ips, "{version}");
        assert_eq!(result["ips"].as_array().unwrap().last().unwrap()["interface"], 2);
        if *version >= "0.4.0" {
            lab.call("CHECK", "c1", &pod, &with(&config, &json!({ "prevResult": result }))).is_silent_success();
        }
        lab.call("DEL", "c1", &pod, &config).is_silent_success();
    }
}

/// A runtime whose list is podwire and `chain`.
fn runtime(lab: &Lab, version: &str, chain: &[Value]) -> CniRuntime {
    let own = json!({ "type": "podwire", "runtimeDir": lab.node.runtime_dir() });
    let plugins: Vec<_> = [&own].into_iter().chain(chain).collect();
    let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
    CniRuntime::new(vec![cni_dir(&lab.prefix), PathBuf::from("/usr/lib/cni")], list)
}

fn attachment(pod: &Netns) -> Attachment {
    let capabilities = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 80_000_000, "ingressBurst": 8_000_000 },
    });
    Attachment {
        container: "c1".into(),
        netns: Some(pod.path()),
        ifname: "eth0".into(),
        args: "IgnoreUnknown=1;K8S_POD_NAME=web".into(),
        capabilities: capabilities.as_object().expect("an object").clone(),
    }
}

#[test]
fn a_chain_with_portmap_bandwidth_and_tuning_is_added_checked_and_removed() {
    let (Some(_), Some(lab)) = (reference("portmap"), Lab::start(Options::KERNEL)) else { return };
    let node = &lab.node.host.netns;
    let rules = || node.run("iptables -t nat -S") + &node.run("tc qdisc show");
    let chain = [
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "99" } }),
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
    ];
    // The CHECK of portmap 1.1.1 looks for the rules of one family in the tables of both, and fails wherever there are
    // both.
    let without_portmap = &chain[..2];
    for (version, chain) in THEIRS.iter().flat_map(|version| [(version, without_portmap), (version, &chain)]) {
        let pod = lab.prefix.netns(&format!("{}-{}", version.replace('.', ""), chain.len()));
        let (runtime, attachment) = (runtime(&lab, version, chain), attachment(&pod));
        let result = node.within(|| runtime.add(&attachment)).unwrap_or_else(|error| panic!("{version}: {error}"));
        let v4 = &addresses(&result)[0];
        assert!(lab.answers(v4), "{version}");
        let maps = rules().contains(&format!("{v4}:80"));
        assert!(rules().contains("tbf") && maps == (chain.len() == 3), "{version}: {}", rules());
        assert_eq!(pod.run("sysctl -n net.core.somaxconn"), "99\n");
        if *version >= "0.4.0" && chain.len() == 2 {
            node.within(|| runtime.check(&attachment)).unwrap_or_else(|error| panic!("{version}: {error}"));
        }
        node.within(|| runtime.del(&attachment)).unwrap_or_else(|error| panic!("{version}: {error}"));
        assert!(!rules().contains(v4.as_str()) && !rules().contains("tbf") && lab.pods().is_empty(), "{}", rules());
    }
}
