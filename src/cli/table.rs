use std::fmt;

/// Rows of text in aligned columns; a column of numbers is aligned to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A header of empty strings is not printed.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { header: header.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// A further column.
    pub fn column(&mut self, title: String) {
        self.header.push(title);
    }

    /// Adds a row; a missing cell is empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        let titled = self.header.iter().any(|title| !title.is_empty());
        titled.then_some(&self.header).into_iter().chain(&self.rows)
    }
}

/// Whether a cell belongs in a column of numbers.
fn is_number(cell: &str) -> bool {
    cell.trim_end_matches('%').parse::<f64>().is_ok() || cell == "-" || cell.is_empty()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |line: &Vec<String>, column: usize| line.get(column).cloned().unwrap_or_default();
        let columns: Vec<(usize, bool)> = (0..self.header.len())
            .map(|column| {
                let width = self.lines().map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
                (width, self.rows.iter().all(|row| is_number(&cell(row, column))))
            })
            .collect();
        for line in self.lines() {
            let padded = columns.iter().copied().enumerate().map(|(column, (width, right))| {
                let cell = cell(line, column);
                if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let text = padded.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_go_to_the_right() {
        let mut table = Table::new(["NAME", "COUNT", "WHY"]);
        table.row(["a".into(), "7".into(), "because".into()]);
        table.row(["longer".into(), "12345".into()]);
        assert_eq!(table.to_string(), "NAME    COUNT  WHY\na           7  because\nlonger  12345\n");
    }

    #[test]
    fn an_untitled_table_has_no_header_line() {
        let mut table = Table::new(["", ""]);
        table.row(["node".into(), "node-a".into()]);
        assert_eq!(table.to_string(), "node  node-a\n");
    }
}
