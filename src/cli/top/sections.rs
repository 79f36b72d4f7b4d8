//! A scene as tables: what the screen and the text of `--once` have in common.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::scene::{Cause, PeerRow, PodRow, QueueRow, Rates, Scene, WorkerRow};
use crate::cli::peers;
use crate::cli::rates::short;
use crate::cli::status::{duration, path, probation};
use crate::cli::table::Table;
use crate::control::api::{DataplaneState, Path};

/// Above this load a worker has little left for bursts.
const HIGH_LOAD: f64 = 0.8;

/// A table of one kind of thing, the most telling columns first.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// What the keys choose it by.
    pub name: &'static str,
    pub columns: &'static [&'static str],
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub cells: Vec<Cell>,
    /// More about it, for people.
    pub note: Option<String>,
    pub tone: Tone,
}

/// How good or bad a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Notable,
    Bad,
}

/// A text, and for a number what it is sorted by.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub text: String,
    pub value: Option<f64>,
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None }
    }

    fn number(value: f64) -> Self {
        Self { text: short(value), value: Some(value) }
    }

    /// A number that is not always known.
    fn maybe(value: Option<f64>) -> Self {
        value.map_or_else(|| Self { text: "-".to_owned(), value: Some(-1.0) }, Self::number)
    }

    pub fn is_number(&self) -> bool {
        self.value.is_some()
    }

    /// The order of a column: the largest number first, texts by the alphabet.
    fn order(&self, other: &Self) -> Ordering {
        match (self.value, other.value) {
            (Some(own), Some(others)) => others.total_cmp(&own),
            _ => self.text.cmp(&other.text),
        }
    }
}

impl Section {
    /// Sorts the rows by a column; rows that are equal in it stay as they were.
    pub fn sort(&mut self, column: usize, reverse: bool) {
        self.rows.sort_by(|a, b| {
            let order = a.cells.get(column).zip(b.cells.get(column)).map_or(Ordering::Equal, |(a, b)| a.order(b));
            if reverse { order.reverse() } else { order }
        });
    }
}

/// All tables of a scene; what is empty is there too.
pub(super) fn sections(scene: &Scene) -> Vec<Section> {
    let section = |name, columns, rows| Section { name, columns, rows };
    vec![
        section("workers", &WORKER[..], scene.workers.iter().map(worker).collect()),
        section("uplink", &UPLINK[..], uplink(scene)),
        section("pods", &POD[..], pods(&scene.pods)),
        section("peers", &PEER[..], scene.peers.iter().map(peer).collect()),
        section("drops", &["DROPPED", "PER S", "TOTAL", "BY", "MEANING"], reasons(&scene.drops, Tone::Bad)),
        section(
            "kernel",
            &["LEFT TO KERNEL", "PER S", "TOTAL", "BY", "MEANING"],
            reasons(&scene.left_to_kernel, Tone::Plain),
        ),
    ]
}

const WORKER: [&str; 9] = ["WORKER", "LOAD", "WIRE IN", "WIRE OUT", "FROM PODS", "TO PODS", "BURST", "CORE", "STATE"];

fn worker(worker: &WorkerRow) -> Row {
    let state = match (worker.fresh, worker.asleep) {
        (false, _) => "STALE",
        (true, true) => "asleep",
        (true, false) => "awake",
    };
    let tone = match worker.fresh {
        false => Tone::Bad,
        true if worker.load > HIGH_LOAD => Tone::Notable,
        true => Tone::Plain,
    };
    let load = Cell { text: format!("{:.0}%", worker.load * 100.0), value: Some(worker.load) };
    let rates = [worker.wire_rx_pps, worker.wire_tx_pps, worker.pod_rx_pps, worker.pod_tx_pps].map(Cell::number);
    let head = [Cell { text: worker.worker.to_string(), value: Some(worker.worker.into()) }, load];
    let tail = [Cell::maybe(worker.burst), Cell::text(worker.core.to_string()), Cell::text(state)];
    let cells = head.into_iter().chain(rates).chain(tail).collect();
    Row { cells, note: worker.probation.as_ref().map(probation), tone }
}

const UPLINK: [&str; 7] = ["UPLINK", "IN", "OUT", "IN BIT/S", "OUT BIT/S", "LOST", "BY"];

fn uplink(scene: &Scene) -> Vec<Row> {
    let row = |name: String, rates: &Rates, by: String| {
        let numbers = [rates.rx_pps, rates.tx_pps, rates.rx_bps, rates.tx_bps, rates.lost_pps].map(Cell::number);
        let cells = [Cell::text(name)].into_iter().chain(numbers).chain([Cell::text(by)]).collect();
        let tone = if rates.lost_pps > 0.0 { Tone::Bad } else { Tone::Plain };
        Row { cells, note: None, tone }
    };
    let queue = |queue: &QueueRow| {
        let memory = if queue.zero_copy { "zero-copy" } else { "copy" };
        row(format!("queue {}", queue.queue), &queue.rates, format!("worker {}, {memory}", queue.worker))
    };
    let queues = scene.queues.iter().map(queue);
    queues
        .chain(scene.devices.iter().map(|device| row(device.device.clone(), &device.rates, "kernel".into())))
        .collect()
}

const POD: [&str; 8] = ["POD", "SENDS", "GETS", "LOST", "PATH", "SENDS BIT/S", "GETS BIT/S", "ADDRESS"];

/// The busiest first.
fn pods(pods: &[PodRow]) -> Vec<Row> {
    let load = |pod: &PodRow| pod.fast.map_or(-1.0, |rates| rates.rx_pps + rates.tx_pps);
    let mut order: Vec<_> = pods.iter().collect();
    order.sort_by(|a, b| load(b).total_cmp(&load(a)));
    order.into_iter().map(pod).collect()
}

fn pod(pod: &PodRow) -> Row {
    let rate = |pick: fn(&Rates) -> f64| Cell::maybe(pod.fast.as_ref().map(pick));
    let is_lossy = pod.fast.is_some_and(|rates| rates.lost_pps > 0.0);
    let tone = match pod.path {
        _ if is_lossy => Tone::Bad,
        Path::Kernel => Tone::Notable,
        Path::Fast => Tone::Plain,
    };
    let cells = vec![
        Cell::text(pod.workload.as_ref().unwrap_or(&pod.name)),
        rate(|rates| rates.rx_pps),
        rate(|rates| rates.tx_pps),
        rate(|rates| rates.lost_pps),
        Cell::text(path(pod.path)),
        rate(|rates| rates.rx_bps),
        rate(|rates| rates.tx_bps),
        Cell::text(pod.addresses.join(" ")),
    ];
    Row { cells, note: pod.reason.clone(), tone }
}

const PEER: [&str; 8] = ["PEER", "PATH", "WAY", "PROBES", "RTT", "LOSS", "UNDERLAY", "WHY"];

fn peer(peer: &PeerRow) -> Row {
    let diagnosis = peer.probe.as_ref().and_then(|probe| probe.diagnosis.as_ref());
    let why = diagnosis.map(|diagnosis| diagnosis.summary.clone()).or_else(|| peer.reason.clone());
    let tone = match (diagnosis, peer.path) {
        (Some(_), _) => Tone::Bad,
        (None, Path::Fast) => Tone::Plain,
        (None, Path::Kernel) => Tone::Notable,
    };
    let [_, state, rtt, loss, _] = peer.probe.as_ref().map_or_else(peers::unprobed, peers::cells);
    let round_trip = peer.probe.as_ref().and_then(|probe| probe.smoothed_rtt_ns);
    let cells = vec![
        Cell::text(&peer.name),
        Cell::text(path(peer.path)),
        Cell::text(&peer.ways),
        Cell::text(state),
        Cell { text: rtt, value: round_trip.map(nanoseconds) },
        Cell::text(loss),
        Cell::text(&peer.underlay),
        Cell::text(why.as_deref().unwrap_or_default()),
    ];
    let advice = diagnosis.map(|diagnosis| format!("{}; {}", diagnosis.summary, diagnosis.advice));
    Row { cells, note: advice.or_else(|| peer.reason.clone()), tone }
}

#[expect(clippy::cast_precision_loss, reason = "it only sorts")]
fn nanoseconds(time: u64) -> f64 {
    time as f64
}

fn reasons(reasons: &[Cause], tone: Tone) -> Vec<Row> {
    let row = |reason: &Cause| Row {
        cells: vec![
            Cell::text(&reason.reason),
            Cell::number(reason.pps),
            Cell { text: reason.total.to_string(), value: Some(total(reason)) },
            Cell::text(&reason.by),
            Cell::text(&reason.help),
        ],
        note: Some(format!("{} ({}): {}", reason.reason, reason.by, reason.help)),
        tone: if reason.pps > 0.0 { tone } else { Tone::Plain },
    };
    reasons.iter().map(row).collect()
}

#[expect(clippy::cast_precision_loss, reason = "it only sorts")]
fn total(reason: &Cause) -> f64 {
    reason.total as f64
}

/// The node on three lines: itself, the fast path, and the kernel path with the drops; packets and bits a second.
pub(super) fn summary(scene: &Scene) -> [String; 3] {
    let state = match scene.state {
        DataplaneState::Running => "running",
        DataplaneState::Kernel => "kernel path only",
        DataplaneState::Failed => "FAILED, kernel path in use",
    };
    let line = |name: &str, rates: &Rates| {
        let [rx, rx_bits, tx, tx_bits] = [rates.rx_pps, rates.rx_bps, rates.tx_pps, rates.tx_bps].map(short);
        format!("{name:<6} in {rx:>5} {rx_bits:>5}b out {tx:>5} {tx_bits:>5}b")
    };
    let up = duration(scene.uptime_secs);
    [
        format!("{}: {}, {state}, up {up}, podwire {}", scene.node, scene.mode, scene.version),
        line("fast", &scene.fast),
        format!("{}  dropped {}/s", line("kernel", &scene.kernel), short(scene.dropped_pps)),
    ]
}

/// The whole scene for people, without a screen.
pub(super) fn text(scene: &Scene) -> String {
    let mut text = summary(scene).join("\n") + "\n";
    for section in sections(scene).iter().filter(|section| !section.rows.is_empty()) {
        let mut table = Table::new([]);
        section.columns.iter().for_each(|title| table.column((*title).to_owned()));
        for row in &section.rows {
            table.row(row.cells.iter().map(|cell| cell.text.clone()));
        }
        let _ = write!(text, "\n{table}");
    }
    for problem in &scene.problems {
        let _ = write!(text, "\nproblem: {problem}");
    }
    text
}
