//! Which TCP connections are left to the kernel path because they move much.

use std::thread::sleep;
use std::time::Duration;

use podwire::steer::{SteerConfig, Verdict};

use crate::packets::*;
use crate::rig::{MTU, Rig, config, is_root};

const LIMIT: u64 = 20_000;

fn rig() -> Rig {
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { bulk_bytes: LIMIT, ..config(V4) }).unwrap();
    rig
}

fn with_ports(frame: Vec<u8>, family: usize, ports: [u16; 2]) -> Vec<u8> {
    patched(frame, ETHERNET + ip_header(family), &ports.map(u16::to_be_bytes).concat())
}

/// From pod A to a remote pod.
fn sent(family: usize, port: u16, payload: usize) -> Vec<u8> {
    let frame = tcp([POD_A_MAC, GATEWAY_MAC], [POD_A[family], REMOTE_POD[family]], &vec![0; payload]);
    with_ports(frame, family, [port, 80])
}

/// The other direction, as it comes from the wire.
fn received(family: usize, port: u16, payload: usize) -> Vec<u8> {
    let frame = tcp([PEER_MAC, VTEP_MAC], [REMOTE_POD[family], POD_A[family]], &vec![0; payload]);
    encapsulate(V4, &with_ports(frame, family, [80, port]))
}

const FULL: usize = MTU as usize - 60;

#[test]
fn a_connection_that_moves_much_is_left_to_the_kernel_in_both_directions() {
    if !is_root() {
        return;
    }
    let rig = rig();
    for family in FAMILIES {
        let super_packet = || rig.pod_gso(&sent(family, 1000, 3000), 1200).0;
        assert_eq!([(); 6].map(|()| super_packet()), [Verdict::Claimed; 6], "18,000 bytes are not much");
        assert_eq!(rig.pod(&sent(family, 1000, 10)), Verdict::Claimed);
        assert_eq!(rig.nic(&received(family, 1000, 0)), Verdict::Claimed);
        assert_eq!(super_packet(), Verdict::Bulk);
        assert_eq!(rig.pod(&sent(family, 1000, 10)), Verdict::Bulk, "what is small must not overtake");
        assert_eq!(rig.nic(&received(family, 1000, 0)), Verdict::Bulk, "its acknowledgements");
        assert_eq!(rig.pod(&sent(family, 1001, 10)), Verdict::Claimed, "another connection");
        assert_eq!(rig.pod_gso(&sent(family, 1001, 3000), 1200).0, Verdict::Claimed);
    }
}

/// It is asked first, and whoever goes on is not asked for anything else.
#[test]
fn what_goes_on_from_the_wire_in_bulk_is_known_before_its_worker_is_looked_for() {
    if !is_root() {
        return;
    }
    let mut rig = rig();
    let full = received(V4, 1000, FULL);
    while rig.nic_xdp(&full) == Verdict::Claimed {}
    assert_eq!(rig.nic_xdp(&full), Verdict::Bulk);
    rig.close_socket();
    assert_eq!(rig.nic_xdp(&full), Verdict::Bulk);
    assert_eq!(rig.nic_xdp(&received(V4, 1000, 0)), Verdict::NoSocket, "what is small is asked all");
    assert_eq!(rig.nic_xdp(&received(V4, 1001, FULL)), Verdict::NoSocket, "another connection");
    sleep(Duration::from_millis(1100));
    assert_eq!(rig.nic_xdp(&full), Verdict::NoSocket, "after a pause it begins anew");
}

#[test]
fn full_segments_from_the_wire_count_and_small_ones_do_not() {
    if !is_root() {
        return;
    }
    let rig = rig();
    for family in FAMILIES {
        for n in 0..200 {
            assert_eq!(rig.nic_xdp(&received(family, 2000, 500)), Verdict::Claimed, "{n} small ones");
        }
        let verdicts: Vec<_> = (0..40).map(|_| rig.nic_xdp(&received(family, 2000, FULL))).collect();
        let claimed = verdicts.iter().filter(|verdict| **verdict == Verdict::Claimed).count();
        assert_eq!(claimed, (usize::try_from(LIMIT).unwrap() - 1) / (FULL + 20 + ip_header(family)));
        assert!(verdicts[claimed..].iter().all(|verdict| *verdict == Verdict::Bulk));
        assert_eq!(rig.pod(&sent(family, 2000, 0)), Verdict::Bulk);
    }
}

#[test]
fn a_connection_that_paused_is_the_workers_again() {
    if !is_root() {
        return;
    }
    let rig = rig();
    while rig.nic_xdp(&received(V4, 3000, FULL)) == Verdict::Claimed {}
    sleep(Duration::from_millis(500));
    assert_eq!(rig.nic_xdp(&received(V4, 3000, 10)), Verdict::Bulk);
    sleep(Duration::from_millis(600));
    assert_eq!(rig.nic_xdp(&received(V4, 3000, 10)), Verdict::Claimed);
    assert_eq!(rig.pod(&sent(V4, 3000, 10)), Verdict::Claimed);
}

#[test]
fn where_the_kernel_receives_workers_take_no_tcp() {
    if !is_root() {
        return;
    }
    let rig = rig();
    rig.steer.set_config(&SteerConfig { leaves_tcp: true, ..config(V4) }).unwrap();
    for family in FAMILIES {
        assert_eq!(rig.pod(&sent(family, 1000, 0)), Verdict::Bulk, "from the first packet on");
        let datagram = udp([POD_A_MAC, GATEWAY_MAC], [POD_A[family], REMOTE_POD[family]], [1, 2], b"x");
        assert_eq!(rig.pod(&datagram), Verdict::Claimed);
        let protocol = ETHERNET + if family == V4 { 9 } else { 6 };
        let echo = patched(datagram, protocol, &[if family == V4 { 1 } else { 58 }]);
        assert_eq!(rig.pod(&echo), Verdict::Claimed);
    }
}

#[test]
fn datagrams_and_nodes_whose_workers_carry_all_know_no_bulk() {
    if !is_root() {
        return;
    }
    let rig = rig();
    for n in 0..100 {
        assert_eq!(rig.pod(&from_a(REMOTE_POD[V4], FULL)), Verdict::Claimed, "datagram {n}");
    }
    rig.steer.set_config(&config(V4)).unwrap();
    for n in 0..100 {
        assert_eq!(rig.nic(&received(V4, 4000, FULL)), Verdict::Claimed, "segment {n}");
    }
}
