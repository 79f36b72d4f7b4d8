//! The promise on a node as full as Kubernetes makes them.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use super::harness::{Options, PodwireNode, Prefix, Switch, Wire, is_root, wait_until};

const PODS: usize = 250;
const PEERS: usize = 1000;

#[test]
fn a_full_node_in_a_large_cluster_keeps_the_promise() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let host = switch.host(&prefix, 'a', 1);
    let neighbour = switch.host(&prefix, 'b', 2);
    // All peers are behind one gateway.
    host.netns.run(&format!("ip route add 172.16.0.0/12 via {}", neighbour.underlay));
    let mut node = PodwireNode::start(&prefix, host, Options::KERNEL, Vec::new());
    let mut text = fs::read_to_string(node.config()).expect("the configuration");
    text = text.replace("10.244.0.0/16", "10.0.0.0/8");
    for n in 0..PEERS {
        let (high, low) = (n / 200, n % 200);
        write!(
            text,
            "[[peers]]\nname = \"peer-{n}\"\nunderlay = \"172.16.{high}.{low}\"\n\
             pod_cidrs = [\"10.{}.{low}.0/24\", \"fd00:244:{:x}::/64\"]\n",
            100 + high,
            0x1000 + n
        )
        .expect("a string");
    }
    fs::write(node.config(), text).expect("write the configuration");
    let peers = |node: &PodwireNode| node.status().peers.len();
    assert!(wait_until(Duration::from_secs(30), || peers(&node) == PEERS), "{:?}", node.status().config);
    for n in 0..PODS {
        node.add_pod(&prefix, &format!("a{n}"));
    }
    let pod = node.pods[PODS - 1].netns.clone();
    let netns = node.host.netns.clone();
    for (place, spoil, shown, object) in [
        (&netns, "ip route del 10.104.7.0/24", "ip route", "10.104.7.0/24"),
        (&netns, "ip neigh del 10.104.7.0 dev podwire.1", "ip neigh show dev podwire.1", "10.104.7.0 "),
        (&netns, "ip link set pw250 mtu 1400", "ip link show pw250", "mtu 1450"),
        (&netns, "sysctl -qw net.ipv6.conf.pw7.accept_ra=2", "sysctl net.ipv6.conf.pw7.accept_ra", "= 0"),
        (&pod, "ip route del default", "ip route", "default"),
    ] {
        std::thread::sleep(Duration::from_secs(2));
        let start = Instant::now();
        place.run(spoil);
        let back = wait_until(Duration::from_secs(5), || place.run(shown).contains(object));
        let took = start.elapsed();
        println!("{spoil}: {took:?}");
        assert!(back && took < Duration::from_secs(2), "`{spoil}` took {took:?}");
    }
}
