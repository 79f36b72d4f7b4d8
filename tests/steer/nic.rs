//! What `nic_steer` decides.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use podwire::ids::{IfIndex, QueueId, WorkerId};
use podwire::steer::{PodPath, SteerConfig, SteerError, Verdict};
use podwire::wire::{Mac, TunnelEnd};

use crate::packets::*;
use crate::rig::{MTU, Rig, STALE_NS, config, is_root, now_ns, pod};

/// One row of the table: what it is, the frame, the verdict.
type Row = (&'static str, Vec<u8>, Verdict);

/// What may be wrong with the outer headers.
fn outer_rows(underlay: usize, whole: &[u8]) -> Vec<Row> {
    let frame = || whole.to_vec();
    let udp = ETHERNET + ip_header(underlay);
    let vxlan = udp + 8;
    let destination = ETHERNET + [16, 24][underlay];
    vec![
        ("VLAN-tagged", tagged(frame(), TAGS[0], 5), Verdict::Vlan),
        ("service VLAN", tagged(frame(), TAGS[1], 5), Verdict::Vlan),
        ("priority tag", tagged(frame(), TAGS[0], 0), Verdict::Vlan),
        ("ARP", patched(frame(), 12, &[0x08, 0x06]), Verdict::NotIp),
        ("802.3 length", patched(frame(), 12, &[0x00, 0x40]), Verdict::NotIp),
        ("outer options", with_options(frame(), underlay), Verdict::OuterOptions),
        ("outer fragment", fragment(frame(), underlay), Verdict::OuterFragment),
        ("to another address", patched(frame(), destination + 1, &[7]), Verdict::NotVxlan),
        ("outer TCP", patched(frame(), ETHERNET + [9, 6][underlay], &[6]), Verdict::NotVxlan),
        ("outer SCTP", patched(frame(), ETHERNET + [9, 6][underlay], &[132]), Verdict::NotVxlan),
        ("outer version", patched(frame(), ETHERNET, &[0x15]), Verdict::Malformed),
        ("outer TTL 1 has arrived", with_ttl(frame(), underlay, 1), Verdict::Claimed),
        ("another port", patched(frame(), udp + 2, &4789_u16.to_be_bytes()), Verdict::NotVxlan),
        ("UDP length", patched(frame(), udp + 4, &[0, 20]), Verdict::Malformed),
        ("no VNI flag", patched(frame(), vxlan, &[0]), Verdict::VxlanFlags),
        ("another flag", patched(frame(), vxlan, &[0x88]), Verdict::VxlanFlags),
        ("a reserved bit before the VNI", patched(frame(), vxlan + 3, &[1]), Verdict::VxlanFlags),
        ("a reserved bit after the VNI", patched(frame(), vxlan + 7, &[1]), Verdict::VxlanFlags),
        ("another VNI", patched(frame(), vxlan + 6, &[2]), Verdict::VxlanVni),
    ]
}

/// What may be wrong with the inner frame; each is whole on the outside.
fn inner_rows(family: usize) -> Vec<Row> {
    let frame = || inner(family, 64);
    let ends = [REMOTE_POD[family], POD_A[family]];
    let macs = [PEER_MAC, VTEP_MAC];
    let payload_of = |bytes: usize| bytes - ip_header(family) - 8;
    vec![
        ("UDP", frame(), Verdict::Claimed),
        ("TCP", tcp(macs, ends, &[0; 100]), Verdict::Claimed),
        ("ICMP", echo(macs, ends), Verdict::Claimed),
        ("SCTP", sctp(macs, ends), Verdict::Protocol),
        ("padded", [frame(), vec![0; 7]].concat(), Verdict::Claimed),
        ("as large as the MTU", inner(family, payload_of(usize::from(MTU))), Verdict::Claimed),
        ("larger than the MTU", inner(family, payload_of(usize::from(MTU) + 1)), Verdict::TooBig),
        ("to another MAC", patched(frame(), 0, &POD_A_MAC.0), Verdict::InnerMac),
        ("from our own MAC", patched(frame(), 6, &VTEP_MAC.0), Verdict::InnerMac),
        ("from a multicast MAC", patched(frame(), 6, &[3]), Verdict::InnerMac),
        ("VLAN inside", tagged(frame(), TAGS[0], 5), Verdict::Vlan),
        ("ARP inside", patched(frame(), 12, &[0x08, 0x06]), Verdict::NotIp),
        ("options", with_options(frame(), family), Verdict::Options),
        ("fragment", fragment(frame(), family), Verdict::Fragment),
        ("TTL 1", with_ttl(frame(), family, 1), Verdict::Ttl),
        ("TTL 0", with_ttl(frame(), family, 0), Verdict::Ttl),
        ("TTL 2", with_ttl(frame(), family, 2), Verdict::Claimed),
        ("version", patched(frame(), ETHERNET, &[0x25]), Verdict::Malformed),
        ("longer than the frame", frame()[..frame().len() - 1].to_vec(), Verdict::Malformed),
        ("unknown pod", udp(macs, [REMOTE_POD[family], NO_POD[family]], [1, 2], &[]), Verdict::UnknownDestination),
        ("from outside of the ranges", udp(macs, [PEER[family], POD_A[family]], [1, 2], &[]), Verdict::UnknownSource),
        ("from a pod of this node", udp(macs, [POD_B[family], POD_A[family]], [1, 2], &[]), Verdict::UnknownSource),
    ]
}

fn check(rig: &Rig, what: &str, rows: Vec<Row>) {
    for (name, frame, expected) in rows {
        assert_eq!(rig.nic(&frame), expected, "{what}: {name}");
    }
}

#[test]
fn claims_whole_vxlan_frames_for_our_pods_and_passes_every_other() {
    if !is_root() {
        return;
    }
    for underlay in FAMILIES {
        let rig = Rig::new(underlay);
        for family in FAMILIES {
            let what = format!("underlay {underlay}, inner {family}");
            let inner_rows = inner_rows(family).into_iter();
            check(&rig, &what, inner_rows.map(|(name, f, v)| (name, encapsulate(underlay, &f), v)).collect());
            check(&rig, &what, outer_rows(underlay, &encapsulate(underlay, &inner(family, 64))));
        }
    }
}

/// A tunnel's frame in every dress in which the kernel would find its UDP header.
fn dresses(underlay: usize, whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let frame = || whole.to_vec();
    let (udp, vxlan) = (ETHERNET + ip_header(underlay), ETHERNET + ip_header(underlay) + 8);
    let mut dresses = vec![
        ("plain", frame()),
        ("options", with_options(frame(), underlay)),
        ("first fragment", fragment(frame(), underlay)),
        ("UDP length", patched(frame(), udp + 4, &[0, 20])),
        ("no VNI flag", patched(frame(), vxlan, &[0])),
        ("another VNI", patched(frame(), vxlan + 6, &[2])),
        ("inner MAC", patched(frame(), vxlan + 8, &POD_A_MAC.0)),
    ];
    if underlay == V6 {
        let header = |next: u8| patched(with_options(frame(), V6), ETHERNET + 6, &[next]);
        dresses.extend([("hop-by-hop options", header(0)), ("routing", header(43))]);
        dresses.push(("authentication", header(51)));
        let twice = patched(with_options(header(60), V6), ETHERNET + 6, &[0]);
        dresses.push(("two extension headers", patched(twice, ETHERNET + ip_header(V6), &[60])));
    }
    dresses
}

#[test]
fn drops_tunnel_packets_of_unknown_vteps_in_every_dress_and_nothing_else_of_them() {
    if !is_root() {
        return;
    }
    for underlay in FAMILIES {
        let rig = Rig::new(underlay);
        let whole = encapsulate(underlay, &inner(V4, 64));
        let judged = |known_vteps_only: bool| -> Vec<_> {
            rig.steer.set_config(&SteerConfig { known_vteps_only, ..config(underlay) }).unwrap();
            dresses(underlay, &whole).into_iter().map(|(name, frame)| (name, rig.nic(&frame))).collect()
        };
        let anybody = judged(false);
        assert_eq!(anybody[0], ("plain", Verdict::Claimed));
        for (name, verdict) in judged(true) {
            assert_eq!(verdict, Verdict::UnknownVtep, "underlay {underlay}: {name}");
        }
        rig.steer.add_vtep(PEER[underlay]).unwrap();
        assert_eq!(judged(true), anybody, "a peer's are judged as ever");
        rig.steer.remove_vtep(PEER[underlay]).unwrap();
        assert_eq!(judged(true)[0].1, Verdict::UnknownVtep);

        let udp = ETHERNET + ip_header(underlay);
        let others = [
            ("another port", patched(whole.clone(), udp + 2, &53_u16.to_be_bytes())),
            ("outer TCP", patched(whole.clone(), ETHERNET + [9, 6][underlay], &[6])),
            ("another address", patched(whole.clone(), ETHERNET + [16, 24][underlay] + 1, &[7])),
        ];
        for (name, frame) in others {
            assert_eq!(rig.nic(&frame), Verdict::NotVxlan, "underlay {underlay}: {name}");
        }
        let later = if underlay == V4 {
            patched(whole.clone(), ETHERNET + 6, &[0, 9])
        } else {
            patched(fragment(whole.clone(), V6), ETHERNET + ip_header(V6) + 2, &[0, 8])
        };
        assert_eq!(rig.nic(&later), Verdict::OuterFragment, "nothing without the first one");
    }
}

#[test]
fn claims_for_a_vtep_of_each_family_what_bears_its_own_mac() {
    if !is_root() {
        return;
    }
    let second_mac = Mac([0x06, 0, 0, 0, 0, 0x66]);
    let second = Some(TunnelEnd { underlay: VTEP[V6], mac: second_mac });
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { second, known_vteps_only: true, ..config(V4) }).unwrap();
    for peer in PEER {
        rig.steer.add_vtep(peer).unwrap();
    }
    for family in FAMILIES {
        let to_first = inner(family, 64);
        let to_second = patched(to_first.clone(), 0, &second_mac.0);
        let by = |underlay: usize, frame: &[u8]| rig.nic(&encapsulate(underlay, frame));
        assert_eq!([by(V4, &to_first), by(V6, &to_second)], [Verdict::Claimed; 2], "inner {family}");
        assert_eq!([by(V6, &to_first), by(V4, &to_second)], [Verdict::InnerMac; 2], "inner {family}");
        assert_eq!(by(V6, &patched(to_second, 6, &second_mac.0)), Verdict::InnerMac, "inner {family}");
    }
    // An IPv6 address that begins as a peer's IPv4 one is another.
    let frame = encapsulate(V6, &patched(inner(V4, 64), 0, &second_mac.0));
    let IpAddr::V4(peer) = PEER[V4] else { panic!("an IPv4 peer") };
    let alike = [&peer.octets()[..], &[0; 12]].concat();
    assert_eq!(rig.nic(&patched(frame.clone(), ETHERNET + 8, &alike)), Verdict::UnknownVtep);
    // Without a second VTEP nothing is to it, nor to no address.
    rig.steer.set_config(&config(V4)).unwrap();
    assert_eq!(rig.nic(&frame), Verdict::NotVxlan);
    assert_eq!(rig.nic(&patched(patched(frame, ETHERNET + 24, &[0; 16]), 0, &NIC_MAC.0)), Verdict::NotVxlan);
}

#[test]
fn judges_what_only_one_family_has() {
    if !is_root() {
        return;
    }
    let (v4, v6) = (Rig::new(V4), Rig::new(V6));
    let frame = |underlay| encapsulate(underlay, &inner(V4, 64));
    let rows = vec![
        ("short header", patched(frame(V4), ETHERNET, &[0x44]), Verdict::Malformed),
        ("last fragment", patched(frame(V4), ETHERNET + 6, &[0, 9]), Verdict::OuterFragment),
        ("reserved IP flag", patched(frame(V4), ETHERNET + 6, &[0x80]), Verdict::OuterFragment),
        ("don't fragment", patched(frame(V4), ETHERNET + 6, &[0x40]), Verdict::Claimed),
        ("no checksum", patched(frame(V4), ETHERNET + 26, &[0, 0]), Verdict::Claimed),
        ("total length below the header", patched(frame(V4), ETHERNET + 2, &[0, 19]), Verdict::Malformed),
        ("the other family", frame(V6), Verdict::NotVxlan),
    ];
    check(&v4, "IPv4 underlay", rows);
    let mut rows = vec![
        ("no checksum", patched(frame(V6), ETHERNET + 46, &[0, 0]), Verdict::OuterChecksum),
        ("the other family", frame(V4), Verdict::NotVxlan),
    ];
    for header in [0, 43, 50, 51, 135, 139, 140] {
        rows.push(("extension header", patched(frame(V6), ETHERNET + 6, &[header]), Verdict::OuterOptions));
    }
    check(&v6, "IPv6 underlay", rows);
}

#[test]
fn passes_frames_truncated_at_every_byte() {
    if !is_root() {
        return;
    }
    for underlay in FAMILIES {
        let rig = Rig::new(underlay);
        for family in FAMILIES {
            let inner = inner(family, 20);
            let whole = encapsulate(underlay, &inner);
            // the kernel runs no program on less than an Ethernet header
            for length in ETHERNET..whole.len() {
                let verdict = rig.nic(&whole[..length]);
                let headers = length < ETHERNET + ip_header(underlay);
                let expected = if headers { Verdict::Truncated } else { Verdict::Malformed };
                assert_eq!(verdict, expected, "outer cut to {length}");
            }
            for length in 0..inner.len() {
                let verdict = rig.nic(&encapsulate(underlay, &inner[..length]));
                let headers = length < ETHERNET + ip_header(family);
                let expected = if headers { Verdict::Truncated } else { Verdict::Malformed };
                assert_eq!(verdict, expected, "inner cut to {length}");
            }
            for payload in 0..8 {
                let vxlan = ETHERNET + ip_header(underlay) + 8;
                let cut =
                    udp([PEER_MAC; 2], [PEER[underlay], VTEP[underlay]], [1, 8472], &whole[vxlan..vxlan + payload]);
                assert_eq!(rig.nic(&cut), Verdict::Truncated, "VXLAN header cut to {payload}");
            }
        }
    }
}

#[test]
fn passes_frames_larger_than_a_worker_takes_and_frames_in_pieces() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { pod_mtu: 60_000, ..config(V4) }).unwrap();
    let overhead = encapsulate(V4, &inner(V4, 0)).len();
    let sized = |bytes: usize| encapsulate(V4, &inner(V4, bytes - overhead));
    assert_eq!(rig.nic_xdp(&sized(2048)), Verdict::Claimed);
    assert_eq!(rig.nic_xdp(&sized(2049)), Verdict::TooBig);
    assert_eq!(rig.nic_xdp(&sized(9000)), Verdict::MultiBuffer);
    let not_ours = udp([PEER_MAC; 2], [PEER[V4], NO_POD[V4]], [1, 8472], &[0; 9000]);
    assert_eq!(rig.nic_xdp(&not_ours), Verdict::NotVxlan, "another's pieces are not counted as ours");
}

#[test]
fn passes_when_the_worker_is_not_fresh() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let frame = encapsulate(V4, &inner(V6, 64));
    assert_eq!(rig.nic(&frame), Verdict::Claimed);
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    assert_eq!(rig.nic(&frame), Verdict::Stale, "an old beat");
    rig.heartbeat.beat(now_ns() + 1_000_000_000);
    assert_eq!(rig.nic(&frame), Verdict::Claimed, "a clock that is ahead of ours");
    rig.heartbeat.stop();
    assert_eq!(rig.nic(&frame), Verdict::Stale, "a stopped worker");
}

#[test]
fn trusts_a_sleeper_until_it_leaves_a_call_unanswered() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let frame = encapsulate(V4, &inner(V4, 64));
    let limit = |stale_ns| rig.steer.set_config(&SteerConfig { stale_ns, ..config(V4) }).unwrap();
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    rig.heartbeat.sleep();
    assert_eq!(rig.nic(&frame), Verdict::Claimed, "a sleeper need not beat; this calls it");
    assert_eq!(rig.nic(&frame), Verdict::Claimed, "called within the limit");
    sleep(Duration::from_millis(2));
    limit(1_000_000);
    assert_eq!(rig.nic(&frame), Verdict::Stale, "called 2 ms ago, limit 1 ms");
    rig.heartbeat.sleep();
    assert_eq!(rig.nic(&frame), Verdict::Claimed, "it woke up and went to sleep again");
    limit(STALE_NS);
    rig.heartbeat.wake(now_ns());
    assert_eq!(rig.nic(&frame), Verdict::Claimed, "awake again");
}

#[test]
fn passes_on_a_queue_without_a_socket_or_a_worker() {
    if !is_root() {
        return;
    }
    let mut rig = Rig::new(V4);
    let frame = encapsulate(V4, &inner(V4, 64));
    rig.register_socket(WorkerId(7));
    assert_eq!(rig.nic_xdp(&frame), Verdict::Stale, "worker 7 has never beaten");
    rig.steer.heartbeat(WorkerId(7)).unwrap().beat(now_ns());
    assert_eq!(rig.nic_xdp(&frame), Verdict::Claimed);
    rig.close_socket();
    assert_eq!(rig.nic_xdp(&frame), Verdict::NoSocket);
}

#[test]
fn refuses_workers_and_queues_beyond_its_maps() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let error = rig.steer.heartbeat(WorkerId(256)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "worker 256 does not exist for the steering programs: at most 256 workers, counted from 0"
    );
    let error = rig.steer.register_queue(QueueId(256), WorkerId(0), rig.steer.fanout_fd()).unwrap_err();
    assert!(matches!(error, SteerError::NoSuchQueue { queue: QueueId(256), max: 256 }), "{error}");
    let error = rig.steer.register_queue(QueueId(1), WorkerId(0), rig.steer.fanout_fd()).unwrap_err();
    assert!(error.to_string().contains("the socket of queue 1"), "{error}");
}

#[test]
fn follows_its_maps_and_its_configuration() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let frame = encapsulate(V4, &inner(V4, 64));
    rig.steer.remove_local(POD_A[V4]).unwrap();
    rig.steer.remove_local(POD_A[V4]).expect("removing twice is no error");
    assert_eq!(rig.nic(&frame), Verdict::UnknownDestination);
    rig.steer.add_local(POD_A[V4], &pod(1, IfIndex(5), POD_A_MAC), PodPath::Fast).unwrap();
    assert_eq!(rig.nic(&frame), Verdict::Claimed);
    let range = || REMOTE_RANGE[V4].parse().unwrap();
    rig.steer.remove_remote(range()).unwrap();
    assert_eq!(rig.nic(&frame), Verdict::UnknownSource);
    rig.steer.add_remote(range(), MTU, None).unwrap();
    rig.steer.set_config(&SteerConfig { port: 4789, ..config(V4) }).unwrap();
    assert_eq!(rig.nic(&frame), Verdict::NotVxlan);
    let port = ETHERNET + ip_header(V4) + 2;
    assert_eq!(rig.nic(&patched(frame, port, &4789_u16.to_be_bytes())), Verdict::Claimed);
}
