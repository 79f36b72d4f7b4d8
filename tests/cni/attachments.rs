//! What an attachment is: its devices, its addresses, and what is refused with nothing changed.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Netns, Options, wait_until};
use crate::plugin::{Call, Lab, Outcome, addresses, with};

/// How long the daemon may take to put something right.
const PATIENCE: Duration = Duration::from_secs(40);

/// An ADD that must fail and leave no trace.
#[track_caller]
fn is_refused(lab: &Lab, pod: &Netns, call: &Call, code: u64, words: &str) {
    let places = [&lab.node.host.netns, pod];
    let before = (places.map(Lab::state), lab.pods());
    lab.run(call).fails(code, words);
    assert_eq!((places.map(Lab::state), lab.pods()), before);
}

#[test]
fn a_container_has_several_interfaces_each_with_addresses_that_answer() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let add = |ifname: &str| lab.run(&Call::new("ADD", "c1", &pod.path(), &config).set("CNI_IFNAME", ifname)).result();
    let (first, second) = (add("eth0"), add("net1"));
    for address in addresses(&first).iter().chain(&addresses(&second)) {
        assert!(lab.answers(address), "{address}\n{}", Lab::state(&pod));
    }
    assert_eq!(second["interfaces"][1]["name"], "net1");
    for (ifname, result) in [("eth0", &first), ("net1", &second)] {
        let config = with(&config, &json!({ "prevResult": result }));
        lab.run(&Call::new("CHECK", "c1", &pod.path(), &config).set("CNI_IFNAME", ifname)).is_silent_success();
    }
    lab.call("DEL", "c1", &pod, &config).is_silent_success();
    assert!(pod.run("ip route show default").contains("dev net1"), "it has the default route now");
    assert!(addresses(&second).iter().all(|address| lab.answers(address)), "{}", Lab::state(&pod));
    assert!(!lab.answers(&addresses(&first)[0]));
}

#[test]
fn a_del_of_another_network_or_of_a_pod_made_by_hand_removes_nothing() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let other = with(&config, &json!({ "name": "other" }));
    let result = lab.call("ADD", "c1", &pod, &config).result();
    // What runtimes do when an ADD has failed.
    lab.call("ADD", "c1", &pod, &other).fails(101, "c1:eth0");
    lab.call("DEL", "c1", &pod, &other).is_silent_success();
    assert!(lab.answers(&addresses(&result)[0]));
    let by_hand = lab.prefix.netns("by-hand");
    lab.node.cli(&format!("pods attach --netns {} --name c2:eth0", by_hand.path().display()));
    lab.call("DEL", "c2", &by_hand, &config).is_silent_success();
    assert_eq!(lab.pods().len(), 2);
}

#[test]
fn what_is_taken_is_refused_with_nothing_changed() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    pod.run_all([
        "ip link add eth0 type veth peer name x0",
        "ip address add 192.0.2.1/24 dev eth0",
        "ip link set eth0 up",
    ]);
    let add = |container: &str, config: &Value| Call::new("ADD", container, &pod.path(), config);
    is_refused(&lab, &pod, &add("c1", &config), 101, "eth0");
    pod.run("ip link del eth0");
    let result = lab.run(&add("c1", &config)).result();
    is_refused(&lab, &pod, &add("c1", &config), 101, "c1:eth0");
    is_refused(&lab, &pod, &add("c2", &config), 101, "eth0");
    let wants = |ips: Value| with(&config, &json!({ "runtimeConfig": { "ips": ips } }));
    let free = add("c2", &wants(json!([addresses(&result)[0]]))).set("CNI_IFNAME", "net1");
    is_refused(&lab, &pod, &free, 101, &addresses(&result)[0]);
    assert!(lab.answers(&addresses(&result)[0]));
}

#[test]
fn addresses_and_a_mac_are_granted_or_refused() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let call = |members: Value| Call::new("ADD", "c1", &pod.path(), &with(&config, &members));
    let asked = json!({ "runtimeConfig": { "ips": ["10.244.1.77/24", "fd00:244:1::77"], "mac": "02:00:00:00:00:77",
        "portMappings": [{ "hostPort": 80 }], "bandwidth": { "ingressRate": 1 } } });
    let by_environment = call(json!({})).set("CNI_ARGS", "IgnoreUnknown=1;IP=10.244.1.77;MAC=02:00:00:00:00:77");
    let in_args = json!({ "args": { "cni": { "ips": ["10.244.1.77"], "mac": "02:00:00:00:00:77" }, "labels": [] } });
    for call in [call(asked), call(in_args), by_environment] {
        let result = lab.run(&call).result();
        assert_eq!(addresses(&result)[0], "10.244.1.77");
        assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
        assert_eq!(pod.mac("eth0"), "02:00:00:00:00:77");
        assert!(addresses(&result).iter().all(|address| lab.answers(address)));
        lab.call("DEL", "c1", &pod, &config).is_silent_success();
    }
    let ips = |ips: Value| json!({ "runtimeConfig": { "ips": ips } });
    for (members, code, words) in [
        (ips(json!(["192.0.2.1"])), 7, "192.0.2.1"),
        (ips(json!(["10.244.1.0"])), 7, "10.244.1.0"),
        (ips(json!(["10.244.1.7", "10.244.1.8"])), 7, "10.244.1.8"),
        (json!({ "runtimeConfig": { "mac": "01:00:5e:00:00:01" } }), 7, "01:00:5e:00:00:01"),
        (json!({ "runtimeConfig": { "mac": "0a:58:a9:fe:01:01" } }), 7, "0a:58:a9:fe:01:01"),
        (json!({ "ipam": { "type": "host-local" } }), 2, "host-local"),
    ] {
        is_refused(&lab, &pod, &call(members), code, words);
    }
    is_refused(&lab, &pod, &call(json!({})).set("CNI_ARGS", "IP=192.0.2.1"), 4, "192.0.2.1");
}

#[test]
fn namespaces_that_are_not_a_pods_are_refused() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let file = lab.prefix.dir().join("file");
    std::fs::write(&file, "").unwrap();
    let add = |netns: &Path| Call::new("ADD", "c1", netns, &config);
    is_refused(&lab, &pod, &add("/run/netns/never".as_ref()), 3, "/run/netns/never");
    is_refused(&lab, &pod, &add(&file), 5, file.to_str().unwrap());
    is_refused(&lab, &pod, &add(&lab.node.host.netns.path()), 5, "of the node itself");
    is_refused(&lab, &pod, &add("netns/pod".as_ref()), 4, "CNI_NETNS");
    is_refused(&lab, &pod, &add("".as_ref()), 4, "CNI_NETNS");
}

#[test]
fn the_daemon_knows_whose_a_pod_is() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let pod = lab.prefix.netns("pod");
    let call = Call::new("ADD", "c1", &pod.path(), &lab.config("0.3.1"));
    let arguments = "K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;NEW=1";
    lab.run(&call.set("CNI_ARGS", arguments)).result();
    assert_eq!(lab.pods()[0]["owner"], json!({ "network": "net", "container": "c1", "workload": "default/web-0" }));
    assert!(lab.node.cli("pods list").contains("default/web-0"));
}

#[test]
fn check_finds_what_is_not_as_add_left_it() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let result = lab.call("ADD", "c1", &pod, &config).result();
    let check = |result: &Value| lab.call("CHECK", "c1", &pod, &with(&config, &json!({ "prevResult": result })));
    check(&result).is_silent_success();

    lab.call("CHECK", "c1", &pod, &config).fails(7, "`prevResult` is missing");
    lab.call("CHECK", "c2", &pod, &with(&config, &json!({ "prevResult": result }))).fails(3, "c2");
    let elsewhere = with(&config, &json!({ "name": "other", "prevResult": result }));
    lab.call("CHECK", "c1", &pod, &elsewhere).fails(3, "is not in network other");
    let mut told = result.clone();
    told["ips"][0]["address"] = json!("10.244.1.200/32");
    check(&told).fails(102, "10.244.1.200");

    let (host_end, v4) = (result["interfaces"][0]["name"].as_str().unwrap(), &addresses(&result)[0]);
    for (place, damage) in [
        (&pod, format!("ip address del {v4}/32 dev eth0")),
        (&pod, "ip route del default".to_owned()),
        (&pod, "ip link set eth0 address 02:00:00:00:00:99".to_owned()),
        (&pod, "ip link set eth0 down".to_owned()),
        (&pod, "ip neigh del 169.254.1.1 dev eth0".to_owned()),
        (&lab.node.host.netns, format!("ip route del {v4}")),
        (&lab.node.host.netns, format!("ip neigh del {v4} dev {host_end}")),
        (&lab.node.host.netns, format!("sysctl -qw net.ipv4.conf.{host_end}.forwarding=0")),
    ] {
        finds(&lab, place, &damage, || check(&result));
    }
    lab.node.host.netns.run(&format!("ip link del {host_end}"));
    check(&result).fails(102, "eth0 of container c1 is not as it was added");
    lab.call("DEL", "c1", &pod, &config).is_silent_success();
    check(&result).fails(3, "c1");
}

/// CHECK fails at once after some damage, and passes when the daemon has put it right, which it sometimes does first.
#[track_caller]
fn finds(lab: &Lab, place: &Netns, damage: &str, check: impl Fn() -> Outcome) {
    let found = wait_until(PATIENCE, || {
        place.output(damage);
        check().code == Some(1)
    });
    assert!(found, "`{damage}` is never found");
    let mended = wait_until(PATIENCE, || check().code == Some(0));
    assert!(mended, "`{damage}`: {:?}\n{}", check(), lab.node.log_text());
}
