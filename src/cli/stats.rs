use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::args::{Args, Format};
use super::rates::per_second;
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output};
use crate::control::api::{Reply, Request, Stats, Tallies};
use crate::control::view::{Counters, TrafficStatus};
use crate::counters::{Count, DropReason};

/// Above this many workers, text shows only their sum.
const MAX_COLUMNS: usize = 4;

/// `podwire stats`: once, or every `watch` seconds until interrupted.
pub(super) fn run(args: &Args, watch: Option<u64>) -> Result<(), CliError> {
    let mut reading = read(args)?;
    let Some(secs) = watch else {
        return Ok(output::print(args.output, &reading, |stats| text(&sections(stats), None))?);
    };
    let mut at = Instant::now();
    loop {
        sleep(Duration::from_secs(secs));
        let (next, now) = (read(args)?, Instant::now());
        match args.output {
            Format::Json => output::write(serde_json::to_string(&next).map_err(std::io::Error::from)? + "\n")?,
            Format::Text => {
                let since = Since { before: sections(&reading), elapsed: now - at };
                output::write(format_args!("{}{}\n", output::clear(), text(&sections(&next), Some(&since))))?;
            }
        }
        (reading, at) = (next, now);
    }
}

fn read(args: &Args) -> Result<Stats, CliError> {
    match ask(args, Request::Stats)? {
        Reply::Stats(stats) => Ok(*stats),
        other => Err(unexpected(other)),
    }
}

/// An earlier reading, to show rates.
struct Since {
    before: Vec<Section>,
    elapsed: Duration,
}

/// Figures of one kind: a row for each label, a value for each column.
struct Section {
    title: &'static str,
    columns: Vec<String>,
    rows: Vec<(String, Vec<u64>)>,
}

impl Section {
    fn value(&self, label: &str) -> u64 {
        let row = self.rows.iter().find(|(name, _)| name == label);
        row.and_then(|(_, values)| values.first().copied()).unwrap_or(0)
    }
}

fn sections(stats: &Stats) -> Vec<Section> {
    let counts: Vec<_> = Count::ALL.iter().map(|count| count.label()).collect();
    let drops: Vec<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
    let verdicts = stats.verdicts.iter().map(|row| (format!("{} {}", row.program, row.verdict), vec![row.packets]));
    let pods = stats.pods.iter().map(|pod| (pod.name.clone(), traffic(&pod.credit.traffic)));
    let queues = stats.queues.iter().map(|queue| (format!("queue {}", queue.queue), traffic(&queue.traffic)));
    let devices = stats.kernel.iter().map(|device| {
        let rx = [device.rx_packets, device.rx_bytes, device.rx_dropped];
        (device.device.clone(), rx.into_iter().chain([device.tx_packets, device.tx_bytes, device.tx_dropped]).collect())
    });
    let columns = |titles: &[&str]| titles.iter().map(|&title| title.to_owned()).collect();
    let device_columns = columns(&["RX PKTS", "RX BYTES", "RX DROP", "TX PKTS", "TX BYTES", "TX DROP"]);
    vec![
        workers(stats, "COUNT", &counts, |tallies| &tallies.counts),
        workers(stats, "DROP", &drops, |tallies| &tallies.drops),
        Section { title: "VERDICT", columns: columns(&["PACKETS"]), rows: verdicts.collect() },
        Section { title: "POD (FAST PATH)", columns: columns(&PORT), rows: pods.collect() },
        Section { title: "UPLINK (FAST PATH)", columns: columns(&PORT), rows: queues.collect() },
        Section { title: "DEVICE", columns: device_columns, rows: devices.collect() },
    ]
}

/// What is told of a port, seen from the worker.
const PORT: [&str; 5] = ["RX PKTS", "RX BYTES", "TX PKTS", "TX BYTES", "LOST"];

fn traffic(traffic: &TrafficStatus) -> Vec<u64> {
    vec![traffic.rx_packets, traffic.rx_bytes, traffic.tx_packets, traffic.tx_bytes, traffic.lost]
}

/// The sum over all workers, those of earlier data planes included, and each worker beside it.
fn workers(stats: &Stats, title: &'static str, labels: &[&str], pick: fn(&Tallies) -> &Counters) -> Section {
    let value = |tallies: &Tallies, label: &str| pick(tallies).get(label).copied().unwrap_or(0);
    let shown = if stats.workers.len() <= MAX_COLUMNS { stats.workers.as_slice() } else { &[] };
    let columns = std::iter::once("TOTAL".to_owned()).chain(shown.iter().map(|worker| format!("W{}", worker.worker)));
    let rows = labels.iter().map(|&label| {
        let running: u64 = stats.workers.iter().map(|worker| value(&worker.tallies, label)).sum();
        let total = running + value(&stats.retired, label);
        let each = shown.iter().map(|worker| value(&worker.tallies, label));
        (label.to_owned(), std::iter::once(total).chain(each).collect())
    });
    Section { title, columns: columns.collect(), rows: rows.collect() }
}

/// The sections as tables; rows of zeros are left out.
fn text(sections: &[Section], since: Option<&Since>) -> String {
    let mut text = String::new();
    for (index, section) in sections.iter().enumerate() {
        let earlier = since.and_then(|since| Some((since.before.get(index)?, since.elapsed)));
        let table = table(section, earlier);
        if !table.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = write!(text, "{gap}{table}");
        }
    }
    if text.is_empty() { "nothing counted yet\n".to_owned() } else { text }
}

fn table(section: &Section, earlier: Option<(&Section, Duration)>) -> Table {
    let mut table = Table::new([section.title]);
    section.columns.iter().take(1).for_each(|title| table.column(title.clone()));
    if earlier.is_some() {
        table.column("PER SEC".to_owned());
    }
    section.columns.iter().skip(1).for_each(|title| table.column(title.clone()));
    for (label, values) in section.rows.iter().filter(|(_, values)| values.iter().any(|&value| value != 0)) {
        let rate = earlier.map(|(before, elapsed)| rate(section.value(label), before.value(label), elapsed));
        let cells = values.iter().map(ToString::to_string);
        let (first, rest) = (cells.clone().take(1), cells.skip(1));
        table.row(std::iter::once(label.clone()).chain(first).chain(rate).chain(rest));
    }
    table
}

/// Growth a second, rounded.
fn rate(now: u64, before: u64, elapsed: Duration) -> String {
    format!("{:.0}", per_second(before, now, elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::WorkerStats;

    fn stats(polls: u64, retired: u64) -> Stats {
        let tallies = |polls| Tallies { counts: [("polls".to_owned(), polls)].into(), ..Tallies::default() };
        let workers = vec![WorkerStats { worker: 0, tallies: tallies(polls) }];
        Stats { workers, retired: tallies(retired), ..Stats::default() }
    }

    #[test]
    fn totals_include_what_earlier_data_planes_counted_and_zeros_are_left_out() {
        assert_eq!(text(&sections(&stats(5, 7)), None), "COUNT  TOTAL  W0\npolls     12   5\n");
        assert_eq!(text(&sections(&Stats::default()), None), "nothing counted yet\n");
    }

    #[test]
    fn a_watch_shows_growth_a_second() {
        let since = Since { before: sections(&stats(100, 0)), elapsed: Duration::from_secs(2) };
        let shown = text(&sections(&stats(160, 0)), Some(&since));
        assert_eq!(shown, "COUNT  TOTAL  PER SEC   W0\npolls    160       30  160\n");
    }
}
