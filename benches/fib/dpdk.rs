//! DPDK's tables, asked in a process of their own: `dpdk.c`, which `scripts/bench lpm` compiles.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// What is to be looked up, and where: addresses in network byte order, IPv4 in the first four bytes.
pub struct Contest {
    pub is_ipv6: bool,
    pub prefixes: Vec<([u8; 16], u8)>,
    pub trace: Vec<[u8; 16]>,
}

impl Contest {
    /// As `dpdk.c` reads it; values are the prefixes' places, from 1.
    pub fn to_bytes(&self) -> Vec<u8> {
        let words = [if self.is_ipv6 { 6 } else { 4 }, self.prefixes.len(), self.trace.len()];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(word).collect();
        for (value, (address, len)) in (1..).zip(&self.prefixes) {
            bytes.extend(address);
            bytes.extend([word(usize::from(*len)), word(value)].concat());
        }
        bytes.extend(self.trace.iter().flatten());
        bytes
    }
}

fn word(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap().to_ne_bytes()
}

/// A table in that process.
pub struct Dpdk {
    pub build: Duration,
    pub bytes: usize,
    /// Of the values that the whole trace finds.
    pub sum: u64,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Dpdk {
    /// Builds a table of the given kind from a file; none where it cannot be, which DPDK says on standard error.
    pub fn start(program: &Path, input: &Path, kind: &str) -> Option<Self> {
        let mut child = Command::new(program)
            .args([input.as_os_str(), kind.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (questions, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut dpdk = Self { build: Duration::ZERO, bytes: 0, sum: 0, child, questions, answers };
        let [build_ns, bytes, sum]: [u64; 3] = dpdk.answer()?;
        (dpdk.build, dpdk.bytes, dpdk.sum) = (Duration::from_nanos(build_ns), usize::try_from(bytes).unwrap(), sum);
        Some(dpdk)
    }

    /// How long so many passes over the trace take.
    pub fn passes(&mut self, passes: u64) -> Duration {
        writeln!(self.questions, "{passes}").unwrap();
        let [ns] = self.answer().expect("it answers until it is killed");
        Duration::from_nanos(ns)
    }

    fn answer<T: FromStr, const N: usize>(&mut self) -> Option<[T; N]> {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers: Vec<T> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().ok()
    }
}

impl Drop for Dpdk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
