//! A worker's port to the pods over the real hub device.

use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::thread;
use std::time::{Duration, Instant};

use podwire::counters::{Count, Tally, Traffic};
use podwire::ids::{PodId, WorkerId};
use podwire::packet::{Ring, Sender};
use podwire::port::{Hub, PodOutlet, PodPort, Share};
use podwire::shared::Holder;
use podwire::steer::{PodPath, SteerConfig, Verdict};

use crate::lab::Lab;
use crate::packets::*;
use crate::rig::{POD_A_IFINDEX, Rig, config, is_root, pod};

/// Slots of the ring: more than the 256 that pods share which send too much.
const SLOTS: u32 = 1024;

/// The port of the one worker of `rig`, on `pwhub0`, which it makes.
fn open(lab: &Lab, rig: &Rig) -> Hub {
    let ifindex = lab.ifindex("pwhub0");
    let (receiver, sender) = lab.within(|| (Ring::open(ifindex, SLOTS, 1450, None).unwrap(), Sender::open().unwrap()));
    let traffic: Arc<[Traffic]> = (0..=PodId::MAX).map(|_| Traffic::default()).collect();
    let share = Share { worker: 0, workers: 1 };
    Hub::new(receiver, PodOutlet::new(sender, None), rig.steer.credits(), share, Arc::new(AtomicU16::new(2)), traffic)
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
    for _ in 0..3 {
        rig.pod(&from_a(REMOTE_POD[V4], 10));
    }
    assert_eq!(in_flight(&rig), [3, 3]);
    let _hub = open(&lab, &rig);
    assert_eq!(in_flight(&rig), [0, 0]);
}

/// Of pod A and of its worker's ring.
fn in_flight(rig: &Rig) -> [i64; 2] {
    let credits = rig.steer.credits();
    [credits.in_flight(PodId::new(1).unwrap()), credits.in_flight(WorkerId(0))]
}

#[test]
fn lost_frames_are_given_up_while_their_pod_goes_on_sending_and_taken_back_if_they_come() {
    if !is_root() {
        return;
    }
    let (lab, rig) = world();
    let mut hub = open(&lab, &rig);
    let mut tally = Tally::default();
    // Test runs hand nothing over: what they claim is lost.
    let mut look = |claims: usize| {
        (0..claims).for_each(|_| assert_eq!(rig.pod(&from_a(REMOTE_POD[V4], 10)), Verdict::Claimed));
        hub.settle(&mut tally);
        (in_flight(&rig), tally.count(Count::ClaimsLost))
    };
    assert_eq!(look(3), ([3, 3], 0), "they may still come");
    assert_eq!(look(1), ([1, 1], 3));
    assert_eq!(look(0), ([0, 0], 4));
    let credits = rig.steer.credits();
    credits.consume(PodId::new(1).unwrap(), 1);
    credits.consume(WorkerId(0), 1);
    assert_eq!(in_flight(&rig), [-1, -1], "one comes after all");
    assert_eq!(look(0), ([0, 0], 4));
}

#[test]
fn pods_that_were_refused_share_the_ring_evenly_until_they_are_refused_no_more() {
    if !is_root() {
        return;
    }
    let (lab, rig) = world();
    rig.steer.set_config(&SteerConfig { slots: SLOTS.into(), ..config(V4) }).unwrap();
    let mut hub = open(&lab, &rig);
    let mut tally = Tally::default();
    // As many of their frames as may be, from the same device, and none of them arrives.
    let mut greed = |pods: &[u16]| {
        let credits = rig.steer.credits();
        let in_flight = pods.iter().map(|&id| {
            rig.steer.add_local(POD_A[V4], &pod(id, POD_A_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
            while rig.pod(&from_a(REMOTE_POD[V4], 10)) == Verdict::Claimed {}
            credits.in_flight(PodId::new(id).unwrap())
        });
        let in_flight: Vec<_> = in_flight.collect();
        for &id in pods {
            credits.resync(PodId::new(id).unwrap());
        }
        credits.resync(WorkerId(0));
        hub.settle(&mut tally);
        in_flight
    };
    assert_eq!(greed(&[1, 2]), [820, 164], "four times as many as are left");
    assert_eq!(greed(&[1, 2, 1]), [128, 85, 128], "a third of 256 each, once a burst is on its way");
    assert_eq!(greed(&[2, 1]), [128, 85]);
    assert!(greed(&[]).is_empty(), "nobody was refused since");
    assert_eq!(greed(&[1]), [820]);
}

#[test]
fn frames_from_the_wire_have_accounts_of_their_own() {
    if !is_root() {
        return;
    }
    let (lab, rig) = world();
    let mut hub = open(&lab, &rig);
    let (credits, a, worker) = (rig.steer.credits(), PodId::new(1).unwrap(), WorkerId(0));
    let all = || {
        let holders = [Holder::Pod(a), Holder::Ring(worker), Holder::FromWire(a), Holder::RingFromWire(worker)];
        holders.map(|holder| credits.in_flight(holder))
    };
    let to_a = encapsulate(V4, &inner(V4, 64));
    let sender = lab.socket("pwhub1", 0);
    for tag in [1, 0x2001] {
        sender.send(&tagged(to_a.clone(), TAGS[0], tag));
    }
    assert_eq!((rig.nic_tc(&to_a, 0), rig.pod(&from_a(REMOTE_POD[V4], 10))), (Verdict::Claimed, Verdict::Claimed));
    assert_eq!(all(), [1; 4]);
    wait_until(|| hub.ready(2) == 2);
    assert_eq!(hub.fetch(2), 2);
    assert_eq!(
        [0, 1].map(|n| hub.slot(n).map(|slot| (slot.vlan, slot.from_wire))),
        [Some((1, false)), Some((1, true))]
    );
    hub.release(1);
    assert_eq!(all(), [0, 0, 1, 1]);
    hub.release(1);
    assert_eq!(all(), [0; 4]);
    // What was claimed and never came is given up, each way by itself.
    let mut tally = Tally::default();
    assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Claimed);
    hub.settle(&mut tally);
    assert_eq!((all(), tally.count(Count::ClaimsLost)), ([0, 0, 1, 1], 0));
    hub.settle(&mut tally);
    assert_eq!((all(), tally.count(Count::ClaimsLost)), ([0; 4], 1));
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

/// Super-packets do not fit their slots.
#[test]
fn packets_of_any_size_are_read_whole_and_in_order() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.veth("pwhub0", "pwhub1");
    for device in ["pwhub0", "pwhub1"] {
        lab.ip(&format!("link set {device} mtu 65000"));
    }
    let ifindex = lab.ifindex("pwhub0");
    let mut ring = lab.within(|| Ring::open(ifindex, 64, 1450, None).unwrap());
    let sender = lab.socket("pwhub1", 0);
    let frame = |n: usize| {
        let mut frame = from_a(REMOTE_POD[V4], 10);
        // About one in three fits, and runs of those that do not are longer than a burst may have.
        let lengths = [64, 1464, 1465, 5000, 64_000, 30_000];
        frame.resize(if (20..40).contains(&n) { 2000 + n } else { lengths[n % lengths.len()] }, 0);
        let last = frame.len() - 1;
        frame[last] = u8::try_from(n).unwrap();
        frame
    };
    // Round the ring more than once.
    for _ in 0..2 {
        let mut read = 0;
        (0..60).for_each(|n| sender.send(&frame(n)));
        while read < 60 {
            wait_until(|| ring.ready(1) == 1);
            let fetched = ring.fetch(64);
            assert_eq!(ring.fetch(1), fetched, "until they are released");
            // Some are looked at twice.
            let released = fetched.div_ceil(2);
            for index in (0..released).chain(0..fetched) {
                let slot = ring.slot(index).unwrap();
                let sent = frame(read + index as usize);
                assert!(slot.frame == Some(&sent), "frame {} of {} bytes", read + index as usize, sent.len());
                assert_eq!((slot.vlan, slot.virtio), (0, &[0; 10]));
            }
            assert!(ring.slot(fetched).is_none());
            ring.release(released);
            read += released as usize;
        }
        assert_eq!((ring.ready(1), ring.fetch(1), ring.lost()), (0, 0, 0));
    }
    // A device that went down leaves an error, which is told before the packet that waits.
    sender.send(&frame(4));
    wait_until(|| ring.ready(1) == 1);
    lab.ip("link set pwhub0 down");
    assert_eq!(ring.fetch(64), 1);
    assert!(ring.slot(0).unwrap().frame == Some(&frame(4)));
    ring.release(1);
    assert!(ring.is_dead());
    lab.ip("link set pwhub0 up");
    assert!(!ring.is_dead());
    sender.send(&frame(5));
    wait_until(|| ring.ready(1) == 1);
    assert_eq!(ring.fetch(64), 1);
    assert!(ring.slot(0).unwrap().frame == Some(&frame(5)), "no packet stays behind");
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(2);
    while !condition() {
        assert!(Instant::now() < end, "not in time");
        thread::sleep(Duration::from_millis(1));
    }
}
