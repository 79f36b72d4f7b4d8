//! Figures of alternating rounds, and which ratios they bear out.

use std::path::Path;
use std::{fs, io};

use serde::Serialize;

use super::machine::Machine;

/// The widest range of a ratio over the rounds, by its median, that says nothing against a ratio near one.
const EVEN: f64 = 0.1;

/// Something that is measured.
#[derive(Clone, Copy, Serialize)]
pub struct Measure {
    pub name: &'static str,
    pub digits: usize,
    /// Whether it is compared with the reference, in whose terms more may be better or worse.
    pub compared: bool,
}

/// What one measurement found.
pub type Figures = Vec<(Measure, f64)>;

/// What one system did of one measure in one scenario.
#[derive(Serialize)]
struct Row {
    scenario: String,
    system: &'static str,
    measure: Measure,
    rounds: Vec<f64>,
    median: f64,
    least: f64,
    most: f64,
    /// Of the medians, by the reference; none if the rounds do not bear it out.
    ratio: Option<f64>,
}

/// All that a run found out.
#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    seconds: u32,
    rounds: u32,
    reference: &'static str,
    rows: Vec<Row>,
    /// What could not be measured: scenario, system, reason.
    failures: Vec<(String, &'static str, String)>,
}

impl Report {
    pub fn new(machine: Machine, seconds: u32, rounds: u32, reference: &'static str) -> Self {
        Self { machine, seconds, rounds, reference, rows: Vec::new(), failures: Vec::new() }
    }

    /// Notes what came of one round.
    pub fn add(&mut self, scenario: &str, system: &'static str, outcome: Result<Figures, String>) {
        match outcome {
            Ok(figures) => figures.into_iter().for_each(|(measure, value)| self.note(scenario, system, measure, value)),
            Err(reason) => self.fail(scenario, system, reason),
        }
    }

    fn note(&mut self, scenario: &str, system: &'static str, measure: Measure, value: f64) {
        let is_it = |row: &&mut Row| (&*row.scenario, row.system, row.measure.name) == (scenario, system, measure.name);
        match self.rows.iter_mut().find(is_it) {
            Some(row) => row.rounds.push(value),
            None => self.rows.push(Row {
                scenario: scenario.to_owned(),
                system,
                measure,
                rounds: vec![value],
                median: value,
                least: value,
                most: value,
                ratio: None,
            }),
        }
    }

    fn fail(&mut self, scenario: &str, system: &'static str, reason: String) {
        if !self.failures.iter().any(|(s, y, _)| (&**s, *y) == (scenario, system)) {
            self.failures.push((scenario.to_owned(), system, reason));
        }
    }

    /// Computes what the rounds amount to, prints it, and writes it to `json`.
    pub fn finish(mut self, json: Option<&Path>) -> io::Result<()> {
        let references: Vec<(String, &str, Vec<f64>)> = self
            .rows
            .iter()
            .filter(|row| row.system == self.reference)
            .map(|row| (row.scenario.clone(), row.measure.name, row.rounds.clone()))
            .collect();
        for row in &mut self.rows {
            (row.least, row.median, row.most) = spread(&row.rounds);
            let is_it = |(scenario, measure, _): &&(String, &str, Vec<f64>)| {
                (scenario, *measure) == (&row.scenario, row.measure.name) && row.measure.compared
            };
            row.ratio = references.iter().find(is_it).and_then(|(.., reference)| ratio(&row.rounds, reference));
        }
        println!("\n{}\n", self.machine);
        self.print();
        if let Some(file) = json {
            fs::write(file, serde_json::to_string_pretty(&self)? + "\n")?;
        }
        Ok(())
    }

    /// A table for each scenario, a line for each system.
    fn print(&self) {
        for scenario in unique(self.rows.iter().map(|row| &*row.scenario)) {
            println!("{scenario}");
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.scenario == scenario).collect();
            for (n, system) in unique(rows.iter().map(|row| row.system)).into_iter().enumerate() {
                let of_system = || rows.iter().filter(|row| row.system == system);
                if n == 0 {
                    let heads: String = of_system().map(|row| row.measure.head()).collect();
                    println!("  {:<16}{heads}", "");
                }
                let cells: String = of_system().map(|row| row.cell()).collect();
                println!("  {system:<16}{cells}");
            }
            println!();
        }
        for (scenario, system, reason) in &self.failures {
            println!("not measured: {system}, {scenario}: {reason}");
        }
        println!(
            "Medians of {} rounds of {} s, least to most, and by {}'s; `?` where the rounds do not bear a ratio out.",
            self.rounds, self.seconds, self.reference
        );
    }
}

/// Each once, in the order of their first appearance.
fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    names.for_each(|name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
    });
    seen
}

impl Measure {
    pub fn tell(self, value: f64) -> String {
        format!(" {value:.digits$} {}", self.name, digits = self.digits)
    }

    fn head(self) -> String {
        if self.compared { format!("{:>10}{:22}", self.name, "") } else { format!("{:>12}", self.name) }
    }
}

impl Row {
    fn cell(&self) -> String {
        let Self { median, least, most, measure: Measure { digits, compared, .. }, .. } = self;
        if !compared {
            return format!("{median:>12.digits$}");
        }
        let range = format!("({least:.digits$}–{most:.digits$})");
        let ratio = self.ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.2}×"));
        format!("{median:>10.digits$} {range:<14}{ratio:<7}")
    }
}

/// Least, median, most.
fn spread(rounds: &[f64]) -> (f64, f64, f64) {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
    (sorted[0], median, sorted[sorted.len() - 1])
}

/// The ratio of the medians, unless the rounds hide it: the ratios of single rounds, taken one after the other, must be
/// closer to each other than the ratio is to one, or all be nearly the same. One round shows nothing.
fn ratio(rounds: &[f64], reference: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = rounds.iter().zip(reference).map(|(own, reference)| own / reference).collect();
    if ratios.len() < 2 || ratios.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    let (least, _, most) = spread(&ratios);
    let ratio = spread(rounds).1 / spread(reference).1;
    let width = (most - least) / ratio;
    (width <= EVEN || width < (ratio - 1.0).abs() / ratio).then_some(ratio)
}
