//! Frames that nobody would send.

use podwire::steer::Program;
use podwire::steer::Verdict::{
    self, Bulk, Claimed, InnerMac, Local, Malformed, MultiBuffer, NotIp, NotVxlan, Options, Protocol, SpoofIp,
    SpoofMac, TooBig, Truncated, Ttl, UnknownDestination, VxlanVni,
};

use crate::packets::*;
use crate::rig::{Rig, is_root, now_ns, run};

const FRAMES: u64 = 1_000_000;

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A valid frame with a few bytes changed and its end cut or extended; or nothing but random bytes.
    fn frame(&mut self, valid: &[Vec<u8>]) -> Vec<u8> {
        if self.below(8) == 0 {
            let length = ETHERNET + self.below(200);
            return (0..length).map(|_| self.byte()).collect();
        }
        let mut frame = valid[self.below(valid.len())].clone();
        for _ in 0..self.below(4) {
            let at = self.below(frame.len());
            frame[at] = self.byte();
        }
        match self.below(6) {
            0 => frame.truncate(ETHERNET + self.below(frame.len() - ETHERNET)),
            1 => frame.resize(frame.len() + self.below(1000), 0xaa),
            _ => {}
        }
        frame
    }
}

/// Where noise is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Xdp,
    UplinkTc,
    Pod,
}

/// Offers noise at `hook` and checks that each frame was given exactly one verdict.
fn storm(hook: Hook, valid: &[Vec<u8>], seed: u64) -> Vec<(Verdict, u64)> {
    let rig = Rig::new(V4);
    let mut random = Random(seed);
    let (program, fd) = match hook {
        Hook::Xdp => (Program::Nic, rig.steer.program_fd(Program::Nic)),
        Hook::UplinkTc => (Program::Nic, rig.steer.uplink_tc_fd()),
        Hook::Pod => (Program::Pod, rig.steer.program_fd(Program::Pod)),
    };
    let before: u64 = rig.counts().iter().sum();
    for offered in 0..FRAMES {
        if offered % 1000 == 0 {
            rig.heartbeat.beat(now_ns());
        }
        let mut frame = random.frame(valid);
        if hook != Hook::Xdp {
            // the least that a test run takes as an skb (net/bpf/test_run.c)
            frame.resize(frame.len().max(ETHERNET + ip_header(V6)), random.byte());
        }
        let gso_size = if random.below(4) == 0 { u32::from(random.byte()) * 8 } else { 0 };
        if let Err(error) = run(fd, &frame, (hook != Hook::Xdp).then_some(gso_size)) {
            panic!("{hook:?}, seed {seed}, frame {offered}: {error}: {frame:02x?}");
        }
    }
    assert_eq!(rig.counts().iter().sum::<u64>() - before, FRAMES, "{hook:?}: every frame has a verdict");
    let verdicts = rig.steer.verdicts().unwrap();
    verdicts.into_iter().filter(|&(by, _, frames)| by == program && frames > 0).map(|(_, v, n)| (v, n)).collect()
}

fn check(hook: Hook, valid: &[Vec<u8>], expected: &[Verdict]) {
    let counted = storm(hook, valid, 0x9e37_79b9_7f4a_7c15);
    for verdict in expected {
        assert!(counted.iter().any(|(v, _)| v == verdict), "the noise never reached {verdict:?}: {counted:?}");
    }
}

#[test]
fn a_million_malformed_frames_from_the_wire_each_get_a_verdict() {
    if !is_root() {
        return;
    }
    let inners = FAMILIES.map(|family| inner(family, 40));
    let nested = inners.clone().map(|inner| encapsulate(V4, &encapsulate(V4, &inner)));
    let valid = [inners.map(|inner| encapsulate(V4, &inner)), nested].concat();
    let expected =
        [Claimed, InnerMac, Malformed, NotIp, NotVxlan, Options, Truncated, Ttl, UnknownDestination, VxlanVni];
    check(Hook::Xdp, &valid, &expected);
    let by_tc = expected.into_iter().filter(|&verdict| verdict != Truncated).chain([Bulk, MultiBuffer]);
    check(Hook::UplinkTc, &valid, &by_tc.collect::<Vec<_>>());
}

#[test]
fn a_million_malformed_frames_from_a_pod_each_get_a_verdict() {
    if !is_root() {
        return;
    }
    let valid: Vec<_> = FAMILIES
        .iter()
        .flat_map(|&family| [from_a(REMOTE_POD[family], 40), from_a(POD_B[family], 40)])
        .chain(FAMILIES.map(|family| tcp([POD_A_MAC, GATEWAY_MAC], [POD_A[family], REMOTE_POD[family]], &[0; 50])))
        .collect();
    let expected = [Claimed, Local, Malformed, NotIp, Options, Protocol, SpoofIp, SpoofMac, TooBig, Ttl];
    check(Hook::Pod, &valid, &expected);
}
