//! The table of `scripts/bench stages`: time and instructions of a packet in each stage and burst.

use std::fmt::Write;

use serde::Serialize;

/// One stage at one burst.
#[derive(Serialize)]
pub struct Row {
    pub stage: &'static str,
    pub burst: usize,
    pub ns: f64,
    pub million_packets_per_second: f64,
    /// `None` where they could not be counted.
    pub instructions: Option<f64>,
}

/// The rows as a table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut table = String::from("| stage | burst | ns a packet | million packets/s | instructions a packet |\n");
    table += "|---|--:|--:|--:|--:|\n";
    for Row { stage, burst, ns, million_packets_per_second, instructions } in rows {
        let instructions = instructions.map_or("?".to_owned(), |instructions| format!("{instructions:.1}"));
        let row = format!("| {stage} | {burst} | {ns:.1} | {million_packets_per_second:.0} | {instructions} |");
        writeln!(table, "{row}").expect("a string takes it");
    }
    table
}
