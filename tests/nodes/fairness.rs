//! What pods that take more than their share, and pods that take nothing any more, cost the other pods of their node.

use std::net::UdpSocket;
use std::time::Duration;
use std::{fs, thread};

use podwire::control::view::Counters;
use podwire::counters::DropReason;

use super::harness::{
    Beside, Cluster, Flood, Flow, Netns, Options, Pod, PodwireNode, Wire, figures, pings, since, stream_at, wait_until,
};
use super::{assert_ledgers_balance, cluster};

/// How long counters may take to be complete.
const SOON: Duration = Duration::from_secs(5);

/// How often to try again when the machine kept the worker from running.
const ATTEMPTS: usize = 8;

/// A cluster whose node `a` has so many pods.
fn crowd(pods: usize) -> Option<Cluster> {
    let mut cluster = cluster(Wire::default(), Options::ADAPTIVE)?;
    let Cluster { a, prefix, .. } = &mut cluster;
    while a.pods.len() < pods {
        a.add_pod(prefix, &format!("a{}", a.pods.len() + 1));
    }
    let Cluster { a, c, .. } = &cluster;
    assert!(c.pods.iter().all(|pod| pings(&a.pods[0], pod.v4.into(), "")), "all neighbours are known");
    Some(cluster)
}

/// Makes the worker of node `a` slow: what it sends is received by node `c` before its call returns, as everything by
/// veth is, and that takes its time.
fn slow_down(cluster: &Cluster) {
    let rule = |n| format!("add rule netdev slow in ip saddr 198.18.{}.{}", n / 250, n % 250);
    let rules: Vec<_> = (0..800).map(rule).collect();
    let hook = "{ type filter hook ingress device eth0 priority 0; }";
    let file = cluster.prefix.dir().join("slow.nft");
    fs::write(&file, format!("add table netdev slow\nadd chain netdev slow in {hook}\n{}\n", rules.join("\n")))
        .expect("a file");
    cluster.c.host.netns.run(&format!("nft -f {}", file.display()));
}

/// What a node counted of packets that did not arrive.
fn losses(counted: &Counters) -> u64 {
    let reasons = DropReason::ALL.iter().map(|reason| reason.label()).chain(["pod_steer quota", "claims_lost"]);
    reasons.filter_map(|reason| counted.get(reason)).sum()
}

/// Has so many pods of node `a` send to a pod of node `c`, every second one three times as much as the others, beside a
/// ping-pong of another pod. Returns what node `a` counted meanwhile, too; nothing may be lost that it did not count.
fn measure(cluster: &Cluster, floods: usize) -> (Beside, Counters) {
    let Cluster { a, c, .. } = cluster;
    let (asker, others) = a.pods.split_last().expect("pods");
    let flows = others.iter().take(floods).map(|pod| Flow::v4(pod, &c.pods[0]));
    let before = figures(a);
    let beside = Beside::measure([asker, &c.pods[1]], a.spare_core(), &Flood::uneven(flows), Duration::from_secs(1));
    let lost = beside.floods.iter().map(|flood| flood.lost).sum();
    let mut counted = Counters::new();
    // The worker publishes its counters every millisecond, and finds later what was lost on the way to it.
    let is_explained = wait_until(SOON, || {
        counted = since(figures(a), &before);
        losses(&counted) >= lost
    });
    assert!(is_explained, "{lost} lost: {counted:#?}");
    (beside, counted)
}

/// Whether the worker ran all the time, else the kernel path had a part of it, and each pod sent more than its share.
fn is_conclusive((beside, counted): &(Beside, Counters)) -> bool {
    let ran = ["absences", "pod_steer late", "pod_steer stale", "pod_steer bypass"]
        .iter()
        .all(|label| !counted.contains_key(*label));
    let least = beside.floods.iter().map(|flood| flood.sent).min().unwrap_or(0);
    ran && least > beside.arrived().sum::<u64>() / beside.floods.len() as u64
}

#[test]
fn floods_get_equal_shares_of_a_worker_and_cost_a_pod_beside_them_nothing() {
    const MOST: usize = 16;
    let Some(cluster) = crowd(MOST + 1) else { return };
    slow_down(&cluster);
    for floods in [1, 4, MOST] {
        let mut attempts = (0..ATTEMPTS).map(|_| measure(&cluster, floods));
        let (beside, counted) = attempts.find(is_conclusive).expect("a worker that has its core");
        let [offered, shares] = beside.fairness();
        println!(
            "{floods} floods: index {offered:.3} of what was sent, {shares:.3} of what arrived: {:?}",
            beside.floods
        );
        assert!(counted["pod_steer quota"] > 1000 && (floods == 1 || offered < 0.85), "{counted:?}");
        assert!(shares >= 0.9, "{shares}");
        assert_eq!(beside.lost, 0, "{counted:?}");
        assert!(beside.floods.iter().all(|flood| flood.reordered == 0 && flood.duplicated == 0));
    }
    assert_ledgers_balance(&cluster);
}

#[test]
fn a_pod_that_takes_nothing_any_more_costs_15_others_nothing() {
    const PODS: usize = 16;
    let Some(cluster) = crowd(PODS) else { return };
    let Cluster { a, c, .. } = &cluster;
    let flows: Vec<_> = a.pods.iter().map(|pod| Flow::v4(&c.pods[0], pod)).collect();
    let stalled = &a.pods[0];
    let before = figures(a);
    let deliveries = stream_at(1000, &flows, &[], || {
        for _ in 0..40 {
            // The node sets both up again.
            stalled.netns.run("ip link set eth0 down");
            a.host.netns.run("ip link set pw1 down");
            thread::sleep(Duration::from_millis(20));
        }
    });
    let counted = since(figures(a), &before);
    let [first, others @ ..] = &deliveries.streams[..] else { panic!("{deliveries:?}") };
    assert!(first.lost > 100, "{deliveries:?}");
    assert!(others.iter().all(|stream| stream.lost == 0), "{counted:?} {deliveries:#?}");
    assert_ledgers_balance(&cluster);
}

/// All pods of node `a` send at once, from a socket each, a datagram to each of 40 ports of a pod of node `c`: what does not
/// arrive is counted, and where the machine lets the worker run more than a quarter arrives.
pub(super) fn assert_all_pods_send_at_once(cluster: &Cluster) {
    let Cluster { a, c, .. } = cluster;
    let to = &c.pods[0];
    let open = |pod: &Pod| {
        let socket = pod.netns.within(|| UdpSocket::bind((pod.v4, 0))).expect("bind in the pod");
        socket.set_nonblocking(true).expect("an option");
        socket
    };
    let receivers: Vec<_> = (0..40).map(|_| open(to)).collect();
    let senders: Vec<_> = a.pods.iter().map(open).collect();
    assert!(pings(&a.pods[0], to.v4.into(), ""), "the neighbour is known");
    let sent = (senders.len() * receivers.len()) as u64;
    let carries_its_part = (0..ATTEMPTS).any(|_| send_all(a, &senders, &receivers) > sent / 4);
    assert!(carries_its_part, "of {sent} sent a quarter at most arrived, each time");
}

/// Has each sender send a datagram to each receiver; returns how many arrived. All others must be counted.
fn send_all(a: &PodwireNode, senders: &[UdpSocket], receivers: &[UdpSocket]) -> u64 {
    let (before, sent) = (figures(a), (senders.len() * receivers.len()) as u64);
    for receiver in receivers {
        let to = receiver.local_addr().expect("bound");
        for sender in senders {
            sender.send_to(&[0; 18], to).expect("a route");
        }
    }
    let mut arrived = 0;
    let all = wait_until(SOON, || {
        let taken = receivers.iter().map(|receiver| std::iter::from_fn(|| receiver.recv(&mut [0; 18]).ok()).count());
        arrived += taken.sum::<usize>() as u64;
        arrived + losses(&since(figures(a), &before)) >= sent
    });
    let counted = since(figures(a), &before);
    println!("{arrived} of {sent} arrived: {counted:?}");
    assert!(all, "{arrived} of {sent} arrived: {counted:?}");
    arrived
}

/// Packets that a queueing discipline keeps.
fn kept(netns: &Netns, device: &str) -> u64 {
    let printed = netns.run(&format!("tc -json -statistics qdisc show dev {device}"));
    let disciplines: serde_json::Value = serde_json::from_str(&printed).expect("tc prints JSON");
    disciplines[0]["qlen"].as_u64().expect("a figure")
}

#[test]
fn a_pod_that_keeps_what_it_is_sent_costs_others_nothing() {
    /// Of 1300 bytes: more than socket buffers usually have room for.
    const MANY: u64 = 70_000;
    let Some(cluster) = crowd(4) else { return };
    let Cluster { a, c, .. } = &cluster;
    let (hoarder, others) = a.pods.split_first().expect("pods");
    hoarder.netns.run_all([
        "ip link add ifb0 type ifb",
        "ip link set ifb0 up",
        "tc qdisc add dev ifb0 root tbf rate 8kbit burst 2000 limit 1000000000",
        "tc qdisc add dev eth0 ingress",
        "tc filter add dev eth0 parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev ifb0",
    ]);
    let sender = c.pods[1].netns.within(|| UdpSocket::bind((c.pods[1].v4, 0))).expect("bind in the pod");
    let keeps_many = || {
        for n in 0..10_000 {
            sender.send_to(&[0; 1300], (hoarder.v4, 9)).expect("a route");
            if n % 32 == 0 {
                thread::sleep(Duration::from_micros(200));
            }
        }
        kept(&hoarder.netns, "ifb0") > MANY
    };
    assert!(wait_until(Duration::from_secs(60), keeps_many), "{:?}", figures(a));
    let flows: Vec<_> = others.iter().map(|pod| Flow::v4(&c.pods[0], pod)).collect();
    let before = figures(a);
    let deliveries = stream_at(1000, &flows, &[], || thread::sleep(Duration::from_millis(500)));
    let counted = since(figures(a), &before);
    assert!(deliveries.streams.iter().all(|stream| stream.lost == 0), "{counted:?} {deliveries:#?}");
}
