//! The queues of a device, which one AF_XDP socket each may hold.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use podwire::frame::{Pool, Region};
use podwire::ids::{QueueId, WorkerId};
use podwire::steer::{PodPath, UplinkChoice};
use podwire::xsk::{Binding, Error, Options, Socket};

use crate::lab::Lab;
use crate::packets::*;
use crate::rig::{MTU, POD_A_IFINDEX, config, is_root, now_ns, pod};

struct Opener {
    lab: Lab,
    region: Region,
    pool: Pool,
}

impl Opener {
    fn new() -> Self {
        let lab = Lab::new();
        lab.veth("uplink", "wire");
        let (region, pool) = Region::map(256).unwrap();
        Self { lab, region, pool }
    }

    fn open(&mut self) -> Result<Socket, Error> {
        let ifindex = self.lab.ifindex("uplink");
        let options = Options { ifindex, queue: QueueId(0), binding: Binding::Copy, ring_size: 64, fill: 64 };
        self.lab.within(|| Socket::open(self.region, &mut self.pool, &options))
    }
}

#[test]
fn a_queue_can_be_taken_again_at_once_when_its_socket_is_closed() {
    if !is_root() {
        return;
    }
    let mut opener = Opener::new();
    for nth in 0..20 {
        let socket = opener.open().unwrap_or_else(|error| panic!("try {nth}: {error}"));
        opener.pool.absorb(socket.close());
    }
    assert_eq!(opener.pool.len(), 256);
}

#[test]
fn a_queue_that_another_socket_holds_is_not_waited_for_without_end() {
    if !is_root() {
        return;
    }
    let mut opener = Opener::new();
    let first = opener.open().unwrap();
    let left = opener.pool.len();
    assert!(matches!(opener.open().unwrap_err(), Error::Taken { queue: 0, .. }));
    assert_eq!(opener.pool.len(), left);
    opener.pool.absorb(first.close());
}

#[test]
fn a_veths_queue_costs_its_reader_no_call_where_the_kernel_tells_no_napi() {
    if !is_root() {
        return;
    }
    for choice in [UplinkChoice::Native, UplinkChoice::Generic] {
        let mut opener = Opener::new();
        let mut steer = opener.lab.load(&config(V4));
        let uplink = opener.lab.ifindex("uplink");
        opener.lab.within(|| steer.attach_uplink(uplink, choice)).unwrap();
        steer.add_local(POD_A[V4], &pod(1, POD_A_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
        steer.add_remote(REMOTE_RANGE[V4].parse().unwrap(), MTU, None).unwrap();
        let mut socket = opener.open().unwrap();
        socket.run_napi().unwrap();
        steer.register_queue(QueueId(0), WorkerId(0), socket.fd()).unwrap();
        let (heartbeat, wire) = (steer.heartbeat(WorkerId(0)).unwrap(), opener.lab.socket("wire", 0));
        heartbeat.beat(now_ns());
        wire.send(&encapsulate(V4, &inner(V4, 64)));
        let (mut burst, start) = (Vec::with_capacity(4), Instant::now());
        while burst.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(2), "the frame comes");
            thread::sleep(Duration::from_millis(1));
            socket.receive(&mut burst);
        }
        socket.look_at_napi();
        let page = socket.napi();
        let runs = || page.runs.load(Ordering::Relaxed);
        let (before, id) = (runs(), page.id.load(Ordering::Relaxed));
        (0..1000).for_each(|_| socket.receive(&mut burst));
        socket.look_at_napi();
        // Before Linux 6.14 native XDP on a veth had one.
        assert_eq!(runs() - before, if id == 0 { 0 } else { 1000 }, "{choice:?}, NAPI {id}");
        burst.drain(..).for_each(|frame| opener.pool.put(frame));
        opener.pool.absorb(socket.close());
        assert_eq!(opener.pool.len(), 256);
    }
}
