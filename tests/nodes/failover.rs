//! What pods notice when the daemon stops, dies, hangs, is reconfigured, or the underlay changes: packets in flight.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use super::cluster;
use super::harness::{
    Options, Peer, Pod, PodwireNode, Wire, assert_all_pairs_talk, iperf3, ping_matrix, pings, signal, wait_until,
};

/// Sends 200 echo requests, 10 ms apart, while `event` happens at about the 50th; returns how many had no answer.
fn lost_during(from: &Pod, to: IpAddr, event: impl FnOnce() + Send) -> u32 {
    let printed = thread::scope(|scope| {
        let ping = scope.spawn(|| from.netns.output(&format!("ping -n -q -i 0.01 -c 200 -W 1 {to}")));
        thread::sleep(Duration::from_millis(500));
        event();
        ping.join().expect("ping runs").stdout
    });
    let printed = String::from_utf8_lossy(&printed).into_owned();
    let received =
        printed.split(", ").find_map(|part| part.strip_suffix(" received")).and_then(|n| n.parse::<u32>().ok());
    200 - received.unwrap_or_else(|| panic!("no summary: {printed}"))
}

/// Whether the workers of `node` carry an echo request from `from` and its answer.
fn goes_fast(node: &PodwireNode, from: &Pod, to: IpAddr) -> bool {
    let before = node.carried();
    pings(from, to, "") && node.carried().since(before).fast >= 2
}

#[test]
fn pods_keep_talking_when_the_daemon_is_stopped_and_started() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].v4.into());
    let lost = lost_during(&from, to, || cluster.a.stop());
    assert!(lost <= 3, "{lost} of 200 packets lost when the daemon stopped");
    assert_all_pairs_talk(&cluster.pods());
    let lost = lost_during(&from, to, || cluster.a.launch());
    assert!(lost <= 3, "{lost} of 200 packets lost when the daemon started");
    assert!(goes_fast(&cluster.a, &from, to), "by the kernel path");
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn pods_keep_talking_when_the_daemon_is_killed() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].v6.into());
    let lost = lost_during(&from, to, || cluster.a.kill());
    assert!(lost <= 10, "{lost} of 200 packets lost when the daemon was killed");
    assert_all_pairs_talk(&cluster.pods());
    cluster.a.launch();
    assert!(goes_fast(&cluster.a, &from, to), "by the kernel path");
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn pods_keep_talking_while_the_daemon_hangs() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.a.pods[0], cluster.b.pods[0].v4.into());
    let lost = lost_during(from, to, || signal(cluster.a.daemon(), libc::SIGSTOP));
    assert!(lost <= 10, "{lost} of 200 packets lost when the daemon hung");
    let silent = ping_matrix(&cluster.pods()).into_iter().filter(|row| !row.3).count();
    signal(cluster.a.daemon(), libc::SIGCONT);
    assert_eq!(silent, 0, "pairs without an answer while the daemon hung");
    assert!(wait_until(Duration::from_secs(3), || goes_fast(&cluster.a, from, to)), "by the kernel path");
}

#[test]
fn a_change_of_mode_is_taken_while_pods_talk() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.c.pods[0].v4.into());
    let lost = lost_during(&from, to, || cluster.a.set_options(Options::KERNEL));
    assert!(lost <= 3, "{lost} of 200 packets lost on the way to the kernel path");
    assert!(!goes_fast(&cluster.a, &from, to));
    let lost = lost_during(&from, to, || cluster.a.set_options(Options::ADAPTIVE));
    assert!(lost <= 3, "{lost} of 200 packets lost on the way to the data plane");
    assert!(goes_fast(&cluster.a, &from, to));
}

#[test]
fn a_peer_that_is_taken_out_and_put_back_touches_nobody_else() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let from = cluster.a.pods[0].clone();
    let (stays, leaves): (IpAddr, IpAddr) = (cluster.b.pods[0].v4.into(), cluster.c.pods[0].v4.into());
    let peers: Vec<Peer> = vec![cluster.b.host.peer(None), cluster.c.peer()];
    let lost = lost_during(&from, stays, || cluster.a.set_peers(peers[..1].to_vec()));
    assert_eq!(lost, 0);
    assert!(!pings(&from, leaves, ""), "a peer that is gone answers");
    let lost = lost_during(&from, stays, || cluster.a.set_peers(peers.clone()));
    assert_eq!(lost, 0);
    assert!(goes_fast(&cluster.a, &from, leaves));
}

#[test]
fn the_new_mac_of_an_underlay_neighbour_is_followed() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.a.pods[0], cluster.c.pods[0].v4.into());
    assert!(goes_fast(&cluster.a, from, to));
    let other = &cluster.c.host.netns;
    // The node announces its new address itself (gratuitous ARP).
    other.sysctl("ipv4/conf/all/arp_notify", "1");
    other.run("ip link set eth0 address 02:00:00:00:0e:03");
    assert!(wait_until(Duration::from_secs(5), || goes_fast(&cluster.a, from, to)));
}

#[test]
fn pods_come_and_go_while_others_move_bulk() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    let target = to.v4.into();
    let (measured, rounds) = thread::scope(|scope| {
        let bulk = scope.spawn(|| iperf3(&from, &to, target, 5, ""));
        let mut rounds = 0;
        while !bulk.is_finished() {
            let name = format!("a-{rounds}");
            cluster.a.add_pod(&cluster.prefix, &name);
            let pod = cluster.a.pods.last().expect("just added");
            for destination in to.addresses() {
                assert!(pings(pod, destination, ""), "{name} does not reach {destination}");
            }
            let gone = cluster.a.remove_pod();
            assert!(!pings(&gone, target, "-W 1"), "{name} still talks");
            rounds += 1;
        }
        (bulk.join().expect("iperf3 runs"), rounds)
    });
    assert!(rounds >= 3, "{rounds} pods came and went");
    assert!(measured.bits_per_second > 1e8, "{measured:?}");
    assert_eq!(cluster.bad_checksums(), 0);
}
