//! What each stage of a packet's way costs, and the whole, over memory ports and in bursts of several sizes. As a bench of
//! criterion's it gives times; `scripts/bench stages` has it print a table with instructions too.

mod instructions;
mod rings;
mod stage;
mod table;
#[path = "../../tests/pipeline/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod world;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use clap::Parser;
use criterion::{BenchmarkId, Criterion, Throughput};

use stage::{BURSTS, PACKETS, ROUND, STAGES, Stage};
use table::Row;

/// What is asked for instead of a bench of criterion's.
#[derive(Parser)]
#[command(name = "scripts/bench stages")]
enum Arguments {
    /// Prints the table
    Table {
        /// Write the figures to this file too, as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Runs one stage, for its instructions to be counted
    Count { stage: String, burst: usize },
}

fn main() -> io::Result<()> {
    // `cargo bench` adds it to what it was given.
    let arguments = || env::args().filter(|argument| argument != "--bench");
    if !matches!(arguments().nth(1).as_deref(), Some("table" | "count")) {
        bench();
        return Ok(());
    }
    match Arguments::parse_from(arguments()) {
        Arguments::Table { json } => tabulate(json.as_deref()),
        Arguments::Count { stage, burst } => {
            let make = STAGES.iter().find(|(name, _)| *name == stage).map(|(_, make)| *make);
            instructions::run(make.ok_or_else(|| io::Error::other(format!("no stage {stage}")))?, burst);
            Ok(())
        }
    }
}

fn bench() {
    let times = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    let mut criterion = times.configure_from_args();
    for (name, make) in STAGES {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        for burst in BURSTS {
            let mut stage = make(burst);
            group.bench_function(BenchmarkId::from_parameter(burst), |bencher| {
                bencher.iter_custom(|packets| {
                    let rounds = u32::try_from(packets.div_ceil(ROUND as u64)).expect("not for days");
                    #[expect(clippy::cast_precision_loss, reason = "a share near one")]
                    let share = packets as f64 / (f64::from(rounds) * PACKETS);
                    time(&mut *stage, rounds).mul_f64(share)
                });
            });
        }
    }
    criterion.final_summary();
}

/// How long so many rounds take.
fn time(stage: &mut dyn Stage, rounds: u32) -> Duration {
    let timed = |stage: &mut dyn Stage, rounds| {
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(stage.run());
        }
        start.elapsed()
    };
    if !stage.uses_up() {
        return timed(stage, rounds);
    }
    let prepared = (0..rounds).map(|_| {
        stage.prepare();
        timed(stage, 1)
    });
    prepared.sum()
}

/// How long one of the table's samples takes at least,
const SAMPLE: Duration = Duration::from_millis(1);
/// and how many there are of each row.
const SAMPLES: usize = 101;

fn tabulate(json: Option<&Path>) -> io::Result<()> {
    let places = || STAGES.into_iter().flat_map(|(name, make)| BURSTS.map(|burst| (name, make, burst)));
    eprintln!("measuring times");
    let times = times(places().map(|(_, make, burst)| make(burst)).collect());
    eprintln!("counting instructions");
    let mut trouble = None;
    let mut count = |stage: &str, burst: usize| {
        // What fails for one fails for all.
        if trouble.is_some() {
            return None;
        }
        instructions::count(&["count", stage, &burst.to_string()]).map_err(|error| trouble = Some(error)).ok()
    };
    let row = |((stage, _, burst), ns)| Row {
        stage,
        burst,
        ns,
        million_packets_per_second: 1e3 / ns,
        instructions: count(stage, burst),
    };
    let rows: Vec<_> = places().zip(times).map(row).collect();
    println!("{}", table::markdown(&rows));
    if let Some(trouble) = trouble {
        eprintln!("not all instructions are counted: {trouble}");
    }
    if let Some(file) = json {
        // Cargo runs benches at the root of the package, wherever it was called.
        let caller = env::var_os("PODWIRE_CALLER").unwrap_or_default();
        fs::write(Path::new(&caller).join(file), serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

/// The median time of a packet in each stage, in nanoseconds: samples alternate, because the machine's speed drifts.
fn times(mut stages: Vec<Box<dyn Stage>>) -> Vec<f64> {
    let rounds: Vec<u32> = stages.iter_mut().map(|stage| rounds_of_a_sample(&mut **stage)).collect();
    let mut samples = vec![Vec::with_capacity(SAMPLES); stages.len()];
    for _ in 0..SAMPLES {
        for ((stage, rounds), samples) in stages.iter_mut().zip(&rounds).zip(&mut samples) {
            let time = time(&mut **stage, *rounds);
            samples.push(time.as_secs_f64() * 1e9 / (f64::from(*rounds) * PACKETS));
        }
    }
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[SAMPLES / 2]
    };
    samples.into_iter().map(median).collect()
}

fn rounds_of_a_sample(stage: &mut dyn Stage) -> u32 {
    let mut rounds = 1;
    while time(stage, rounds) < SAMPLE {
        rounds *= 2;
    }
    rounds
}
