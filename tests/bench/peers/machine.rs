//! What the machine is, and how even its speed is while nothing is measured.

use std::fmt;
use std::fs;
use std::hint::black_box;
use std::ops::Sub;
use std::thread;
use std::time::Instant;

use procfs::{Current, CurrentSI, KernelStats};
use serde::Serialize;

use crate::harness::histogram;

/// The same work so many times on each core.
const SLICES: u32 = 200;

/// Steps of the work: about five milliseconds.
const STEPS: u64 = 4_000_000;

/// For people who read the figures.
#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub is_virtual: bool,
    pub kernel: String,
    pub memory_gib: u64,
    pub noise: Noise,
}

/// What a fixed piece of work took on all cores at once.
#[derive(Serialize)]
pub struct Noise {
    pub median_ms: f64,
    /// By the median.
    pub p99_by_median: f64,
    pub max_by_median: f64,
    /// Share of the time that the hypervisor gave to others.
    pub stolen: f64,
}

impl Machine {
    /// Looks, and lets all cores work for some seconds.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(": "));
        let memory = procfs::Meminfo::current().map_or(0, |info| info.mem_total);
        Self {
            cpu: field("model name").map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()),
            cores: cores(),
            is_virtual: field("flags").is_some_and(|(_, flags)| flags.contains(" hypervisor ")),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            memory_gib: memory >> 30,
            noise: Noise::listen(),
        }
    }
}

pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Noise {
    fn listen() -> Self {
        let before = CpuTime::now();
        let mut slices = histogram();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..cores()).map(|core| scope.spawn(move || slices_on(core))).collect();
            for ns in threads.into_iter().flat_map(|thread| thread.join().expect("no panic")) {
                slices.saturating_record(ns);
            }
        });
        let spent = CpuTime::now() - before;
        let at = |quantile| as_f64(slices.value_at_quantile(quantile));
        let median = at(0.5);
        Self {
            median_ms: median / 1e6,
            p99_by_median: at(0.99) / median,
            max_by_median: at(1.0) / median,
            stolen: spent.stolen / spent.all,
        }
    }
}

/// Nanoseconds of each slice on one core.
fn slices_on(core: usize) -> Vec<u64> {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let slice = |_| {
        let start = Instant::now();
        black_box((0..black_box(STEPS)).fold(1_u64, |x, n| x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n));
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    };
    (0..SLICES).map(slice).collect()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, is_virtual, kernel, memory_gib, noise } = self;
        let virt = if *is_virtual { "virtual, " } else { "" };
        writeln!(
            f,
            "machine: {cores} × {cpu}, {virt}{memory_gib} GiB, Linux {kernel}; everything runs on these cores"
        )?;
        write!(
            f,
            "noise: the same work took {:.2} ms, 99 % of the time at most {:.2} ×, at worst {:.2} × that; {:.1} % stolen",
            noise.median_ms,
            noise.p99_by_median,
            noise.max_by_median,
            noise.stolen * 100.0
        )
    }
}

/// What all cores together have done since they started, in
/// seconds. The kernel finds out by looking at each tick, so
/// that short times are not exact.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    pub all: f64,
    pub busy: f64,
    /// Part of `busy`: interrupts and softirqs, on whosever time they ran.
    pub softirq: f64,
    pub stolen: f64,
}

impl CpuTime {
    pub fn now() -> Self {
        let cpu = KernelStats::current().expect("/proc/stat").total;
        let seconds = |ticks: u64| as_f64(ticks) / as_f64(procfs::ticks_per_second());
        let softirq = seconds(cpu.irq.unwrap_or(0) + cpu.softirq.unwrap_or(0));
        let stolen = seconds(cpu.steal.unwrap_or(0));
        let busy = seconds(cpu.user + cpu.nice + cpu.system) + softirq;
        let all = busy + stolen + seconds(cpu.idle + cpu.iowait.unwrap_or(0));
        Self { all, busy, softirq, stolen }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            busy: self.busy - before.busy,
            softirq: self.softirq - before.softirq,
            stolen: self.stolen - before.stolen,
        }
    }
}
