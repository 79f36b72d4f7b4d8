//! What podwire puts on the wire, judged by a capture between node `a` and the switch.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster;
use super::harness::{Capture, Cluster, Options, Peer, Pod, Vxlan, Wire, pings, tcp_transfer, udp_echo};

const UDP: u8 = 17;

/// Nothing goes through the tunnel that the test has not sent.
const UNPROBED: Options = Options { sections: "[probe]\ninterval_s = 0\n", ..Options::ADAPTIVE };

/// The VXLAN frames that node `a` sends while `traffic` runs. Each is complete: parsed, with right checksums.
fn sent_during(cluster: &Cluster, traffic: impl FnOnce()) -> Vec<Vxlan> {
    let host = &cluster.a.host;
    let file = cluster.prefix.dir().join("sent.pcap");
    let capture = Capture::start(&cluster.switch.netns, &host.port(), "udp dst port 8472", &file);
    traffic();
    let frames = capture.frames();
    let longest = host.wire.mtu as usize + 14;
    for frame in &frames {
        assert!(frame.len() <= longest, "a frame of {} bytes on the wire", frame.len());
    }
    frames.iter().map(|frame| Vxlan::parse(frame).unwrap_or_else(|e| panic!("{e}: {frame:02x?}"))).collect()
}

/// A little of everything from `from` to `to`: 32 UDP flows, ICMP, TCP.
fn mixture(from: &Pod, to: &Pod) {
    for destination in to.addresses() {
        for _ in 0..32 {
            udp_echo(from, to, destination, &[1, 900]).expect("UDP");
        }
        tcp_transfer(from, to, destination, 1_000_000).expect("TCP");
        assert!(pings(from, destination, ""));
    }
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("6 bytes")
}

fn frames_are_exact(wire: Wire) {
    let Some(cluster) = cluster(wire, UNPROBED) else { return };
    let (from, b, c) = (&cluster.a.pods[0], &cluster.b.pods[0], &cluster.c.pods[0]);
    let sent = sent_during(&cluster, || [b, c].into_iter().for_each(|to| mixture(from, to)));
    let macs = |peer: Peer| [peer.vtep_mac, peer.vtep_mac6].map(|text| text.map(|text| mac(&text)));
    let [own, peers @ ..] = [cluster.a.peer(), cluster.b.peer(), cluster.c.peer()].map(macs);
    let mut ports = BTreeMap::<_, BTreeSet<u16>>::new();
    for frame in &sent {
        assert_eq!((frame.flags, frame.reserved_is_zero, frame.vni), (0x08, true, 1), "{frame:?}");
        assert_eq!(frame.outer.destination.1, 8472, "{frame:?}");
        assert!(frame.outer.source.1 >= 49152, "{frame:?}");
        assert_eq!((frame.outer_ttl, frame.inner_ttl), (64, 63), "{frame:?}");
        assert_eq!(frame.outer_tos, frame.inner_tos & 3, "{frame:?}");
        let [inner, outer] = [&frame.inner, &frame.outer].map(|flow| flow.destination.0.is_ipv6());
        let is_second = usize::from(wire.dual && inner);
        assert_eq!(Some(frame.inner_source_mac), own[is_second], "{frame:?}");
        assert!(peers.iter().any(|peer| peer[is_second] == Some(frame.inner_destination_mac)), "{frame:?}");
        assert_eq!(outer, wire.ipv6 || is_second == 1, "{frame:?}");
        assert!(outer || !frame.outer_dont_fragment, "{frame:?}");
        ports.entry(&frame.inner).or_default().insert(frame.outer.source.1);
    }
    assert!(ports.values().all(|used| used.len() == 1), "a flow changes its outer source port: {ports:?}");
    let spread: BTreeSet<_> =
        ports.iter().filter(|(flow, _)| flow.protocol == UDP).flat_map(|(_, used)| used).collect();
    // Where AF_XDP copies, as on these wires, there are 16 of them, so that frames of many flows leave together.
    assert!((12..=16).contains(&spread.len()), "128 UDP flows share {} outer source ports", spread.len());
    assert!(sent.iter().any(|frame| frame.inner_len == wire.overlay_mtu() as usize), "no segment fills the MTU");
}

#[test]
fn outer_frames_are_exactly_those_of_a_flannel_node() {
    frames_are_exact(Wire::default());
}

#[test]
fn outer_frames_over_ipv6_carry_a_checksum_and_the_same_vxlan() {
    frames_are_exact(Wire { ipv6: true, ..Wire::default() });
}

#[test]
fn what_is_ipv6_goes_by_the_ipv6_vteps_of_nodes_that_have_both() {
    frames_are_exact(Wire { dual: true, ..Wire::default() });
}

#[test]
fn congestion_marks_are_copied_to_the_outer_header_and_the_class_is_not() {
    let Some(cluster) = cluster(Wire::default(), UNPROBED) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    for tos in [0u8, 1, 2, 3, 0xb8, 0xba] {
        for destination in to.addresses() {
            let sent = sent_during(&cluster, || assert!(pings(from, destination, &format!("-Q {tos}"))));
            let seen: Vec<_> = sent.iter().map(|frame| (frame.inner_tos, frame.outer_tos)).collect();
            assert_eq!(seen, [(tos, tos & 3)], "to {destination}");
        }
    }
}
