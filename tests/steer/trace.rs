//! What the programs tell of frames to whoever traces, and when they stop.

use podwire::ids::IfIndex;
use podwire::steer::{Program, ProgramTap, Sighting, Verdict, Verdicts};

use crate::packets::*;
use crate::rig::{POD_A_IFINDEX, Rig, is_root, now_ns, run};

/// The most of a frame that is told.
const SNAP: usize = 256;

fn all() -> Verdicts {
    Verdicts::such_as(|_, _| true)
}

/// A tap that is on.
fn tap(rig: &Rig, wanted: Verdicts) -> ProgramTap {
    let tap = rig.steer.tap(wanted).unwrap();
    tap.renew(now_ns());
    tap
}

fn spoofed(family: usize) -> Vec<u8> {
    udp([POD_A_MAC, GATEWAY_MAC], [NO_POD[family], REMOTE_POD[family]], [1, 2], b"forged")
}

#[test]
fn each_verdict_is_told_with_the_head_of_the_frame_as_it_came() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let tap = tap(&rig, all());
    for family in FAMILIES {
        let rows = [
            (Program::Pod, from_a(REMOTE_POD[family], 900), Verdict::Claimed),
            (Program::Pod, from_a(POD_B[family], 10), Verdict::Local),
            (Program::Pod, spoofed(family), Verdict::SpoofIp),
            (Program::Pod, fragment(from_a(REMOTE_POD[family], 64), family), Verdict::Fragment),
            (Program::Nic, encapsulate(V4, &inner(family, 1000)), Verdict::Claimed),
            (Program::Nic, from_a(REMOTE_POD[family], 1), Verdict::NotVxlan),
        ];
        for (program, frame, expected) in rows {
            let before_ns = now_ns();
            assert_eq!(rig.judge(program, &frame, 0).0, expected);
            let told = tap.take(usize::MAX);
            let [Sighting { time_ns, device, program: by, verdict, length, bytes }] = &told[..] else {
                panic!("{expected:?}: {told:?}");
            };
            assert_eq!((*by, *verdict, *length), (program, expected, frame.len()));
            assert_eq!(bytes, &frame[..frame.len().min(SNAP)]);
            assert!((before_ns..=now_ns()).contains(time_ns));
            assert!(program == Program::Nic || *device == POD_A_IFINDEX, "{device}");
            assert_ne!(*device, IfIndex::NONE);
        }
    }
    assert_eq!(tap.lost(), 0);
}

#[test]
fn only_what_is_wanted_is_told_and_nothing_when_nobody_asks() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let pass = || FAMILIES.map(|family| (rig.pod(&spoofed(family)), rig.pod(&from_a(POD_B[family], 1))));
    pass();
    let only_spoofed = tap(&rig, Verdicts::such_as(|_, verdict| verdict == Verdict::SpoofIp));
    assert_eq!(only_spoofed.take(usize::MAX), [], "what came before");
    pass();
    let told = only_spoofed.take(usize::MAX);
    assert_eq!(told.iter().map(|one| one.verdict).collect::<Vec<_>>(), [Verdict::SpoofIp; 2]);
    pass();
    drop(only_spoofed);
    pass();
    let by_wire = tap(&rig, Verdicts::such_as(|program, _| program == Program::Nic));
    pass();
    assert_eq!(by_wire.take(usize::MAX), [], "left by the one before, or of the other program");
    assert_eq!(by_wire.lost(), 0);
}

#[test]
fn a_reader_that_no_longer_says_that_it_is_there_leaves_nothing_on() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let tap = tap(&rig, all());
    rig.pod(&spoofed(V4));
    assert_eq!(tap.take(usize::MAX).len(), 1);
    tap.renew(now_ns().saturating_sub(HOUR_NS));
    for _ in 0..3 {
        rig.pod(&spoofed(V4));
    }
    assert_eq!((tap.take(usize::MAX), tap.lost()), (Vec::new(), 0), "expired, and not lost");
    tap.renew(now_ns());
    rig.pod(&spoofed(V4));
    assert_eq!(tap.take(usize::MAX).len(), 1, "it is there again");
}

#[test]
fn a_reader_that_does_not_read_loses_records_and_the_programs_decide_as_ever() {
    const FRAMES: usize = 5_000;
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let tap = tap(&rig, all());
    let frame = spoofed(V6);
    let counted = || rig.counts().iter().sum::<u64>();
    let before = counted();
    for _ in 0..FRAMES {
        tap.renew(now_ns());
        let ran = run(rig.steer.program_fd(Program::Pod), &frame, Some(0)).unwrap();
        assert_eq!(ran.code, 2, "dropped");
    }
    assert_eq!(counted() - before, FRAMES as u64);
    let first = tap.take(100).len();
    assert_eq!(first, 100);
    let held = first + tap.take(usize::MAX).len();
    assert!((3_000..4_000).contains(&held), "{held} of 288 bytes in a megabyte");
    assert_eq!(held as u64 + tap.lost(), FRAMES as u64);
    rig.pod(&frame);
    assert_eq!(tap.take(usize::MAX).len(), 1, "there is room again");
}
