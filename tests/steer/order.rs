//! The order in which the programs read what a worker writes, which no run of theirs shows.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::libbpf_sys::bpf_insn;
use libbpf_rs::{MapCore, ObjectBuilder};

use crate::rig::is_root;

const BEAT_NS: i16 = 0;
const ASLEEP: i16 = 8;

/// Instructions (include/uapi/linux/bpf.h and bpf_common.h).
const CALL: u8 = 0x85;
const LOAD_MAP: u8 = 0x18;
const LOAD_WORD: u8 = 0x79;
const STORE_WORD: u8 = 0x7b;
const MOVE: u8 = 0xbf;

/// The register that points to the stack.
const STACK: u8 = 10;

/// The offsets of the words of a map's value that are read after its look-up in `map`, until the next call.
fn words_read(instructions: &[bpf_insn], map: i32) -> Vec<i16> {
    let mut follow = instructions.iter().skip_while(|i| i.code != LOAD_MAP || i.imm != map);
    follow.find(|i| i.code == CALL).expect("the map is looked up");
    let mut value = vec![0];
    let (mut spilled, mut words) = (Vec::new(), Vec::new());
    for i in follow.take_while(|i| i.code != CALL) {
        let (from_value, to) = (value.contains(&i.src_reg()), i.dst_reg());
        let restored = i.code == LOAD_WORD && i.src_reg() == STACK && spilled.contains(&i.off);
        match i.code {
            STORE_WORD if from_value && to == STACK => spilled.push(i.off),
            LOAD_WORD if from_value => words.push(i.off),
            _ => {}
        }
        if restored || i.code == MOVE && from_value {
            value.push(to);
        } else if i.code == LOAD_WORD {
            value.retain(|register| *register != to);
        }
    }
    words
}

#[test]
fn the_programs_read_whether_a_worker_sleeps_before_they_read_when_it_beat() {
    if !is_root() {
        return;
    }
    let object = ObjectBuilder::default().open_file(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap().load().unwrap();
    let map = object.maps().find(|map| map.name() == "heartbeats").unwrap().as_fd().as_raw_fd();
    for name in ["nic_steer", "pod_steer"] {
        let program = object.progs().find(|program| program.name() == name).unwrap();
        let words = words_read(program.insns(), map);
        assert!(words.starts_with(&[ASLEEP, BEAT_NS]), "{name}: {words:?}");
    }
}
