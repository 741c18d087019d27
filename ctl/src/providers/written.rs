//! A configuration file that is put together from others, and where each of its lines came from.

use std::path::{Path, PathBuf};

/// A line that was not in any file.
const NOWHERE: (u32, u32) = (u32::MAX, 0);

/// A file being put together.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    text: String,
    files: Vec<PathBuf>,
    /// File and line of each line.
    lines: Vec<(u32, u32)>,
}

impl Written {
    /// A file copied as it is.
    pub(super) fn copy(file: &Path, text: &str) -> Self {
        let mut written = Self::default();
        written.append(0, file, text);
        written
    }

    /// Adds a line of our own.
    pub(super) fn line(&mut self, indent: usize, text: &str) {
        self.push(indent, text, NOWHERE);
    }

    /// Adds all lines of a file.
    pub(super) fn append(&mut self, indent: usize, file: &Path, text: &str) {
        let number = self.file(file);
        for (line, text) in (1..).zip(text.lines()) {
            self.push(indent, text, (number, line));
        }
    }

    /// Adds one line of a file that [`Written::file`] numbered.
    pub(super) fn push(&mut self, indent: usize, text: &str, place: (u32, u32)) {
        self.text.extend(std::iter::repeat_n(' ', indent));
        self.text.push_str(text);
        self.text.push('\n');
        self.lines.push(place);
    }

    /// A number for a file whose lines follow.
    pub(super) fn file(&mut self, file: &Path) -> u32 {
        self.files.push(file.to_owned());
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// File and line that a line (from 1) came from.
    pub(super) fn place(&self, line: u32) -> Option<(&Path, u32)> {
        let (file, line) = *self.lines.get(usize::try_from(line).ok()?.checked_sub(1)?)?;
        Some((self.files.get(usize::try_from(file).ok()?)?, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_knows_where_it_came_from() {
        let mut written = Written::default();
        written.line(0, "variants:");
        written.append(4, Path::new("/a.cfg"), "- a:\n\n");
        written.append(4, Path::new("/b.cfg"), "- b:\n");
        assert_eq!(written.text(), "variants:\n    - a:\n    \n    - b:\n");
        assert_eq!(written.place(1), None);
        assert_eq!(written.place(3), Some((Path::new("/a.cfg"), 2)));
        assert_eq!(written.place(4), Some((Path::new("/b.cfg"), 1)));
        assert_eq!((written.place(0), written.place(5)), (None, None));
    }
}
