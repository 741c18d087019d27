//! Daemons that are restarted and upgraded while a guest is on its way: round after round, as a table.
//!
//! ```text
//! restarts [--times N] [--next PATH] [--json FILE]
//! ```
//!
//! `--next`: another build of vtd, which every second pair of rounds upgrades to. Needs root and QEMU. Exit code 1: a round is
//! red, or its restart never fell into the transfer.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use serde_json::json;
use vt_tests::{
    faults::restart::{Restarted, Round, play},
    lab::vtctl,
};

/// Where what the hosts wrote is kept of a red round.
const EVIDENCE: &str = "restarts-evidence";

#[derive(Debug, PartialEq, Eq)]
struct Words {
    times: u64,
    next: Option<PathBuf>,
    json: Option<PathBuf>,
}

impl Words {
    fn read(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut words = Self { times: 10, next: None, json: None };
        while let Some(word) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--times" => words.times = value.parse().with_context(|| format!("--times {value}: no number"))?,
                "--next" => words.next = Some(value.into()),
                "--json" => words.json = Some(value.into()),
                _ => anyhow::bail!("known: --times N, --next PATH, --json FILE"),
            }
        }
        Ok(words)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let words = Words::read(std::env::args().skip(1))?;
    if let Some(next) = &words.next {
        ensure!(next.is_file(), "{} is no program", next.display());
    }
    let built = vtctl(&["image", "build", "--if-missing"]);
    ensure!(built.code == 0, "no image: {}", built.stderr);

    println!(
        "{:>5} {:<8} {:<12} {:<28} {:>7} {:>7} {:>8} {:>6} {:>10} {:>6}  RESULT",
        "ROUND", "WHAT", "SIDE", "HOSTS", "AWAY ms", "LEFT ms", "STOOD ms", "MORE", "SILENCE ms", "TOOK s"
    );
    let mut ground = None;
    let mut done = Vec::new();
    for round in Round::all(words.times, words.next.as_deref()) {
        let mut on = match ground.take() {
            Some(ground) if round.next.is_none() => ground,
            _ => round.ground()?,
        };
        let found = play(&mut on, &round);
        println!("{}", row(&found));
        if !found.green() {
            on.keep(&PathBuf::from(EVIDENCE).join(round.number.to_string()))?;
        } else if round.next.is_none() {
            ground = Some(on);
        }
        done.push(found);
    }
    let green = done.iter().filter(|found| found.green()).count();
    println!("{green} of {} passed, and their guests stood still only when they changed hosts", done.len());
    if let Some(path) = &words.json {
        let all = json!({"schema": "vtmesh/v1/restarts", "rounds": done});
        fs::write(path, format!("{all:#}\n")).with_context(|| path.display().to_string())?;
    }
    Ok(if green == done.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(found: &Restarted) -> String {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let mut words = vec![found.verdict.clone().unwrap_or_else(|| "no verdict".to_owned())];
    words.extend(found.wrong.iter().map(|wrong| format!("RED: {wrong}")));
    words.extend(found.not_landed.iter().map(|why| format!("NOT LANDED: {why}")));
    if found.plays > 1 {
        words.push(format!("played {} times", found.plays));
    }
    format!(
        "{:>5} {:<8} {:<12} {:<28} {:>7} {:>7} {:>8} {:>6} {:>10} {:>6.1}  {}",
        found.round,
        found.what,
        found.side,
        found.hosts,
        number(found.away_ms),
        number(found.left_ms),
        number(found.stood_ms),
        found.more_stops,
        number(found.silence_ms),
        found.took_ms as f64 / 1000.0,
        words.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_mistakes_are_named() {
        let read = |text: &str| Words::read(text.split_whitespace().map(str::to_owned));
        let words = read("--times 3 --next /x/vtd --json out.json").unwrap();
        assert_eq!((words.times, words.next, words.json), (3, Some("/x/vtd".into()), Some("out.json".into())));
        assert_eq!(read("").unwrap().times, 10);
        for (text, told) in [("--times", "wants a value"), ("--times x", "no number"), ("--lanes 2", "known: --times")]
        {
            assert!(read(text).unwrap_err().to_string().contains(told), "{text}");
        }
    }
}
