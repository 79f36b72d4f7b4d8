//! The program behind `scripts/bench kubernetes`: a podwire node in a cluster of thousands of nodes, whose API server is a
//! stand-in. Says how long list and changes take, what they cost, and what a running stream of packets notices of churn.

#[path = "../../kubernetes/api/mod.rs"]
mod api;
#[path = "../../harness/mod.rs"]
mod harness;

mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use harness::{Delivery, Flow, figures, histogram, is_root, losses, since, stream_during};
use podwire::control::api::ChangeTimes;
use podwire::control::view::Counters;
use serde::Serialize;

use crate::site::Site;

/// The goal for one node's change, from its arrival to the published table.
const GOAL_US: u64 = 50_000;

/// Between two changes whose time is taken one by one.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an idle cluster is watched for requests.
const IDLE: Duration = Duration::from_secs(10);

/// Measures a podwire node in a large cluster.
#[derive(Parser)]
#[command(name = "scripts/bench kubernetes")]
struct Arguments {
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Other nodes of the cluster, each with a range of both families
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u16).range(10..=16_000))]
    nodes: u16,
    /// Changes whose time is taken one by one
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    changes: u16,
    /// Changes a second of the churn
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Seconds of the churn
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u32,
}

#[derive(Serialize)]
struct Figures {
    podwire: String,
    nodes: u16,
    /// From the first page of the list to the last route in the kernel,
    list_to_kernel_ms: u128,
    /// and to the last peer that the workers carry packets for and the programs know.
    list_to_tables_ms: u128,
    resident_kib: u64,
    /// From a change at the server to its route in the kernel, as seen from outside.
    change_to_route_us: Percentiles,
    /// From its arrival at the daemon to the published table, as the daemon itself takes the time.
    change_to_tables: ChangeTimes,
    churn: Churn,
    requests: Requests,
    criteria: Vec<Criterion>,
}

#[derive(Serialize)]
struct Percentiles {
    median: u64,
    p99: u64,
    longest: u64,
}

#[derive(Serialize)]
struct Churn {
    changes: u32,
    seconds: f64,
    /// From the last change until the kernel had followed all.
    settled_ms: u128,
    /// The share of one core that the daemon took, workers included.
    cores: f64,
    /// Between a pod of the node and one of a node that did not change, out and back.
    streams: Vec<Delivery>,
    /// What the node counted as lost of its pods' packets, by reason.
    counted: Counters,
}

/// What the server was asked for in all.
#[derive(Serialize)]
struct Requests {
    pages: usize,
    watches: usize,
    patches: usize,
    config_maps: usize,
    /// And while nothing changed.
    while_idle: usize,
}

#[derive(Serialize)]
struct Criterion {
    name: &'static str,
    met: bool,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Ok(ExitCode::FAILURE);
    }
    let figures = measure(&arguments);
    print(&figures);
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    Ok(if figures.criteria.iter().all(|criterion| criterion.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(arguments: &Arguments) -> Figures {
    println!("starting a podwire node in a cluster of {} nodes", arguments.nodes);
    let mut site = Site::new(arguments.nodes);
    let (list_to_kernel, list_to_tables) = site.start();
    let resident_kib = site.resident_kib();
    println!("changing {} nodes, one after the other", arguments.changes);
    let change_to_route_us = one_by_one(&mut site, arguments.changes);
    let change_to_tables = site.change_times();
    println!("changing {} nodes a second for {} s", arguments.rate, arguments.seconds);
    let churn = churn(&mut site, arguments);
    println!("watching the idle cluster for {} s", IDLE.as_secs());
    let before = site.api.store().asked.total();
    thread::sleep(IDLE);
    let asked = site.api.store().asked;
    let requests = Requests {
        pages: asked.pages,
        watches: asked.watches,
        patches: asked.patches,
        config_maps: asked.config_maps,
        while_idle: asked.total() - before,
    };
    let lost: u64 = churn.streams.iter().map(|stream| stream.lost).sum();
    let criterion = |name, met| Criterion { name, met };
    let criteria = vec![
        criterion("a change is in all tables within 50 ms (99 %)", change_to_tables.p99_us <= GOAL_US),
        criterion("no packet was lost between nodes that did not change", lost == 0),
        criterion("one list, one watch, one patch, and no request while idle", requests.is_least(arguments.nodes)),
    ];
    Figures {
        podwire: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: arguments.nodes,
        list_to_kernel_ms: list_to_kernel.as_millis(),
        list_to_tables_ms: list_to_tables.as_millis(),
        resident_kib,
        change_to_route_us,
        change_to_tables,
        churn,
        requests,
        criteria,
    }
}

impl Requests {
    /// Whether no request is left out: a watch is begun anew every two minutes.
    fn is_least(&self, nodes: u16) -> bool {
        let pages = (usize::from(nodes) + 2).div_ceil(500);
        (self.pages, self.patches, self.config_maps) == (pages, 1, 1) && self.watches <= 2 && self.while_idle <= 1
    }
}

/// Moves the range of one node after the other.
fn one_by_one(site: &mut Site, changes: u16) -> Percentiles {
    let mut times = histogram();
    for _ in 0..changes {
        let took = site.move_range();
        times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        thread::sleep(PAUSE);
    }
    Percentiles { median: times.value_at_quantile(0.5), p99: times.value_at_quantile(0.99), longest: times.max() }
}

fn churn(site: &mut Site, arguments: &Arguments) -> Churn {
    let [near, far] = site.pods();
    let (cpu, before) = (site.cpu_time(), figures(site.node()));
    let (mut seconds, mut settled) = (0.0, Duration::ZERO);
    let changes = arguments.rate * arguments.seconds;
    let flows = [Flow::v4(&near, &far), Flow::v4(&far, &near)];
    let deliveries = stream_during(&flows, &[&near, &far], || {
        let begun = Instant::now();
        for change in 1..=changes {
            site.churn();
            thread::sleep(
                (begun + Duration::from_secs(1) / arguments.rate * change).saturating_duration_since(Instant::now()),
            );
        }
        seconds = begun.elapsed().as_secs_f64();
        settled = site.settle();
    });
    let cores = site.cpu_time().saturating_sub(cpu).as_secs_f64() / (seconds + settled.as_secs_f64());
    let counted = losses(since(figures(site.node()), &before));
    Churn { changes, seconds, settled_ms: settled.as_millis(), cores, streams: deliveries.streams, counted }
}

fn print(figures: &Figures) {
    let Figures { nodes, churn, change_to_route_us, change_to_tables, requests, .. } = figures;
    println!("\npodwire {} in a cluster of {nodes} dual-stack nodes", figures.podwire);
    println!("  list to kernel path        {} ms", figures.list_to_kernel_ms);
    println!("  list to workers' tables    {} ms", figures.list_to_tables_ms);
    println!(
        "  resident memory            {:.1} MiB",
        f64::from(u32::try_from(figures.resident_kib).unwrap_or(u32::MAX)) / 1024.0
    );
    let ms = |us: u64| f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1000.0;
    let [median, p99, longest] =
        [change_to_route_us.median, change_to_route_us.p99, change_to_route_us.longest].map(ms);
    println!("  change at server to route  {median:.1} ms, 99 % {p99:.1} ms, longest {longest:.1} ms");
    let [median, p99, longest] =
        [change_to_tables.median_us, change_to_tables.p99_us, change_to_tables.longest_us].map(ms);
    println!("  arrival to tables          {median:.1} ms, 99 % {p99:.1} ms, longest {longest:.1} ms");
    println!(
        "\n{} changes in {:.1} s, settled {} ms after the last, {:.2} cores",
        churn.changes, churn.seconds, churn.settled_ms, churn.cores
    );
    for (stream, way) in churn.streams.iter().zip(["out", "back"]) {
        println!(
            "  {way:4}  {} packets, {} lost, longest gap {:.1} ms",
            stream.sent, stream.lost, stream.network_gap_ms
        );
    }
    for (reason, packets) in &churn.counted {
        println!("  the node counted {packets} lost: {reason}");
    }
    let Requests { pages, watches, patches, config_maps, while_idle } = requests;
    println!(
        "\nrequests: {pages} page(s) of the list, {watches} watch(es), {patches} patch(es), {config_maps} ConfigMap(s); \
         {while_idle} while idle"
    );
    println!("\nCriteria");
    for criterion in &figures.criteria {
        println!("  {}  {}", if criterion.met { "met " } else { "MISS" }, criterion.name);
    }
}
