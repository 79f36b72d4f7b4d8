//! Longest-prefix match: time per look-up, of one route's change and to build, and memory, beside three crates and, as
//! root, the kernel's trie for BPF programs, on the same tables and the same trace; and beside DPDK's, where
//! `PODWIRE_DPDK` names the compiled `dpdk.c` (`scripts/bench lpm` sees to it). Also while another thread has a thousand
//! routes change a second, in podwire as control does it: what has changed by then is in the next table, built as a
//! whole, after a rest as long as the last one took. The crates are behind a lock then, held for a burst of look-ups.
//!
//! Tables: 100, 10,000 and a million prefixes with the lengths of the Internet's routes, and
//! a cluster of 5,000 nodes with 250 pods on this one, which get half of the look-ups. The trace is
//! 262,144 addresses, each inside a prefix drawn at random. Everything comes from one fixed seed.
//!
//! Ends with a table of all figures a family, and writes them to the file that `PODWIRE_JSON` names, if it does.

#![allow(clippy::unwrap_used, reason = "a bench may stop on what cannot happen")]

mod crates;
mod dpdk;
mod kernel;
mod report;
mod tables;

use std::env;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crates::Crate;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use dpdk::{Dpdk, Way};
use kernel::Kernel;
use podwire::fib::{NONE, Publisher};
use report::{Figures, Report, ns};
use tables::{Contest, Family, Random, STRETCH, Table};

const BURST: usize = 64;
/// Routes that change a second.
const UPDATES: u32 = 1_000;
/// Measurements of one benchmark.
const SAMPLES: usize = 20;
/// Turns of two contestants that are measured beside each other, and the stretches of each.
const TURNS: usize = 41;
const TURN: u64 = 64;
/// What the time of one change is taken of lasts as long at least.
const LONG: Duration = Duration::from_millis(100);

/// Where an address family's contestants show.
struct Stage<'a, F> {
    group: BenchmarkGroup<'a, WallTime>,
    contest: &'a Contest<F>,
    report: &'a mut Report,
}

impl<F: Family> Stage<'_, F> {
    /// Time per look-up, in ns: `time` says how long the next so many stretches of the trace take. None if it is not asked
    /// for.
    fn look_ups(&mut self, who: &str, mut time: impl FnMut(u64) -> Duration) -> Option<f64> {
        let length = STRETCH as u64;
        let mut samples = Vec::new();
        self.group.bench_function(BenchmarkId::new(who, &self.contest.name), |bencher| {
            bencher.iter_custom(|look_ups| {
                let stretches = look_ups.div_ceil(length);
                let all = u32::try_from(stretches * length).unwrap();
                let time = time(stretches);
                samples.push(ns(time) / f64::from(all));
                time * u32::try_from(look_ups).unwrap() / all
            });
        });
        // What comes before is warming up.
        let samples = samples.split_off(samples.len().saturating_sub(SAMPLES));
        median(samples)
    }

    fn tell(&mut self, who: &'static str, figures: Figures) {
        self.report.add(F::NAME, &self.contest.name, who, figures);
    }

    fn podwire(&mut self) {
        let contest = self.contest;
        let (table, build) = timed(|| F::Table::build(contest.routes()));
        let mut figures = Figures { build_ns: Some(ns(build)), bytes: Some(table.bytes()), ..Figures::default() };
        let mut trace = contest.stretches();
        figures.single_ns = self.look_ups("podwire", |stretches| {
            let look_up = |&key: &F| {
                black_box(table.lookup(black_box(key)));
            };
            timed(|| some(&mut trace, stretches).for_each(|stretch| stretch.iter().for_each(look_up))).1
        });
        figures.burst_ns = self.look_ups("podwire, burst", |stretches| {
            bursts(some(&mut trace, stretches), |keys, values| {
                table.lookup_burst(keys, values);
            })
        });

        let mut publisher = Publisher::new(table);
        let mut reader = publisher.reader();
        let mut values: Vec<u32> = contest.routes().map(|(.., value)| value).collect();
        let mut changes = contest.changes.iter().cycle();
        // What has no value is left out.
        let mut change = |count| {
            changes.by_ref().take(count).for_each(|change| values[change.place] = change.value);
            let routes = contest.prefixes.iter().zip(&values);
            publisher.publish(F::Table::build(routes.map(|(&(bits, len), &value)| (bits, len, value))));
            publisher.reclaim();
        };
        let look_up =
            |stretches| bursts(some(&mut trace, stretches), |keys, values| reader.get().lookup_burst(keys, values));
        let change_and_rest = |count| thread::sleep(timed(|| change(count)).1);
        figures.under_updates_ns =
            under_updates(change_and_rest, || self.look_ups("podwire, burst, under updates", look_up));
        reader.rest();
        figures.update_ns = update_ns(|count| Some(timed(|| (0..count).for_each(|_| change(1))).1));
        self.tell("podwire", figures);
    }

    fn peer<C: Crate<F>>(&mut self) {
        let contest = self.contest;
        let before = heap();
        let (mut table, build) = timed(|| C::build(contest.routes()));
        let mut figures = Figures { build_ns: Some(ns(build)), bytes: Some(heap() - before), ..Figures::default() };
        let addresses: Vec<_> = contest.trace.iter().map(|key| C::address(*key)).collect();
        let sum: u64 = addresses.iter().filter_map(|address| table.lookup(*address)).map(u64::from).sum();
        assert_eq!(sum, self.sum(), "{} finds something else", C::NAME);
        let mut trace = addresses.chunks(STRETCH).cycle();
        figures.single_ns = self.look_ups(C::NAME, |stretches| {
            let look_up = |&address: &C::Address| {
                black_box(table.lookup(black_box(address)));
            };
            timed(|| some(&mut trace, stretches).for_each(|stretch| stretch.iter().for_each(look_up))).1
        });
        let mut changes = contest.changes.iter().cycle();
        let mut change = |table: &mut C| {
            let change = changes.next().unwrap();
            let (bits, len) = contest.prefixes[change.place];
            if change.value == NONE { table.withdraw(bits, len) } else { table.insert(bits, len, change.value) }
        };
        figures.update_ns = update_ns(|count| Some(timed(|| (0..count).for_each(|_| change(&mut table))).1));
        let table = RwLock::new(table);
        let look_up = |stretches| {
            let burst = |addresses: &[C::Address]| {
                let table = table.read().unwrap();
                for &address in addresses {
                    black_box(table.lookup(black_box(address)));
                }
            };
            timed(|| some(&mut trace, stretches).for_each(|stretch| stretch.chunks(BURST).for_each(burst))).1
        };
        let change = |count| (0..count).for_each(|_| change(&mut table.write().unwrap()));
        let who = format!("{}, under updates", C::NAME);
        figures.under_updates_ns = under_updates(change, || self.look_ups(&who, look_up));
        self.tell(C::NAME, figures);
    }

    fn kernel(&mut self) {
        let mut kernel = match Kernel::build(self.contest) {
            Ok(kernel) => kernel,
            Err(error) => return println!("{}/kernel/{}: not measured: {error}", F::NAME, self.contest.name),
        };
        assert_eq!(kernel.sum, self.sum(), "the kernel finds something else");
        let mut figures = Figures { build_ns: Some(ns(kernel.build)), bytes: Some(kernel.bytes), ..Figures::default() };
        figures.single_ns = self.look_ups("kernel", |stretches| kernel.look_up(stretches));
        let mut change = kernel.changer(self.contest);
        figures.update_ns = update_ns(|count| Some(timed(|| change(count)).1));
        figures.under_updates_ns =
            under_updates(change, || self.look_ups("kernel, under updates", |stretches| kernel.look_up(stretches)));
        self.tell("kernel (BPF)", figures);
    }

    fn dpdk(&mut self) {
        let Some(program) = env::var_os("PODWIRE_DPDK").map(PathBuf::from) else { return };
        let input = tempfile::NamedTempFile::new().unwrap();
        dpdk::write(self.contest, input.path());
        for kind in ["rte_lpm", "rte_fib"] {
            let Some(mut dpdk) = Dpdk::start(&program, input.path(), kind) else {
                println!("{}/{kind}/{}: not measured", F::NAME, self.contest.name);
                continue;
            };
            assert_eq!(dpdk.sum, self.sum(), "{kind} finds something else");
            let mut figures = Figures { build_ns: Some(ns(dpdk.build)), bytes: Some(dpdk.bytes), ..Figures::default() };
            figures.single_ns = self.look_ups(kind, |stretches| dpdk.look_up(Way::Single, stretches));
            let [burst, under_updates] = ["burst", "burst, under updates"].map(|how| format!("{kind}, {how}"));
            figures.burst_ns = self.look_ups(&burst, |stretches| dpdk.look_up(Way::Burst, stretches));
            figures.podwire_ratio = figures.burst_ns.map(|_| self.by_turns(&mut dpdk));
            dpdk.keep_changing(UPDATES);
            let changing = self.look_ups(&under_updates, |stretches| dpdk.look_up(Way::Burst, stretches));
            figures.under_updates_ns = dpdk.keep_changing(0).and(changing);
            figures.update_ns = update_ns(|count| dpdk.change(count));
            self.tell(kind, figures);
        }
    }

    /// podwire's time as a part of DPDK's, for the same bursts in turn, so that a machine that others use too is the
    /// same to both: the quartiles.
    fn by_turns(&self, dpdk: &mut Dpdk) -> [f64; 3] {
        let table = F::Table::build(self.contest.routes());
        let mut trace = self.contest.stretches();
        let mut ratio = |_| {
            let podwire = bursts(some(&mut trace, TURN), |keys, values| table.lookup_burst(keys, values));
            ns(podwire) / ns(dpdk.look_up(Way::Burst, TURN))
        };
        let mut ratios: Vec<_> = (0..TURNS).map(&mut ratio).collect();
        ratios.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| ratios[quarter * (TURNS - 1) / 4])
    }

    /// Of the values that the whole trace finds.
    fn sum(&self) -> u64 {
        let table = F::Table::build(self.contest.routes());
        self.contest.trace.iter().filter_map(|key| table.lookup(*key)).map(u64::from).sum()
    }
}

/// What something gives, and how long it takes.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}

/// The next so many stretches of a trace that does not end.
fn some<'a, T: 'a>(trace: &mut impl Iterator<Item = &'a [T]>, stretches: u64) -> impl Iterator<Item = &'a [T]> {
    trace.take(usize::try_from(stretches).unwrap())
}

/// How long it takes to look up what is in some stretches, in bursts.
fn bursts<'a, F: 'a>(stretches: impl Iterator<Item = &'a [F]>, mut look_up: impl FnMut(&[F], &mut [u32])) -> Duration {
    let mut values = [NONE; BURST];
    let burst = |keys: &[F]| {
        look_up(black_box(keys), &mut values);
        black_box(&values);
    };
    timed(|| stretches.flat_map(|stretch| stretch.chunks(BURST)).for_each(burst)).1
}

/// Runs `look_up` while `change` makes as many changes as are due, on another thread.
fn under_updates<T>(mut change: impl FnMut(usize) + Send, look_up: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (start, mut made) = (Instant::now(), 0);
            while !done.load(Ordering::Relaxed) {
                let due = usize::try_from((start.elapsed() * UPDATES).as_secs()).unwrap();
                if due == made {
                    thread::sleep(Duration::from_micros(100));
                } else {
                    change(due - made);
                    made = due;
                }
            }
        });
        let value = look_up();
        done.store(true, Ordering::Relaxed);
        value
    })
}

/// Time of one change, in ns, of as many as fill [`LONG`] or have room: `time` says how long so many take, one after
/// another.
fn update_ns(mut time: impl FnMut(usize) -> Option<Duration>) -> Option<f64> {
    let mut of_one = None;
    // A withdrawal, a return and a change of a value at least.
    for count in (0..).map(|doubled| 3 << doubled) {
        let Some(time) = time(count) else { break };
        of_one = Some(ns(time) / f64::from(u32::try_from(count).unwrap()));
        if time >= LONG {
            break;
        }
    }
    of_one
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

/// Bytes that the allocator has given out to this thread.
fn heap() -> usize {
    // SAFETY: it fills in a struct of numbers, which it returns.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fn family<F: Family>(c: &mut Criterion, report: &mut Report) {
    let random = &mut Random(1);
    let mut contests: Vec<_> = [100, 10_000, 1_000_000].map(|size| Contest::<F>::internet(size, random)).into();
    contests.push(Contest::cluster(random));
    for contest in &contests {
        let mut group = c.benchmark_group(F::NAME);
        group.sample_size(SAMPLES).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        let mut stage = Stage { group, contest, report };
        stage.podwire();
        // The closest one next to it: the machine is the same then.
        stage.dpdk();
        stage.peer::<crates::TreeBitmap<F>>();
        stage.peer::<crates::PrefixTrie<F>>();
        stage.peer::<crates::Poptrie<F>>();
        stage.kernel();
    }
}

fn lookups(c: &mut Criterion) {
    let mut report = Report::default();
    family::<u32>(c, &mut report);
    family::<u128>(c, &mut report);
    println!();
    for family in [u32::NAME, u128::NAME] {
        report.print(family);
    }
    if let Some(json) = env::var_os("PODWIRE_JSON").filter(|file| !file.is_empty()).map(PathBuf::from) {
        report.write(&json).unwrap_or_else(|error| panic!("{}: {error}", json.display()));
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);
