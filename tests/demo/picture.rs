//! A terminal as a picture.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// A cell, in pixels.
const WIDTH: u16 = 8;
const HEIGHT: u16 = 17;
const MARGIN: u16 = 8;

const BACK: &str = "#1b1e23";
const FRONT: &str = "#d5d8dc";

/// The eight colours of terminals, and their bright ones.
const COLOURS: [&str; 16] = [
    "#1b1e23", "#e06c75", "#98c379", "#d9a343", "#61afef", "#c678dd", "#56b6c2", "#d5d8dc", "#7f848e", "#ef8b93",
    "#b5e08f", "#f0c674", "#8cc8ff", "#dfa5f0", "#7fd5e0", "#ffffff",
];

/// The screen as SVG.
pub fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (columns * WIDTH + 2 * MARGIN, rows * HEIGHT + 2 * MARGIN);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACK}\"/>\n"
    );
    for row in 0..rows {
        let cells = (0..columns).filter_map(|column| Some((column, screen.cell(row, column)?))).collect::<Vec<_>>();
        for run in cells.chunk_by(|(_, left), (_, right)| look(left) == look(right)) {
            draw(&mut picture, row, run);
        }
    }
    picture + "</svg>\n"
}

/// How a cell is drawn: text and background, and whether it is bold.
fn look(cell: &Cell) -> (&'static str, &'static str, bool) {
    let colour = |colour, default| match colour {
        Color::Idx(index) => COLOURS.get(usize::from(index)).copied().unwrap_or(default),
        Color::Default | Color::Rgb(..) => default,
    };
    let (front, back) = (colour(cell.fgcolor(), FRONT), colour(cell.bgcolor(), BACK));
    let front = if cell.dim() { COLOURS[8] } else { front };
    if cell.inverse() { (back, front, cell.bold()) } else { (front, back, cell.bold()) }
}

/// Draws cells of one row that look the same.
fn draw(picture: &mut String, row: u16, run: &[(u16, &Cell)]) {
    let [(column, first), ..] = run else { return };
    let (front, back, bold) = look(first);
    let (x, y) = (MARGIN + column * WIDTH, MARGIN + row * HEIGHT);
    let width = u16::try_from(run.len()).expect("a row is short") * WIDTH;
    if back != BACK {
        let _ = writeln!(picture, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{back}\"/>");
    }
    let text: String = run.iter().map(|(_, cell)| if cell.has_contents() { cell.contents() } else { " " }).collect();
    if text.trim().is_empty() {
        return;
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let _ = writeln!(
        picture,
        "<text x=\"{x}\" y=\"{}\" fill=\"{front}\"{weight} textLength=\"{width}\" xml:space=\"preserve\">{text}</text>",
        y + HEIGHT - 4
    );
}
