//! Figures of alternating rounds, and which ratios they bear out.

use std::io;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use tempfile::NamedTempFile;

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
    /// Of each round; none where it could not be measured.
    rounds: Vec<Option<f64>>,
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
    failures: Vec<Failure>,
}

/// What could not be measured, in some rounds.
#[derive(Serialize)]
struct Failure {
    scenario: String,
    system: &'static str,
    rounds: Vec<u32>,
    /// Of the first time.
    reason: String,
}

impl Report {
    pub fn new(machine: Machine, seconds: u32, rounds: u32, reference: &'static str) -> Self {
        Self { machine, seconds, rounds, reference, rows: Vec::new(), failures: Vec::new() }
    }

    /// Notes what came of a round, from 1. A figure that is not a number was not found.
    pub fn add(&mut self, round: u32, scenario: &str, system: &'static str, outcome: Result<Figures, String>) {
        match outcome {
            Ok(figures) => {
                for (measure, value) in figures {
                    self.note(round, scenario, system, measure, Some(value).filter(|value| !value.is_nan()));
                }
            }
            Err(reason) => self.fail(round, scenario, system, reason),
        }
    }

    fn note(&mut self, round: u32, scenario: &str, system: &'static str, measure: Measure, value: Option<f64>) {
        let is_it = |row: &Row| (&*row.scenario, row.system, row.measure.name) == (scenario, system, measure.name);
        let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
            let [median, least, most] = [f64::NAN; 3];
            let rounds = vec![None; usize::try_from(self.rounds).expect("few")];
            self.rows.push(Row {
                scenario: scenario.to_owned(),
                system,
                measure,
                rounds,
                median,
                least,
                most,
                ratio: None,
            });
            self.rows.len() - 1
        });
        self.rows[at].rounds[usize::try_from(round).expect("few") - 1] = value;
    }

    fn fail(&mut self, round: u32, scenario: &str, system: &'static str, reason: String) {
        match self.failures.iter_mut().find(|it| (&*it.scenario, it.system) == (scenario, system)) {
            Some(failure) => failure.rounds.push(round),
            None => self.failures.push(Failure { scenario: scenario.to_owned(), system, rounds: vec![round], reason }),
        }
    }

    /// Computes what the rounds so far amount to.
    fn sum_up(&mut self) {
        let references: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.system == self.reference)
            .map(|row| (row.scenario.clone(), row.measure.name, row.rounds.clone()))
            .collect();
        for row in &mut self.rows {
            [row.least, row.median, row.most] = spread(row.rounds.iter().flatten().copied());
            let is_it = |(scenario, measure, _): &&(String, &str, _)| {
                (scenario, *measure) == (&row.scenario, row.measure.name) && row.measure.compared
            };
            row.ratio = references.iter().find(is_it).and_then(|(.., reference)| ratio(&row.rounds, reference));
        }
    }

    /// Writes what there is so far, in one step.
    pub fn write(&mut self, file: &Path) -> io::Result<()> {
        self.sum_up();
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut whole = NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut whole, self)?;
        writeln!(whole)?;
        whole.persist(file)?;
        Ok(())
    }

    /// Prints what the rounds amount to.
    pub fn tell(&mut self) {
        self.sum_up();
        println!("\n{}\n", self.machine);
        self.print();
    }

    /// A table for each scenario, a line for each system.
    fn print(&self) {
        let width = 2 + self.rows.iter().map(|row| row.system.len()).max().unwrap_or(0).max(14);
        for scenario in unique(self.rows.iter().map(|row| &*row.scenario)) {
            println!("{scenario}");
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.scenario == scenario).collect();
            for (n, system) in unique(rows.iter().map(|row| row.system)).into_iter().enumerate() {
                let of_system = || rows.iter().filter(|row| row.system == system);
                if n == 0 {
                    let heads: String = of_system().map(|row| row.measure.column(row.measure.name)).collect();
                    println!("  {:<width$}{heads}", "");
                }
                let cells: String = of_system().map(|row| row.cell()).collect();
                println!("  {system:<width$}{cells}");
            }
            println!();
        }
        for Failure { scenario, system, rounds, reason } in &self.failures {
            println!("not measured in {} of {} rounds: {system}, {scenario}: {reason}", rounds.len(), self.rounds);
        }
        println!(
            "Medians of at most {} rounds of {} s, least to most, and by {}'s; `?` where the rounds do not bear a ratio out.",
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
        let value = if value.is_nan() { "–".to_owned() } else { format!("{value:.digits$}", digits = self.digits) };
        format!(" {value} {}", self.name)
    }

    /// What takes its column's width, but for figures.
    fn column(self, text: &str) -> String {
        if self.compared { format!("{text:>10}{:22}", "") } else { format!("{text:>12}") }
    }
}

impl Row {
    fn cell(&self) -> String {
        let Self { median, least, most, measure: Measure { digits, compared, .. }, .. } = self;
        if median.is_nan() {
            return self.measure.column("–");
        }
        if !compared {
            return format!("{median:>12.digits$}");
        }
        let range = format!("({least:.digits$}–{most:.digits$})");
        let ratio = self.ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.2}×"));
        format!("{median:>10.digits$} {range:<14}{ratio:<7}")
    }
}

/// Least, median, most; not numbers if there are none.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let [.., most] = sorted[..] else { return [f64::NAN; 3] };
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
    [sorted[0], median, most]
}

/// The ratio of the medians, unless the rounds hide it: the ratios of single rounds, taken one after the other, must be
/// closer to each other than the ratio is to one, or all be nearly the same. One round shows nothing, nor does one that
/// either side lacks.
fn ratio(rounds: &[Option<f64>], reference: &[Option<f64>]) -> Option<f64> {
    let both: Vec<(f64, f64)> = rounds.iter().zip(reference).filter_map(|(own, other)| (*own).zip(*other)).collect();
    let ratios = both.iter().map(|(own, other)| own / other);
    if both.len() < 2 || ratios.clone().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    let [least, _, most] = spread(ratios);
    let [own, other] = [spread(both.iter().map(|(own, _)| *own)), spread(both.iter().map(|(_, other)| *other))];
    let ratio = own[1] / other[1];
    let width = (most - least) / ratio;
    (width <= EVEN || width < (ratio - 1.0).abs() / ratio).then_some(ratio)
}
