//! Super-packets: what pods get merged, and what is cut, beside what the kernel makes of the same packet.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use podwire::frame::Region;
use podwire::ids::IfIndex;
use podwire::offload::{Segmenter, VirtioNetHdr};
use podwire::packet::{Outgoing, Sender};
use podwire::steer::{Program, Verdict};

use super::cluster;
use super::harness::{Capture, Netns, Options, PodwireNode, Prefix, Wire, is_root, tcp_transfer};

#[test]
fn segments_from_the_wire_reach_a_pod_as_super_packets() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.c.pods[0], &cluster.a.pods[0]);
    for destination in to.addresses() {
        let file = cluster.prefix.dir().join("received.pcap");
        let capture = Capture::start(&to.netns, "eth0", "tcp", &file);
        tcp_transfer(from, to, destination, 10_000_000).expect("TCP");
        let frames = capture.frames();
        let longest = frames.iter().map(|frame| payload_len(frame)).max().expect("frames");
        assert!(longest > 10 * cluster.a.host.wire.overlay_mtu() as usize, "the longest has {longest} bytes");
    }
    let stats = cluster.a.stats();
    let count = |label: &str| stats.workers[0].tallies.counts[label];
    assert!(count("pod_tx_merged") > 5 * count("pod_tx_super"), "{:?}", stats.workers[0].tallies.counts);
    assert_eq!(cluster.bad_checksums(), 0);
}

#[test]
fn where_af_xdp_copies_the_kernel_path_takes_over_what_moves_much() {
    let Some(cluster) = cluster(Wire::default(), Options { xdp: "native", wake_pps: 0, ..Options::DEFAULT }) else {
        return;
    };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let taken_over = || {
        let ways = [(Program::Nic, Verdict::Bulk), (Program::Pod, Verdict::Bypass), (Program::Tunnel, Verdict::Bypass)];
        let of = |node: &PodwireNode| ways.map(|(program, verdict)| node.verdict(program, verdict));
        cluster.podwire_nodes().map(of)
    };
    for node in cluster.podwire_nodes() {
        let figures = node.status().dataplane.figures.expect("a data plane runs");
        assert!(figures.leaves_bulk && figures.queues.iter().all(|queue| !queue.zero_copy));
    }
    for destination in to.addresses() {
        for _ in 0..20 {
            tcp_transfer(from, to, destination, 50_000).expect("TCP");
        }
    }
    assert_eq!(taken_over(), [[0; 3]; 2], "what is short is the workers'");
    for destination in to.addresses() {
        let before = taken_over();
        tcp_transfer(from, to, destination, 10_000_000).expect("TCP");
        let more =
            |(after, before): (&[u64; 3], &[u64; 3])| after.iter().zip(before).all(|(after, before)| after > before);
        assert!(taken_over().iter().zip(&before).all(more), "data and acknowledgements on both nodes");
    }
    assert_eq!(cluster.bad_checksums(), 0);
}

fn payload_len(frame: &[u8]) -> usize {
    match SlicedPacket::from_ethernet(frame).expect("a whole packet").transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.payload().len(),
        other => panic!("{other:?} is not TCP"),
    }
}

/// A frame of a pod that asks to be cut, its checksum left open.
fn super_packets() -> Vec<(&'static str, Vec<u8>, VirtioNetHdr)> {
    let payload: Vec<u8> = (0..5000u32).map(|n| ((n * n) >> 3).to_le_bytes()[0]).collect();
    let ethernet = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (v4, v6) = (([10, 0, 0, 1], [10, 0, 0, 2]), ([0xfd; 16], [0xfc; 16]));
    let [mut tcp4, mut tcp6, mut udp4, mut udp6] = [const { Vec::new() }; 4];
    let timestamps = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let tcp = |step: etherparse::PacketBuilderStep<etherparse::IpHeaders>, frame: &mut Vec<u8>| {
        let tcp = step.tcp(4000, 5000, u32::MAX - 2000, 999).ack(7).psh().fin().ece().cwr();
        tcp.options_raw(&timestamps).expect("12 bytes").write(frame, &payload).expect("a packet");
    };
    tcp(ethernet().ipv4(v4.0, v4.1, 63), &mut tcp4);
    tcp(ethernet().ipv6(v6.0, v6.1, 63), &mut tcp6);
    ethernet().ipv4(v4.0, v4.1, 63).udp(4000, 5000).write(&mut udp4, &payload).expect("a packet");
    ethernet().ipv6(v6.0, v6.1, 63).udp(4000, 5000).write(&mut udp6, &payload).expect("a packet");
    let ecn = VirtioNetHdr::GSO_ECN;
    vec![
        ("TCP over IPv4", tcp4, request(VirtioNetHdr::GSO_TCPV4 | ecn, 34, 32, 16)),
        ("TCP over IPv6", tcp6, request(VirtioNetHdr::GSO_TCPV6 | ecn, 54, 32, 16)),
        ("UDP over IPv4", udp4, request(VirtioNetHdr::GSO_UDP_L4, 34, 8, 6)),
        ("UDP over IPv6", udp6, request(VirtioNetHdr::GSO_UDP_L4, 54, 8, 6)),
    ]
}

fn request(gso_type: u8, csum_start: u16, l4_header: u16, csum_offset: u16) -> VirtioNetHdr {
    let (flags, hdr_len) = (VirtioNetHdr::NEEDS_CSUM, csum_start + l4_header);
    VirtioNetHdr { flags, gso_type, hdr_len, gso_size: 1400, csum_start, csum_offset }
}

/// Puts the sum of the pseudo header where the checksum belongs.
fn open_checksum(frame: &mut [u8], request: &VirtioNetHdr) {
    let start = usize::from(request.csum_start);
    let (addresses, protocol) = if frame[12] == 8 { (26..34, frame[23]) } else { (22..54, frame[20]) };
    let words = frame[addresses].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + u32::from(protocol) + u32::try_from(frame.len() - start).expect("short");
    let folded = (sum & 0xffff) + (sum >> 16);
    let field = start + usize::from(request.csum_offset);
    frame[field..field + 2].copy_from_slice(&folded.to_be_bytes()[2..]);
}

/// The frames that a device without offloads sends when it is given a super-packet.
fn cut_by_kernel(netns: &Netns, frame: &[u8], request: VirtioNetHdr, file: &std::path::Path) -> Vec<Vec<u8>> {
    let capture = Capture::start(netns, "there", "tcp or udp", file);
    let (_region, mut pool) = Region::map(8).expect("memory");
    let mut frames: Vec<_> = frame.chunks(3000).map(|part| (part, pool.take().expect("a frame"))).collect();
    for (part, frame) in &mut frames {
        assert!(frame.set_len(part.len()));
        frame.copy_from_slice(part);
    }
    let mut frames: Vec<_> = frames.into_iter().map(|(_, frame)| frame).collect();
    let index = netns.link("here")["ifindex"].as_u64().expect("an index");
    let mut sender = netns.within(Sender::open).expect("a packet socket");
    let index = IfIndex(u32::try_from(index).expect("an index"));
    assert!(sender.push(Outgoing::packet(&mut frames, request, index)), "there is room");
    sender.flush(&mut pool, |_, taken| taken.expect("the kernel takes it"));
    assert_eq!(pool.len(), 8);
    capture.frames()
}

#[test]
fn super_packets_are_cut_as_the_kernel_cuts_them() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let netns = prefix.netns("cut");
    netns.run_all([
        "ip link add here type veth peer name there",
        "ethtool -K here tx off tso off gso off",
        "ip link set here up",
        "ip link set there up",
    ]);
    for (name, mut frame, request) in super_packets() {
        open_checksum(&mut frame, &request);
        let mut segmenter = Segmenter::new(&frame, &request).expect("a request that fits");
        let mut ours = Vec::new();
        while let Some(len) = segmenter.next_len() {
            let mut segment = [&frame[..14], &vec![0; len]].concat();
            segmenter.write_next(&mut segment[14..]).expect("room");
            ours.push(segment);
        }
        assert_eq!(ours.len(), 4);
        let kernels = cut_by_kernel(&netns, &frame, request, &prefix.dir().join("cut.pcap"));
        assert!(kernels == ours, "{name}:\n{kernels:02x?}\n{ours:02x?}");
    }
}
