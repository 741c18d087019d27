//! What is wrong with a configuration, where, and what to do about it.
//!
//! Data and a plain text form only; colours and terminal width belong to the program that prints.

use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing, found by `lint`.
    Note,
    /// Probably a mistake, found by `lint`.
    Warning,
    /// The configuration cannot be used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One finding with its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// File as the user or the include statement named it; `<string>` for extra statements.
    pub file: String,
    /// Line from 1; 0 if there is no line (the file itself cannot be read).
    pub line: u32,
    /// Column from 1 in characters of `text`; 0 if the whole line is meant.
    pub column: u32,
    /// Characters the caret covers, at least 1 where `column` is set.
    pub length: u32,
    /// The line itself, tabs expanded; empty if unknown.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// How bad it is.
    pub severity: Severity,
}

impl Diagnostic {
    /// An error at a line without a column.
    pub(crate) fn error(file: impl Into<String>, line: u32, message: impl Into<String>) -> Self {
        Diagnostic {
            file: file.into(),
            line,
            column: 0,
            length: 0,
            text: String::new(),
            message: message.into(),
            hint: None,
            severity: Severity::Error,
        }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    pub(crate) fn at(mut self, text: &str, column: u32, length: u32) -> Self {
        self.text = text.chars().take(400).collect();
        self.column = column;
        self.length = length;
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        write!(f, ": {}: {}", self.severity, self.message)?;
        if !self.text.is_empty() {
            write!(f, "\n  | {}", self.text)?;
            if self.column > 0 {
                let pad = " ".repeat(self.column as usize - 1);
                write!(f, "\n  | {pad}{}", "^".repeat(self.length.clamp(1, 200) as usize))?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  = {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_points_at_the_place() {
        let d = Diagnostic::error("a.cfg", 3, "no such thing").at("only a:", 7, 1).with_hint("drop the colon");
        assert_eq!(d.to_string(), "a.cfg:3:7: error: no such thing\n  | only a:\n  |       ^\n  = drop the colon");
    }
}
