//! The kernel's own table, a `BPF_MAP_TYPE_LPM_TRIE`, asked by `kernel.bpf.c`, which is compiled when it is needed.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput};

use podwire::fib::NONE;

use crate::tables::{Contest, Family, STRETCH};

/// The least that a test run takes (net/bpf/test_run.c).
const FRAME: [u8; 14] = [0; 14];

/// A table in the kernel.
pub struct Kernel {
    pub build: Duration,
    pub bytes: usize,
    /// Of the values that the whole trace finds.
    pub sum: u64,
    object: Object,
    table: &'static str,
    program: &'static str,
}

impl Kernel {
    /// Builds the table; an error where that cannot be: it needs root and clang.
    pub fn build<F: Family>(contest: &Contest<F>) -> Result<Self, String> {
        let (table, program) = if F::WIDTH > 32 { ("prefixes6", "find_some6") } else { ("prefixes4", "find_some4") };
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let object = compile(dir.path())?;
        let mut open = ObjectBuilder::default().open_file(&object).map_err(|e| format!("{e:#}"))?;
        for mut map in open.maps_mut().filter(|map| map.name() == table) {
            let prefixes = u32::try_from(contest.prefixes.len()).map_err(|e| e.to_string())?;
            map.set_max_entries(prefixes).map_err(|e| format!("{e:#}"))?;
        }
        let object = open.load().map_err(|e| format!("kernel.bpf.c: {e:#}"))?;
        let mut kernel = Self { build: Duration::ZERO, bytes: 0, sum: 0, object, table, program };
        let prefixes = kernel.map(table);
        let start = Instant::now();
        for (bits, len, value) in contest.routes() {
            prefixes.update(&key(bits, len), &value.to_ne_bytes(), MapFlags::ANY).map_err(|e| format!("{e:#}"))?;
        }
        kernel.build = start.elapsed();
        kernel.bytes = bytes(&prefixes);
        let trace: Vec<_> = contest.trace.iter().flat_map(|key| key.octets()).collect();
        kernel.map(".data.trace").update(&[0; 4], &trace, MapFlags::ANY).map_err(|e| format!("{e:#}"))?;
        kernel.look_up((contest.trace.len() / STRETCH) as u64);
        let sum = kernel.map(".data.sum").lookup(&[0; 4], MapFlags::ANY).map_err(|e| format!("{e:#}"))?;
        kernel.sum = sum.and_then(|sum| Some(u64::from_ne_bytes(*sum.first_chunk()?))).ok_or("no sum")?;
        Ok(kernel)
    }

    /// How long the next so many stretches of the trace take.
    pub fn look_up(&mut self, stretches: u64) -> Duration {
        let program = self.object.progs_mut().find(|program| program.name() == self.program);
        let program = program.expect("kernel.bpf.c has it");
        let start = Instant::now();
        for _ in 0..stretches {
            let input = ProgramInput { data_in: Some(&FRAME), ..ProgramInput::default() };
            program.test_run(input).expect("it has run before");
        }
        start.elapsed()
    }

    /// What makes the next so many changes, also while look-ups go on.
    pub fn changer<F: Family>(&self, contest: &Contest<F>) -> impl FnMut(usize) + Send + use<F> {
        let prefixes = self.map(self.table);
        let route = |place: usize| key(contest.prefixes[place].0, contest.prefixes[place].1);
        let changes: Vec<_> = contest.changes.iter().map(|change| (route(change.place), change.value)).collect();
        let mut next = 0;
        move |count| {
            for (key, value) in changes.iter().cycle().skip(next).take(count) {
                if *value == NONE {
                    // What is withdrawn already cannot be withdrawn again.
                    prefixes.delete(key).ok();
                } else {
                    prefixes.update(key, &value.to_ne_bytes(), MapFlags::ANY).expect("room for what was withdrawn");
                }
            }
            next = (next + count) % changes.len();
        }
    }

    fn map(&self, name: &str) -> MapHandle {
        let map = self.object.maps().find(|map| map.name() == name).expect("kernel.bpf.c has it");
        MapHandle::try_from(&map).expect("a descriptor")
    }
}

/// A key as `kernel.bpf.c` has it.
fn key<F: Family>(bits: F, len: u8) -> Vec<u8> {
    let width = usize::from(F::WIDTH / 8);
    [&u32::from(len).to_ne_bytes()[..], &bits.octets()[..width]].concat()
}

fn compile(dir: &Path) -> Result<std::path::PathBuf, String> {
    let [source, object] = ["kernel.bpf.c", "kernel.bpf.o"].map(|name| dir.join(name));
    fs::write(&source, include_str!("kernel.bpf.c")).map_err(|e| e.to_string())?;
    let flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I/usr/include/x86_64-linux-gnu", "-c"];
    let clang = Command::new("clang").args(flags).arg(&source).arg("-o").arg(&object).output();
    let clang = clang.map_err(|e| format!("clang: {e}"))?;
    if clang.status.success() { Ok(object) } else { Err(String::from_utf8_lossy(&clang.stderr).into_owned()) }
}

/// What the kernel charges for a map.
fn bytes(map: &MapHandle) -> usize {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd())).unwrap_or_default();
    let charged = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    charged.unwrap_or_default()
}
