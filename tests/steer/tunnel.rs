//! What no worker takes, between a pod and another node: past the node's stack by `pod_steer` and `tunnel_steer`.

use std::net::IpAddr;

use podwire::ids::{IfIndex, PodId};
use podwire::shared::Holder;
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
fn what_no_worker_takes_leaves_by_the_tunnel() {
    let Some(mut rig) = rig() else { return };
    let check = |rig: &Rig, what: &str, frames: fn(usize) -> Vec<Vec<u8>>| {
        for family in FAMILIES {
            for frame in frames(family) {
                let (verdict, after) = rig.pod_gso(&frame, 0);
                assert_eq!(verdict, Verdict::Bypass, "{what}, family {family}");
                assert_eq!(after, forwarded(frame, family, [TUNNEL.peer_mac, TUNNEL.own_mac]), "{what}");
            }
        }
    };
    let of_any = |family| {
        let ends = [POD_A[family], REMOTE_POD[family]];
        vec![from_a(family), datagram(FROM_A, ends), echo(FROM_A, ends)]
    };
    rig.heartbeat.beat(now_ns() - STALE_NS - 1);
    check(&rig, "a stale worker", of_any);
    rig.heartbeat.beat(now_ns());
    assert!(FAMILIES.iter().all(|&family| rig.pod(&from_a(family)) == Verdict::Claimed), "a fresh one takes it");
    rig.steer.set_config(&SteerConfig { leaves_tcp: true, ..config(V4) }).unwrap();
    check(&rig, "workers that take no TCP", |family| vec![from_a(family)]);
    assert_eq!(rig.pod(&datagram(FROM_A, [POD_A[V4], REMOTE_POD[V4]])), Verdict::Claimed);
    rig.close_socket();
    rig.steer.set_config(&config(V4)).unwrap();
    check(&rig, "no worker", |family| vec![from_a(family), datagram(FROM_A, [POD_A[family], REMOTE_POD[family]])]);
}

fn datagram(macs: [Mac; 2], ends: [IpAddr; 2]) -> Vec<u8> {
    udp(macs, ends, [1, 2], &[7; 100])
}

/// Sixteen within the time that the configuration has, of all that go to the worker.
#[test]
fn few_packets_leave_a_worker_asleep_and_many_wake_it() {
    let Some(rig) = rig() else { return };
    let set = |wake_ns| rig.steer.set_config(&SteerConfig { wake_ns, ..config(V4) }).unwrap();
    let from_a = |family: usize| datagram(FROM_A, [POD_A[family], REMOTE_POD[family]]);
    let to_a = |family: usize| encapsulate(V4, &datagram([PEER_MAC, VTEP_MAC], [REMOTE_POD[family], POD_A[family]]));
    set(3_600_000_000_000);
    let left = [Verdict::Bypass, Verdict::Asleep, Verdict::Asleep];
    let judged = |family| [rig.pod(&from_a(family)), rig.nic_tc(&to_a(family), 0), rig.nic_xdp(&to_a(family))];
    assert_eq!(judged(V4), [Verdict::Claimed; 3], "it polls");
    let a = PodId::new(1).unwrap();
    rig.heartbeat.sleep();
    assert_eq!(rig.pod(&from_a(V4)), Verdict::Claimed, "what it has yet to take would be overtaken");
    let fall_asleep = || {
        rig.steer.credits().resync(a);
        rig.steer.credits().resync(Holder::FromWire(a));
        rig.heartbeat.beat(now_ns() - 1_000_000);
        rig.heartbeat.sleep();
    };
    fall_asleep();
    for family in [V4, V6, V4, V6, V4] {
        assert_eq!(judged(family), left);
    }
    assert_eq!(judged(V4), [Verdict::Claimed; 3], "the sixteenth wakes it, and others follow");
    rig.heartbeat.wake(now_ns());
    assert_eq!(judged(V4), [Verdict::Claimed; 3]);
    set(1);
    fall_asleep();
    assert!((0..100).all(|_| judged(V4) == left), "each begins anew");
    rig.heartbeat.beat(now_ns());
    assert_eq!(rig.nic_xdp(&to_a(V4)), Verdict::Claimed, "the driver may not have handed over what came before");
    fall_asleep();
    set(0);
    assert_eq!(judged(V4), [Verdict::Claimed; 3], "each wakes it");
}

#[test]
fn what_cannot_go_past_the_stack_wakes_the_worker() {
    let Some(rig) = rig() else { return };
    let asleep = || {
        rig.steer.credits().resync(PodId::new(1).unwrap());
        rig.heartbeat.sleep();
    };
    let config = SteerConfig { wake_ns: 3_600_000_000_000, ..config(V4) };
    rig.steer.set_config(&config).unwrap();
    let (there, back) = ([POD_A[V4], REMOTE_POD[V4]], [REMOTE_POD[V4], POD_A[V4]]);
    asleep();
    assert_eq!(rig.pod(&datagram(FROM_A, there)), Verdict::Bypass);
    assert_eq!(rig.nic_tc(&datagram([PEER_MAC, NIC_MAC], back), 0), Verdict::Claimed, "it has come without the tunnel");
    for range in REMOTE_RANGE {
        rig.steer.add_remote(range.parse().unwrap(), MTU, None).unwrap();
    }
    asleep();
    assert_eq!(rig.pod(&datagram(FROM_A, there)), Verdict::Claimed, "no tunnel");
    rig.steer.credits().resync(Holder::FromWire(PodId::new(1).unwrap()));
    asleep();
    let frame = encapsulate(V4, &datagram([PEER_MAC, VTEP_MAC], back));
    assert_eq!([rig.nic_tc(&frame, 0), rig.nic(&frame)], [Verdict::Claimed; 2]);
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
fn what_comes_by_the_tunnel_goes_to_its_pod() {
    let Some(mut rig) = rig() else { return };
    for _ in 0..2 {
        for family in FAMILIES {
            let back = [REMOTE_POD[family], POD_A[family]];
            for frame in [to_a(family), datagram(FROM_TUNNEL, back)] {
                let (verdict, after) = rig.tunnel(&frame, 0);
                assert_eq!(verdict, Verdict::Bypass, "family {family}");
                assert_eq!(after, forwarded(frame, family, [POD_A_MAC, GATEWAY_MAC]), "family {family}");
            }
        }
        // also when the process has ended
        rig.close_socket();
    }
}

/// Without the daemon nobody says whether the node translates them, and conntrack cannot be asked.
#[test]
fn pings_by_the_tunnel_are_the_stacks_without_a_worker() {
    let Some(mut rig) = rig() else { return };
    for (expected, family) in [Verdict::Bypass, Verdict::NatUnknown].into_iter().flat_map(|it| [(it, V4), (it, V6)]) {
        if expected == Verdict::NatUnknown {
            rig.close_socket();
        }
        assert_eq!(rig.tunnel(&echo(FROM_TUNNEL, [REMOTE_POD[family], POD_A[family]]), 0).0, expected);
    }
}

/// The stack takes longer than the program.
#[test]
fn datagrams_do_not_overtake_those_that_the_stack_has() {
    let merged_at_uplink = encapsulate(V4, &datagram([PEER_MAC, VTEP_MAC], [REMOTE_POD[V4], POD_A[V4]]));
    let large = udp(FROM_TUNNEL, [REMOTE_POD[V4], POD_A[V4]], [1, 2], &[7; 1300]);
    let merge: [&dyn Fn(&Rig) -> Verdict; 3] = [
        &|rig| rig.nic_tc(&merged_at_uplink, 20),
        &|rig| rig.tunnel(&datagram(FROM_TUNNEL, [REMOTE_POD[V4], POD_A[V4]]), 20).0,
        &|rig| {
            rig.steer.set_config(&SteerConfig { max_packet: 1200, ..config(V4) }).unwrap();
            rig.tunnel(&large, 0).0
        },
    ];
    for (merge, expected) in merge.into_iter().zip([Verdict::MultiBuffer, Verdict::Protocol, Verdict::TooBig]) {
        let Some(rig) = rig() else { return };
        let single = datagram(FROM_TUNNEL, [REMOTE_POD[V4], POD_A[V4]]);
        assert_eq!(rig.tunnel(&single, 0).0, Verdict::Bypass);
        assert_eq!(merge(&rig), expected);
        assert_eq!(rig.tunnel(&single, 0).0, Verdict::Behind);
        assert_eq!(rig.tunnel(&to_a(V4), 0).0, Verdict::Bypass, "TCP is another matter");
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
