//! What was found, for people and for programs.

use serde::Serialize;

use crate::fault::Fault;
use crate::harness::{Noticed, Options};

/// One fault in one mode.
#[derive(Serialize)]
pub struct Row {
    pub fault: &'static str,
    pub mode: &'static str,
    pub attempts: u32,
    pub bound_ms: Option<f64>,
    #[serde(flatten)]
    pub noticed: Noticed,
    /// The bounds that were exceeded.
    pub exceeded: Vec<String>,
}

impl Row {
    pub fn new(fault: &Fault, options: Options, noticed: Noticed) -> Self {
        let bound_ms = fault.bound_ms.filter(|_| !options.is_kernel());
        let exceeded = judge(&noticed, bound_ms);
        Self { fault: fault.name, mode: options.mode, attempts: 1, bound_ms, noticed, exceeded }
    }
}

fn judge(noticed: &Noticed, bound_ms: Option<f64>) -> Vec<String> {
    let mut exceeded = Vec::new();
    for (way, stream) in ["there", "back"].iter().zip(&noticed.deliveries.streams) {
        if let Some(bound) = bound_ms.filter(|&bound| stream.network_gap_ms > bound) {
            exceeded.push(format!("a gap of {} ms {way}, above {bound}", stream.network_gap_ms));
        }
    }
    if noticed.deliveries.misdelivered > 0 {
        exceeded.push(format!("{} packets at a wrong pod", noticed.deliveries.misdelivered));
    }
    if noticed.connections.lost > 0 {
        exceeded.push(format!("connections lost: {}", noticed.connections.errors.join(", ")));
    }
    if noticed.recovered_after_ms.is_none() {
        exceeded.push("the path is not as before".to_owned());
    }
    exceeded
}

const HEADER: [&str; 12] = [
    "FAULT",
    "MODE",
    "WAY",
    "SENT",
    "LOST",
    "DOUBLE",
    "REORDERED",
    "GAP MS",
    "NETWORK'S",
    "SENDER'S",
    "TCP LOST",
    "BACK MS",
];

/// Prints a line for each direction, and what was exceeded.
pub fn print(rows: &[Row]) {
    println!();
    print_line(&HEADER.map(str::to_owned));
    for row in rows {
        for (way, stream) in ["there", "back"].iter().zip(&row.noticed.deliveries.streams) {
            let gap = |ms: f64| format!("{ms:.1}");
            print_line(&[
                row.fault.to_owned(),
                row.mode.to_owned(),
                (*way).to_owned(),
                stream.sent.to_string(),
                stream.lost.to_string(),
                stream.duplicated.to_string(),
                stream.reordered.to_string(),
                gap(stream.longest_gap_ms),
                gap(stream.network_gap_ms),
                gap(stream.sender_gap_ms),
                format!("{} of {}", row.noticed.connections.lost, row.noticed.connections.connections),
                row.noticed.recovered_after_ms.map_or_else(|| "never".to_owned(), |ms| ms.to_string()),
            ]);
        }
    }
    let wrong: u64 = rows.iter().map(|row| row.noticed.deliveries.misdelivered).sum();
    println!("\npackets at a wrong pod: {wrong}");
    for row in rows.iter().filter(|row| row.attempts > 1) {
        println!("measured once more: {} in mode {}", row.fault, row.mode);
    }
    for row in rows {
        for exceeded in &row.exceeded {
            println!("exceeded: {} in mode {}: {exceeded}", row.fault, row.mode);
        }
    }
}

fn print_line(cells: &[String; 12]) {
    let [fault, mode, way, numbers @ ..] = cells;
    print!("{fault:<10} {mode:<9} {way:<6}");
    for number in numbers {
        print!(" {number:>10}");
    }
    println!();
}
