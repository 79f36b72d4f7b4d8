//! `scripts/bench footprint`: what a node takes while its pods are silent, by their number.

use std::thread;
use std::time::{Duration, Instant};

use super::machine::as_f64;
use super::report::{Figures, Measure};
use super::systems::{Rig, System};
use crate::harness::{Wire, kib, resident_kib, thread_time};

/// What is left over of what was built is done after so long.
const SETTLING: Duration = Duration::from_secs(3);

/// Seconds to wait for memory to be given back, at most.
const LONGEST_CALMING: u32 = 30;

const MIB: f64 = (1 << 20) as f64;

/// Of the process that carries packets, with all its threads: none where the kernel does.
const CPU: Measure = Measure { name: "cores", digits: 4, compared: false };
const RESIDENT: Measure = Measure { name: "RSS MiB", digits: 1, compared: false };
const KERNEL: Measure = Measure { name: "kernel", digits: 1, compared: false };
const LAST: Measure = Measure { name: "last pod ms", digits: 1, compared: false };

/// Two nodes, of which the first one gets more pods.
pub struct Growing {
    rig: Rig,
    /// Of the kernel, in bytes, before there were nodes.
    before: u64,
    /// Why it can get no more pods.
    full: Option<String>,
}

impl System {
    pub fn build_growing(&self) -> Result<Growing, String> {
        let before = calm_kernel_memory();
        Ok(Growing { rig: self.build(Wire::default(), 1)?, before, full: None })
    }
}

pub fn name(pods: usize) -> String {
    format!("{pods} silent pods")
}

/// With more pods than before.
pub fn measure(growing: &mut Growing, pods: usize, seconds: u32) -> Result<Figures, String> {
    let Growing { rig, before, full } = growing;
    let mut last = None;
    while rig.nodes[0].pods().len() < pods {
        if let Some(reason) = full {
            return Err(reason.clone());
        }
        let pods = rig.nodes[0].pods().len();
        let start = Instant::now();
        if let Err(reason) = rig.add_pod(&format!("a{}", pods + 1)) {
            *full = Some(format!("after {pods} pods: {reason}"));
        }
        last = Some(start.elapsed());
    }
    thread::sleep(SETTLING);
    let process = rig.nodes[0].process();
    let cpu_s = || process.map_or(f64::NAN, |process| thread_time(process, "").as_secs_f64());
    let spent_s = cpu_s();
    thread::sleep(Duration::from_secs(seconds.into()));
    let cores = (cpu_s() - spent_s) / f64::from(seconds);
    let resident = process.map_or(f64::NAN, |process| as_f64(resident_kib(process) << 10) / MIB);
    let kernel = as_f64(kernel_memory().saturating_sub(*before)) / MIB;
    let mut figures = vec![(CPU, cores), (RESIDENT, resident), (KERNEL, kernel)];
    figures.extend(last.map(|last| (LAST, last.as_secs_f64() * 1e3)));
    Ok(figures)
}

/// Memory that the kernel has for itself, in bytes: what is neither free, nor a process's, nor a cache that it would give
/// up.
fn kernel_memory() -> u64 {
    let of = |name| kib("/proc/meminfo", name);
    let others = ["MemFree:", "Buffers:", "Cached:", "AnonPages:", "SReclaimable:"].map(of).iter().sum();
    of("MemTotal:").saturating_sub(others) << 10
}

/// The same once it does not change any more: namespaces end by and by.
fn calm_kernel_memory() -> u64 {
    let mut memory = kernel_memory();
    for _ in 0..LONGEST_CALMING {
        thread::sleep(Duration::from_secs(1));
        let before = std::mem::replace(&mut memory, kernel_memory());
        if memory.abs_diff(before) < 1 << 20 {
            break;
        }
    }
    memory
}
