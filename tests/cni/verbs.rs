//! What each verb answers in each version.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Options, wait_until};
use crate::plugin::{Call, Lab, VERSIONS, addresses, with};

#[test]
fn version_is_told_whatever_the_environment_is() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let junk = |call: Call| call.set("CNI_NETNS", "dummy").set("CNI_IFNAME", "dummy").set("CNI_CONTAINERID", "dummy");
    for version in VERSIONS {
        let config = json!({ "cniVersion": version }).to_string();
        for call in [Call::bare("VERSION", &config), junk(Call::bare("VERSION", &config))] {
            assert_eq!(lab.run(&call).result(), json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
        }
    }
    for config in ["", "junk", "{}", r#"{"cniVersion":"7.0.0"}"#] {
        let answer = lab.run(&junk(Call::bare("VERSION", config)).set("CNI_ARGS", ";;=")).result();
        assert_eq!(answer, json!({ "cniVersion": "1.1.0", "supportedVersions": VERSIONS }), "{config}");
    }
}

/// The result of an ADD as the specification wants it, with what only the daemon knows put in.
fn expected(version: &str, sandbox: &str, result: &Value) -> Value {
    let mut interfaces = json!([
        { "name": result["interfaces"][0]["name"], "mac": "0a:58:a9:fe:01:01" },
        { "name": "eth0", "mac": result["interfaces"][1]["mac"], "sandbox": sandbox },
    ]);
    if version == "1.1.0" {
        interfaces[0]["mtu"] = json!(1450);
        interfaces[1]["mtu"] = json!(1450);
    }
    let [v4, v6] = [0, 1].map(|index| addresses(result)[index].clone());
    let mut ips = json!([
        { "interface": 1, "address": format!("{v4}/32"), "gateway": "169.254.1.1" },
        { "interface": 1, "address": format!("{v6}/128"), "gateway": "fe80::1" },
    ]);
    if version < "1.0.0" {
        ips[0]["version"] = json!("4");
        ips[1]["version"] = json!("6");
    }
    let routes = json!([{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }]);
    json!({ "cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": { "domain": "a.b" } })
}

#[test]
fn add_check_and_del_answer_in_each_version() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    for version in VERSIONS {
        let pod = lab.prefix.netns(&version.replace('.', ""));
        let config =
            with(&lab.config(version), &json!({ "dns": { "domain": "a.b" }, "disableCheck": true, "any": [1] }));
        let before = Lab::state(&pod);
        let result = lab.call("ADD", "c1", &pod, &config).result();
        for address in addresses(&result) {
            assert!(lab.answers(&address), "{version}: the first packet to {address}");
        }
        assert_eq!(result, expected(version, pod.path().to_str().unwrap(), &result), "{version}");
        for (index, netns) in [&lab.node.host.netns, &pod].into_iter().enumerate() {
            let interface = &result["interfaces"][index];
            assert_eq!(interface["mac"], netns.mac(interface["name"].as_str().unwrap()));
        }
        assert!(addresses(&result)[0].starts_with("10.244.1.") && addresses(&result)[1].starts_with("fd00:244:1::"));

        let config = with(&config, &json!({ "prevResult": result }));
        let check = lab.call("CHECK", "c1", &pod, &config);
        if version < "0.4.0" {
            check.fails(1, "CHECK needs cniVersion 0.4.0 or later");
        } else {
            check.is_silent_success();
        }
        lab.call("DEL", "c1", &pod, &config).is_silent_success();
        assert_eq!((lab.pods().len(), Lab::state(&pod)), (0, before));
    }
}

#[test]
fn status_tells_whether_pods_can_be_added() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    let status = |lab: &Lab, version: &str| lab.run(&Call::bare("STATUS", lab.config(version).to_string()));
    status(&lab, "1.1.0").is_silent_success();
    for version in &VERSIONS[..4] {
        status(&lab, version).fails(1, "STATUS needs cniVersion 1.1.0 or later");
    }
    lab.node.host.netns.run("ip address flush dev eth0");
    let gone = wait_until(Duration::from_secs(10), || status(&lab, "1.1.0").code != Some(0));
    assert!(gone, "{:?}", status(&lab, "1.1.0"));
    status(&lab, "1.1.0").fails(50, "no pod can be added");
    lab.node.stop();
    status(&lab, "1.1.0").fails(50, "no daemon answers");
}

#[test]
fn addresses_that_run_out_are_told_of_before_and_then_refused() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    let config = lab.config("1.1.0");
    lab.node.stop();
    let text = fs::read_to_string(lab.node.config()).unwrap();
    fs::write(lab.node.config(), text.replace("10.244.1.0/24", "10.244.1.0/30")).unwrap();
    lab.node.launch();
    let status = |lab: &Lab| lab.run(&Call::bare("STATUS", config.to_string()));
    status(&lab).is_silent_success();
    let [first, second, third] = ["first", "second", "third"].map(|name| lab.prefix.netns(name));
    lab.call("ADD", "c1", &first, &config).result();
    status(&lab).fails(51, "only 1 of 2 addresses of 10.244.1.0/30 are free");
    lab.call("ADD", "c2", &second, &config).result();
    status(&lab).fails(50, "no pod can be added");
    lab.call("ADD", "c3", &third, &config).fails(11, "10.244.1.0/30");
}

#[test]
fn gc_keeps_what_is_listed_and_all_that_is_of_others() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    let config = lab.config("1.1.0");
    let other = with(&config, &json!({ "name": "other" }));
    for (container, config) in [("kept", &config), ("gone", &config), ("foreign", &other)] {
        let pod = lab.prefix.netns(container);
        lab.call("ADD", container, &pod, config).result();
    }
    lab.node.add_pod(&lab.prefix, "by-hand");
    let gc = |config: &Value| lab.run(&Call::bare("GC", config.to_string()));
    let names = |lab: &Lab| {
        let mut names: Vec<_> = lab.pods().iter().map(|pod| pod["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let all = ["by-hand", "foreign:eth0", "gone:eth0", "kept:eth0"];
    gc(&config).fails(7, "`cni.dev/valid-attachments` is missing");
    gc(&with(&lab.config("1.0.0"), &json!({ "cni.dev/valid-attachments": [] }))).fails(1, "GC needs cniVersion 1.1.0");
    assert_eq!(names(&lab), all);
    let keep = json!([{ "containerID": "kept", "ifname": "eth0" }, { "containerID": "unknown", "ifname": "eth0" }]);
    for _ in 0..2 {
        gc(&with(&config, &json!({ "cni.dev/valid-attachments": keep }))).is_silent_success();
        assert_eq!(names(&lab), ["by-hand", "foreign:eth0", "kept:eth0"]);
    }
    gc(&with(&config, &json!({ "cni.dev/valid-attachments": null }))).is_silent_success();
    assert_eq!(names(&lab), ["by-hand", "foreign:eth0"]);
}
