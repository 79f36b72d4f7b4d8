//! Packets that come for pods in numbers: the workers hand them over in trains.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use super::cluster;
use super::harness::{Options, Pod, PodwireNode, Wire, wait_until};

/// Datagrams of a burst, and the bytes of each.
const BURST: u16 = 40;
const SIZE: usize = 300;

fn open(pod: &Pod, address: IpAddr) -> UdpSocket {
    let socket = pod.netns.within(|| UdpSocket::bind((address, 0))).expect("bind in the pod");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
    socket
}

/// Sends a burst to each of `to` in turn; they all get theirs, whole and in order.
fn burst(from: &UdpSocket, to: &[UdpSocket]) {
    for receiver in to {
        let mut payload = vec![0x5a; SIZE * usize::from(BURST)];
        for (number, datagram) in (0..).zip(payload.chunks_mut(SIZE)) {
            datagram[..2].copy_from_slice(&u16::to_be_bytes(number));
        }
        let target = receiver.local_addr().expect("a socket");
        assert_eq!(from.send_to(&payload, target).expect("it is sent"), payload.len());
    }
    for receiver in to {
        for number in 0..BURST {
            let mut datagram = [0; SIZE + 1];
            let got = receiver.recv(&mut datagram).expect("a datagram");
            assert_eq!((got, &datagram[..2]), (SIZE, number.to_be_bytes().as_slice()));
            assert!(datagram[2..SIZE].iter().all(|&byte| byte == 0x5a));
        }
    }
}

fn in_trains(node: &PodwireNode) -> u64 {
    node.stats().workers[0].tallies.counts["pod_tx_trains"]
}

#[test]
fn bursts_for_pods_arrive_in_trains_unless_these_are_off() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    for trains in [true, false] {
        if !trains {
            cluster.b.set_options(Options { sections: "pod_trains = false", ..Options::ADAPTIVE });
        }
        let from = &cluster.a.pods[0];
        for family in 0..2 {
            let before = in_trains(&cluster.b);
            let to: Vec<_> = cluster.b.pods.iter().map(|pod| open(pod, pod.addresses()[family])).collect();
            let sender = open(from, from.addresses()[family]);
            setsockopt(&sender, UdpGsoSegment, &i32::try_from(SIZE).expect("small")).expect("UDP GSO");
            // A worker that is quick takes a burst in pieces too small for trains.
            let seen = wait_until(Duration::from_secs(if trains { 20 } else { 2 }), || {
                burst(&sender, &to);
                in_trains(&cluster.b) > before
            });
            assert_eq!(seen, trains, "family {family}");
        }
    }
    assert_eq!(cluster.bad_checksums(), 0);
}
