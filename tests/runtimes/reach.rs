//! Whom pods of a runtime reach, and what is left of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::harness::{Connections, Flow, PodwireNode, assert_all_pairs_talk, pings, tcp_transfer};
use super::image::BUSYBOX;
use super::inventory::{Inventory, pods};
use super::ports::mapping;
use super::scene::{Running, pod_config, scene};
use super::web::{PORT, ask};

const BULK_BYTES: usize = 8_000_000;

/// The least of the packets that the data plane carries. The kernel carries what comes while a worker waits for its CPU.
const FAST_SHARE: f64 = 0.8;

#[test]
fn pods_of_a_runtime_talk_to_all_others_by_the_fast_path() {
    let Some(scene) = scene() else { return };
    let a = Running::start(&scene.a, &pod_config(&scene.a, "web-a"));
    let b = Running::start(&scene.b, &pod_config(&scene.b, "web-b"));
    let cluster = &scene.cluster;
    let before = cluster.podwire_nodes().map(PodwireNode::carried);
    assert_all_pairs_talk(&[&a.pod, &b.pod, &cluster.a.pods[0], &cluster.b.pods[0], &cluster.c.pods[0]]);
    for (from, to) in [(&a, &b), (&b, &a)] {
        for address in to.pod.addresses() {
            let (answered, printed) = from.exec(&format!("{BUSYBOX} ping -c 1 -w 5 {address}"));
            assert!(answered, "the container of {} hears nothing of {address}: {printed}", from.pod.name);
            let name = ask(&from.pod.netns, SocketAddr::new(address, PORT));
            assert_eq!(name.expect("an answer"), to.pod.name, "{address}");
            let seen = tcp_transfer(&from.pod, &to.pod, address, BULK_BYTES).expect("a transfer");
            assert_eq!(seen, from.pod.address_like(address), "the source address was translated");
        }
    }
    for (node, before) in cluster.podwire_nodes().into_iter().zip(before) {
        let carried = node.carried().since(before);
        assert!(carried.fast_share() > FAST_SHARE, "{}: {carried:?}", node.host.name());
    }
    assert_eq!(cluster.bad_checksums(), 0);
}

/// Calls `f` with each of `all` at the same time.
fn at_once<T: Send, R: Send>(all: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(move || f(one))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn pods_started_and_removed_at_once_leave_nothing_behind() {
    let Some(scene) = scene() else { return };
    let node = &scene.cluster.a;
    let before = Inventory::of(node, Some(&scene.a));
    let mut configs: Vec<_> = (0..8).map(|n| pod_config(&scene.a, &format!("pod-{n}"))).collect();
    configs[0].annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned());
    configs[1].port_mappings.push(mapping(18081));
    let running = at_once(configs, |config| Running::start(&scene.a, &config));
    let known = pods(node);
    for one in &running {
        let found = known.iter().find(|pod| pod.name == format!("{}:eth0", one.sandbox));
        let found = found.unwrap_or_else(|| panic!("{} is not among {known:?}", one.sandbox));
        assert_eq!(found.addresses, one.pod.addresses());
        let owner = found.owner.as_ref().expect("a runtime's pod has an owner");
        assert_eq!(owner.workload, Some(format!("default/{}", one.pod.name)));
        for address in one.pod.addresses() {
            assert!(pings(&scene.cluster.b.pods[0], address, ""), "{} does not answer at {address}", one.pod.name);
        }
    }
    let addresses: BTreeSet<_> = known.iter().flat_map(|pod| &pod.addresses).collect();
    assert_eq!(addresses.len(), 2 * known.len(), "an address was given to two: {known:?}");
    at_once(running, Running::remove);
    before.assert_restored(node, Some(&scene.a));
}

#[test]
fn pods_of_a_runtime_keep_their_connections_when_the_daemon_starts_again() {
    let Some(mut scene) = scene() else { return };
    let a = Running::start(&scene.a, &pod_config(&scene.a, "web-a"));
    let b = Running::start(&scene.b, &pod_config(&scene.b, "web-b"));
    let flows = [(&a.pod, &b.pod), (&b.pod, &a.pod)].map(|(from, to)| [Flow::v4(from, to), Flow::v6(from, to)]);
    let connections = Connections::open(flows.as_flattened());
    let known = pods(&scene.cluster.a);
    for end in [PodwireNode::stop, PodwireNode::kill] {
        end(&mut scene.cluster.a);
        thread::sleep(Duration::from_millis(200));
        scene.cluster.a.launch();
    }
    let fared = connections.close();
    assert_eq!((fared.connections, fared.lost), (4, 0), "{fared:?}");
    assert_eq!(pods(&scene.cluster.a), known);
    let node = &scene.cluster.a;
    let before = node.carried();
    tcp_transfer(&a.pod, &b.pod, b.pod.v4.into(), BULK_BYTES).expect("a transfer");
    let carried = node.carried().since(before);
    assert!(carried.fast_share() > FAST_SHARE, "{carried:?}");
    a.remove();
    assert_eq!(pods(node).len() + 1, known.len());
}
