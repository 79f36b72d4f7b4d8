//! A node goes from Flannel to podwire and back, and its pods do not notice.

use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use serde_json::Value;

use crate::flannel::{BRIDGE, Lab};
use crate::harness::{Connections, Flow, Options, SECOND_DEVICE, assert_all_pairs_talk, pings, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a migration says under a key, as lines.
fn lines(said: &Value, key: &str) -> Vec<String> {
    let lines = said[key].as_array().unwrap_or_else(|| panic!("{key}: {said}"));
    lines.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Why a pod must restart.
fn reason<'s>(said: &'s Value, container: &str) -> Option<&'s str> {
    let pods = said["pods"].as_array().expect("pods");
    let pod = pods.iter().find(|pod| pod["name"] == format!("{container}:eth0"));
    pod.unwrap_or_else(|| panic!("{container}: {said}"))["must_restart"].as_str()
}

fn has_device(lab: &Lab, name: &str) -> bool {
    lab.a.host.netns.output(&format!("ip link show dev {name}")).status.success()
}

/// Connections between pods of the migrated node, and with those of both others, each way and in both families.
fn connect(lab: &Lab) -> Connections {
    let [a1, a2] = [&lab.pods[0], &lab.pods[1]];
    let [b1, c1] = [&lab.b.pods[0], &lab.c.pods[0]];
    let pairs = [(a1, a2), (a2, a1), (a1, b1), (b1, a1), (a1, c1), (c1, a2)];
    let flows: Vec<Flow<'_>> =
        pairs.into_iter().flat_map(|(from, to)| [Flow::v4(from, to), Flow::v6(from, to)]).collect();
    Connections::open(&flows)
}

#[test]
fn a_node_goes_from_flannel_to_podwire_and_back_and_no_connection_breaks() {
    let Some(mut lab) = Lab::start(Options::ADAPTIVE) else { return };
    lab.add_flannel_pod("w1", Some(8080));
    lab.add_flannel_pod("w2", None);
    assert_all_pairs_talk(&lab.all_pods());
    let connections = connect(&lab);

    let before = lab.picture();
    let planned = lab.migrated("from-flannel", "");
    assert_eq!(lab.picture(), before, "a plan changes nothing");
    assert_eq!((&planned["done"], reason(&planned, "cw1")), (&false.into(), None));

    let done = lab.migrated("from-flannel", "--yes");
    assert_eq!(lines(&done, "changes"), lines(&planned, "changes"), "what was planned was done");
    let tunnels =
        |lab: &Lab| ["podwire.1", SECOND_DEVICE, "flannel.1", "flannel-v6.1"].map(|name| has_device(lab, name));
    assert!(!has_device(&lab, BRIDGE));
    assert_eq!(tunnels(&lab), [true, true, false, false]);
    assert_all_pairs_talk(&lab.all_pods());
    lab.a.launch();
    assert_all_pairs_talk(&lab.all_pods());
    lab.a.cli("ipam check");
    assert!(lab.a.cli("pods list").contains("default/w1"));

    lab.add_podwire_pod("w3");
    assert_all_pairs_talk(&lab.all_pods());
    let node = lab.a.host.netns.clone();
    let nat = || node.run("iptables -t nat -S");
    assert!(nat().contains(&format!("{}:80", lab.pods[0].v4)));

    lab.a.stop();
    let before = lab.picture();
    let planned = lab.migrated("to-flannel", "");
    assert_eq!(lab.picture(), before, "a plan changes nothing");
    let done = lab.migrated("to-flannel", "--yes");
    assert_eq!(lines(&done, "changes"), lines(&planned, "changes"), "what was planned was done");
    assert!(has_device(&lab, BRIDGE));
    assert_eq!(tunnels(&lab), [false, false, true, true]);
    assert_all_pairs_talk(&lab.all_pods());
    let fared = connections.close();
    assert_eq!((fared.lost, &fared.errors[..]), (0, &[][..]), "{fared:?}");

    lab.a.cli("uninstall");
    assert_all_pairs_talk(&lab.all_pods());
    for (pod, host_port) in [(&lab.pods[0], Some(8080)), (&lab.pods[2], None)] {
        lab.del_by_flannel(pod, host_port).unwrap_or_else(|error| panic!("{}: {error}", pod.name));
    }
    let given = |address: &str| lab.dir.join("state/networks/cbr0").join(address).exists();
    assert!(!given(&lab.pods[0].v4.to_string()) && !given(&lab.pods[2].v6.to_string()));
    assert!(given(&lab.pods[1].v4.to_string()) && !nat().contains(&lab.pods[0].v4.to_string()));
    assert!(lab.pods[0].netns.run("ip -o link").lines().count() == 1, "bridge has removed the pod's device");
    lab.pods.retain(|pod| pod.name == "w2");
    lab.add_flannel_pod("w4", None);
    assert_all_pairs_talk(&lab.all_pods());
}

#[test]
fn podwires_plugin_removes_what_flannels_has_added() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    lab.add_flannel_pod("w1", Some(8080));
    lab.add_flannel_pod("w2", None);
    lab.migrated("from-flannel", "--yes");
    lab.a.launch();
    lab.del_by_podwire(&lab.pods[0], Some(8080)).unwrap_or_else(|error| panic!("{error}"));
    let nat = lab.a.host.netns.run("iptables -t nat -S");
    assert!(!nat.contains(&lab.pods[0].v4.to_string()), "the host port goes with the pod\n{nat}");
    let listed = lab.a.cli("pods list");
    assert!(!listed.contains("cw1") && listed.contains("cw2"), "{listed}");
    lab.a.cli("ipam check");
    assert_eq!(lab.migrated("from-flannel", "")["changes"], Value::Array(Vec::new()), "there is nothing more to do");
}

#[test]
fn a_migration_that_is_killed_leaves_every_pod_on_the_network_and_goes_on() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    for name in ["w1", "w2", "w3"] {
        lab.add_flannel_pod(name, None);
    }
    let connections = connect(&lab);
    for way in ["from-flannel", "to-flannel"] {
        let mut cut_short = 0;
        for delay in (0..80).step_by(4) {
            let mut command = lab.migrate(way, "--yes");
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nsenter starts");
            thread::sleep(Duration::from_millis(delay));
            child.kill().expect("our child");
            cut_short += u32::from(!child.wait().expect("our child").success());
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                let (from, to) = (&lab.pods[from], &lab.pods[to]);
                let talks = wait_until(PATIENCE, || pings(from, to.v4.into(), ""));
                assert!(talks, "{way} killed after {delay} ms: {} cannot reach {}", from.name, to.name);
            }
            assert!(wait_until(PATIENCE, || pings(&lab.c.pods[0], lab.pods[0].v4.into(), "")), "{way}, {delay} ms");
        }
        assert!(cut_short > 0, "none was killed in the middle");
        lab.migrated(way, "--yes");
        println!("{way}: {cut_short} were cut short");
        assert_all_pairs_talk(&lab.all_pods());
    }
    let fared = connections.close();
    assert_eq!(fared.lost, 0, "{fared:?}");
    assert!(lab.dir.join("net.d/10-flannel.conflist").exists());
}

#[test]
fn what_cannot_be_taken_over_is_named_and_stays_reachable_until_it_restarts() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    for name in ["w1", "w2", "w3", "w4", "w5"] {
        lab.add_flannel_pod(name, None);
    }
    fs::write(lab.result_of("w2"), b"\xff\x00{").unwrap();
    fs::remove_file(lab.result_of("w3")).unwrap();
    fs::write(lab.result_of("w4"), r#"{"netns":"/proc/self/ns/net"}"#).unwrap();
    lab.pods[4].netns.run("ip route add 192.0.2.0/24 via 10.244.1.99");
    let given = lab.dir.join("state/networks/cbr0");
    fs::write(given.join("10.244.1.200"), "../../etc/passwd\r\neth0").unwrap();
    fs::write(lab.result_of("gone"), r#"{"netns":"/run/netns/no-such-pod"}"#).unwrap();
    fs::write(given.join("10.244.1.201"), "cgone\r\neth0").unwrap();

    let said = lab.migrated("from-flannel", "--yes");
    assert_eq!(reason(&said, "cw1"), None);
    for (container, why) in [
        ("cw2", "not text"),
        ("cw3", "cannot read"),
        ("cw4", "names no network namespace for another process"),
        ("cw5", "a route of its own to 192.0.2.0/24"),
        ("../../etc/passwd", "not usable"),
        ("cgone", "no-such-pod"),
    ] {
        let found = reason(&said, container).unwrap_or_default();
        assert!(found.contains(why), "{container}: {found}");
    }
    assert!(lines(&said, "left")[0].starts_with("cni0 stays"), "{said}");
    lab.a.launch();
    let c1 = &lab.c.pods[0];
    for pod in &lab.pods {
        assert!(pings(c1, pod.v4.into(), "") && pings(pod, c1.v4.into(), ""), "{}", pod.name);
        for other in lab.pods.iter().filter(|other| other.name != pod.name) {
            assert!(pings(pod, other.v4.into(), ""), "{} to {}", pod.name, other.name);
        }
    }
    let listed = lab.a.cli("ipam list");
    assert!(listed.contains(&format!("{}", lab.pods[1].v4)) && listed.contains("held"), "{listed}");

    for pod in &lab.pods[1..] {
        lab.del_by_podwire(pod, None).unwrap_or_else(|error| panic!("{}: {error}", pod.name));
        lab.a.host.netns.run(&format!("ip netns del {}", pod.netns.name()));
    }
    lab.pods.truncate(1);
    lab.a.stop();
    let ended = wait_until(PATIENCE, || {
        !lines(&lab.migrated("from-flannel", "--yes"), "changes").is_empty() && !has_device(&lab, BRIDGE)
    });
    assert!(ended, "the bridge goes with the last of its pods");
    assert_all_pairs_talk(&lab.all_pods());
}

#[test]
fn what_the_other_nodes_would_notice_is_refused_by_name() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let node = &lab.a.host.netns;
    let refused = |why: &str| {
        let output = lab.migrate("from-flannel", "--yes").output().expect("nsenter starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{why}: {said}");
        assert!(has_device(&lab, BRIDGE) && lab.dir.join("net.d/10-flannel.conflist").exists());
    };
    let flanneld = lab.dir.join("flanneld");
    fs::copy("/bin/sleep", &flanneld).unwrap();
    let mut running = node.command(&flanneld).arg("60").spawn().expect("nsenter starts");
    assert!(
        wait_until(PATIENCE, || fs::read_to_string(format!("/proc/{}/comm", running.id())).unwrap() == "flanneld\n")
    );
    refused(&format!("flanneld runs here (process {})", running.id()));
    running.kill().unwrap();
    running.wait().unwrap();

    node.run_all(["ip link set flannel.1 address 02:00:00:00:00:77"]);
    refused("set node.vtep_mac = \"02:00:00:00:00:77\"");
    node.run_all(["ip link set flannel-v6.1 address 02:00:00:00:06:77"]);
    refused("the MAC of flannel-v6.1: set node.vtep_mac6 = \"02:00:00:00:06:77\"");
    node.run_all([
        "ip link del flannel.1",
        "ip link del flannel-v6.1",
        "ip link add flannel.7 type vxlan id 7 dev eth0 local 192.168.1.2 dstport 8473 nolearning",
    ]);
    refused("flannel.7 has VNI 7: set vxlan.vni");
    refused("flannel.7 uses UDP port 8473: set vxlan.port");
    node.run("ip link del flannel.7");
    refused("Flannel's backend here is another one");
}
