//! TCP that no worker takes, between a pod and another node: past the node's stack by `pod_steer` and `tunnel_steer`.

use podwire::ids::IfIndex;
use podwire::steer::{NatCheck, PodPath, SteerConfig, Tunnel, Verdict};
use podwire::wire::Mac;

use crate::packets::*;
use crate::pod::forwarded;
use crate::rig::{MTU, POD_A_IFINDEX, Rig, STALE_NS, TUNNEL, config, is_root, now_ns, pod};

const FROM_A: [Mac; 2] = [POD_A_MAC, GATEWAY_MAC];

/// The loopback device, where test runs come from, takes this address for its own.
const OWN_MAC: Mac = Mac([0; 6]);
const FROM_TUNNEL: [Mac; 2] = [PEER_MAC, OWN_MAC];

/// None, and a word of it, without root.
fn rig() -> Option<Rig> {
    is_root().then(|| {
        let rig = Rig::new(V4);
        rig.lead_by_tunnel();
        rig
    })
}

fn from_a(family: usize) -> Vec<u8> {
    tcp(FROM_A, [POD_A[family], REMOTE_POD[family]], &[7; 100])
}

fn to_a(family: usize) -> Vec<u8> {
    tcp(FROM_TUNNEL, [REMOTE_POD[family], POD_A[family]], &[7; 100])
}

#[test]
fn tcp_that_no_worker_takes_leaves_by_the_tunnel() {
    let Some(mut rig) = rig() else { return };
    let check = |rig: &Rig, what: &str, otherwise: Verdict| {
        for family in FAMILIES {
            let (verdict, after) = rig.pod_gso(&from_a(family), 0);
            assert_eq!(verdict, Verdict::Bypass, "{what}, family {family}");
            assert_eq!(after, forwarded(from_a(family), family, [TUNNEL.peer_mac, TUNNEL.own_mac]), "{what}");
            let datagram = udp(FROM_A, [POD_A[family], REMOTE_POD[family]], [1, 2], &[]);
            assert_eq!(rig.pod(&datagram), otherwise, "{what}: datagrams are the kernel path's");
        }
    };
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    check(&rig, "a stale worker", Verdict::Stale);
    rig.heartbeat.beat(now_ns());
    assert!(FAMILIES.iter().all(|&family| rig.pod(&from_a(family)) == Verdict::Claimed), "a fresh one takes it");
    rig.steer.set_config(&SteerConfig { leaves_tcp: true, ..config(V4) }).unwrap();
    check(&rig, "workers that take no TCP", Verdict::Claimed);
    rig.close_socket();
    rig.steer.set_config(&config(V4)).unwrap();
    check(&rig, "no worker", Verdict::NoSocket);
}

#[test]
fn a_pod_without_credit_is_not_helped_by_the_tunnel() {
    let Some(rig) = rig() else { return };
    rig.steer.set_config(&SteerConfig { slots: 1, ..config(V4) }).unwrap();
    assert_eq!(rig.pod(&from_a(V4)), Verdict::Claimed);
    assert_eq!(rig.pod(&from_a(V4)), Verdict::Quota, "it would overtake what waits");
}

#[test]
fn what_the_stack_has_to_see_goes_by_the_stack() {
    let Some(rig) = rig() else { return };
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    for family in FAMILIES {
        let segment = u32::from(MTU) - u32::try_from(ip_header(family)).unwrap() - 20;
        let bulk = |macs, ends| tcp(macs, ends, &[7; 2800]);
        let (out, back) = ([POD_A[family], REMOTE_POD[family]], [REMOTE_POD[family], POD_A[family]]);
        assert_eq!(rig.pod_gso(&bulk(FROM_A, out), segment).0, Verdict::Bypass);
        assert_eq!(rig.pod_gso(&bulk(FROM_A, out), segment + 1).0, Verdict::TooBig);
        assert_eq!(rig.tunnel(&bulk(FROM_TUNNEL, back), segment).0, Verdict::Bypass);
        assert_eq!(rig.tunnel(&bulk(FROM_TUNNEL, back), segment + 1).0, Verdict::TooBig);
        assert_eq!(rig.tunnel(&bulk(FROM_TUNNEL, back), 0).0, Verdict::TooBig, "one large packet");
        let elsewhere = |from, to| tcp(FROM_TUNNEL, [from, to], &[7; 100]);
        let rows = [
            ("options", with_options(to_a(family), family), Verdict::Options),
            ("a fragment", fragment(to_a(family), family), Verdict::Fragment),
            ("a time to live of 1", with_ttl(to_a(family), family, 1), Verdict::Ttl),
            ("a datagram", udp(FROM_TUNNEL, back, [1, 2], &[]), Verdict::Protocol),
            ("a ping", echo(FROM_TUNNEL, back), Verdict::Protocol),
            ("ARP", patched(to_a(family), 12, &[0x08, 0x06]), Verdict::NotIp),
            ("VLAN-tagged", tagged(to_a(family), TAGS[0], 5), Verdict::Vlan),
            ("shorter than it says", to_a(family)[..100].to_vec(), Verdict::Malformed),
            ("another MAC", tcp([PEER_MAC, VTEP_MAC], back, &[7; 100]), Verdict::InnerMac),
            ("no pod of the node", elsewhere(REMOTE_POD[family], NO_POD[family]), Verdict::UnknownDestination),
            ("from nowhere", elsewhere(NO_POD[family], POD_A[family]), Verdict::UnknownSource),
            ("from a pod of the node", elsewhere(POD_B[family], POD_A[family]), Verdict::UnknownSource),
        ];
        for (what, frame, expected) in rows {
            assert_eq!(rig.tunnel(&frame, 0).0, expected, "{what}, family {family}");
        }
    }
}

#[test]
fn tcp_from_the_tunnel_goes_to_its_pod() {
    let Some(mut rig) = rig() else { return };
    for _ in 0..2 {
        for family in FAMILIES {
            let (verdict, after) = rig.tunnel(&to_a(family), 0);
            assert_eq!(verdict, Verdict::Bypass, "family {family}");
            assert_eq!(after, forwarded(to_a(family), family, [POD_A_MAC, GATEWAY_MAC]), "family {family}");
        }
        // also when the process has ended
        rig.close_socket();
    }
}

/// Else conntrack would see half of a connection, and call it invalid.
#[test]
fn both_ways_of_a_connection_go_past_the_stack_or_neither() {
    let Some(rig) = rig() else { return };
    rig.steer.set_config(&SteerConfig { leaves_tcp: true, ..config(V4) }).unwrap();
    let judged = |family: usize| (rig.pod(&from_a(family)), rig.tunnel(&to_a(family), 0).0);
    for family in FAMILIES {
        let range = || REMOTE_RANGE[family].parse().unwrap();
        assert_eq!(judged(family), (Verdict::Bypass, Verdict::Bypass));
        let other = Tunnel { device: IfIndex(999_998), ..TUNNEL };
        rig.steer.add_remote(range(), MTU, Some(other)).unwrap();
        assert_eq!(judged(family), (Verdict::Bypass, Verdict::Bypass), "there by one tunnel, back by the other");
        rig.steer.add_remote(range(), MTU, None).unwrap();
        assert_eq!(judged(family), (Verdict::Bulk, Verdict::UnknownSource), "no tunnel");
        rig.steer.remove_remote(range()).unwrap();
        assert_eq!(judged(family), (Verdict::UnknownDestination, Verdict::UnknownSource));
        rig.lead_by_tunnel();
        let nat = |nat| rig.steer.set_config(&SteerConfig { nat, leaves_tcp: true, ..config(V4) }).unwrap();
        nat(NatCheck::Lookup);
        assert_eq!(judged(family), (Verdict::Bypass, Verdict::Bypass), "nothing is translated");
        nat(NatCheck::Kernel);
        assert_eq!(judged(family), (Verdict::NatUnknown, Verdict::NatUnknown));
        nat(NatCheck::None);
        rig.steer.add_local(POD_A[family], &pod(1, POD_A_IFINDEX, POD_A_MAC), PodPath::Kernel).unwrap();
        assert_eq!(judged(family), (Verdict::ForeignTc, Verdict::ForeignTc));
    }
}
