//! What came of a run: a table a family for readers, and JSON for programs.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde::Serialize;

/// What is measured of a contestant's table; nothing of what it does not have, or was not asked for.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Figures {
    /// A look-up by itself.
    pub single_ns: Option<f64>,
    /// A look-up in a burst.
    pub burst_ns: Option<f64>,
    /// The better of these while another thread changes routes.
    pub under_updates_ns: Option<f64>,
    /// Of podwire's time of the same bursts, by turns: what part of this one's it is, the quartiles of the turns.
    pub podwire_ratio: Option<[f64; 3]>,
    /// One route's change, until look-ups see it.
    pub update_ns: Option<f64>,
    pub build_ns: Option<f64>,
    pub bytes: Option<usize>,
}

#[derive(Serialize)]
struct Row {
    family: &'static str,
    prefixes: String,
    contestant: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, family: &'static str, prefixes: &str, contestant: &'static str, figures: Figures) {
        self.rows.push(Row { family, prefixes: prefixes.to_owned(), contestant, figures });
    }

    /// Prints a family's table, in Markdown.
    pub fn print(&self, family: &str) {
        println!("IP{family}:\n");
        println!(
            "| prefixes | table | one by one | bursts | podwire's, by turns | under updates | one update | build | memory |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for Row { prefixes, contestant, figures, .. } in self.rows.iter().filter(|row| row.family == family) {
            let [single, burst, under_updates, update, build] =
                [figures.single_ns, figures.burst_ns, figures.under_updates_ns, figures.update_ns, figures.build_ns]
                    .map(|ns| shown(ns, time));
            let ratio =
                shown(figures.podwire_ratio, |[low, median, high]| format!("{median:.2} ({low:.2} to {high:.2})"));
            let bytes = shown(figures.bytes, memory);
            println!(
                "| {prefixes} | {contestant} | {single} | {burst} | {ratio} | {under_updates} | {update} | {build} | {bytes} |"
            );
        }
        println!();
    }

    pub fn write(&self, json: &Path) -> io::Result<()> {
        fs::write(json, serde_json::to_string_pretty(&self.rows)? + "\n")
    }
}

pub fn ns(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// With two digits, or all before the point.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let (size, unit) = units.iter().rev().find(|(size, _)| value >= *size).unwrap_or(&units[0]);
    let value = value / size;
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {unit}")
}

fn shown<T>(figure: Option<T>, show: impl FnOnce(T) -> String) -> String {
    figure.map_or_else(|| "–".to_owned(), show)
}

fn time(ns: f64) -> String {
    scaled(ns, &[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")])
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn memory(bytes: usize) -> String {
    scaled(bytes as f64, &[(1024.0, "KiB"), (1_048_576.0, "MiB")])
}
