//! Pods that try to fill the tables of the node's kernel.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use etherparse::{Icmpv6Type, PacketBuilder};
use podwire::control::wiring::GATEWAY_MAC;
use podwire::frame::Region;
use podwire::ids::IfIndex;
use podwire::offload::VirtioNetHdr;
use podwire::packet::{Outgoing, Sender};

use super::cluster;
use super::harness::{Cluster, Netns, Options, Pod, Wire, assert_all_pairs_talk, pings, udp_echo, wait_until};

in_both_modes! {
    a_pod_that_asks_in_many_names_fills_no_neighbour_table,
}

/// Names in which a pod asks: far fewer than the kernel takes (`gc_thresh1`), for all namespaces share its table.
const NAMES: u16 = 100;

/// Sends frames out of a device.
fn send(netns: &Netns, device: &str, frames: &[Vec<u8>]) {
    const BATCH: usize = 32;
    let (_region, mut pool) = Region::map(64).expect("memory");
    let index = netns.link(device)["ifindex"].as_u64().expect("an index");
    let index = IfIndex(u32::try_from(index).expect("an index"));
    let mut sender = netns.within(Sender::open).expect("a packet socket");
    for batch in frames.chunks(BATCH) {
        for bytes in batch {
            let mut frame = pool.take().expect("a frame");
            assert!(frame.set_len(bytes.len()));
            frame.copy_from_slice(bytes);
            assert!(sender.push(Outgoing::packet(&mut vec![frame], VirtioNetHdr::default(), index)), "there is room");
        }
        sender.flush(&mut pool, |_, taken| taken.expect("the kernel takes it"));
    }
}

fn mac(text: &str) -> [u8; 6] {
    let octets: Vec<u8> = text.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().expect("a MAC")
}

/// An ARP packet (RFC 826): a request is number 1, a reply number 2.
fn arp(operation: u8, from: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &from, &[8, 6]].concat();
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&ethernet, &head[..], &from, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// A message of neighbour discovery (RFC 4861) with the sender's MAC as its link-layer address.
fn discovery(kind: u8, from: [u8; 6], sender: Ipv6Addr, to: Ipv6Addr, target: Option<Ipv6Addr>) -> Vec<u8> {
    let multicast = [[0x33, 0x33].as_slice(), &to.octets()[12..]].concat();
    let target = target.map(|target| target.octets().to_vec()).unwrap_or_default();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, multicast.try_into().expect("six bytes"))
        .ipv6(sender.octets(), to.octets(), 255)
        .icmpv6(Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] })
        .write(&mut frame, &[&target[..], &[1, 1], &from].concat())
        .expect("a frame fits in memory");
    frame
}

/// Everything by which a neighbour makes itself known, in the names of nobody and of another pod.
fn claims(cluster: &Cluster) -> Vec<Vec<u8>> {
    const ROUTER_SOLICITATION: u8 = 133;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let Cluster { a, .. } = cluster;
    let [pod, neighbour] = [0, 1].map(|n| &a.pods[n]);
    let [IpAddr::V4(node), IpAddr::V6(node6)] = a.host.addresses() else { unreachable!("one of each family") };
    let solicited = {
        let [.., x, y, z] = node6.octets();
        Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z])
    };
    let from = mac(&pod.netns.mac("eth0"));
    let in_name = |n: u16| {
        let low = n.to_be_bytes()[1];
        let (v4, v6) = (Ipv4Addr::new(10, 244, 2, low), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, n));
        [
            arp(1, from, v4, node),
            arp(2, from, v4, v4),
            discovery(ROUTER_SOLICITATION, from, v6, ALL_ROUTERS, None),
            discovery(NEIGHBOUR_SOLICITATION, from, v6, solicited, Some(node6)),
        ]
    };
    let of_neighbour = [arp(1, from, neighbour.v4, node), arp(2, from, neighbour.v4, neighbour.v4)];
    (1..=NAMES).flat_map(in_name).chain(of_neighbour).collect()
}

fn a_pod_that_asks_in_many_names_fills_no_neighbour_table(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let netns = &cluster.a.host.netns;
    // Where nothing looks at who asks: `rp_filter`, where it is on, takes no ARP from a device without an address.
    for device in ["all", "pw1"] {
        netns.sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0");
    }
    let neighbours = || [4, 6].map(|family| netns.run(&format!("ip -{family} neigh show dev pw1 nud all")));
    let before = neighbours();
    send(&cluster.a.pods[0].netns, "eth0", &claims(&cluster));
    assert_eq!(neighbours(), before);
    assert_all_pairs_talk(&cluster.pods());
}

/// A setting or figure of conntrack in a namespace.
fn conntrack(netns: &Netns, name: &str) -> u64 {
    let read = || fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    let text = netns.within(read).expect("conntrack is there");
    text.trim().parse().expect("a number")
}

/// Datagrams from so many ports of a pod to each of `ports`.
fn datagrams(pod: &Pod, to: Ipv4Addr, from: RangeInclusive<u16>, ports: &[u16]) -> Vec<Vec<u8>> {
    let own = mac(&pod.netns.mac("eth0"));
    let datagram = |(from, port): (u16, u16)| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(own, GATEWAY_MAC.0)
            .ipv4(pod.v4.octets(), to.octets(), 64)
            .udp(from, port)
            .write(&mut frame, &[0; 18])
            .expect("a frame fits in memory");
        frame
    };
    ports.iter().flat_map(|&port| from.clone().map(move |from| (from, port))).map(datagram).collect()
}

#[test]
fn when_a_pod_has_filled_the_table_of_connections_10000_new_flows_of_another_pass() {
    const FLOWS: usize = 100;
    let Some(cluster) = cluster(Wire::default(), Options { masquerade: true, ..Options::ADAPTIVE }) else { return };
    let Cluster { a, b, .. } = &cluster;
    let [hostile, pod] = [0, 1].map(|n| &a.pods[n]);
    let netns = &a.host.netns;
    let most = conntrack(netns, "max");
    if most > 1 << 19 {
        println!("skipped: a table of {most} connections takes too long to fill");
        return;
    }
    // To the node itself, by its kernel. Nobody reads them.
    let IpAddr::V4(node) = a.host.underlay else { unreachable!("this wire has IPv4") };
    let sinks: Vec<_> =
        (0..=most / 60_000).map(|_| netns.within(|| UdpSocket::bind((node, 0))).expect("bind on the node")).collect();
    let ports: Vec<_> = sinks.iter().map(|sink| sink.local_addr().expect("bound").port()).collect();
    send(&hostile.netns, "eth0", &datagrams(hostile, node, 1..=60_000, &ports));
    let full = conntrack(netns, "count");
    assert!(full >= most * 99 / 100, "{full} of {most}");

    let to = &b.pods[0];
    for address in to.addresses() {
        udp_echo(pod, to, address, &[18, 1400]).expect("answers");
    }
    let receivers: Vec<_> =
        (0..FLOWS).map(|_| to.netns.within(|| UdpSocket::bind((to.v4, 0))).expect("bind in the pod")).collect();
    let senders: Vec<_> =
        (0..FLOWS).map(|_| pod.netns.within(|| UdpSocket::bind((pod.v4, 0))).expect("bind in the pod")).collect();
    let before = a.carried();
    for receiver in &receivers {
        let to = receiver.local_addr().expect("bound");
        for sender in &senders {
            sender.send_to(&[0; 18], to).expect("a route");
        }
        // As fast as they are taken.
        receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut ports: Vec<_> =
            senders.iter().map(|_| receiver.recv_from(&mut [0; 18]).expect("all arrive").1.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), FLOWS);
    }
    let carried = a.carried().since(before);
    // A worker that waits for its core leaves some to the kernel path.
    assert!(carried.fast_share() > 0.5, "{carried:?}");
    let by_kernel = || pings(pod, a.host.underlay, "");
    assert!(wait_until(Duration::from_secs(5), by_kernel), "the kernel lets go of what nobody answered");
}
