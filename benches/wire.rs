//! What a packet costs before and after the rings: checksums, headers, segmentation.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use podwire::offload::{Segmenter, VirtioNetHdr};
use podwire::wire::{
    Ecn, Encapsulated, EtherType, Inner, Ipv4, Mac, OuterParams, OuterTemplate, Sum, Vni, copy_and_sum, flow_hash_v4,
    inner_sum,
};

fn params(local: &str, remote: &str, udp_checksum: bool) -> OuterParams {
    OuterParams {
        src_mac: Mac([2, 0, 0, 0, 0, 1]),
        dst_mac: Mac([2, 0, 0, 0, 0, 2]),
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        port: 8472,
        vni: Vni::new(1).unwrap(),
        ttl: 64,
        inner_src: Mac([2, 0, 0, 0, 0, 3]),
        inner_dst: Mac([2, 0, 0, 0, 0, 4]),
        udp_checksum,
    }
}

/// A UDP packet that is 64 bytes long as an Ethernet frame with its check sequence.
fn small_packet() -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 244, 1, 2], [10, 244, 2, 2], 64).udp(40000, 53).write(&mut packet, &[7; 18]).unwrap();
    packet
}

fn checksum(c: &mut Criterion) {
    for len in [64, 1500] {
        let (bytes, mut copy) = (vec![0xa5; len], vec![0; len]);
        let mut group = c.benchmark_group(format!("checksum of {len} B"));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function("sum", |b| b.iter(|| Sum::of(black_box(&bytes)).checksum()));
        group.bench_function("copy and sum", |b| b.iter(|| copy_and_sum(black_box(&mut copy), black_box(&bytes))));
    }
}

fn outer_headers(c: &mut Criterion) {
    let underlays = [
        ("IPv4", params("192.168.1.2", "192.168.1.3", false)),
        ("IPv4 with UDP checksum", params("192.168.1.2", "192.168.1.3", true)),
        ("IPv6", params("fd00:1::2", "fd00:1::3", false)),
    ];
    let packet = small_packet();
    let mut group = c.benchmark_group("outer headers");
    group.throughput(Throughput::Elements(1));
    for (name, params) in underlays {
        let template = OuterTemplate::new(&params).unwrap();
        let mut frame = vec![0; template.len()];
        frame.extend(&packet);
        let write = |frame: &mut [u8]| {
            let inner = Inner {
                ethertype: EtherType::IPV4,
                l3_len: packet.len(),
                ecn: Ecn::NotEct,
                source_port: 50000,
                ip_id: 1,
                sum: template.needs_sum().then(|| inner_sum(black_box(&packet))),
            };
            template.write(frame, &inner)
        };
        group.bench_function(format!("write {name}"), |b| b.iter(|| write(black_box(&mut frame))));
        assert!(Encapsulated::parse(&frame).is_ok());
        group.bench_function(format!("parse {name}"), |b| b.iter(|| Encapsulated::parse(black_box(&frame))));
    }
}

fn inner_header(c: &mut Criterion) {
    let mut packet = small_packet();
    let ip = Ipv4::parse(&packet).unwrap();
    let mut group = c.benchmark_group("inner header");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse IPv4", |b| b.iter(|| Ipv4::parse(black_box(&packet))));
    group.bench_function("flow hash", |b| b.iter(|| flow_hash_v4(black_box(ip), black_box(&packet))));
    group.bench_function("decrement TTL", |b| {
        b.iter(|| {
            packet[8] = 64;
            Ipv4::decrement_ttl(black_box(&mut packet))
        });
    });
}

fn segmentation(c: &mut Criterion) {
    let (payload, gso_size) = (vec![0x5a; 45 * 1398], 1398);
    let mut frame = Vec::new();
    let headers = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 6]);
    headers.ipv4([10, 244, 1, 2], [10, 244, 2, 2], 64).tcp(40000, 443, 1, 512).write(&mut frame, &payload).unwrap();
    let hdr = VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        gso_type: VirtioNetHdr::GSO_TCPV4,
        hdr_len: 0,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
    };
    let mut out = vec![0; 2048];
    let mut group = c.benchmark_group("segmentation");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("TCP super-packet into 45", |b| {
        b.iter(|| {
            let mut segmenter = Segmenter::new(black_box(&frame), &hdr).unwrap();
            while segmenter.write_next(black_box(&mut out)).is_some() {}
        });
    });
}

criterion_group!(benches, checksum, outer_headers, inner_header, segmentation);
criterion_main!(benches);
