//! Packets from a worker to pods: alone, and in trains that the kernel cuts in the hub and `hub_deliver` takes apart.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Duration;

use podwire::counters::Count::{PodTxPackets, PodTxTrains};
use podwire::counters::{DropReason, Tally, Traffic};
use podwire::frame::{Frame, Pool, Region};
use podwire::ids::{HubEnds, PodId};
use podwire::offload::{Delivery, VirtioNetHdr};
use podwire::packet::{Ring, Sender};
use podwire::port::{Hub, PodOutlet, PodPort, Share};
use podwire::steer::{PodPath, Steer, TcChoice};
use podwire::wire::Mac;
use podwire::xsk;

use crate::lab::{Lab, Raw};
use crate::packets::*;
use crate::rig::{config, is_root, pod};

/// A node with pods A and B, and a worker's way to them.
struct Node {
    outlet: PodOutlet,
    pool: Pool,
    tally: Tally,
    _region: Region,
    steer: Steer,
    pods: [Lab; 2],
    host: Lab,
}

const NAMES: [[&str; 2]; 2] = [["pw1", "eth1"], ["pw2", "eth2"]];
const MACS: [Mac; 2] = [POD_A_MAC, POD_B_MAC];

impl Node {
    fn new(choice: TcChoice) -> Self {
        let (host, pods) = (Lab::new(), [Lab::new(), Lab::new()]);
        host.veth("pwhub0", "pwhub1");
        for name in ["pwhub0", "pwhub1"] {
            host.ip(&format!("link set {name} mtu 65535"));
        }
        for ([near, far], pod) in NAMES.iter().zip(&pods) {
            host.veth(near, far);
            host.give(far, pod);
        }
        let hub = HubEnds { near: host.ifindex("pwhub0"), far: host.ifindex("pwhub1") };
        let mut steer = host.load(&config(V4));
        steer.set_tc(choice);
        host.within(|| {
            assert!(xsk::complete_checksums("pwhub0").unwrap(), "a device has them");
            assert!(!xsk::complete_checksums("pwhub0").unwrap(), "this one no more");
            steer.attach_hub(hub).unwrap();
        });
        let (region, pool) = Region::map(256).unwrap();
        let outlet = PodOutlet::new(host.within(|| Sender::open().unwrap()), Some(hub.near));
        let node = Self { outlet, pool, tally: Tally::default(), _region: region, steer, pods, host };
        for (at, addresses) in [POD_A, POD_B].into_iter().enumerate() {
            for address in addresses {
                let (pod, steer) = (node.pod(at), &node.steer);
                node.host.within(|| steer.add_local(address, &pod, PodPath::Fast)).unwrap();
            }
        }
        node
    }

    fn pod(&self, at: usize) -> podwire::fib::LocalPod {
        pod(u16::try_from(at + 1).unwrap(), self.host.ifindex(NAMES[at][0]), MACS[at])
    }

    /// What comes to the pods from now on.
    fn taps(&self) -> [Raw; 2] {
        [0, 1].map(|at| self.pods[at].socket(NAMES[at][1], libc::ETH_P_ALL))
    }

    fn frame(&mut self, bytes: &[u8]) -> Frame {
        let mut frame = self.pool.take().unwrap();
        frame.reset(300);
        assert!(frame.set_len(bytes.len()));
        frame.copy_from_slice(bytes);
        frame
    }

    /// Hands a frame over in so many pieces.
    fn send(&mut self, at: usize, bytes: &[u8], pieces: usize) {
        let pieces = bytes.chunks(bytes.len().div_ceil(pieces));
        let frames = pieces.map(|piece| self.frame(piece)).collect();
        let mut packet = Delivery { to: self.pod(at), virtio: VirtioNetHdr::default(), frames };
        while !self.outlet.send(&mut packet) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.outlet.flush(&mut self.pool, &mut self.tally);
    }
}

fn datagram(at: usize, family: usize, port: u16, payload: usize) -> Vec<u8> {
    let payload: Vec<_> = (0..payload).map(|n| u8::try_from(n % 251).unwrap()).collect();
    udp([GATEWAY_MAC, MACS[at]], [REMOTE_POD[family], [POD_A, POD_B][at][family]], [port, 7], &payload)
}

#[test]
fn packets_of_any_size_and_family_get_to_their_pods_whole_and_in_order() {
    if !is_root() {
        return;
    }
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let mut node = Node::new(choice);
        let taps = node.taps();
        // Few and many together, of one size and of all, one family and both, for one pod and both, some in two pieces.
        for (round, (packets, sizes, mix)) in
            [(1, 1, 1), (3, 1, 1), (64, 1, 1), (64, 9, 1), (90, 3, 7), (70, 40, 2)].into_iter().enumerate()
        {
            let sent: Vec<_> = (0..packets)
                .map(|n| {
                    let (at, family) = (n / mix % 2, if mix == 7 { n / 20 % 2 } else { usize::from(mix == 2) });
                    let payload = [6, 18, 1400, 1, 600, 0, 3000, 64][n % sizes % 8] + n % sizes;
                    let pieces = if mix == 7 && n % 11 == 0 { 2 } else { 1 };
                    (at, datagram(at, family, u16::try_from(round * 100 + n).unwrap(), payload), pieces)
                })
                .collect();
            for (at, frame, pieces) in &sent {
                node.send(*at, frame, *pieces);
            }
            node.flush();
            for (at, tap) in taps.iter().enumerate() {
                let mut expected = sent.iter().filter(|(to, ..)| *to == at).map(|(_, frame, _)| frame);
                assert!(expected.all(|frame| tap.receive().is_some_and(|got| got.frame == *frame)), "round {round}");
                assert!(node.pool.len() == 256, "all frames are back");
            }
        }
        assert!(taps.iter().all(|tap| tap.receive().is_none()), "and nothing else");
        assert_eq!(node.tally.dropped(), 0);
        let [packets, in_trains] = [PodTxPackets, PodTxTrains].map(|count| node.tally.count(count));
        assert_eq!(packets, 292);
        assert!((230..280).contains(&in_trains), "{in_trains}");
    }
}

/// The cutting sums what it cuts, which says nothing about the packets inside.
#[test]
fn pods_still_check_the_checksums_of_what_comes_in_trains() {
    if !is_root() {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(TcChoice::Auto);
        let address = POD_A[family];
        if family == V6 {
            node.pods[0].within(|| std::fs::write("/proc/sys/net/ipv6/conf/eth1/disable_ipv6", "0").unwrap());
        }
        node.pods[0].ip(&format!("link set eth1 address {POD_A_MAC}"));
        let [address_of, default] = [["/32", "/128"], ["0.0.0.0/0", "::/0"]].map(|of| of[family]);
        node.pods[0].ip(&format!("address add {address}{address_of} dev eth1 nodad"));
        node.pods[0].ip(&format!("route add {default} dev eth1"));
        let socket = node.pods[0].within(|| UdpSocket::bind((address, 7)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        for n in 0..8 {
            let mut frame = datagram(0, family, 1000 + n, 10 + usize::from(n));
            if n % 2 == 1 {
                *frame.last_mut().unwrap() ^= 1;
            }
            node.send(0, &frame, 1);
        }
        node.flush();
        assert_eq!(node.tally.count(PodTxTrains), 8);
        let mut buffer = [0; 64];
        let lengths: Vec<_> = std::iter::from_fn(|| socket.recv(&mut buffer).ok()).collect();
        assert_eq!(lengths, [10, 12, 14, 16]);
    }
}

#[test]
fn what_finds_its_pod_gone_is_counted_and_the_others_get_theirs() {
    if !is_root() {
        return;
    }
    let mut node = Node::new(TcChoice::Auto);
    let ([tap, _], gone) = (node.taps(), node.pod(1));
    node.host.ip("link del pw2");
    let near = node.host.ifindex("pwhub0");
    let (ring, sender) = node.host.within(|| (Ring::open(near, 64, 1450, None).unwrap(), Sender::open().unwrap()));
    let traffic: Arc<[Traffic]> = (0..=PodId::MAX).map(|_| Traffic::default()).collect();
    let outlet = PodOutlet::new(sender, Some(near));
    let share = Share { worker: 0, workers: 1 };
    let mut hub = Hub::new(ring, outlet, node.steer.credits(), share, Arc::new(AtomicU16::new(2)), traffic);
    for n in 0..10 {
        let at = usize::from(n % 2);
        let frames = vec![node.frame(&datagram(at, V4, n, 5))];
        let to = if at == 0 { node.pod(0) } else { gone };
        assert!(hub.send(&mut Delivery { to, virtio: VirtioNetHdr::default(), frames }));
    }
    hub.flush(&mut node.pool, &mut node.tally);
    for n in [0, 2, 4, 6, 8] {
        assert_eq!(tap.receive().unwrap().frame, datagram(0, V4, n, 5));
    }
    hub.settle(&mut node.tally);
    hub.settle(&mut node.tally);
    assert_eq!(node.tally.drops(DropReason::PodRefused), 5);
}

/// Nothing but trains is let through, whoever sends it.
#[test]
fn what_is_no_train_ends_in_the_hub() {
    if !is_root() {
        return;
    }
    let node = Node::new(TcChoice::Auto);
    let ([a, b], stack) = (node.taps(), node.host.socket("pwhub1", libc::ETH_P_IP));
    let hub = node.host.socket("pwhub0", 0);
    let carried = |id: u16, packet: &[u8]| {
        let mut payload = datagram(0, V4, 1, 5);
        payload[12..14].copy_from_slice(&id.to_be_bytes());
        payload.truncate(14);
        payload.extend_from_slice(packet);
        udp([GATEWAY_MAC, POD_A_MAC], [REMOTE_POD[V4], POD_A[V4]], [9, 9], &payload)
    };
    let whole = datagram(0, V4, 1, 5)[14..].to_vec();
    hub.send(&carried(1, &whole));
    assert_eq!(a.receive().unwrap().frame, datagram(0, V4, 1, 5), "as a train of one");
    // 2: another pod's id than its address says, as one that has been given out again
    for id in [0, 2, 3, 4095, 4096, 65535] {
        hub.send(&carried(id, &whole));
    }
    for len in 0..whole.len() {
        hub.send(&carried(1, &whole[..len]));
    }
    hub.send(&from_a(REMOTE_POD[V4], 9));
    hub.send(&tcp([GATEWAY_MAC, POD_A_MAC], [REMOTE_POD[V4], POD_A[V4]], b"x"));
    hub.send(&[0xff; 60]);
    assert_eq!([a.receive(), b.receive(), stack.receive()], [const { None }; 3]);
}
