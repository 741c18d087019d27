//! Flags that every command takes.

use std::time::Duration;

use clap::{Args, ValueEnum};
use vt_protocol::ids::Name;

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true, env = "VTCTL_OUTPUT", hide_env = true)]
    pub output: Output,
    /// Socket or HOST:PORT of a daemon (also VTCTL_ENDPOINT); several:
    /// with commas
    #[arg(long, global = true, value_name = "WHERE")]
    pub endpoint: Option<String>,
    /// The cluster that is meant, from `vtctl config contexts`
    /// (also VTCTL_CONTEXT)
    #[arg(long, global = true, value_name = "NAME", conflicts_with_all = ["endpoint", "lab"])]
    pub context: Option<Name>,
    /// The lab that is meant, instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub lab: Option<Name>,
    /// Say less
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more (causes of errors, log lines)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Colours
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, global = true, value_name = "WHEN")]
    pub color: ColorChoice,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t = ProgressChoice::Auto, global = true, value_name = "HOW",
          env = "VTCTL_PROGRESS", hide_env = true)]
    pub progress: ProgressChoice,
    /// Answer questions with yes
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Give up waiting after this long, e.g. 30s, 5m; exit 124
    #[arg(long, value_parser = duration, global = true, value_name = "TIME", env = "VTCTL_TIMEOUT", hide_env = true)]
    pub timeout: Option<Duration>,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// One JSON object
    Json,
    /// One JSON object a line
    Jsonl,
    /// Names only, one a line
    Name,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressChoice {
    /// Bars on a terminal, else lines
    Auto,
    /// Bars
    Bar,
    /// Short lines
    Plain,
    /// One JSON object a line
    Json,
    /// Nothing
    None,
}

/// A time such as `500ms`, `30s`, `5m`, `2h`; a bare number is seconds. At most a year.
///
/// # Errors
/// The text is no such time.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 500ms, 30s, 5m or 2h");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let unit_ms = match text[end..].trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=31_536_000_000).contains(ms)).ok_or_else(wrong)?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        for (text, ms) in [("500ms", 500), ("30", 30_000), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "0s", "s", "-1s", "1.5h", "5 parsecs", "99999999999999999999s", "9999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
