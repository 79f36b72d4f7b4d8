//! The screen: which view is shown, how the keys change it, and how it is drawn.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{self, Paragraph, TableState, Wrap};

use super::scene::Scene;
use super::sections::{Cell, Row, Section, Tone, sections, summary};

/// The view of all tables, each as long as there is room.
const ALL: &str = "all";

const KEYS: &str = "q quit ←→ view ↑↓ row s sort r reverse";

/// Below this height, what is said of the selected row is left out.
const ROOMY: u16 = 14;

/// Columns are this far apart.
const GAP: u16 = 2;

/// What the daemon said last, and what the user looks at.
#[derive(Debug, Default)]
pub(super) struct Screen {
    scene: Option<Scene>,
    /// What is wrong with the daemon now.
    notice: Option<String>,
    /// Of [`views`].
    view: usize,
    row: usize,
    /// The column to sort by; none for the order that the scene has.
    sort: Option<usize>,
    reverse: bool,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Stay,
    Quit,
}

impl Screen {
    pub fn show(&mut self, scene: Scene) {
        self.scene = Some(scene);
    }

    /// Says what is wrong with the daemon, or that all is well again.
    pub fn say(&mut self, notice: Option<String>) {
        self.notice = notice;
    }

    pub fn press(&mut self, key: KeyEvent) -> Wish {
        let views = self.tables().len() + 1;
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Tab | KeyCode::Right => self.turn_to((self.view + 1) % views),
            KeyCode::BackTab | KeyCode::Left => self.turn_to((self.view + views - 1) % views),
            KeyCode::Down => self.row += 1,
            KeyCode::Up => self.row = self.row.saturating_sub(1),
            KeyCode::PageDown => self.row += 10,
            KeyCode::PageUp => self.row = self.row.saturating_sub(10),
            KeyCode::Home => self.row = 0,
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            _ => {}
        }
        Wish::Stay
    }

    fn turn_to(&mut self, view: usize) {
        *self = Self { view, row: 0, sort: None, reverse: false, ..std::mem::take(self) };
    }

    fn sort_by_next(&mut self) {
        let columns = self.tables().get(self.view.wrapping_sub(1)).map_or(0, |table| table.columns.len());
        let next = self.sort.map_or(0, |column| column + 1);
        self.sort = (next < columns).then_some(next);
    }

    fn tables(&self) -> Vec<Section> {
        self.scene.as_ref().map(sections).unwrap_or_default()
    }

    pub fn draw(&mut self, frame: &mut Frame) {
        let note_lines = if frame.area().height >= ROOMY { 2 } else { 0 };
        let [head, notice, tabs, body, note, keys] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(note_lines),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let Some(scene) = &self.scene else {
            let waiting = self.notice.as_deref().unwrap_or("waiting for the daemon's figures…");
            frame.render_widget(Paragraph::new(waiting).wrap(Wrap { trim: true }), frame.area());
            return frame.render_widget(footer(), keys);
        };
        let is_stale = self.notice.is_some();
        let shade = if is_stale { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
        frame.render_widget(Paragraph::new(summary(scene).map(Line::from).to_vec()).style(shade), head);
        frame.render_widget(self.alarm(scene), notice);
        let mut tables = sections(scene);
        frame.render_widget(tab_line(&tables, self.view, tabs.width), tabs);
        let chosen = self.view.checked_sub(1).and_then(|at| tables.get_mut(at));
        match chosen {
            Some(table) => {
                if let Some(column) = self.sort {
                    table.sort(column, self.reverse);
                } else if self.reverse {
                    table.rows.reverse();
                }
                self.row = self.row.min(table.rows.len().saturating_sub(1));
                draw_table(frame, body, table, Some(self.row), self.sort, shade);
                if let Some(text) = table.rows.get(self.row).and_then(|row| row.note.clone()) {
                    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), note);
                }
            }
            None => draw_all(frame, Rect { height: body.height + note.height, ..body }, &tables, shade),
        }
        frame.render_widget(footer(), keys);
    }

    /// What is wrong, in one line: with the daemon, else with the node.
    fn alarm(&self, scene: &Scene) -> Paragraph<'static> {
        let more = match scene.problems.len() {
            0 | 1 => String::new(),
            n => format!(" (1 of {n}, see podwire status)"),
        };
        let problem = scene.problems.first().map(|problem| format!("problem: {problem}{more}"));
        let text = self.notice.clone().or(problem).or_else(|| scene.reason.clone()).unwrap_or_default();
        Paragraph::new(text).style(Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
    }
}

fn footer() -> Paragraph<'static> {
    Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM))
}

/// The names of the views, the chosen one marked; where they do not fit, that one alone.
fn tab_line(tables: &[Section], view: usize, width: u16) -> Line<'static> {
    let names: Vec<_> = std::iter::once(ALL).chain(tables.iter().map(|table| table.name)).collect();
    let mark = |(at, name): (usize, &&str)| if at == view { format!("[{name}]") } else { format!(" {name} ") };
    let line = names.iter().enumerate().map(mark).collect::<Vec<_>>().join(" ");
    let fits = line.chars().count() <= usize::from(width);
    let chosen = names.get(view).unwrap_or(&ALL);
    Line::from(if fits { line } else { format!("‹[{chosen}]› {} of {}", view + 1, names.len()) })
        .style(Style::new().add_modifier(Modifier::BOLD))
}

/// Each table that has rows, as long as there is room: a row more for each in turn.
fn draw_all(frame: &mut Frame, area: Rect, tables: &[Section], style: Style) {
    let shown: Vec<_> = tables.iter().filter(|table| !table.rows.is_empty()).collect();
    let wanted = shown.iter().map(|table| u16::try_from(table.rows.len() + 2).unwrap_or(u16::MAX));
    let mut top = area.y;
    for (table, height) in shown.iter().zip(heights(&wanted.collect::<Vec<_>>(), area.height)) {
        // The last line of each is a gap.
        let lines = height.saturating_sub(1).max(2).min(area.bottom().saturating_sub(top));
        if lines >= 2 {
            draw_table(frame, Rect { y: top, height: lines, ..area }, table, None, None, style);
        }
        let hidden = (table.rows.len() + 1).saturating_sub(lines.into());
        if hidden > 0 && lines < height {
            let gap = Rect { y: top + lines, height: 1, ..area };
            frame
                .render_widget(Paragraph::new(format!("+{hidden} more")).style(style.add_modifier(Modifier::DIM)), gap);
        }
        top += height;
    }
}

/// Deals `total` lines to those who want some, by turns, three at first: less shows nothing.
fn heights(wanted: &[u16], total: u16) -> Vec<u16> {
    const LEAST: u16 = 3;
    let mut left = total;
    let mut given = vec![0; wanted.len()];
    for share in &mut given {
        if left + 1 >= LEAST {
            *share = LEAST.min(left);
            left -= *share;
        }
    }
    loop {
        let before = left;
        for (share, want) in given.iter_mut().zip(wanted) {
            if *share > 0 && *share < *want && left > 0 {
                *share += 1;
                left -= 1;
            }
        }
        if left == before {
            return given;
        }
    }
}

/// The widths of the columns that fit, in order. The last column of texts is cut to what is left of the line.
fn widths(table: &Section, titles: &[String], width: u16) -> Vec<u16> {
    let mut left = width;
    let mut widths = Vec::new();
    for (at, title) in titles.iter().enumerate() {
        let cells = table.rows.iter().filter_map(|row| row.cells.get(at)).map(|cell| cell.text.chars().count());
        let wanted = cells.chain([title.chars().count()]).max().unwrap_or(0);
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
        let gap = if at == 0 { 0 } else { GAP };
        let room = left.saturating_sub(gap);
        let is_text = table.rows.iter().filter_map(|row| row.cells.get(at)).any(|cell| !cell.is_number());
        let is_cut = wanted > room;
        // A word that is cut says less than none; a sentence still says something.
        if is_cut && (room < 8 || !is_text) {
            break;
        }
        widths.push(wanted.min(room));
        left = room.saturating_sub(wanted);
        if is_cut {
            break;
        }
    }
    widths
}

fn draw_table(
    frame: &mut Frame,
    area: Rect,
    table: &Section,
    selected: Option<usize>,
    sort: Option<usize>,
    style: Style,
) {
    if table.rows.is_empty() {
        return frame.render_widget(Paragraph::new(format!("no {}", table.name)), area);
    }
    let title = |(at, title): (usize, &&str)| if sort == Some(at) { format!("{title}*") } else { (*title).to_owned() };
    let titles: Vec<_> = table.columns.iter().enumerate().map(title).collect();
    let widths = widths(table, &titles, area.width);
    let is_number = |at: usize| table.rows.iter().all(|row| row.cells.get(at).is_some_and(Cell::is_number));
    let align = |at: usize, text: String| {
        let line = Line::from(text);
        if is_number(at) { line.right_aligned() } else { line }
    };
    let titles = titles.into_iter().enumerate().take(widths.len());
    let header = widgets::Row::new(titles.map(|(at, text)| align(at, text)))
        .style(Style::new().add_modifier(Modifier::REVERSED));
    let rows = table.rows.iter().map(|row: &Row| {
        let cells = row.cells.iter().enumerate().take(widths.len()).map(|(at, cell)| align(at, cell.text.clone()));
        widgets::Row::new(cells).style(tone(row.tone))
    });
    let drawn = widgets::Table::new(rows, widths.iter().copied().map(Constraint::Length))
        .header(header)
        .column_spacing(GAP)
        .style(style)
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    frame.render_stateful_widget(drawn, area, &mut TableState::new().with_selected(selected));
}

fn tone(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Notable => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}

#[cfg(test)]
mod tests;
