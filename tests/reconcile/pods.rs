//! A pod's own end.

use std::time::Duration;

use super::harness::{Options, wait_until};
use super::lab::{Lab, Place, Row};

const OWN_END: [Row<'static>; 12] = [
    (Place::Pod, "ip address del 10.244.1.1/32 dev eth0", "pod a1: add address 10.244.1.1/32 dev eth0"),
    (Place::Pod, "ip -6 address del fd00:244:1::1/128 dev eth0", "pod a1: add address fd00:244:1::1/128 dev eth0"),
    (Place::Pod, "ip route del default", "pod a1: add route 0.0.0.0/0 via 169.254.1.1 dev eth0"),
    (Place::Pod, "ip -6 route del default", "pod a1: add route ::/0 via fe80::1 dev eth0"),
    (
        Place::Pod,
        "ip neigh del 169.254.1.1 dev eth0",
        "pod a1: add neighbour 169.254.1.1 lladdr 0a:58:a9:fe:01:01 dev eth0",
    ),
    (Place::Pod, "ip -6 neigh del fe80::1 dev eth0", "pod a1: add neighbour fe80::1 lladdr 0a:58:a9:fe:01:01 dev eth0"),
    (
        Place::Pod,
        "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "pod a1: replace neighbour 169.254.1.1 lladdr 0a:58:a9:fe:01:01 dev eth0",
    ),
    (Place::Pod, "ip link set eth0 mtu 1300", "pod a1: set device eth0 mtu 1450"),
    (Place::Pod, "ip link set eth0 mtu 9000", "pod a1: set device eth0 mtu 1450"),
    (Place::Pod, "ip link set eth0 address 02:00:00:00:00:01", "pod a1: set device eth0 address 0a:58:0a:f4:01:01"),
    (Place::Pod, "ip link set eth0 down", "pod a1: set device eth0 up"),
    (Place::Pod, "ip route flush table main proto 240", "pod a1: add route 0.0.0.0/0 via 169.254.1.1 dev eth0"),
];

fn own_ends_are_put_right(options: Options) {
    let Some(lab) = Lab::new(options) else { return };
    // Setting the device down takes the pod's own route along, which is not ours to bring back.
    lab.shell(Place::Pod, "ip route del 10.96.0.0/16");
    lab.assert_put_right(&OWN_END);
}

#[test]
fn own_ends_are_put_right_on_the_kernel_path() {
    own_ends_are_put_right(Options::KERNEL);
}

#[test]
fn own_ends_are_put_right_beside_a_data_plane() {
    own_ends_are_put_right(Options::ADAPTIVE);
}

#[test]
fn what_a_pod_adds_or_puts_in_place_of_its_default_route_is_its_own_affair() {
    let Some(lab) = Lab::new(Options::KERNEL) else { return };
    lab.place(Place::Pod).run_all([
        "ip link add mesh0 type veth peer name mesh1",
        "ip link set mesh0 up",
        "ip address add 10.94.0.1/24 dev mesh0",
        "ip rule add from 10.94.0.0/24 lookup 9",
        "ip route replace default via 10.94.0.2 dev mesh0 onlink",
    ]);
    let problem = || lab.node().status().problems.into_iter().find(|problem| problem.contains("pod a1"));
    assert!(wait_until(Duration::from_secs(3), || problem().is_some()), "not reported");
    let told = "pod a1: cannot add route 0.0.0.0/0 via 169.254.1.1 dev eth0";
    assert!(problem().is_some_and(|problem| problem.contains(told)), "{:?}", problem());
    let routes = lab.place(Place::Pod).run("ip route");
    assert!(routes.contains("default via 10.94.0.2 dev mesh0"), "{routes}");
    assert_eq!(lab.node().log_text().matches(told).count(), 1, "{}", lab.node().log_text());
    lab.shell(Place::Pod, "ip route del default");
    assert!(wait_until(Duration::from_secs(3), || problem().is_none()), "still reported: {:?}", problem());
    lab.assert_talks("the pod gave its route up");
}
