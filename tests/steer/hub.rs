//! A worker's port to the pods over the real hub device.

use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::thread;
use std::time::{Duration, Instant};

use podwire::counters::Traffic;
use podwire::ids::PodId;
use podwire::packet::{Ring, Sender};
use podwire::port::{Hub, PodPort, Share};

use crate::lab::Lab;
use crate::packets::*;
use crate::rig::{Rig, is_root};

/// The port of the one worker of `rig`, on `pwhub0`, which it makes.
fn open(lab: &Lab, rig: &Rig) -> Hub {
    let ifindex = lab.ifindex("pwhub0");
    let (receiver, sender) = lab.within(|| (Ring::open(ifindex, 30, None).unwrap(), Sender::open().unwrap()));
    let traffic: Arc<[Traffic]> = (0..=PodId::MAX).map(|_| Traffic::default()).collect();
    let share = Share { worker: 0, workers: 1 };
    Hub::new(receiver, sender, rig.steer.credits(), share, Arc::new(AtomicU16::new(2)), traffic)
}

fn world() -> (Lab, Rig) {
    let lab = Lab::new();
    lab.veth("pwhub0", "pwhub1");
    (lab, Rig::new(V4))
}

#[test]
fn a_new_port_gives_the_credit_for_frames_on_their_way_to_an_earlier_one_back() {
    if !is_root() {
        return;
    }
    let (lab, rig) = world();
    let in_flight = || rig.steer.credits().in_flight(PodId::new(1).unwrap());
    for _ in 0..3 {
        rig.pod(&from_a(REMOTE_POD[V4], 10));
    }
    assert_eq!(in_flight(), 3);
    let _hub = open(&lab, &rig);
    assert_eq!(in_flight(), 0);
}

#[test]
fn a_port_is_dead_while_its_device_is_down_and_when_it_is_gone() {
    if !is_root() {
        return;
    }
    let (lab, rig) = world();
    let mut hub = open(&lab, &rig);
    let sender = lab.socket("pwhub1", 0);
    assert!(!hub.is_dead());
    for _ in 0..2 {
        lab.ip("link set pwhub0 down");
        assert_eq!([hub.is_dead(), hub.is_dead()], [true; 2], "for as long as it lasts");
        lab.ip("link set pwhub0 up");
        assert!(!hub.is_dead());
    }
    lab.ip("link set pwhub0 down");
    lab.ip("link set pwhub0 up");
    assert!(!hub.is_dead(), "it was down and is up again");
    sender.send(&from_a(REMOTE_POD[V4], 10));
    wait_until(|| hub.ready(1) == 1);
    lab.ip("link del pwhub0");
    assert_eq!([hub.is_dead(), hub.is_dead()], [true; 2]);
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(2);
    while !condition() {
        assert!(Instant::now() < end, "not in time");
        thread::sleep(Duration::from_millis(1));
    }
}
