//! The views of headers against etherparse: what ours accepts etherparse reads the same way, and what ours refuses it
//! refuses for the reason that it gives. Ours is stricter where a worker leaves packets to the kernel path: IPv4 options,
//! fragments, IPv6 extension headers and protocols other than TCP, UDP and ICMPv6.
#![no_main]

use etherparse::{Ethernet2Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use podwire::trace::Flow;
use podwire::wire::{
    Ecn, Encapsulated, Ethernet, IpError, Ipv4, Ipv6, OuterError, Protocol, Sum, copy_and_sum, inner_sum,
};
use podwire_fuzz::{ETHERNET, assert_whole, checksum, mend};

const VXLAN_PORT: u16 = 8472;

// How much is mended, then a frame.
fuzz_target!(|input: &[u8]| {
    let Some((&how, frame)) = input.split_first() else { return };
    let mut frame = frame.to_vec();
    let inner = ETHERNET + if frame.get(12) == Some(&0x86) { 40 } else { 20 } + 8 + 8 + ETHERNET;
    if how & 1 != 0 && frame.len() > inner {
        mend(&mut frame[inner..]);
    }
    if how & 2 != 0 && frame.len() > ETHERNET {
        mend(&mut frame[ETHERNET..]);
    }
    ethernet(&frame);
    let packet = frame.get(ETHERNET..).unwrap_or_default();
    ipv4(packet);
    ipv6(packet);
    encapsulated(&frame);
    flow(&frame);
    sums(&frame, usize::from(how));
});

fn ethernet(frame: &[u8]) {
    match (Ethernet::parse(frame), Ethernet2Slice::from_slice_without_fcs(frame)) {
        (Some(ours), Ok(theirs)) => {
            assert_eq!((ours.dst.0, ours.src.0), (theirs.destination(), theirs.source()));
            assert_eq!(ours.ethertype.0, theirs.ether_type().0);
            assert_eq!(ours.to_bytes()[..], frame[..ETHERNET]);
        }
        (None, Err(_)) => {}
        (ours, theirs) => panic!("{ours:?}, {theirs:?}"),
    }
}

fn ipv4(packet: &[u8]) {
    let theirs = Ipv4HeaderSlice::from_slice(packet);
    let ours = match (Ipv4::parse(packet), &theirs) {
        (Ok(ours), _) => ours,
        (Err(IpError::Truncated), _) => return assert!(packet.len() < 20),
        (Err(IpError::BadVersion), _) => return assert!(packet[0] >> 4 != 4),
        (Err(IpError::BadLength), Err(_)) => return,
        (Err(error), Ok(theirs)) => return assert_refused_v4(error, theirs, packet.len()),
        // Of options only the first byte is looked at.
        (Err(error), Err(_)) => return assert!(error == IpError::Options && packet[0] & 0xf > 5, "{error:?}"),
    };
    let theirs = theirs.expect("what ours accepts").to_header();
    assert_eq!((ours.src().to_be_bytes(), ours.dst().to_be_bytes()), (theirs.source, theirs.destination));
    assert_eq!(
        (ours.ttl(), ours.protocol().0, ours.id()),
        (theirs.time_to_live, theirs.protocol.0, theirs.identification)
    );
    assert_eq!((usize::from(theirs.total_len), theirs.dont_fragment), (ours.total_len(), ours.df()));
    assert_eq!(ours.tos(), theirs.dscp.value() << 2 | theirs.ecn.value());
    assert!(theirs.options.is_empty() && !theirs.is_fragmenting_payload());
    assert_eq!(checksum(&packet[..20]), 0);

    let mut changed = packet[..ours.total_len()].to_vec();
    assert_eq!(Ipv4::decrement_ttl(&mut changed), ours.ttl().checked_sub(1).filter(|left| *left > 0));
    Ipv4::set_ecn(&mut changed, Ecn::Ce);
    assert_eq!(Ipv4::set_total_len(&mut changed, 20), Some(()));
    let changed = Ipv4::parse(&changed).expect("a right checksum");
    assert_eq!((changed.ecn(), changed.total_len()), (Ecn::Ce, 20));
}

fn assert_refused_v4(error: IpError, theirs: &Ipv4HeaderSlice<'_>, len: usize) {
    let total_len = usize::from(theirs.total_len());
    let holds = match error {
        IpError::BadLength => total_len < 20 || total_len > len,
        IpError::BadChecksum => checksum(theirs.slice()) != 0,
        IpError::Options => theirs.ihl() > 5,
        IpError::Fragment => theirs.is_fragmenting_payload(),
        IpError::Truncated | IpError::BadVersion | IpError::ExtensionHeader => false,
    };
    assert!(holds, "{error:?}: {theirs:?}");
}

fn ipv6(packet: &[u8]) {
    let ours = Ipv6::parse(packet);
    let Ok(theirs) = Ipv6HeaderSlice::from_slice(packet) else {
        return assert!(matches!(ours, Err(IpError::Truncated | IpError::BadVersion)), "{ours:?}");
    };
    let total_len = usize::from(theirs.payload_length()) + 40;
    let is_carried = [Protocol::TCP, Protocol::UDP, Protocol::ICMPV6].contains(&Protocol(theirs.next_header().0));
    let ours = match ours {
        Ok(ours) => ours,
        Err(IpError::BadLength) => return assert!(total_len > packet.len()),
        Err(IpError::ExtensionHeader) => return assert!(!is_carried),
        Err(error) => panic!("{error:?}: {theirs:?}"),
    };
    assert!(is_carried);
    assert_eq!((ours.src().to_be_bytes(), ours.dst().to_be_bytes()), (theirs.source(), theirs.destination()));
    assert_eq!((ours.total_len(), ours.hop_limit()), (total_len, theirs.hop_limit()));
    assert_eq!((ours.protocol().0, ours.traffic_class()), (theirs.next_header().0, theirs.traffic_class()));
    assert_eq!(ours.flow_label(), theirs.flow_label().value());
}

/// A frame that ours reads as VXLAN is a UDP datagram whose payload is the VXLAN header and the inner frame.
fn encapsulated(frame: &[u8]) {
    let ours = match Encapsulated::parse(frame) {
        Ok(ours) => ours,
        Err(OuterError::BadFlags | OuterError::NotVxlan | OuterError::Truncated) => return,
    };
    let theirs = SlicedPacket::from_ethernet(&frame[..ours.inner_end]);
    let Ok(SlicedPacket { transport: Some(TransportSlice::Udp(udp)), .. }) = theirs else {
        // A datagram may end before its packet does: what follows is padding.
        assert!(ours.inner_end < frame.len(), "{theirs:?}");
        return;
    };
    assert_eq!(udp.destination_port(), ours.dst_port);
    let (vxlan, inner) = udp.payload().split_at(8);
    assert_eq!(vxlan[..4], [8, 0, 0, 0]);
    assert_eq!(vxlan[4..], (ours.vni.get() << 8).to_be_bytes());
    let ethernet = Ethernet2Slice::from_slice_without_fcs(inner).expect("an inner frame");
    assert_eq!((ours.inner_dst.0, ours.inner_src.0), (ethernet.destination(), ethernet.source()));
    assert_eq!(ours.inner_ethertype.0, ethernet.ether_type().0);
    assert_eq!(frame[ours.inner_l3_offset..ours.inner_end], inner[ETHERNET..]);
}

/// What a trace tells of a frame is what the strict views read.
fn flow(frame: &[u8]) {
    let flow = Flow::read(frame, VXLAN_PORT);
    let Some((ethernet, packet)) = Ethernet::parse(frame).zip(frame.get(ETHERNET..)) else { return };
    if ethernet.ethertype.0 == 0x0800
        && let Ok(ip) = Ipv4::parse(packet)
    {
        let flow = flow.expect("an IPv4 packet");
        let (source, destination) = flow.outer.unwrap_or((flow.source, flow.destination));
        assert_eq!((source, destination), (ip.src().to_be_bytes().into(), ip.dst().to_be_bytes().into()));
    }
}

fn sums(bytes: &[u8], at: usize) {
    let at = at.min(bytes.len());
    let (head, tail) = bytes.split_at(at);
    assert_eq!(Sum::of(bytes).checksum() % 0xffff, checksum(bytes) % 0xffff);
    let tail_sum = if at % 2 == 0 { Sum::of(tail) } else { Sum::of(tail).at_odd_offset() };
    assert_eq!((Sum::of(head) + tail_sum).fold() % 0xffff, Sum::of(bytes).fold() % 0xffff);
    let mut copy = vec![0; bytes.len()];
    assert_eq!(copy_and_sum(&mut copy, bytes).map(Sum::fold), Some(Sum::of(bytes).fold()));
    assert_eq!(copy, bytes);
    let packet = bytes.get(ETHERNET..).unwrap_or_default();
    let total_len = match (Ipv4::parse(packet), Ipv6::parse(packet)) {
        (Ok(ip), _) => ip.total_len(),
        (_, Ok(ip)) => ip.total_len(),
        _ => return,
    };
    let packet = &packet[..total_len];
    assert_whole(packet);
    if podwire_fuzz::l4_checksum(packet) == podwire_fuzz::Sums::Right {
        assert_eq!(inner_sum(packet).fold() % 0xffff, Sum::of(packet).fold() % 0xffff, "{packet:02x?}");
    }
}
