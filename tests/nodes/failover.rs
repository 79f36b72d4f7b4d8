//! What pods notice when the daemon stops, dies, hangs, is reconfigured, or the underlay changes: packets in flight.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use podwire::control::view::Ailment;

use super::harness::{
    Cluster, Noticed, Options, Peer, Pod, PodwireNode, Wire, assert_all_pairs_talk, iperf3, notice, ping_matrix, pings,
    signal, wait_until,
};
use super::{assert_ledgers_balance, cluster};

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

/// How long pods talk on after an event.
const TAIL: Duration = Duration::from_millis(500);

/// Lets `event` happen while pods talk, and panics unless the longest gap is at most `bound_ms`, no packet went astray, no
/// connection was lost and the workers carry again. A machine that is shared gets a second chance.
#[track_caller]
fn assert_noticed(cluster: &mut Cluster, bound_ms: f64, event: fn(&mut Cluster)) -> Noticed {
    let is_within = |noticed: &Noticed| noticed.deliveries.streams.iter().all(|s| s.network_gap_ms <= bound_ms);
    let mut noticed = notice(cluster, TAIL, event);
    if !is_within(&noticed) {
        println!("once more, after {:#?}", noticed.deliveries);
        noticed = notice(cluster, TAIL, event);
    }
    println!("{noticed:#?}");
    assert!(is_within(&noticed), "a gap above {bound_ms} ms: {:#?}", noticed.deliveries);
    assert_eq!((noticed.deliveries.misdelivered, noticed.connections.lost), (0, 0));
    assert!(noticed.recovered_after_ms.is_some(), "the workers do not carry again");
    noticed
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
fn pods_keep_talking_when_the_data_plane_is_uninstalled_and_started_again() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].v4.into());
    let lost = lost_during(&from, to, || cluster.a.uninstall_data_plane());
    assert!(lost <= 3, "{lost} of 200 packets lost when the data plane was uninstalled");
    assert_all_pairs_talk(&cluster.pods());
    let lost = lost_during(&from, to, || cluster.a.launch());
    assert!(lost <= 3, "{lost} of 200 packets lost when the daemon started");
    assert!(goes_fast(&cluster.a, &from, to), "by the kernel path");
}

#[test]
fn pods_keep_talking_when_the_daemon_is_killed() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    assert_noticed(&mut cluster, 30.0, |cluster| {
        cluster.a.kill();
        thread::sleep(Duration::from_millis(300));
        cluster.a.launch();
    });
    cluster.a.kill();
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn pods_keep_talking_when_the_daemon_aborts() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    assert_noticed(&mut cluster, 30.0, |cluster| {
        cluster.a.abort();
        thread::sleep(Duration::from_millis(300));
        cluster.a.launch();
    });
}

#[test]
fn pods_keep_talking_while_the_daemon_is_stopped_and_its_workers_are_trusted_again() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let noticed = assert_noticed(&mut cluster, 30.0, |cluster| {
        signal(cluster.a.daemon(), libc::SIGSTOP);
        thread::sleep(Duration::from_millis(300));
        signal(cluster.a.daemon(), libc::SIGCONT);
    });
    assert_path_changed_rarely(&noticed);
    signal(cluster.a.daemon(), libc::SIGSTOP);
    // Nobody has asked anything of the workers: what they are asked first is lost.
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let _lost = to.addresses().map(|destination| pings(from, destination, "-W 1"));
    let silent = ping_matrix(&cluster.pods()).into_iter().filter(|row| !row.3).count();
    signal(cluster.a.daemon(), libc::SIGCONT);
    assert_eq!(silent, 0, "pairs without an answer while the daemon was stopped");
}

#[test]
fn pods_keep_talking_while_a_worker_hangs() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let noticed = assert_noticed(&mut cluster, 30.0, |cluster| suffer(cluster, "hang"));
    assert!(noticed.counted[0]["absences"] >= 1);
    assert_path_changed_rarely(&noticed);
}

#[test]
fn pods_keep_talking_while_packet_memory_is_exhausted_and_no_frame_is_lost_by_it() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let noticed = assert_noticed(&mut cluster, 50.0, |cluster| suffer(cluster, "starve"));
    assert!(noticed.counted[0]["starvations"] >= 1);
    assert_path_changed_rarely(&noticed);
    assert_ledgers_balance(&cluster);
    for worker in cluster.a.status().dataplane.figures.expect("the data plane runs").workers {
        assert!(worker.probation.is_none() && worker.frames.hands == 0, "{worker:?}");
    }
}

#[test]
fn a_worker_on_probation_says_why() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    // Each hang doubles the probation: the last is long enough to be seen.
    for _ in 0..6 {
        cluster.a.cli("fault hang --ms 30");
        thread::sleep(Duration::from_millis(40));
        let carried_on = || cluster.a.worker().probation.is_none();
        assert!(wait_until(Duration::from_secs(5), carried_on), "{:?}", cluster.a.worker());
    }
    cluster.a.cli("fault hang --ms 30");
    let told = || cluster.a.worker().probation.is_some_and(|probation| probation.reason == Ailment::Away);
    assert!(wait_until(Duration::from_secs(1), told), "{:?}", cluster.a.worker());
    assert!(!cluster.a.worker().fresh);
    let text = cluster.a.cli("status");
    assert!(text.contains("was away, on probation for ") && text.contains("STALE"), "{text}");
}

#[test]
fn an_idle_worker_leaves_its_core_to_others() {
    const SECONDS: u32 = 4;
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let used = || cluster.a.worker_time();
    let before = used();
    thread::sleep(Duration::from_secs(SECONDS.into()));
    let cores = used().saturating_sub(before).as_secs_f64() / f64::from(SECONDS);
    println!("an idle worker uses {cores:.4} of a core");
    assert!(cores <= 0.04, "{cores}");
}

fn suffer(cluster: &mut Cluster, fault: &str) {
    cluster.a.cli(&format!("fault {fault} --worker 0 --ms 300"));
    thread::sleep(Duration::from_millis(300));
}

/// The fault itself, and a few times that a busy machine's scheduler kept the worker waiting.
#[track_caller]
fn assert_path_changed_rarely(noticed: &Noticed) {
    let probations = noticed.counted[0].get("probations").copied().unwrap_or(0);
    assert!((1..=4).contains(&probations), "{probations} probations");
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
