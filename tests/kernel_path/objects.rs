//! What reconciliation makes, restores, removes and leaves alone.

use podwire::config::Config;
use podwire::control::kernel::{KernelError, Reconciled};
use podwire::control::netlink::{Monitor, News};
use podwire::control::netns::Netns;
use podwire::control::wiring::Pod;

use crate::lab::{Lab, config, peer};

/// Node `a` with two peers and a pod.
struct One {
    lab: Lab,
    config: String,
    pods: Vec<Pod>,
}

impl One {
    fn new() -> Option<Self> {
        let lab = Lab::new(false)?;
        let config = config(&lab.node('a', 1), &[peer('b', 2), peer('c', 3)]);
        let vtep = lab.reconcile("a", &config, &[]).vtep;
        let pods = vec![lab.pod("a", &vtep, 9, "a-pod")];
        Some(Self { lab, config, pods })
    }

    /// Reconciles and returns what was done, as text.
    fn reconcile(&self, config: &str) -> Vec<String> {
        let done = self.lab.reconcile("a", config, &self.pods).done;
        done.changes.iter().map(ToString::to_string).collect()
    }

    fn outcome(&self, config: &str) -> Result<Reconciled, KernelError> {
        let config = Config::parse(config).unwrap();
        self.lab.kernel("a", |kernel| kernel.reconcile(&config, &self.pods))
    }

    /// All that is configured on the node, for comparison.
    fn state(&self) -> String {
        let show = [
            "address",
            "route show table all",
            "-6 route show table all",
            "neigh show nud permanent",
            "rule",
            "-6 rule",
        ];
        let device = self.lab.run("a", "bridge fdb show dev podwire.1");
        show.iter().map(|what| self.lab.ip("a", what)).collect::<String>() + &device
    }
}

#[test]
fn a_second_reconciliation_changes_nothing() {
    let Some(one) = One::new() else { return };
    let before = one.state();
    assert_eq!(one.reconcile(&one.config), [] as [&str; 0]);
    assert_eq!(one.state(), before);
}

#[test]
fn says_which_settings_of_the_node_it_changed() {
    let Some(lab) = Lab::new(false) else { return };
    let host = lab.node('a', 1);
    lab.run("a", "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    lab.ip("a", "-6 route add default via fd00::1 dev eth0 onlink proto ra");
    let done = lab.reconcile("a", &config(&host, &[peer('b', 2)]), &[]).done;
    let said: Vec<String> = done.changes.iter().map(ToString::to_string).collect();
    for expected in [
        "set net/ipv4/ip_forward from 0 to 1",
        "set net/ipv6/conf/eth0/accept_ra from 1 to 2",
        "set net/ipv6/conf/all/forwarding from 0 to 1",
        "create device podwire.1",
        "set net/ipv4/conf/podwire.1/rp_filter from 0 to 2",
        "add route 10.244.2.0/24 via 10.244.2.0 dev podwire.1",
    ] {
        assert!(said.iter().any(|line| line == expected), "{expected} in {said:#?}");
    }
    let addresses = lab.ip("a", "-6 address show dev podwire.1");
    assert!(!addresses.contains("fe80") && !addresses.contains("tentative"), "{addresses}");
    assert!(lab.ip("a", "-6 route show default").contains("proto ra"));
}

#[test]
fn restores_what_was_deleted_or_spoilt_and_nothing_else() {
    let Some(one) = One::new() else { return };
    let before = one.state();
    let rows = [
        ("ip route del 10.244.2.0/24", "add route 10.244.2.0/24 via 10.244.2.0 dev podwire.1"),
        ("ip -6 route del fd00:244:2::/64", "add route fd00:244:2::/64 via fd00:244:2:: dev podwire.1"),
        (
            "ip route replace 10.244.3.0/24 dev eth0 proto 240",
            "replace route 10.244.3.0/24 via 10.244.3.0 dev podwire.1",
        ),
        (
            "ip -6 route replace fd00:244:3::/64 dev eth0 proto 240",
            "replace route fd00:244:3::/64 via fd00:244:3:: dev podwire.1",
        ),
        ("ip route add 10.244.99.0/24 dev eth0 proto 240", "delete route 10.244.99.0/24 dev eth0"),
        ("ip route del 10.244.1.9/32", "add route 10.244.1.9/32 dev pw9"),
        ("ip route del unreachable 10.244.1.0/24", "add route unreachable 10.244.1.0/24"),
        ("ip neigh del 10.244.2.0 dev podwire.1", "add neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev podwire.1"),
        (
            "ip neigh replace 10.244.1.9 lladdr 02:00:00:00:00:01 dev pw9",
            "replace neighbour 10.244.1.9 lladdr 0a:58:0a:f4:01:09 dev pw9",
        ),
        (
            "ip neigh add 10.244.50.0 lladdr 02:00:00:00:00:01 dev podwire.1",
            "delete neighbour 10.244.50.0 lladdr 02:00:00:00:00:01 dev podwire.1",
        ),
        (
            "bridge fdb del 02:70:c0:a8:01:03 dev podwire.1 dst 192.168.1.3",
            "add fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev podwire.1",
        ),
        (
            "bridge fdb replace 02:70:c0:a8:01:03 dev podwire.1 dst 192.168.1.99",
            "replace fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev podwire.1",
        ),
        (
            "bridge fdb add 02:00:00:00:00:01 dev podwire.1 dst 192.168.1.99",
            "delete fdb 02:00:00:00:00:01 dst 192.168.1.99 dev podwire.1",
        ),
        ("ip address add 10.244.1.200/32 dev podwire.1", "delete address 10.244.1.200/32 dev podwire.1"),
        ("ip rule del from 10.244.1.0/24 lookup 240 pref 240 proto 240", "add rule from 10.244.1.0/24 lookup 240"),
        ("ip rule add from 10.9.9.0/24 lookup 240 pref 300 proto 240", "delete rule from 10.9.9.0/24 lookup 240"),
        ("ip -6 rule add from fd09::/64 lookup 240 proto 240", "delete rule from fd09::/64 lookup 240"),
        ("ip route del 192.168.1.3 table 240", "add route 192.168.1.3/32 via 10.244.2.0 table 240 dev podwire.1"),
        ("ip route add 192.168.1.99 dev eth0 table 240 proto 240", "delete route 192.168.1.99/32 table 240 dev eth0"),
        ("ip link set podwire.1 mtu 1400", "set device podwire.1 mtu 1450"),
        ("ip link set pw9 mtu 1400", "set device pw9 mtu 1450"),
    ];
    for (spoil, expected) in rows {
        one.lab.run("a", spoil);
        assert_eq!(one.reconcile(&one.config), [expected], "{spoil}");
    }
    assert_eq!(one.state().lines().count(), before.lines().count());
    assert_eq!(one.reconcile(&one.config), [] as [&str; 0]);
}

#[test]
fn brings_a_device_that_is_down_gone_or_changed_back_with_all_it_carries() {
    let Some(one) = One::new() else { return };
    for (spoil, first) in [
        ("ip link set podwire.1 down", "set device podwire.1 up"),
        ("ip link del podwire.1", "create device podwire.1"),
        ("ip link set pw9 down", "set device pw9 up"),
        ("ip link set podwire.1 address 02:00:00:00:00:01", "set device podwire.1 address 02:70:c0:a8:01:02"),
    ] {
        one.lab.run("a", spoil);
        let said = one.reconcile(&one.config);
        assert_eq!(said.first().map(String::as_str), Some(first), "{said:#?}");
        assert_eq!(one.reconcile(&one.config), [] as [&str; 0]);
        one.lab.kernel("a", |kernel| {
            let vtep = kernel.vtep(&Config::parse(&one.config).unwrap()).unwrap();
            kernel.verify(&vtep, &one.pods[0]).unwrap();
        });
    }
}

#[test]
fn a_removed_peer_goes_and_foreign_objects_stay() {
    let Some(one) = One::new() else { return };
    let foreign = [
        "ip route add 10.99.0.0/16 dev eth0 proto static",
        "ip route add 10.244.77.0/24 dev eth0",
        "ip neigh add 192.168.1.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent",
        "ip address add 192.168.7.1/24 dev eth0",
        "ip rule add from 10.244.1.0/24 to 10.99.0.0/16 lookup 240 pref 100",
        "ip rule add from 10.244.1.0/24 lookup 99 pref 101",
        "ip rule add from 10.244.3.0/24 fwmark 7 lookup 240 pref 102 proto 240",
        "ip route add 10.99.0.0/16 dev eth0 table 240",
    ];
    for command in foreign {
        one.lab.run("a", command);
    }
    let (without, _) = one.config.rsplit_once("[[peers]]").unwrap();
    let said = one.reconcile(without);
    assert_eq!(
        said,
        [
            "delete route fd00:244:3::/64 via fd00:244:3:: dev podwire.1",
            "delete route 10.244.3.0/24 via 10.244.3.0 dev podwire.1",
            "delete route 192.168.1.4/32 via 10.244.3.0 table 240 dev podwire.1",
            "delete fdb 02:70:c0:a8:01:04 dst 192.168.1.4 dev podwire.1",
            "delete neighbour fd00:244:3:: lladdr 02:70:c0:a8:01:04 dev podwire.1",
            "delete neighbour 10.244.3.0 lladdr 02:70:c0:a8:01:04 dev podwire.1",
        ]
    );
    let state = one.state();
    for left in ["10.99.0.0/16", "10.244.77.0/24", "192.168.1.50", "192.168.7.1/24"] {
        assert!(state.contains(left), "{left} in {state}");
    }
    for left in ["100:", "101:", "102:", "10.99.0.0/16 dev eth0 table 240"] {
        assert!(state.contains(left), "{left} in {state}");
    }
}

#[test]
fn a_foreign_route_for_a_peers_range_is_named_not_replaced() {
    let Some(lab) = Lab::new(false) else { return };
    let host = lab.node('a', 1);
    lab.ip("a", "route add 10.244.2.0/24 via 192.168.1.3 proto static");
    let config = Config::parse(&config(&host, &[peer('b', 2), peer('c', 3)])).unwrap();
    let done = lab.kernel("a", |kernel| kernel.reconcile(&config, &[])).unwrap().done;
    assert_eq!(done.failures.len(), 1, "{:?}", done.failures);
    assert!(done.failures[0].starts_with("cannot add route 10.244.2.0/24 via 10.244.2.0 dev podwire.1: File exists"));
    let routes = lab.ip("a", "route");
    assert!(routes.contains("10.244.2.0/24 via 192.168.1.3") && routes.contains("10.244.3.0/24 via 10.244.3.0"));
}

#[test]
fn the_device_is_recreated_for_new_parameters_renamed_and_otherwise_kept() {
    let Some(one) = One::new() else { return };
    let index = |name: &str| one.lab.ip("a", &format!("-o link show {name}")).split(':').next().map(str::to_owned);
    let before = index("podwire.1");
    let udp = one.config.clone() + "[vxlan]\nudp_checksum = true\n";
    let said = one.reconcile(&udp);
    assert_eq!(said[..2], ["delete device podwire.1", "create device podwire.1"]);
    assert_ne!(index("podwire.1"), before);
    assert!(one.lab.ip("a", "-d link show podwire.1").contains(" udpcsum "));

    let said = one.reconcile(&(one.config.clone() + "[vxlan]\nvni = 5\nport = 4789\ndevice = \"tunnel0\"\n"));
    assert_eq!(said[..2], ["delete device podwire.1", "create device tunnel0"]);
    let shown = one.lab.ip("a", "-d link show tunnel0");
    for detail in ["vxlan id 5", "dstport 4789", "local 192.168.1.2", "dev eth0", "nolearning", "mtu 1450", "noudpcsum"]
    {
        assert!(shown.contains(detail), "{detail} in {shown}");
    }
    assert!(one.lab.ip("a", "route").contains("10.244.2.0/24 via 10.244.2.0 dev tunnel0"));
}

#[test]
fn refuses_what_cannot_be_and_says_why() {
    let Some(one) = One::new() else { return };
    let refused = |config: &str| one.outcome(config).unwrap_err().to_string();
    one.lab.ip("a", "link add bridge7 type bridge");
    let done = one.outcome(&(one.config.clone() + "[vxlan]\ndevice = \"bridge7\"\n")).unwrap().done;
    assert!(done.failures[0].contains("bridge7 exists and is not podwire's"), "{:?}", done.failures);
    assert!(refused(&one.config.replace("eth0", "eth9")).contains("there is no device eth9"));
    assert!(refused(&one.config.replace("eth0", "lo")).contains("lo is not an Ethernet device"));
    let same = one.config.replace("192.168.1.3", "192.168.1.2");
    assert!(refused(&same).contains("address 192.168.1.2 is that of peer node-b too"));
    one.lab.ip("a", "address del fd00:192:168:1::2/64 dev eth0");
    let family = one.config.replace("192.168.1.3", "fd00::3").replace("192.168.1.4", "fd00::4");
    assert!(refused(&family).contains("has no usable address of the peers' family"));
    let elsewhere = one.config.replace("[cluster]", "underlay = \"192.168.1.77\"\n[cluster]");
    assert!(refused(&elsewhere).contains("node.underlay 192.168.1.77 is not an address of this node"));
    let inside = one.config.replace("10.244.2.0/24", "192.168.1.0/30").replace("192.168.1.3", "192.168.2.3");
    assert!(refused(&inside).contains("192.168.1.2 lies inside the pod range 192.168.1.0/30"));
    one.lab.ip("a", "address add 192.168.1.77/32 dev lo");
    assert!(one.outcome(&elsewhere).is_ok(), "an address of any device");
    one.lab.ip("a", "link set eth0 mtu 1300");
    assert!(refused(&one.config).contains("the MTU 1300 of eth0 leaves pods less than"));
}

#[test]
fn a_new_mtu_of_the_uplink_reaches_the_tunnel_and_both_ends_of_the_pods() {
    let Some(one) = One::new() else { return };
    one.lab.ip("a", "link set eth0 mtu 1400");
    let said = one.reconcile(&one.config);
    assert_eq!(
        said,
        ["set device podwire.1 mtu 1350", "set device pw9 mtu 1350", "pod a-pod: set device eth0 mtu 1350"]
    );
    assert!(one.lab.ip("a-pod", "link show eth0").contains("mtu 1350"));
}

#[test]
fn a_pod_whose_device_is_gone_is_reported_and_the_rest_goes_on() {
    let Some(one) = One::new() else { return };
    one.lab.ip("a", "link del pw9");
    one.lab.ip("a", "route del 10.244.2.0/24");
    let done = one.outcome(&one.config).unwrap().done;
    assert_eq!(done.failures, ["pod a-pod: its device pw9 is gone; detach it"]);
    assert_eq!(done.changes.len(), 1);
}

#[test]
fn a_pod_whose_device_was_renamed_keeps_its_routes_and_gets_its_name_back() {
    let Some(one) = One::new() else { return };
    let index = one.lab.ip("a", "-o link show pw9");
    one.lab.ip("a", "link set pw9 name wan0");
    assert_eq!(one.reconcile(&one.config), ["rename device wan0 to pw9"]);
    let digits = |shown: &str| shown.split(':').next().map(str::to_owned);
    assert_eq!(digits(&one.lab.ip("a", "-o link show pw9")), digits(&index));
    assert_eq!(one.reconcile(&one.config), [] as [&str; 0]);
}

#[test]
fn the_hub_is_made_once_kept_quiet_and_removed() {
    let Some(one) = One::new() else { return };
    let hub = one.lab.kernel("a", |kernel| kernel.ensure_hub(&mut Vec::new()).unwrap());
    assert_eq!(one.lab.kernel("a", |kernel| kernel.ensure_hub(&mut Vec::new()).unwrap()), hub);
    for name in ["pwhub0", "pwhub1"] {
        let shown = one.lab.ip("a", &format!("address show {name}"));
        assert!(shown.contains("mtu 65535") && shown.contains("UP,LOWER_UP") && !shown.contains("inet6"), "{shown}");
    }
    assert!(one.lab.ip("a", "link show pwhub0").starts_with(&format!("{}:", hub.near)));
    one.lab.kernel("a", |kernel| {
        kernel.remove_hub().unwrap();
        kernel.remove_hub().unwrap();
    });
    assert!(!one.lab.ip("a", "link").contains("pwhub"));
}

#[test]
fn a_foreign_vxlan_device_of_our_name_is_named_and_left_as_it_is() {
    let Some(lab) = Lab::new(false) else { return };
    let config = Config::parse(&config(&lab.node('a', 1), &[peer('b', 2)])).unwrap();
    let reconcile = || lab.kernel("a", |kernel| kernel.reconcile(&config, &[]));
    let state = || lab.ip("a", "-d address show podwire.1") + &lab.run("a", "bridge fdb show dev podwire.1");
    for port in [8472, 4790] {
        let device = "podwire.1 type vxlan id 1 local 192.168.1.2 dev eth0 nolearning noudpcsum";
        lab.ip("a", &format!("link add {device} dstport {port}"));
        lab.ip("a", "link set podwire.1 up");
        lab.ip("a", "address add 10.9.9.9/24 dev podwire.1 noprefixroute");
        lab.run("a", "bridge fdb add 02:00:00:00:00:99 dev podwire.1 dst 192.168.1.9");
        let before = state();
        let failures = reconcile().expect("a VTEP").done.failures;
        assert_eq!(failures, [KernelError::ForeignDevice("podwire.1".to_owned()).to_string()]);
        assert_eq!(state(), before);
        lab.ip("a", "link del podwire.1");
    }
    assert!(reconcile().expect("a VTEP").done.failures.is_empty(), "the name is free");
    assert!(lab.ip("a", "link show podwire.1").contains("alias podwire"));
}

#[test]
fn foreign_devices_with_the_hubs_names_are_named_and_left_as_they_are() {
    let Some(lab) = Lab::new(false) else { return };
    lab.node('a', 1);
    let devices = [
        ("pwhub0", "link add pwhub0 type bridge"),
        ("pwhub0", "link add pwhub0 type veth peer name other0"),
        ("pwhub1", "link add pwhub1 mtu 65535 up type veth peer name other1"),
    ];
    for (name, make) in devices {
        lab.ip("a", make);
        // Not the link's state, which settles by itself.
        let state = || {
            let printed = lab.ip("a", &format!("link show {name}"));
            let words: Vec<_> = printed.split_whitespace().map(str::to_owned).collect();
            let mtu = words.iter().skip_while(|word| *word != "mtu").nth(1).cloned();
            let sysctl = lab.run("a", &format!("cat /proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
            (words.first().cloned(), mtu, sysctl)
        };
        let before = state();
        let error = lab.kernel("a", |kernel| kernel.ensure_hub(&mut Vec::new()).unwrap_err());
        assert!(matches!(&error, KernelError::ForeignHub(named) if named == name), "{error}");
        lab.kernel("a", |kernel| kernel.remove_hub().unwrap());
        assert_eq!(state(), before);
        lab.ip("a", &format!("link del {name}"));
    }
    let hub = lab.kernel("a", |kernel| kernel.ensure_hub(&mut Vec::new()).unwrap());
    assert!(lab.ip("a", "link show pwhub0").starts_with(&format!("{}:", hub.near)));
    assert!(lab.ip("a", "link show pwhub1").contains("alias podwire"));
}

/// No socket has this number: the kernel itself has.
const NOBODY: u32 = 0xffff_ffff;

#[test]
fn the_monitor_tells_of_changes_and_of_nothing_else() {
    let Some(one) = One::new() else { return };
    let netns = Netns::open(&one.lab.netns_path("a")).unwrap();
    let mut monitor = netns.within(|| Monitor::open(NOBODY).unwrap()).unwrap();
    assert_eq!(monitor.drain().unwrap(), News::Nothing);
    for change in [
        "ip link set podwire.1 mtu 1400",
        "ip route del 10.244.2.0/24",
        "ip -6 route del fd00:244:2::/64",
        "ip neigh del 10.244.3.0 dev podwire.1",
        "ip address add 10.9.9.9/32 dev eth0",
        "ip address add fd00:9::9/128 dev eth0",
        "bridge fdb add 02:00:00:00:00:01 dev podwire.1 dst 192.168.1.99",
    ] {
        one.lab.run("a", change);
        assert_eq!(monitor.drain().unwrap(), News::Changed, "{change}");
        // The kernel may tell of consequences a moment later.
        std::thread::sleep(std::time::Duration::from_millis(20));
        monitor.drain().unwrap();
    }
    assert_eq!(one.reconcile(&one.config).len(), 5, "eth0 is not ours");
    assert_eq!(monitor.drain().unwrap(), News::Changed);
    assert_eq!(one.reconcile(&one.config), [] as [&str; 0]);
    assert_eq!(monitor.drain().unwrap(), News::Nothing, "a reconciliation without changes makes no news");
}
