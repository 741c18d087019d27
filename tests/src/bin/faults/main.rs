//! The table of faults: every cell on a real guest, played and judged.
//!
//! ```text
//! faults [--list] [--seed N] [--lanes N] [--json FILE] [--images DIR] [--mutation NAME] [CELL…]
//! faults --mutations   six broken rules, each with a cell that has to go red
//! faults --notice N    how soon the others are told that a party is gone, N times each
//! ```
//!
//! A CELL is `FAULT/PHASE`, `FAULT/` or `/PHASE`; none: all of them. A lane is a lab of its own. Needs root, QEMU, nft and debug
//! builds of the programs beside it. Exit code 1: a cell is red.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use serde_json::json;
use vt_sync::mutation::Mutation;
use vt_tests::{
    faults::{
        cell::Cell,
        ground::Ground,
        notice::{Dies, measure, percentile},
        play::{Found, play},
    },
    lab::vtctl,
};

/// Where what the hosts wrote is kept of a red cell.
const EVIDENCE: &str = "faults-evidence";
const USAGE: &str =
    "usage: faults [--list] [--seed N] [--lanes N] [--json FILE] [--images DIR] [--mutation NAME] [FAULT/PHASE…]";

#[derive(Debug, PartialEq, Eq)]
struct Words {
    list: bool,
    seed: u64,
    lanes: usize,
    json: Option<String>,
    images: Option<String>,
    mutation: Option<String>,
    mutations: bool,
    notice: usize,
    cells: Vec<Cell>,
}

fn parse(arguments: &[String]) -> Result<Words, String> {
    let mut words = Words {
        list: false,
        seed: 1,
        lanes: 1,
        json: None,
        images: None,
        mutation: None,
        mutations: false,
        notice: 0,
        cells: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().cloned().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{word} wants a number, not {text:?}"));
        match word.as_str() {
            "--list" => words.list = true,
            "--seed" => words.seed = number(value()?)?,
            "--mutations" => words.mutations = true,
            "--notice" => words.notice = number(value()?)?.clamp(1, 10_000) as usize,
            "--lanes" => words.lanes = number(value()?)?.clamp(1, 8) as usize,
            "--json" => words.json = Some(value()?),
            "--images" => words.images = Some(value()?),
            "--mutation" => words.mutation = Some(value()?),
            pattern => {
                let (fault, phase) = pattern.split_once('/').ok_or_else(|| format!("{pattern:?} is no FAULT/PHASE"))?;
                let fits = |wanted: &str, is: String| wanted.is_empty() || wanted == is;
                let cells =
                    Cell::all().filter(|c| fits(fault, c.fault.to_string()) && fits(phase, c.phase.to_string()));
                let before = words.cells.len();
                words.cells.extend(cells);
                if words.cells.len() == before {
                    return Err(format!("there is no cell {pattern}; --list shows all"));
                }
            }
        }
    }
    if words.cells.is_empty() {
        words.cells = Cell::all().collect();
    }
    Ok(words)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words = match parse(&arguments) {
        Ok(words) => words,
        Err(error) => {
            eprintln!("faults: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if words.list {
        words.cells.iter().for_each(|cell| println!("{cell}"));
        return ExitCode::SUCCESS;
    }
    if words.notice == 0 && cfg!(not(debug_assertions)) {
        eprintln!("faults: a release build holds nowhere: run the debug build");
        return ExitCode::from(2);
    }
    let done = image(&words).and_then(|()| match words.notice {
        0 if words.mutations => mutations(&words),
        0 => run(&words),
        _ => notice(&words),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn image(words: &Words) -> anyhow::Result<()> {
    let mut build = vec!["image", "build", "--if-missing"];
    build.extend(words.images.iter().flat_map(|images| ["--images", images]));
    let built = vtctl(&build);
    anyhow::ensure!(built.code == 0, "no image: {}", built.stderr);
    Ok(())
}

/// A cell for each rule that a debug build can break. The seed of the table, for it chooses lengths and first votes.
const CAUGHT_BY: [(Mutation, &str); 6] = [
    (Mutation::NoMove, "kill-guards/transferring"),
    (Mutation::MoveOnOneVote, "kill-guards/voted-by-one"),
    (Mutation::SourceResumesOnTimeout, "kill-guards/voted-by-one"),
    (Mutation::MarginZero, "partition-destination/verifying"),
    (Mutation::BarrierAtNMinusOne, "kill-guards/barrier"),
    (Mutation::StaleEpochAccepted, "partition-source/prepared"),
];

/// Plays each of those cells under its broken rule; whether all are red.
fn mutations(words: &Words) -> anyhow::Result<bool> {
    let mut caught = 0;
    for (mutation, name) in CAUGHT_BY {
        let cell = Cell::named(name).with_context(|| format!("no cell {name}"))?;
        let mut ground = Ground::new(words.images.as_deref(), Some(mutation.name()))?;
        let found = play(&mut ground, cell, words.seed);
        let told = if found.green() { "GREEN: not caught".to_owned() } else { found.wrong.join("; ") };
        println!("{:<28} {name:<34} {told} ({})", mutation.name(), found.chosen);
        caught += usize::from(!found.green());
    }
    println!("{caught} of {} broken rules are caught", CAUGHT_BY.len());
    Ok(caught == CAUGHT_BY.len())
}

/// Measures how soon others are told; whether every floor was kept.
fn notice(words: &Words) -> anyhow::Result<bool> {
    let mut ground = Ground::new(words.images.as_deref(), words.mutation.as_deref())?;
    let mut kept = true;
    for dies in Dies::ALL {
        let told = (0..words.notice).map(|_| measure(&mut ground, dies)).collect::<anyhow::Result<Vec<u64>>>()?;
        let at = |percent| percentile(&told, percent).unwrap_or(u64::MAX);
        let (p50, p99, floor) = (at(50), at(99), dies.floor_ms());
        let verdict = if p99 <= floor { "kept" } else { "MISSED" };
        kept &= p99 <= floor;
        println!(
            "{:<46} told after p50 {p50} ms  p99 {p99} ms  n {}  floor {floor} {verdict}",
            dies.name(),
            told.len()
        );
    }
    Ok(kept)
}

/// Plays all cells; whether all are green.
fn run(words: &Words) -> anyhow::Result<bool> {
    let begun = Instant::now();
    println!("{} cells, seed {}, {} lanes", words.cells.len(), words.seed, words.lanes);
    println!("{}", head());
    let open: Mutex<VecDeque<Cell>> = Mutex::new(words.cells.iter().copied().collect());
    let done: Mutex<Vec<Found>> = Mutex::default();
    let failed: Mutex<Option<anyhow::Error>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..words.lanes.min(words.cells.len()) {
            scope.spawn(|| {
                if let Err(error) = lane(words, &open, &done) {
                    locked(&failed).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = locked(&failed).take() {
        return Err(error);
    }
    let done = locked(&done);
    let green = done.iter().filter(|found| found.green()).count();
    let seconds = begun.elapsed().as_secs();
    println!("{green} of {} cells green in {} min {} s, seed {}", done.len(), seconds / 60, seconds % 60, words.seed);
    for found in done.iter().filter(|found| !found.green()) {
        println!("again: make faults CELL={} SEED={}", found.cell, found.seed);
    }
    if let Some(path) = &words.json {
        let all = json!({"schema": "vtmesh/v1/faults", "seed": words.seed, "cells": *done});
        fs::write(path, format!("{all:#}\n"))?;
    }
    Ok(green == words.cells.len())
}

/// Takes cells until none is open, on a ground of its own. One on which a cell was red is not trusted any more.
fn lane(words: &Words, open: &Mutex<VecDeque<Cell>>, done: &Mutex<Vec<Found>>) -> anyhow::Result<()> {
    let mut ground = None;
    loop {
        let Some(cell) = locked(open).pop_front() else { return Ok(()) };
        let mut on = match ground.take() {
            Some(ground) => ground,
            None => Ground::new(words.images.as_deref(), words.mutation.as_deref())?,
        };
        let found = play(&mut on, cell, words.seed);
        println!("{}", row(&found));
        if found.green() {
            ground = Some(on);
        } else if let Err(error) = on.keep(&Path::new(EVIDENCE).join(found.cell.replace('/', "."))) {
            println!("  what the hosts wrote is lost: {error:#}");
        }
        locked(done).push(found);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn head() -> String {
    format!(
        "{:<36} {:>9} {:>9} {:>8} {:>8} {:>6}  {}",
        "CELL", "LANDED ms", "VERDICT", "GAP ms", "HEAL ms", "TOOK s", "RESULT"
    )
}

fn row(found: &Found) -> String {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let cause = found.cause.as_deref().unwrap_or("-");
    let result = match found.green() {
        true => "green".to_owned(),
        false => format!("RED: {}; the cause was: {cause}", found.wrong.join("; ")),
    };
    format!(
        "{:<36} {:>9} {:>9} {:>8} {:>8} {:>6.1}  {result} ({})",
        found.cell,
        number(found.landed_ms),
        found.verdict.as_deref().unwrap_or("-"),
        number(found.gap_ms),
        number(found.healed_ms),
        found.took_ms as f64 / 1000.0,
        found.chosen
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Words, String> {
        parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn cells_are_named_whole_by_fault_or_by_phase() {
        assert_eq!(words("kill-leader-vtd/moved").unwrap().cells.len(), 1);
        assert_eq!(words("kill-leader-vtd/").unwrap().cells.len(), 9);
        assert_eq!(words("/moved --seed 7").unwrap().cells.len(), 16);
        assert_eq!(words("").unwrap().cells.len(), Cell::all().count());
        for wrong in ["moved", "kill-nobody/moved", "--seed", "--seed x"] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
