//! What `nic_steer` decides about packets for pods that come without a tunnel.

use podwire::steer::{NatCheck, SteerConfig, Verdict};

use crate::packets::*;
use crate::rig::{MTU, Rig, STALE_NS, config, is_root, now_ns};

/// A packet from a remote pod to pod A as its node sends it on the link.
fn bare(family: usize, payload: usize) -> Vec<u8> {
    patched(inner(family, payload), 0, &NIC_MAC.0)
}

fn rows(family: usize) -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let frame = || bare(family, 64);
    let ends = [REMOTE_POD[family], POD_A[family]];
    let macs = [PEER_MAC, NIC_MAC];
    let payload_of = |bytes: usize| bytes - ip_header(family) - 8;
    vec![
        ("UDP", frame(), Verdict::Claimed),
        ("TCP", tcp(macs, ends, &[0; 100]), Verdict::Claimed),
        ("ICMP", echo(macs, ends), Verdict::Claimed),
        ("a pod's own VXLAN", udp(macs, ends, [50_000, 8472], &[0; 80]), Verdict::Claimed),
        ("from whatever MAC", patched(frame(), 6, &GATEWAY_MAC.0), Verdict::Claimed),
        ("padded", [frame(), vec![0; 7]].concat(), Verdict::Claimed),
        ("as large as the MTU", bare(family, payload_of(usize::from(MTU))), Verdict::Claimed),
        ("larger than the MTU", bare(family, payload_of(usize::from(MTU) + 1)), Verdict::TooBig),
        ("SCTP", sctp(macs, ends), Verdict::Protocol),
        ("options", with_options(frame(), family), Verdict::Options),
        ("fragment", fragment(frame(), family), Verdict::Fragment),
        ("TTL 1", with_ttl(frame(), family, 1), Verdict::Ttl),
        ("version", patched(frame(), ETHERNET, &[0x25]), Verdict::Malformed),
        ("longer than the frame", frame()[..frame().len() - 1].to_vec(), Verdict::Malformed),
        ("VLAN-tagged", tagged(frame(), TAGS[0], 5), Verdict::Vlan),
        ("to another MAC", patched(frame(), 0, &POD_A_MAC.0), Verdict::NotVxlan),
        ("to all", patched(frame(), 0, &[0xff; 6]), Verdict::NotVxlan),
        ("to no pod of ours", udp(macs, [ends[0], NO_POD[family]], [1, 2], &[]), Verdict::NotVxlan),
        ("from outside of the ranges", udp(macs, [PEER[family], ends[1]], [1, 2], &[]), Verdict::UnknownSource),
        ("from a pod of this node", udp(macs, [POD_B[family], ends[1]], [1, 2], &[]), Verdict::SpoofWire),
        ("from the pod itself", udp(macs, [ends[1], ends[1]], [1, 2], &[]), Verdict::SpoofWire),
    ]
}

#[test]
fn claims_whole_packets_of_remote_pods_and_drops_what_claims_to_be_ours() {
    if !is_root() {
        return;
    }
    for underlay in FAMILIES {
        let rig = Rig::new(underlay);
        for known_vteps_only in [false, true] {
            rig.steer.set_config(&SteerConfig { known_vteps_only, ..config(underlay) }).unwrap();
            for family in FAMILIES {
                for (name, frame, expected) in rows(family) {
                    assert_eq!(rig.nic(&frame), expected, "underlay {underlay}, packet {family}: {name}");
                }
            }
        }
    }
}

#[test]
fn leaves_them_to_a_strict_reverse_path_filter_but_drops_the_forged() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { takes_bare: false, ..config(V4) }).unwrap();
    for family in FAMILIES {
        for (name, frame, otherwise) in rows(family) {
            let for_a_pod = !matches!(otherwise, Verdict::NotVxlan | Verdict::Vlan | Verdict::SpoofWire);
            let expected = if for_a_pod { Verdict::Bare } else { otherwise };
            assert_eq!(rig.nic(&frame), expected, "packet {family}: {name}");
        }
    }
}

#[test]
fn passes_them_truncated_in_pieces_translated_or_to_nobody_who_works() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    for family in FAMILIES {
        let whole = bare(family, 20);
        for length in ETHERNET..whole.len() {
            let headers = length < ETHERNET + ip_header(family);
            let expected = if headers { Verdict::Truncated } else { Verdict::Malformed };
            assert_eq!(rig.nic(&whole[..length]), expected, "packet {family} cut to {length}");
        }
        assert_eq!(rig.nic_xdp(&bare(family, 9000)), Verdict::MultiBuffer);
    }
    let whole = bare(V4, 20);
    rig.steer.set_config(&SteerConfig { nat: NatCheck::Kernel, ..config(V4) }).unwrap();
    assert_eq!(rig.nic(&whole), Verdict::NatUnknown);
    rig.steer.set_config(&config(V4)).unwrap();
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    assert_eq!(rig.nic(&whole), Verdict::Stale);
}
