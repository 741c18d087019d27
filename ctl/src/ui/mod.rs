//! What a person or a program reads: stdout, stderr, colours, symbols, width. No command decides these for itself.

pub mod report;
pub mod style;
pub mod table;
pub mod text;

use std::io::{IsTerminal, Write};

use serde_json::{Value, json};
use vt_protocol::error::Report;

use self::style::Style;
use crate::args::{Globals, Output, ProgressChoice};

/// Where and how things are written.
#[derive(Debug, Clone)]
pub struct Ui {
    /// Form of the result.
    pub output: Output,
    /// Say less.
    pub quiet: bool,
    /// Say more.
    pub verbose: u8,
    /// Look on stdout.
    pub out: Style,
    /// Look on stderr.
    pub err: Style,
    /// Columns of the terminal on stdout; none where it is no terminal, and nothing is cut then.
    pub width: Option<usize>,
    /// Whether questions can be asked: stdin and stderr are terminals.
    pub interactive: bool,
    /// How progress is shown, decided.
    pub progress: ProgressChoice,
}

impl Ui {
    /// Looks at flags, environment and terminals.
    pub fn new(globals: &Globals) -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (out_tty, err_tty) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let ascii = style::ascii(&env);
        let look = |tty| Style { color: style::color(globals.color, tty, &env), ascii };
        let progress = match globals.progress {
            _ if globals.quiet => ProgressChoice::None,
            ProgressChoice::Auto if err_tty && env("CI").is_none() && env("TERM").as_deref() != Some("dumb") => {
                ProgressChoice::Bar
            }
            ProgressChoice::Auto => ProgressChoice::Plain,
            chosen => chosen,
        };
        Self {
            output: globals.output,
            quiet: globals.quiet,
            verbose: globals.verbose,
            out: look(out_tty),
            err: look(err_tty),
            width: out_tty.then(width),
            interactive: std::io::stdin().is_terminal() && err_tty,
            progress,
        }
    }

    /// Whether people read the result.
    pub fn human(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }

    /// Writes a line of the result. A reader that went away is not an error.
    pub fn line(&self, text: impl std::fmt::Display) {
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Writes text of the result as it is.
    pub fn raw(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    /// Writes a remark to stderr, unless `--quiet`.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Writes one JSON document: many lines for `json`, one for `jsonl`.
    pub fn json(&self, value: &Value) {
        let text = if self.output == Output::Jsonl { value.to_string() } else { format!("{value:#}") };
        self.line(text);
    }

    /// Shows a list: as a table, as one JSON object with `schema`, a line an item, or names only.
    pub fn list(&self, schema: &str, key: &str, items: &[Value], names: &[String], table: impl FnOnce() -> String) {
        match self.output {
            Output::Table | Output::Wide => self.raw(&table()),
            Output::Json => self.json(&json!({"schema": schema, key: items})),
            Output::Jsonl => items.iter().for_each(|item| self.json(item)),
            Output::Name => names.iter().for_each(|name| self.line(name)),
        }
    }

    /// Shows an error: as JSON on stdout where JSON was asked for, so that stdout always holds one, else on stderr.
    pub fn error(&self, report: &Report) {
        match self.output {
            Output::Json | Output::Jsonl => self.json(&report::json(report)),
            _ => {
                stderr(&report::text(report, self.err, self.verbose > 0));
            }
        }
    }
}

/// Writes to stderr as it is. A reader that went away is not an error, and no reason to panic.
pub fn stderr(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

fn width() -> usize {
    let set = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    let asked = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    set.or_else(asked).filter(|columns| *columns > 0).unwrap_or(80).max(40)
}
