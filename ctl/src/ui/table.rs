//! Tables: fixed order, no borders, two spaces between columns, upper-case headers, never wrapped.

use super::text::{cut_middle, strip_sgr};

/// A table being put together.
#[derive(Debug, Clone)]
pub struct Table {
    headers: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns by their headers; one that begins with `>` is aligned to the right.
    pub fn new(headers: &[&'static str]) -> Self {
        Self {
            headers: headers.iter().map(|h| h.trim_start_matches('>')).collect(),
            right: headers.iter().map(|h| h.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing stay empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| one_line(cell.into())).collect();
        cells.resize(self.headers.len(), String::new());
        self.rows.push(cells);
    }

    /// The text. Where it is wider than `width`, the widest cells are cut in their middle.
    pub fn render(&self, width: Option<usize>) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let headers: Vec<String> = self.headers.iter().map(|h| (*h).to_owned()).collect();
        for row in std::iter::once(&headers).chain(&self.rows) {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let cell = if shown(cell) > widths[i] { cut_middle(&strip_sgr(cell), widths[i]) } else { cell.clone() };
                let pad = " ".repeat(widths[i].saturating_sub(shown(&cell)));
                if i > 0 {
                    line.push_str("  ");
                }
                if self.right[i] {
                    line.push_str(&pad);
                    line.push_str(&cell);
                } else {
                    line.push_str(&cell);
                    line.push_str(&pad);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let columns = self.headers.len();
        let mut widths: Vec<usize> = self.headers.iter().map(|h| h.chars().count()).collect();
        let least = widths.clone();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(shown(cell));
            }
        }
        if let Some(limit) = limit {
            let gutters = 2 * columns.saturating_sub(1);
            while widths.iter().sum::<usize>() + gutters > limit {
                let widest = (0..columns).filter(|i| widths[*i] > least[*i].max(6)).max_by_key(|i| widths[*i]);
                let Some(widest) = widest else { break };
                widths[widest] -= 1;
            }
        }
        widths
    }
}

fn shown(cell: &str) -> usize {
    strip_sgr(cell).chars().count()
}

/// A cell with a line break or another control character would break the table, and could drive the terminal.
fn one_line(cell: String) -> String {
    if !cell.chars().any(|c| c.is_control() && c != '\x1b') {
        return cell;
    }
    cell.chars().map(|c| if c.is_control() && c != '\x1b' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["HOST", ">VMS", "NOTE"]);
        table.row(["host1", "3", "a note that is long enough to be cut somewhere"]);
        table.row(["host10", "12", "x\ny"]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_spaces() {
        assert_eq!(
            table().render(None),
            "HOST    VMS  NOTE\n\
             host1     3  a note that is long enough to be cut somewhere\n\
             host10   12  x y\n"
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest_column_in_its_middle() {
        let text = table().render(Some(40));
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.contains("host10") && text.contains('…'), "{text}");
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["\x1b[32mPASS\x1b[0m", "x"]);
        table.row(["FAIL", "y"]);
        assert_eq!(table.render(None), "A     B\n\x1b[32mPASS\x1b[0m  x\nFAIL  y\n");
    }
}
