//! Pods' wiring: all or nothing, taken away without a trace.

use podwire::control::vtep::Vtep;
use podwire::control::wiring::WiringError;

use crate::lab::{Lab, config};

/// Node `a` with its tunnel.
fn node() -> Option<(Lab, Vtep)> {
    let lab = Lab::new(false)?;
    let host = lab.node('a', 1);
    let vtep = lab.reconcile("a", &config(&host, &[]), &[]).vtep;
    Some((lab, vtep))
}

#[test]
fn a_wired_pod_is_whole_at_once_and_verify_names_what_breaks() {
    let Some((lab, vtep)) = node() else { return };
    let mut pod = lab.pod("a", &vtep, 9, "pod");
    lab.reaches("a", "10.244.1.9");
    lab.reaches("a", "fd00:244:1::9");
    assert!(!lab.ip("pod", "-6 address").contains("tentative"));
    lab.kernel("a", |kernel| kernel.verify(&vtep, &pod)).unwrap();
    for (place, spoil, fault) in [
        ("pod", "ip route del default", "it lacks route 0.0.0.0/0 via 169.254.1.1 dev eth0"),
        ("pod", "ip neigh del fe80::1 dev eth0", "it lacks neighbour fe80::1 lladdr 0a:58:a9:fe:01:01 dev eth0"),
        ("pod", "ip address del 10.244.1.9/32 dev eth0", "it lacks address 10.244.1.9/32 dev eth0"),
        ("pod", "ip link set eth0 mtu 1300", "eth0 has the MTU 1300 instead of 1450"),
        ("a", "ip route del 10.244.1.9/32", "the node lacks route 10.244.1.9/32 dev pw9"),
        ("a", "ip neigh del 10.244.1.9 dev pw9", "the node lacks neighbour 10.244.1.9"),
        ("a", "ip link set pw9 down", "pw9 is down"),
        ("a", "ip link del pw9", "its device pw9 is gone"),
    ] {
        lab.run(place, spoil);
        let error = lab.kernel("a", |kernel| kernel.verify(&vtep, &pod)).unwrap_err();
        assert!(error.to_string().contains(fault), "{spoil}: {error}");
        pod = lab.kernel("a", |kernel| kernel.attach(&vtep, &lab.request(&vtep, 9, "pod"))).unwrap();
    }
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let Some((lab, vtep)) = node() else { return };
    lab.namespace("pod");
    let attach = |request| lab.kernel("a", |kernel| kernel.attach(&vtep, &request));
    let links = |name: &str| lab.ip(name, "-br link");
    let before = (links("a"), links("pod"));

    lab.ip("pod", "link add eth0 type veth peer name other");
    let error = attach(lab.request(&vtep, 9, "pod")).unwrap_err();
    assert!(matches!(error, WiringError::Request { .. }), "{error}");
    lab.ip("pod", "link del eth0");
    assert_eq!((links("a"), links("pod")), before);

    // The last step of attach is refused.
    lab.ip("a", "route add 10.244.1.9/32 dev eth0 proto static");
    let error = attach(lab.request(&vtep, 9, "pod")).unwrap_err();
    assert!(error.to_string().contains("cannot add route 10.244.1.9/32 dev pw9: File exists"), "{error}");
    assert_eq!((links("a"), links("pod")), before);

    let mut missing = lab.request(&vtep, 10, "pod");
    missing.netns = "/run/netns/no-such".into();
    assert!(attach(missing).unwrap_err().to_string().contains("cannot enter its network namespace"));
    let mut file = lab.request(&vtep, 10, "pod");
    file.netns = "/proc/self/status".into();
    assert!(attach(file).is_err());
    let mut own = lab.request(&vtep, 10, "pod");
    own.netns = lab.netns_path("a");
    assert!(matches!(attach(own), Err(WiringError::HostNetns { .. })));
    assert_eq!((links("a"), links("pod")), before);
}

#[test]
fn a_leftover_of_ours_is_replaced_and_a_foreign_device_refused() {
    let Some((lab, vtep)) = node() else { return };
    lab.pod("a", &vtep, 9, "pod");
    lab.namespace("other");
    let pod = lab.kernel("a", |kernel| kernel.attach(&vtep, &lab.request(&vtep, 9, "other"))).unwrap();
    assert!(!lab.ip("pod", "link").contains("eth0") && lab.ip("other", "link").contains("eth0"));
    lab.kernel("a", |kernel| kernel.detach(&pod)).unwrap();

    lab.ip("a", "link add pw9 type veth peer name pw9x");
    let error = lab.kernel("a", |kernel| kernel.attach(&vtep, &lab.request(&vtep, 9, "other"))).unwrap_err();
    assert!(matches!(error, WiringError::Taken { .. }), "{error}");
    lab.kernel("a", |kernel| kernel.detach(&pod)).unwrap();
    assert!(lab.ip("a", "link").contains("pw9@"), "detach leaves what is not ours");
}

#[test]
fn detach_is_repeatable_and_works_when_the_namespace_is_gone() {
    let Some((lab, vtep)) = node() else { return };
    let before =
        lab.ip("a", "route show table all") + &lab.ip("a", "-6 route show table all") + &lab.ip("a", "-br link");
    for remove_first in [false, true] {
        let pod = lab.pod("a", &vtep, 9, "pod");
        if remove_first {
            lab.remove("pod");
        }
        for _ in 0..2 {
            lab.kernel("a", |kernel| kernel.detach(&pod)).unwrap();
        }
        let after =
            lab.ip("a", "route show table all") + &lab.ip("a", "-6 route show table all") + &lab.ip("a", "-br link");
        assert_eq!(after, before);
        if !remove_first {
            lab.remove("pod");
        }
    }
}

#[test]
fn a_pod_of_one_family_and_a_node_without_the_other() {
    let Some((lab, vtep)) = node() else { return };
    for (id, family) in [(9, false), (10, true)] {
        let name = format!("pod{id}");
        lab.namespace(&name);
        let mut request = lab.request(&vtep, id, &name);
        request.addresses.retain(|address| address.is_ipv6() == family);
        let pod = lab.kernel("a", |kernel| kernel.attach(&vtep, &request)).unwrap();
        lab.kernel("a", |kernel| kernel.verify(&vtep, &pod)).unwrap();
        lab.reaches("a", &pod.addresses[0].to_string());
    }
    let mut v4_only = vtep.clone();
    v4_only.addresses.retain(std::net::IpAddr::is_ipv4);
    lab.namespace("pod11");
    let error = lab.kernel("a", |kernel| kernel.attach(&v4_only, &lab.request(&vtep, 11, "pod11"))).unwrap_err();
    assert!(matches!(error, WiringError::Family { .. }), "{error}");
}

#[test]
fn ipv6_works_in_a_pod_whose_runtime_turned_it_off() {
    let Some((lab, vtep)) = node() else { return };
    lab.namespace("pod");
    lab.run("pod", "sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    lab.kernel("a", |kernel| kernel.attach(&vtep, &lab.request(&vtep, 9, "pod"))).unwrap();
    lab.reaches("a", "fd00:244:1::9");
}
