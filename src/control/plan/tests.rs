use std::collections::BTreeSet;

use super::*;
use crate::control::netlink::LinkConf;
use crate::control::vtep::Uplink;
use crate::ids::PodId;

const DEVICE: IfIndex = IfIndex(7);

const TUNNELS: Tunnels = Tunnels { first: DEVICE, second: None };

const CONFIG: &str = r#"
[node]
name = "a"
uplink = "eth0"
pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"]
[cluster]
pod_cidrs = ["10.244.0.0/16", "fd00:244::/32"]
[dataplane]
mode = "kernel"
[[peers]]
name = "b"
underlay = "192.168.1.3"
pod_cidrs = ["10.244.2.0/24", "fd00:244:2::/64"]
[[peers]]
name = "c"
underlay = "192.168.1.4"
pod_cidrs = ["10.244.3.0/24"]
"#;

fn vtep() -> Vtep {
    let uplink = Uplink {
        index: IfIndex(2),
        name: "eth0".into(),
        mac: Mac([2; 6]),
        mtu: 1500,
        addresses: Vec::new(),
        up: true,
        queues: crate::xsk::Queues { receive: 1, send: 1 },
    };
    let addresses = vec!["10.244.1.0".parse().unwrap(), "fd00:244:1::".parse().unwrap()];
    Vtep {
        uplink,
        underlay: "192.168.1.2".parse().unwrap(),
        mac: Mac([2; 6]),
        second: None,
        no_second: None,
        mtu: 1450,
        addresses,
        direct: BTreeSet::new(),
    }
}

fn pod() -> Pod {
    Pod {
        id: PodId::new(9).unwrap(),
        name: "web".into(),
        netns: "/run/netns/web".into(),
        ifname: "eth0".into(),
        host_ifname: "pw9".into(),
        host_ifindex: IfIndex(9),
        mac: Mac([6; 6]),
        host_mac: Mac([10; 6]),
        addresses: vec!["10.244.1.9".parse().unwrap(), "fd00:244:1::9".parse().unwrap()],
        owner: None,
        netns_cookie: None,
        since_ms: None,
    }
}

fn desired(config: &str) -> Vec<Object> {
    super::desired(&Config::parse(config).unwrap(), &vtep(), TUNNELS, &[pod()])
}

fn plan(desired: Vec<Object>, observed: Vec<Object>) -> Vec<String> {
    super::plan(desired, observed, |index| format!("if{index}")).iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_to_do_when_all_is_there_in_any_order() {
    let mut observed = desired(CONFIG);
    observed.reverse();
    assert_eq!(plan(desired(CONFIG), observed), [] as [&str; 0]);
}

#[test]
fn a_fresh_node_gets_everything_sources_and_neighbours_before_routes() {
    assert_eq!(
        plan(desired(CONFIG), Vec::new()),
        [
            "add address 10.244.1.0/32 dev if7",
            "add address fd00:244:1::/128 dev if7",
            "add neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev if7",
            "add neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:04 dev if7",
            "add neighbour fd00:244:2:: lladdr 02:70:c0:a8:01:03 dev if7",
            "add neighbour 10.244.1.9 lladdr 06:06:06:06:06:06 dev if9",
            "add neighbour fd00:244:1::9 lladdr 06:06:06:06:06:06 dev if9",
            "add fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev if7",
            "add fdb 02:70:c0:a8:01:04 dst 192.168.1.4 dev if7",
            "add route 192.168.1.3/32 via 10.244.2.0 table 240 dev if7",
            "add route 192.168.1.4/32 via 10.244.3.0 table 240 dev if7",
            "add route unreachable 10.244.1.0/24",
            "add route 10.244.1.9/32 dev if9",
            "add route 10.244.2.0/24 via 10.244.2.0 dev if7",
            "add route 10.244.3.0/24 via 10.244.3.0 dev if7",
            "add route unreachable fd00:244:1::/64",
            "add route fd00:244:1::9/128 dev if9",
            "add route fd00:244:2::/64 via fd00:244:2:: dev if7",
            "add rule from 10.244.1.0/24 lookup 240",
        ]
    );
}

#[test]
fn a_change_of_one_peer_touches_only_its_objects() {
    let moved = CONFIG.replace("192.168.1.4", "192.168.1.5");
    assert_eq!(
        plan(desired(&moved), desired(CONFIG)),
        [
            "replace neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:05 dev if7",
            "add fdb 02:70:c0:a8:01:05 dst 192.168.1.5 dev if7",
            "add route 192.168.1.5/32 via 10.244.3.0 table 240 dev if7",
            "delete route 192.168.1.4/32 via 10.244.3.0 table 240 dev if7",
            "delete fdb 02:70:c0:a8:01:04 dst 192.168.1.4 dev if7",
        ]
    );
    let renumbered = CONFIG.replace("10.244.3.0", "10.244.4.0");
    assert_eq!(
        plan(desired(&renumbered), desired(CONFIG)),
        [
            "add neighbour 10.244.4.0 lladdr 02:70:c0:a8:01:04 dev if7",
            "replace route 192.168.1.4/32 via 10.244.4.0 table 240 dev if7",
            "add route 10.244.4.0/24 via 10.244.4.0 dev if7",
            "delete route 10.244.3.0/24 via 10.244.3.0 dev if7",
            "delete neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:04 dev if7",
        ]
    );
}

#[test]
fn further_addresses_of_a_peer_are_reached_by_its_range_of_their_family() {
    let more = CONFIG.replace(
        "underlay = \"192.168.1.3\"",
        "underlay = \"192.168.1.3\"\naddresses = [\"172.16.0.3\", \"2001:db8::3\"]",
    );
    assert_eq!(
        plan(desired(&more), desired(CONFIG)),
        [
            "add route 172.16.0.3/32 via 10.244.2.0 table 240 dev if7",
            "add route 2001:db8::3/128 via fd00:244:2:: table 240 dev if7",
            "add rule from fd00:244:1::/64 lookup 240",
        ]
    );
    let (alone, _) = CONFIG.split_once("[[peers]]").unwrap();
    assert!(plan(desired(alone), desired(CONFIG)).contains(&"delete rule from 10.244.1.0/24 lookup 240".to_owned()));
}

#[test]
fn a_node_of_one_family_has_no_way_to_addresses_of_the_other() {
    let v4 = CONFIG.replace(", \"fd00:244:1::/64\"", "");
    let v6_peers = v4.replace("192.168.1.", "2001:db8::");
    assert!(desired(&v6_peers).iter().all(|object| !matches!(object, Object::Rule(_))));
    assert!(desired(&v4).iter().any(|object| matches!(object, Object::Rule(_))));
}

#[test]
fn a_route_that_leads_elsewhere_is_replaced_and_a_stale_one_deleted() {
    let route = |destination: &str, device| {
        let kind = RouteKind::Via { device, gateway: None };
        Object::Route(super::route(destination.parse().unwrap(), kind))
    };
    let mut observed = desired(CONFIG);
    observed.retain(
        |object| !matches!(object, Object::Route(route) if route.destination == "10.244.2.0/24".parse().unwrap()),
    );
    observed.extend([route("10.244.2.0/24", IfIndex(3)), route("10.244.99.0/24", IfIndex(3))]);
    assert_eq!(
        plan(desired(CONFIG), observed),
        ["replace route 10.244.2.0/24 via 10.244.2.0 dev if7", "delete route 10.244.99.0/24 dev if3"]
    );
}

#[test]
fn a_peer_on_the_link_is_a_gateway_for_the_family_of_the_underlay_alone() {
    let config = Config::parse(&CONFIG.replace("[dataplane]", "[vxlan]\ndirect_routing = true\n[dataplane]")).unwrap();
    let direct = ["192.168.1.3", "192.168.1.4"].map(|peer| peer.parse().unwrap());
    let objects = super::desired(&config, &Vtep { direct: direct.into(), ..vtep() }, TUNNELS, &[]);
    let changes = plan(objects, super::desired(&config, &vtep(), TUNNELS, &[]));
    assert_eq!(
        changes,
        [
            "replace route 192.168.1.3/32 via 192.168.1.3 table 240 dev if2",
            "replace route 192.168.1.4/32 via 192.168.1.4 table 240 dev if2",
            "replace route 10.244.2.0/24 via 192.168.1.3 dev if2",
            "replace route 10.244.3.0/24 via 192.168.1.4 dev if2",
            "delete fdb 02:70:c0:a8:01:04 dst 192.168.1.4 dev if7",
            "delete neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:04 dev if7",
            "delete neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev if7",
        ]
    );
}

#[test]
fn what_is_ipv6_goes_by_the_second_tunnel_to_peers_that_have_one_too() {
    let both = CONFIG.replacen("[\"10.244.3.0/24\"]", "[\"10.244.3.0/24\", \"fd00:244:3::/64\"]", 1).replacen(
        "underlay = \"192.168.1.3\"",
        "underlay = \"192.168.1.3\"\nunderlay6 = \"fd00:1::3\"\nvtep_mac6 = \"02:00:00:00:00:63\"",
        1,
    );
    let config = Config::parse(&both).unwrap();
    let tunnels = Tunnels { second: Some(IfIndex(8)), ..TUNNELS };
    let end = TunnelEnd { underlay: "fd00:1::2".parse().unwrap(), mac: Mac([4; 6]) };
    let vtep = Vtep { second: Some(end), ..vtep() };
    assert_eq!(
        plan(super::desired(&config, &vtep, tunnels, &[]), Vec::new()),
        [
            "add address 10.244.1.0/32 dev if7",
            "add address fd00:244:1::/128 dev if8",
            "add neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev if7",
            "add neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:04 dev if7",
            "add neighbour fd00:244:3:: lladdr 02:70:c0:a8:01:04 dev if7",
            "add neighbour fd00:244:2:: lladdr 02:00:00:00:00:63 dev if8",
            "add fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev if7",
            "add fdb 02:70:c0:a8:01:04 dst 192.168.1.4 dev if7",
            "add fdb 02:00:00:00:00:63 dst fd00:1::3 dev if8",
            "add route 192.168.1.3/32 via 10.244.2.0 table 240 dev if7",
            "add route 192.168.1.4/32 via 10.244.3.0 table 240 dev if7",
            "add route fd00:1::3/128 via fd00:244:2:: table 240 dev if8",
            "add route unreachable 10.244.1.0/24",
            "add route 10.244.2.0/24 via 10.244.2.0 dev if7",
            "add route 10.244.3.0/24 via 10.244.3.0 dev if7",
            "add route unreachable fd00:244:1::/64",
            "add route fd00:244:2::/64 via fd00:244:2:: dev if8",
            "add route fd00:244:3::/64 via fd00:244:3:: dev if7",
            "add rule from 10.244.1.0/24 lookup 240",
            "add rule from fd00:244:1::/64 lookup 240",
        ]
    );
    // Without a second end here all goes by the first.
    let lone = plan(super::desired(&config, &self::vtep(), TUNNELS, &[]), Vec::new());
    assert!(lone.contains(&"add route fd00:244:2::/64 via fd00:244:2:: dev if7".to_owned()), "{lone:#?}");
    assert!(lone.contains(&"add neighbour fd00:244:2:: lladdr 02:70:c0:a8:01:03 dev if7".to_owned()), "{lone:#?}");
    // Without tunnels the peer's address of the family is the gateway.
    let direct = ["192.168.1.3", "fd00:1::3"].map(|end| end.parse().unwrap()).into();
    let direct = plan(super::desired(&config, &Vtep { direct, ..vtep }, tunnels, &[]), Vec::new());
    assert!(direct.contains(&"add route fd00:244:2::/64 via fd00:1::3 dev if2".to_owned()), "{direct:#?}");
    assert!(!direct.iter().any(|change| change.contains("fdb 02:00:00:00:00:63")), "{direct:#?}");
}

#[test]
fn a_device_is_kept_corrected_recreated_or_refused() {
    let vxlan = Vxlan {
        vni: crate::wire::Vni::new(1).unwrap(),
        port: 8472,
        local: "192.168.1.2".parse().unwrap(),
        uplink: IfIndex(2),
        udp_checksum: false,
        gbp: false,
    };
    let desired = VxlanDevice { name: "podwire.1".into(), mac: Mac([2; 6]), mtu: 1450, vxlan };
    let link = |kind, mtu, up| Link {
        index: DEVICE,
        name: "podwire.1".into(),
        alias: ALIAS.into(),
        mac: Some(Mac([2; 6])),
        mtu,
        up,
        running: up,
        master: None,
        lower: None,
        kind,
        conf: LinkConf::default(),
    };
    let keep = |mtu, up| DevicePlan::Keep(LinkSettings { up, mtu, ..LinkSettings::default() });
    assert_eq!(plan_device(&desired, None, None), DevicePlan::Create);
    assert_eq!(plan_device(&desired, Some(&link(LinkKind::Vxlan(vxlan), 1450, true)), None), keep(None, None));
    assert_eq!(
        plan_device(&desired, Some(&link(LinkKind::Vxlan(vxlan), 9000, false)), None),
        keep(Some(1450), Some(true))
    );
    for other in [
        Vxlan { vni: crate::wire::Vni::new(2).unwrap(), ..vxlan },
        Vxlan { port: 4789, ..vxlan },
        Vxlan { local: "192.168.1.9".parse().unwrap(), ..vxlan },
        Vxlan { uplink: IfIndex(3), ..vxlan },
        Vxlan { udp_checksum: true, ..vxlan },
    ] {
        assert_eq!(plan_device(&desired, Some(&link(LinkKind::Vxlan(other), 1450, true)), None), DevicePlan::Recreate);
    }
    assert_eq!(plan_device(&desired, Some(&link(LinkKind::OtherVxlan, 1450, true)), None), DevicePlan::Recreate);
    assert_eq!(plan_device(&desired, Some(&link(LinkKind::Other, 1450, true)), None), DevicePlan::Foreign);

    let unmarked = |kind, up| Link { alias: String::new(), ..link(kind, 1450, up) };
    let adopted = LinkSettings { up: Some(true), alias: Some(ALIAS), ..LinkSettings::default() };
    let foreign = Some(DevicePlan::Foreign);
    let planned = |link: Link| Some(plan_device(&desired, Some(&link), None));
    assert_eq!(planned(unmarked(LinkKind::Vxlan(vxlan), false)), Some(DevicePlan::Keep(adopted)));
    assert_eq!(planned(unmarked(LinkKind::Vxlan(vxlan), true)), foreign);
    assert_eq!(planned(Link { mac: Some(Mac([4; 6])), ..unmarked(LinkKind::Vxlan(vxlan), false) }), foreign);
    assert_eq!(planned(Link { alias: "mine".into(), ..unmarked(LinkKind::Vxlan(vxlan), false) }), foreign);
    assert_eq!(planned(unmarked(LinkKind::Vxlan(Vxlan { port: 4789, ..vxlan }), false)), foreign);
    assert_eq!(planned(unmarked(LinkKind::OtherVxlan, false)), foreign);

    let known = |link: Link| plan_device(&desired, Some(&link), Some(DEVICE));
    let marked = LinkSettings { alias: Some(ALIAS), ..LinkSettings::default() };
    assert_eq!(known(unmarked(LinkKind::Vxlan(vxlan), true)), DevicePlan::Keep(marked));
    assert_eq!(known(unmarked(LinkKind::OtherVxlan, true)), DevicePlan::Recreate);
    assert_eq!(known(unmarked(LinkKind::Other, true)), DevicePlan::Foreign);
}
