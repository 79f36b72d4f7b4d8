//! A cluster that something is broken in, as a user would break it: one command names the cause in words, its code
//! tells that something is wrong, and both are over when it is mended.

use std::fs;
use std::process::Output;
use std::time::Duration;

use podwire::control::api::{Cause, Peer, ProbeState, Status};

use super::cluster;
use super::harness::{Cluster, Options, PodwireNode, Wire, pings, wait_until};

in_both_modes! {
    all_peers_answer_on_either_underlay_and_a_plain_kernel_node_too,
    another_vni_is_named_on_both_sides,
}

/// How long three lost probes may take to be noticed, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

const PROBED: &str = "[probe]\ninterval_s = 1\n";

fn probed(options: Options) -> Options {
    Options { sections: PROBED, ..options }
}

/// The cluster, once each peer answers and nobody complains.
fn healthy(options: Options) -> Option<Cluster> {
    let cluster = cluster(Wire::default(), probed(options))?;
    for node in cluster.podwire_nodes() {
        wait_until_well(node);
    }
    Some(cluster)
}

#[track_caller]
fn wait_until_well(node: &PodwireNode) {
    let mut last = Vec::new();
    let well = wait_until(PATIENCE, || {
        last = peers(node);
        let answers = |peer: &Peer| peer.probe.as_ref().is_some_and(|probe| probe.state == ProbeState::Answers);
        last.iter().all(answers) && node.try_cli("peers").status.success()
    });
    assert!(well, "{last:#?}\n{}", node.log_text());
}

fn peers(node: &PodwireNode) -> Vec<Peer> {
    let output = node.try_cli("peers --output json");
    serde_json::from_slice(&output.stdout).expect("peers prints JSON")
}

fn causes(node: &PodwireNode, peer: &str) -> Vec<Cause> {
    let peers = peers(node).into_iter().filter(|found| found.name == peer);
    peers.filter_map(|peer| Some(peer.probe?.diagnosis?.cause)).collect()
}

fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // The doctor breaks lines.
    (text(&output.stdout) + &text(&output.stderr)).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command of a node, and what it must say while something is broken.
struct Says<'a>(&'a PodwireNode, &'a str, &'a str);

impl Says<'_> {
    #[track_caller]
    fn not_yet(&self) {
        let Self(node, verb, words) = self;
        let text = printed(&node.try_cli(verb));
        assert!(!text.contains(words), "before it is broken: {text}");
    }

    #[track_caller]
    fn soon(&self) {
        let Self(node, verb, words) = self;
        let mut output = node.try_cli(verb);
        let told = wait_until(PATIENCE, || {
            output = node.try_cli(verb);
            printed(&output).contains(words)
        });
        assert!(told, "`podwire {verb}` of {} does not say `{words}`: {}", node.host.name(), printed(&output));
        assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    }

    #[track_caller]
    fn no_more(&self) {
        let Self(node, verb, words) = self;
        let over = || wait_until(PATIENCE, || !printed(&node.try_cli(verb)).contains(words));
        assert!(over(), "it is mended: {}", printed(&node.try_cli(verb)));
    }
}

/// Breaks something; each of `told` must be said then, and neither before nor after it is mended.
#[track_caller]
fn tell_of(told: &[Says<'_>], breaks: impl FnOnce(), mends: impl FnOnce()) {
    told.iter().for_each(Says::not_yet);
    breaks();
    told.iter().for_each(Says::soon);
    mends();
    told.iter().for_each(Says::no_more);
    for Says(node, ..) in told {
        wait_until_well(node);
    }
}

fn all_peers_answer_on_either_underlay_and_a_plain_kernel_node_too(options: Options) {
    for wire in [Wire::default(), Wire { ipv6: true, ..Wire::default() }] {
        let Some(cluster) = cluster(wire, probed(options)) else { return };
        for node in cluster.podwire_nodes() {
            wait_until_well(node);
            for peer in peers(node) {
                let probe = peer.probe.expect("it is probed");
                let rtt = probe.rtt_ns.expect("it has answered");
                assert!(rtt > 1_000 && rtt < 2_000_000_000, "{rtt}");
                assert!(probe.sent > 0 && probe.smoothed_rtt_ns.is_some() && probe.diagnosis.is_none(), "{probe:?}");
            }
            assert!(node.cli("peers").contains("answers"));
            assert!(node.cli("status").contains("2, 2 answer(s) probes"));
        }
    }
}

fn another_vni_is_named_on_both_sides(options: Options) {
    let Some(cluster) = healthy(options) else { return };
    let Cluster { a, b, .. } = &cluster;
    let file = fs::read_to_string(b.config()).expect("a configuration");
    let write = |text: &str| fs::write(b.config(), text).expect("a configuration is written");
    tell_of(
        &[
            Says(a, "peers", "node-b sends VNI 2, we have 1"),
            Says(a, "doctor", "error peer-probe: node-b: node-b sends VNI 2, we have 1"),
            Says(b, "peers", "node-a sends VNI 1, we have 2"),
        ],
        || write(&file.replace("vni = 1", "vni = 2")),
        || write(&file),
    );
}

#[test]
fn a_firewall_of_a_node_is_found_there_and_suspected_elsewhere() {
    let Some(cluster) = healthy(Options::ADAPTIVE) else { return };
    let Cluster { a, b, .. } = &cluster;
    let netns = &b.host.netns;
    tell_of(
        &[
            Says(b, "peers", "this node drops the tunnel packets of node-a"),
            Says(b, "doctor", "this node drops the tunnel packets of node-a"),
            Says(a, "peers", "one of: UDP port 8472 to 192.168.1.3 is blocked on the way or there"),
        ],
        || {
            netns.run_all([
                "nft add table inet broken",
                "nft add chain inet broken in { type filter hook input priority 0 ; }",
                "nft add rule inet broken in udp dport 8472 drop",
            ]);
        },
        || drop(netns.run("nft delete table inet broken")),
    );
}

#[test]
fn a_firewall_on_the_way_is_suspected_because_the_node_itself_answers() {
    let Some(cluster) = healthy(Options::ADAPTIVE) else { return };
    let Cluster { a, b, switch, .. } = &cluster;
    let port = b.host.port();
    tell_of(
        &[
            Says(a, "peers", "UDP port 8472 seems blocked between 192.168.1.2 and 192.168.1.3"),
            Says(b, "peers", "UDP port 8472 seems blocked between 192.168.1.3 and 192.168.1.2"),
        ],
        || {
            switch.netns.run("nft add table netdev broken");
            for way in ["ingress", "egress"] {
                let hook = format!("type filter hook {way} device {port} priority 0");
                switch.netns.run(&format!("nft add chain netdev broken cut{way} {{ {hook} ; }}"));
                switch.netns.run(&format!("nft add rule netdev broken cut{way} udp dport 8472 drop"));
            }
        },
        || drop(switch.netns.run("nft delete table netdev broken")),
    );
    assert_eq!(causes(a, "node-c"), [], "nothing was wrong with it");
}

#[test]
fn a_way_with_a_small_mtu_is_named_though_small_packets_pass() {
    let Some(cluster) = healthy(Options::ADAPTIVE) else { return };
    let Cluster { a, b, switch, .. } = &cluster;
    let port = b.host.port();
    let (from, to) = (&a.pods[0], &b.pods[0]);
    tell_of(
        &[
            Says(a, "peers", "the MTU is too small on the way to 192.168.1.3"),
            Says(a, "doctor", "large packets are lost without a word"),
        ],
        || drop(switch.netns.run(&format!("ip link set {port} mtu 1400"))),
        || {
            assert!(pings(from, to.v4.into(), "-s 56") && !pings(from, to.v4.into(), "-M do -s 1422"), "as was said");
            switch.netns.run(&format!("ip link set {port} mtu 1500"));
        },
    );
}

#[test]
fn a_wrong_mac_is_named_by_who_has_it_and_by_whose_it_should_be() {
    let Some(mut cluster) = healthy(Options::ADAPTIVE) else { return };
    let (right, c) = (cluster.b.peer(), cluster.c.peer());
    let mac = right.vtep_mac.clone().expect("the node has one");
    let mut wrong = right.clone();
    wrong.vtep_mac = Some("02:00:00:00:00:99".to_owned());
    let told = |cluster: &Cluster, check: fn(&Says<'_>)| {
        check(&Says(&cluster.a, "peers", &format!("wrong VTEP MAC of node-b: 02:00:00:00:00:99, it sends from {mac}")));
        check(&Says(
            &cluster.b,
            "peers",
            &format!("node-a has a wrong VTEP MAC of us: 02:00:00:00:00:99, ours is {mac}"),
        ));
    };
    told(&cluster, |says| says.not_yet());
    cluster.a.set_peers(vec![wrong, c.clone()]);
    told(&cluster, |says| says.soon());
    cluster.a.set_peers(vec![right, c]);
    told(&cluster, |says| says.no_more());
    wait_until_well(&cluster.a);
}

#[test]
fn a_node_that_is_gone_is_told_from_a_tunnel_that_is() {
    let Some(cluster) = healthy(Options::ADAPTIVE) else { return };
    let Cluster { a, b, .. } = &cluster;
    tell_of(
        &[
            Says(a, "peers", "node-b is unreachable: neither 192.168.1.3 nor its tunnel answers"),
            Says(b, "peers", "our uplink eth0 is down"),
        ],
        || drop(b.host.netns.run("ip link set eth0 down")),
        || drop(b.host.netns.run("ip link set eth0 up")),
    );
}

#[test]
fn a_daemon_that_was_killed_is_missed_by_its_own_commands_and_not_by_its_peers() {
    let Some(mut cluster) = healthy(Options::ADAPTIVE) else { return };
    let told = |cluster: &Cluster, check: fn(&Says<'_>)| {
        for verb in ["peers", "status"] {
            check(&Says(&cluster.b, verb, "no daemon answers"));
        }
    };
    told(&cluster, |says| says.not_yet());
    cluster.b.kill();
    told(&cluster, |says| says.soon());
    assert_eq!(causes(&cluster.a, "node-b"), [], "the kernel path answers");
    cluster.b.launch();
    told(&cluster, |says| says.no_more());
    wait_until_well(&cluster.b);
}

#[test]
fn a_pod_range_that_two_nodes_use_is_named() {
    let Some(mut cluster) = healthy(Options::KERNEL) else { return };
    while !cluster.b.pods.is_empty() {
        cluster.b.remove_pod();
    }
    let Cluster { a, b, .. } = &cluster;
    let file = fs::read_to_string(b.config()).expect("a configuration");
    let write = |text: &str| fs::write(b.config(), text).expect("a configuration is written");
    tell_of(
        &[Says(a, "peers", "node-b uses our own pod range: its VXLAN device is 10.244.1.0, not 10.244.2.0")],
        || write(&file.replace("10.244.1.0/24", "10.244.9.0/24").replace("10.244.2.0/24", "10.244.1.0/24")),
        || write(&file),
    );
}

#[test]
fn a_range_without_a_free_address_is_named_and_when_one_is_free_no_more() {
    const FEW: &str = "[probe]\ninterval_s = 1\n[ipam]\nquarantine_s = 0\nexclude = [\"10.244.1.4-10.244.1.254\"]\n";
    let Some(mut cluster) = healthy(Options::KERNEL) else { return };
    cluster.a.set_options(Options { sections: FEW, ..Options::KERNEL });
    let says = |cluster: &Cluster, check: fn(&Says<'_>)| {
        check(&Says(&cluster.a, "doctor", "10.244.1.0/24 is exhausted: no pod can be attached"));
    };
    says(&cluster, |says| says.not_yet());
    cluster.a.add_pod(&cluster.prefix, "a3");
    says(&cluster, |says| says.soon());
    let netns = cluster.prefix.netns("a4");
    let attach = cluster.a.try_cli(&format!("pods attach --netns {} --name a4", netns.path().display()));
    assert!(attach.status.code() == Some(1) && printed(&attach).contains("10.244.1.0/24"), "{}", printed(&attach));
    cluster.a.remove_pod();
    says(&cluster, |says| says.no_more());
}

/// Whether the daemon listens to all IP packets of its uplink.
fn listens_to_uplink(node: &PodwireNode) -> bool {
    let index = node.host.netns.link(&node.host.uplink)["ifindex"].to_string();
    // Socket, references, type, EtherType, device.
    let sockets = node.host.netns.run("cat /proc/net/packet");
    let mut sockets = sockets.lines().map(|line| line.split_whitespace().skip(3).take(2).collect::<Vec<_>>());
    sockets.any(|socket| socket == ["0800", &index])
}

#[test]
fn the_uplink_is_listened_to_only_while_a_peer_does_not_answer() {
    let Some(cluster) = healthy(Options::KERNEL) else { return };
    let Cluster { a, b, .. } = &cluster;
    let set = |state: &str| drop(b.host.netns.run(&format!("ip link set eth0 {state}")));
    assert!(wait_until(PATIENCE, || !listens_to_uplink(a)), "all is well");
    set("down");
    assert!(wait_until(PATIENCE, || listens_to_uplink(a)), "{}", a.log_text());
    set("up");
    assert!(wait_until(PATIENCE, || !listens_to_uplink(a)), "all is well again");
}

#[test]
fn probes_can_be_turned_off() {
    let Some(cluster) = cluster(Wire::default(), Options { sections: "[probe]\ninterval_s = 0\n", ..Options::KERNEL })
    else {
        return;
    };
    let Status { peers, .. } = cluster.a.status();
    assert!(peers.iter().all(|peer| peer.probe.is_none()), "{peers:?}");
    assert!(cluster.a.cli("peers").contains("not probed"));
}
