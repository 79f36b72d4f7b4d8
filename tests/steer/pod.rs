//! What `pod_steer` decides, and what it makes of a frame for a pod of the same node.

use etherparse::Ipv4Header;
use podwire::ids::{PodId, WorkerId};
use podwire::steer::{PodPath, SteerConfig, Verdict};
use podwire::wire::Mac;

use crate::packets::*;
use crate::rig::{MTU, POD_A_IFINDEX, POD_B_IFINDEX, Rig, STALE_NS, config, is_root, now_ns, pod};

type Row = (&'static str, Vec<u8>, Verdict);

const MACS: [Mac; 2] = [POD_A_MAC, GATEWAY_MAC];

fn check(rig: &Rig, what: &str, rows: Vec<Row>) {
    for (name, frame, expected) in rows {
        assert_eq!(rig.pod(&frame), expected, "{what}: {name}");
    }
}

/// Rows that hold for any destination that the fast path knows; `fast` is the verdict of a good frame.
fn rows(family: usize, to: std::net::IpAddr, fast: Verdict) -> Vec<Row> {
    let frame = || from_a(to, 64);
    let ends = [POD_A[family], to];
    let fitting = usize::from(MTU) - ip_header(family) - 8;
    vec![
        ("UDP", frame(), fast),
        ("TCP", tcp(MACS, ends, &[0; 100]), fast),
        ("ICMP", echo(MACS, ends), fast),
        ("SCTP", sctp(MACS, ends), Verdict::Protocol),
        ("as large as the MTU", from_a(to, fitting), fast),
        ("larger than the MTU", from_a(to, fitting + 1), Verdict::TooBig),
        ("another pod's address", udp(MACS, [POD_B[family], to], [1, 2], &[]), Verdict::SpoofIp),
        ("a remote pod's address", udp(MACS, [REMOTE_POD[family], to], [1, 2], &[]), Verdict::SpoofIp),
        ("spoofed fragment", fragment(udp(MACS, [NO_POD[family], to], [1, 2], &[]), family), Verdict::SpoofIp),
        ("another pod's MAC", patched(frame(), 6, &POD_B_MAC.0), Verdict::SpoofMac),
        ("VLAN-tagged", tagged(frame(), TAGS[0], 5), Verdict::PodVlan),
        ("service VLAN", tagged(frame(), TAGS[1], 5), Verdict::PodVlan),
        ("priority tag", tagged(frame(), TAGS[0], 0), Verdict::PodVlan),
        ("ARP", patched(frame(), 12, &[0x08, 0x06]), Verdict::NotIp),
        ("options", with_options(frame(), family), Verdict::Options),
        ("fragment", fragment(frame(), family), Verdict::Fragment),
        ("TTL 1", with_ttl(frame(), family, 1), Verdict::Ttl),
        ("TTL 0", with_ttl(frame(), family, 0), Verdict::Ttl),
        ("version", patched(frame(), ETHERNET, &[0x25]), Verdict::Malformed),
        ("shorter than it says", frame()[..frame().len() - 1].to_vec(), Verdict::Malformed),
        ("longer than it says", [frame(), vec![0]].concat(), Verdict::Malformed),
    ]
}

#[test]
fn steers_plain_packets_and_leaves_or_drops_every_other() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    for family in FAMILIES {
        check(&rig, &format!("remote, family {family}"), rows(family, REMOTE_POD[family], Verdict::Claimed));
        check(&rig, &format!("local, family {family}"), rows(family, POD_B[family], Verdict::Local));
        let to = |to| from_a(to, 10);
        let rows = vec![
            ("unknown pod", to(NO_POD[family]), Verdict::UnknownDestination),
            ("itself", to(POD_A[family]), Verdict::UnknownDestination),
            ("node", to(VTEP[family]), Verdict::UnknownDestination),
        ];
        check(&rig, &format!("elsewhere, family {family}"), rows);
    }
}

#[test]
fn leaves_what_is_not_unicast_to_the_kernel() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    // even a route for everything must not catch them
    rig.steer.add_remote("0.0.0.0/0".parse().unwrap(), MTU, None).unwrap();
    rig.steer.add_remote("::/0".parse().unwrap(), MTU, None).unwrap();
    let odd = ["224.0.0.1", "239.1.1.1", "255.255.255.255", "169.254.1.1", "127.0.0.1", "0.0.0.0", "240.0.0.1"];
    for to in odd.into_iter().chain(["ff02::1", "ff0e::1", "fe80::1", "febf::1", "::1", "::"]) {
        assert_eq!(rig.pod(&from_a(to.parse().unwrap(), 10)), Verdict::NotUnicast, "{to}");
    }
    for to in ["223.255.255.255", "169.253.1.1", "1.0.0.1", "fec0::1", "::2", "::1:0:1", "fe00::1"] {
        assert_eq!(rig.pod(&from_a(to.parse().unwrap(), 10)), Verdict::Claimed, "{to}");
    }
    for from in ["fe80::1", "::"] {
        let frame = udp(MACS, [from.parse().unwrap(), REMOTE_POD[V6]], [1, 2], &[]);
        assert_eq!(rig.pod(&frame), Verdict::NotUnicast, "neighbour discovery from {from}");
    }
}

#[test]
fn leaves_frames_truncated_after_their_ip_header_to_the_kernel() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    for family in FAMILIES {
        let whole = from_a(REMOTE_POD[family], 20);
        // a test run refuses less than an IP header: live.rs sends that
        for length in ETHERNET + ip_header(family)..whole.len() {
            assert_eq!(rig.pod(&whole[..length]), Verdict::Malformed, "cut to {length}");
        }
    }
}

#[test]
fn judges_super_packets_by_their_segments() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    for family in FAMILIES {
        let segment = u32::from(MTU) - u32::try_from(ip_header(family)).unwrap() - 20;
        for (to, fast) in [(REMOTE_POD[family], Verdict::Claimed), (POD_B[family], Verdict::Local)] {
            let ends = [POD_A[family], to];
            let bulk = tcp(MACS, ends, &[7; 2800]);
            assert_eq!(rig.pod(&bulk), Verdict::TooBig, "one large packet");
            assert_eq!(rig.pod_gso(&bulk, segment).0, fast, "segments as large as the MTU");
            assert_eq!(rig.pod_gso(&bulk, segment + 1).0, Verdict::TooBig, "segments larger than the MTU");
            let datagrams = udp(MACS, ends, [1, 2], &[7; 2800]);
            assert_eq!(rig.pod_gso(&datagrams, 1000).0, Verdict::Protocol, "UDP segmentation");
            let data_offset = ETHERNET + ip_header(family) + 12;
            let options = patched(bulk, data_offset, &[0x80]);
            assert_eq!(rig.pod_gso(&options, segment).0, Verdict::TooBig, "TCP options count");
            assert_eq!(rig.pod_gso(&options, segment - 12).0, fast);
        }
        let cut = sctp(MACS, [POD_A[family], REMOTE_POD[family]]);
        let cut = patched(cut, ETHERNET + [9, 6][family], &[6]);
        assert_eq!(rig.pod_gso(&cut, 1000).0, Verdict::Truncated, "no whole TCP header");
    }
}

/// A worker would hand them on before the kernel path has.
#[test]
fn nothing_overtakes_a_packet_that_no_worker_takes() {
    if !is_root() {
        return;
    }
    let frame = || from_a(REMOTE_POD[V4], 100);
    // one packet, or a super-packet of datagrams
    for (gso_size, verdict) in [(0, Verdict::TooBig), (500, Verdict::Protocol)] {
        let rig = Rig::new(V4);
        rig.steer.set_config(&SteerConfig { max_packet: 500, ..config(V4) }).unwrap();
        assert_eq!(rig.pod(&frame()), Verdict::Claimed);
        assert_eq!(rig.pod_gso(&from_a(REMOTE_POD[V4], 1000), gso_size).0, verdict);
        assert_eq!(rig.pod(&frame()), Verdict::Behind);
        assert_eq!(rig.pod(&echo(MACS, [POD_A[V4], REMOTE_POD[V4]])), Verdict::Claimed, "it may answer one that was");
        let segment = tcp(MACS, [POD_A[V4], REMOTE_POD[V4]], &[0; 900]);
        assert_eq!(rig.pod(&segment), Verdict::Claimed, "TCP takes one way");
        assert_eq!(rig.pod(&from_a(POD_B[V4], 1000)), Verdict::Local, "not by a worker");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        rig.heartbeat.beat(now_ns());
        assert_eq!(rig.pod(&frame()), Verdict::Claimed, "it has arrived by now");
    }
}

#[test]
fn forwards_to_a_local_pod_as_a_router_would() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    for family in FAMILIES {
        for ttl in [2, 64, 255] {
            for before in with_edge_checksums(with_ttl(from_a(POD_B[family], 30), family, ttl), family) {
                let (verdict, after) = rig.pod_gso(&before, 0);
                assert_eq!(verdict, Verdict::Local);
                assert_eq!(after, forwarded(before, family, [POD_B_MAC, GATEWAY_MAC]), "family {family}, TTL {ttl}");
            }
        }
    }
}

/// What a router makes of a frame.
pub fn forwarded(frame: Vec<u8>, family: usize, [to, from]: [Mac; 2]) -> Vec<u8> {
    let ttl = frame[ETHERNET + [8, 7][family]];
    let frame = patched(with_ttl(frame, family, ttl - 1), 0, &[to.0, from.0].concat());
    if family == V4 { with_checksum(frame) } else { frame }
}

/// `frame` with a right IPv4 header checksum.
fn with_checksum(frame: Vec<u8>) -> Vec<u8> {
    let (header, _) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
    let checksum = header.calc_header_checksum();
    patched(frame, ETHERNET + 10, &checksum.to_be_bytes())
}

/// Frames whose IPv4 header checksum, made right by the choice of the identification, lies where adding 1 to the TTL's
/// word carries, and beside it.
fn with_edge_checksums(frame: Vec<u8>, family: usize) -> Vec<Vec<u8>> {
    if family == V6 {
        return vec![frame];
    }
    let (mut header, _) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
    let edges = [0_u16, 0xfeff, 0xfefe, 0xfe00, 0xff00, 0xfffe].into_iter().map(|edge| {
        header.identification = (0..=u16::MAX)
            .find(|&id| {
                header.identification = id;
                header.calc_header_checksum() == edge
            })
            .expect("every checksum but 0xffff has its identification");
        with_checksum(patched(frame.clone(), ETHERNET + 4, &header.identification.to_be_bytes()))
    });
    edges.collect()
}

#[test]
fn uses_the_mtu_of_each_remote_prefix() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.add_remote("10.244.2.0/28".parse().unwrap(), 1000, None).unwrap();
    let frame = from_a(REMOTE_POD[V4], 1000);
    assert_eq!(rig.pod(&frame), Verdict::TooBig, "the longest prefix wins");
    rig.steer.remove_remote("10.244.2.0/28".parse().unwrap()).unwrap();
    rig.steer.remove_remote("10.244.2.0/28".parse().unwrap()).expect("removing twice is no error");
    assert_eq!(rig.pod(&frame), Verdict::Claimed);
    rig.steer.remove_remote(REMOTE_RANGE[V4].parse().unwrap()).unwrap();
    assert_eq!(rig.pod(&frame), Verdict::UnknownDestination);
}

#[test]
fn leaves_remote_pods_to_the_kernel_while_the_worker_is_not_fresh() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let (remote, local) = (from_a(REMOTE_POD[V4], 10), from_a(POD_B[V4], 10));
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    assert_eq!(rig.pod(&remote), Verdict::Stale);
    assert_eq!(rig.pod(&local), Verdict::Local, "no worker is needed on the same node");
    rig.heartbeat.sleep();
    assert_eq!(rig.pod(&remote), Verdict::Claimed, "a sleeper is called");
    rig.heartbeat.wake(now_ns());
    assert_eq!(rig.pod(&remote), Verdict::Claimed);
    rig.steer.set_config(&SteerConfig { workers: 0, ..config(V4) }).unwrap();
    assert_eq!(rig.pod(&remote), Verdict::Stale, "no workers at all");
}

#[test]
fn leaves_remote_pods_to_the_kernel_once_the_workers_socket_is_closed() {
    if !is_root() {
        return;
    }
    let mut rig = Rig::new(V4);
    let (remote, local) = (from_a(REMOTE_POD[V4], 10), from_a(POD_B[V4], 10));
    rig.heartbeat.sleep();
    // pod 1 belongs to worker 1 of 2, which does not run
    rig.steer.set_config(&SteerConfig { workers: 2, ..config(V4) }).unwrap();
    assert_eq!(rig.pod(&remote), Verdict::NoSocket);
    rig.steer.set_config(&config(V4)).unwrap();
    assert_eq!(rig.pod(&remote), Verdict::Claimed);
    rig.close_socket();
    assert_eq!(rig.pod(&remote), Verdict::NoSocket, "a sleeper that died looks as if it slept");
    assert_eq!(rig.pod(&local), Verdict::Local, "no worker is needed on the same node");
}

#[test]
fn leaves_a_pod_that_is_at_its_quota_to_the_kernel_while_the_worker_takes_nothing() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { slots: 1, ..config(V4) }).unwrap();
    let frame = from_a(REMOTE_POD[V4], 10);
    rig.heartbeat.beat(now_ns() - STALE_NS * 5 / 8);
    assert_eq!(rig.pod(&frame), Verdict::Claimed, "there is room");
    assert_eq!(rig.pod(&frame), Verdict::Late);
    rig.heartbeat.beat(now_ns() - STALE_NS / 4);
    assert_eq!(rig.pod(&frame), Verdict::Quota, "it has a lot to do");
    rig.heartbeat.sleep();
    assert_eq!(rig.pod(&frame), Verdict::Late, "what it has not been called for is lost");
    give_back(&rig, PodId::new(1).unwrap(), 1);
    assert_eq!(rig.pod(&frame), Verdict::Claimed, "this calls it");
    assert_eq!(rig.pod(&frame), Verdict::Quota, "it is about to take that");
}

/// Has the worker take `n` frames of a pod out of its ring.
fn give_back(rig: &Rig, pod: PodId, n: i64) {
    let credits = rig.steer.credits();
    credits.consume(pod, n);
    credits.consume(WorkerId(0), n);
}

#[test]
fn a_pod_may_have_four_times_as_many_frames_on_their_way_as_its_workers_ring_has_slots_left() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { slots: 10, ..config(V4) }).unwrap();
    let credits = rig.steer.credits();
    let [a, neighbour] = [1, 4094].map(|id| PodId::new(id).unwrap());
    let frame = from_a(REMOTE_POD[V4], 10);
    for in_flight in 1..=8 {
        assert_eq!(rig.pod(&frame), Verdict::Claimed);
        assert_eq!((credits.in_flight(a), credits.in_flight(WorkerId(0))), (in_flight, in_flight));
    }
    assert_eq!(rig.pod(&frame), Verdict::Quota, "eight of ten");
    assert_eq!((credits.in_flight(a), credits.in_flight(WorkerId(0))), (8, 8), "a refused frame is not in flight");
    assert_eq!(rig.pod(&from_a(POD_B[V4], 10)), Verdict::Local, "slots are on the way to the worker");
    // the same device, now another pod, which has nothing on its way
    rig.steer.add_local(POD_A[V4], &pod(neighbour.get(), POD_A_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
    assert_eq!([(); 3].map(|()| rig.pod(&frame)), [Verdict::Claimed, Verdict::Claimed, Verdict::Quota]);
    give_back(&rig, a, 2);
    assert_eq!([(); 2].map(|()| rig.pod(&frame)), [Verdict::Claimed; 2], "what the other frees");
    assert_eq!(rig.pod(&frame), Verdict::Quota);
    give_back(&rig, a, 3);
    // again the first one
    rig.steer.add_local(POD_A[V4], &pod(a.get(), POD_A_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
    assert_eq!(rig.pod(&frame), Verdict::Claimed);
    assert_eq!((credits.in_flight(a), credits.in_flight(neighbour), credits.in_flight(WorkerId(0))), (4, 4, 8));
    give_back(&rig, a, 5);
    assert_eq!(credits.in_flight(a), -1);
    assert_eq!(rig.pod(&frame), Verdict::Claimed, "a frame that was given up for lost and came costs nobody");
}

#[test]
fn no_pod_gets_into_a_full_ring() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { slots: 6, ..config(V4) }).unwrap();
    let credits = rig.steer.credits();
    let frame = from_a(REMOTE_POD[V4], 10);
    credits.consume(WorkerId(0), -6);
    assert_eq!(rig.pod(&frame), Verdict::Quota);
    credits.consume(PodId::new(1).unwrap(), 1);
    assert_eq!(rig.pod(&frame), Verdict::Quota, "not even one that has fewer than none in it");
    credits.consume(WorkerId(0), 2);
    assert_eq!(rig.pod(&frame), Verdict::Claimed);
}

#[test]
fn a_frame_on_another_pods_device_is_spoofed() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.add_local(POD_A[V4], &pod(1, POD_B_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
    assert_eq!(rig.pod(&from_a(REMOTE_POD[V4], 10)), Verdict::SpoofIp);
}

#[test]
fn leaves_all_to_and_from_a_pod_of_the_kernel_path_to_it_and_still_drops_what_the_pod_forges() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let (a, b) = (pod(1, POD_A_IFINDEX, POD_A_MAC), pod(2, POD_B_IFINDEX, POD_B_MAC));
    for family in FAMILIES {
        let [remote, local] = [REMOTE_POD[family], POD_B[family]].map(|to| from_a(to, 10));
        let (from_wire, forged) =
            (encapsulate(V4, &inner(family, 10)), udp(MACS, [POD_B[family], NO_POD[family]], [1, 2], &[]));
        rig.steer.add_local(POD_A[family], &a, PodPath::Kernel).unwrap();
        let judged = [rig.pod(&remote), rig.pod(&local), rig.nic(&from_wire)];
        assert_eq!(judged, [Verdict::ForeignTc; 3], "family {family}");
        assert_eq!(rig.pod(&forged), Verdict::SpoofIp);
        assert_eq!(rig.pod(&patched(remote.clone(), 6, &POD_B_MAC.0)), Verdict::SpoofMac);
        assert_eq!(rig.pod(&tagged(remote.clone(), TAGS[0], 0)), Verdict::PodVlan);
        rig.steer.add_local(POD_A[family], &a, PodPath::Fast).unwrap();
        rig.steer.add_local(POD_B[family], &b, PodPath::Kernel).unwrap();
        let judged = [rig.pod(&remote), rig.pod(&local), rig.nic(&from_wire)];
        assert_eq!(judged, [Verdict::Claimed, Verdict::ForeignTc, Verdict::Claimed], "family {family}");
        rig.steer.add_local(POD_B[family], &b, PodPath::Fast).unwrap();
        assert_eq!(rig.pod(&local), Verdict::Local);
    }
}
