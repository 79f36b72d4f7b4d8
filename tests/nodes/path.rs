//! What pods learn of the way: hops, time to live, path MTU.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::cluster;
use super::harness::{Options, Pod, PodwireNode, Wire, pings, traceroute, udp_echo, wait_until};

in_both_modes! {
    traceroute_names_each_node_once,
    each_node_on_the_way_takes_one_from_the_time_to_live,
    pods_learn_the_path_mtu_from_the_gateway,
    oversize_packets_that_may_be_fragmented_arrive,
}

/// The address of node `index` (its VXLAN device, or with `host` 1 the bridge of a kernel node) in `family`'s family.
fn gateway(index: u8, host: u8, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::new(10, 244, index, host).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x244, index.into(), 0, 0, 0, 0, host.into()).into(),
    }
}

fn traceroute_names_each_node_once(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (a, b, c) = (&cluster.a.pods, &cluster.b.pods[0], &cluster.c.pods[0]);
    let cases = [
        (&a[0], b, vec![(1, 0), (2, 0)]),
        (&a[0], c, vec![(1, 0), (3, 0)]),
        (c, &a[0], vec![(3, 1), (1, 0)]),
        (&a[0], &a[1], vec![(1, 0)]),
    ];
    for (from, to, nodes) in cases {
        for destination in to.addresses() {
            let routers = nodes.iter().map(|&(index, host)| gateway(index, host, destination));
            let expected: Vec<_> = routers.chain([destination]).map(Some).collect();
            assert_eq!(traceroute(from, destination), expected, "{} -> {}", from.name, to.name);
        }
    }
}

fn each_node_on_the_way_takes_one_from_the_time_to_live(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (a, b) = (&cluster.a.pods, &cluster.b.pods[0]);
    for (from, to, nodes) in [(&a[0], b, 2), (&a[0], &a[1], 1)] {
        for destination in to.addresses() {
            let printed = from.netns.run(&format!("ping -n -c 1 -W 2 {destination}"));
            assert!(printed.contains(&format!("ttl={}", 64 - nodes)), "{printed}");
            assert!(pings(from, destination, &format!("-t {}", nodes + 1)), "enough for {destination}");
            assert!(!pings(from, destination, &format!("-t {nodes}")), "one too few for {destination}");
        }
    }
}

/// Lets a pod send packets that are larger than the overlay carries, and tries until `sent` is content: the daemon makes
/// both ends as narrow as before within a second.
#[track_caller]
fn try_wide(node: &PodwireNode, pod: &Pod, mut sent: impl FnMut() -> bool) {
    let peer = pod.netns.link("eth0")["link_index"].as_u64().expect("a veth");
    let links: serde_json::Value = serde_json::from_str(&node.host.netns.run("ip -json link")).expect("ip prints JSON");
    let host_end = links.as_array().into_iter().flatten().find(|link| link["ifindex"] == peer).expect("the host end");
    let widen = format!("ip link set {} mtu 1500", host_end["ifname"].as_str().expect("a name"));
    let done = wait_until(Duration::from_secs(10), || {
        node.host.netns.run(&widen);
        pod.netns.run("ip link set eth0 mtu 1500");
        sent()
    });
    assert!(done, "no large packet of {} did as it should", pod.name);
}

fn pods_learn_the_path_mtu_from_the_gateway(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let too_long = [(IpAddr::from(to.v4), 1472, "Frag needed"), (to.v6.into(), 1452, "Packet too big")];
    for (destination, size, answer) in too_long {
        try_wide(&cluster.a, from, || {
            let output = from.netns.output(&format!("ping -n -c 1 -W 2 -M do -s {size} {destination}"));
            let printed = String::from_utf8_lossy(&output.stdout);
            let said = printed.contains(answer) && printed.contains("1450");
            assert!(!said || printed.contains(&gateway(1, 0, destination).to_string()), "not the gateway: {printed}");
            said
        });
        assert!(pings(from, destination, &format!("-M do -s {}", size - 50)), "what fits passes");
    }
}

fn oversize_packets_that_may_be_fragmented_arrive(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    for size in [1472, 4000] {
        try_wide(&cluster.a, from, || pings(from, to.v4.into(), &format!("-M dont -s {size}")));
    }
    udp_echo(to, from, from.v4.into(), &[3000]).expect("the way back");
}
