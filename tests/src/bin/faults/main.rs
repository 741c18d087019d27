//! The table of faults: every cell on a real guest, played and judged.
//!
//! ```text
//! faults [--list] [--seed N] [--lanes N] [--json FILE] [--images DIR] [--pool nfs|gluster|iscsi|rbd] [--mutation NAME] [CELL…]
//! faults --mutations   six broken rules, each with a cell that has to go red
//! faults --notice N [--dies party|daemon|leader]   how soon the others are told that a party is gone, N times each
//! ```
//!
//! A CELL is `FAULT/PHASE`, `FAULT/` or `/PHASE`; none: all of them. A lane is a lab of its own. Needs root, QEMU, nft and debug
//! builds of the programs beside it. Exit code 1: a cell is red or its fault never landed, a floor was missed, or the whole
//! table took longer than it may.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
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
        pool::Pool,
    },
    lab::vtctl,
};

/// Where what the hosts wrote is kept of a red cell.
const EVIDENCE: &str = "faults-evidence";
/// The most that the whole table may take.
const TABLE: Duration = Duration::from_secs(45 * 60);
const USAGE: &str = "usage: faults [--list] [--seed N] [--lanes N] [--json FILE] [--images DIR] [--pool nfs|gluster|iscsi|rbd] [--mutation NAME] \
     [FAULT/PHASE…]";

#[derive(Debug, PartialEq, Eq)]
struct Words {
    list: bool,
    seed: u64,
    lanes: u64,
    json: Option<String>,
    images: Option<String>,
    pool: Option<String>,
    mutation: Option<String>,
    mutations: bool,
    notice: u64,
    dies: Vec<Dies>,
    cells: Vec<Cell>,
}

fn parse(arguments: &[String]) -> Result<Words, String> {
    let mut words = Words {
        list: false,
        seed: 1,
        lanes: 1,
        json: None,
        images: None,
        pool: None,
        mutation: None,
        mutations: false,
        notice: 0,
        dies: Vec::new(),
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
            "--notice" => words.notice = number(value()?)?.clamp(1, 10_000),
            "--dies" => {
                let name = value()?;
                let dies = Dies::ALL.into_iter().find(|dies| dies.to_string() == name);
                words.dies.push(dies.ok_or_else(|| format!("--dies is party, daemon or leader, not {name:?}"))?);
            }
            "--lanes" => words.lanes = number(value()?)?.clamp(1, 8),
            "--json" => words.json = Some(value()?),
            "--images" => words.images = Some(value()?),
            "--pool" => {
                let kind = value()?;
                if !Pool::KINDS.contains(&kind.as_str()) {
                    return Err(format!("--pool is {}, not {kind:?}", Pool::KINDS.join(" or ")));
                }
                words.pool = Some(kind);
            }
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
    if words.dies.is_empty() {
        words.dies = Dies::ALL.to_vec();
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

/// A ground as it was asked for.
fn ground_for(words: &Words, mutation: Option<&str>) -> anyhow::Result<Ground> {
    let ground = Ground::new(words.images.as_deref(), mutation)?;
    match &words.pool {
        Some(kind) => ground.with_pool(kind),
        None => Ok(ground),
    }
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
        let mut ground = ground_for(words, Some(mutation.name()))?;
        // A fault that did not land has caught nothing: it is played again.
        let found = play(&mut ground, cell, words.seed);
        let is_caught = !found.wrong.is_empty();
        println!(
            "{:<28} {name:<34} {}",
            mutation.name(),
            if is_caught { result(&found) } else { format!("NOT CAUGHT: {}", result(&found)) }
        );
        caught += usize::from(is_caught);
    }
    println!("{caught} of {} broken rules are caught", CAUGHT_BY.len());
    Ok(caught == CAUGHT_BY.len())
}

/// Measures how soon others are told; whether every floor was kept.
fn notice(words: &Words) -> anyhow::Result<bool> {
    let mut ground = ground_for(words, words.mutation.as_deref())?;
    let mut kept = true;
    for &dies in &words.dies {
        let told = (0..words.notice).map(|_| measure(&mut ground, dies)).collect::<anyhow::Result<Vec<u64>>>();
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                ground.keep(&Path::new(EVIDENCE).join("notice"))?;
                return Err(error.context(dies.name()));
            }
        };
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
        for _ in 0..words.lanes {
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
    let took = begun.elapsed();
    for found in done.iter().filter(|found| !found.green()) {
        println!("again: make faults CELL={} SEED={}", found.cell, found.seed);
    }
    println!("{}", summary(&done, took, words));
    if let Some(path) = &words.json {
        let all = json!({"schema": "vtmesh/v1/faults", "seed": words.seed, "cells": *done});
        fs::write(path, format!("{all:#}\n"))?;
    }
    let whole = words.cells.len() == Cell::all().count();
    if whole {
        let verdict = if took <= TABLE { "kept" } else { "MISSED" };
        println!("the whole table, floor {} min: {verdict}", TABLE.as_secs() / 60);
    }
    Ok(done.len() == words.cells.len() && done.iter().all(Found::green) && (!whole || took <= TABLE))
}

/// Counts and times of all cells.
fn summary(done: &[Found], took: Duration, words: &Words) -> String {
    let of = |wanted: &str| done.iter().filter(|found| found.result() == wanted).count();
    let again = done.iter().filter(|found| found.green() && found.plays > 1).count();
    let mut times: Vec<u64> = done.iter().map(|found| found.took_ms).collect();
    times.sort_unstable();
    let slowest = done.iter().max_by_key(|found| found.took_ms).map_or("-", |found| &found.cell);
    format!(
        "{} of {} cells green ({again} of them played again until they landed), {} red, {} not landed; seed {}, {} lanes\n\
         in {} min {} s; a cell {} s in the middle, {} s the slowest ({slowest}), {} s all together",
        of("green"),
        words.cells.len(),
        of("RED"),
        of("NOT LANDED"),
        words.seed,
        words.lanes,
        took.as_secs() / 60,
        took.as_secs() % 60,
        seconds(times.get(times.len() / 2).copied().unwrap_or(0)),
        seconds(times.last().copied().unwrap_or(0)),
        seconds(times.iter().sum()),
    )
}

fn seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1000, ms % 1000 / 100)
}

/// What came of a cell, in one line.
fn result(found: &Found) -> String {
    let mut words = vec![found.result().to_owned()];
    words.extend(found.wrong.iter().cloned());
    words.extend(found.not_landed.clone());
    if !found.green() {
        words.push(format!("the cause was: {}", found.cause.as_deref().unwrap_or("-")));
    }
    if found.plays > 1 {
        words.push(format!("played {} times", found.plays));
    }
    format!("{} ({})", words.join("; "), found.chosen)
}

/// Takes cells until none is open, on a ground of its own. One on which a cell was red is not trusted any more.
fn lane(words: &Words, open: &Mutex<VecDeque<Cell>>, done: &Mutex<Vec<Found>>) -> anyhow::Result<()> {
    let mut ground = None;
    loop {
        let Some(cell) = locked(open).pop_front() else { return Ok(()) };
        let mut on = match ground.take() {
            Some(ground) => ground,
            None => ground_for(words, words.mutation.as_deref())?,
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
        "{:<38} {:>9} {:>9} {:>8} {:>8} {:>6}  {}",
        "CELL", "LANDED ms", "VERDICT", "GAP ms", "HEAL ms", "TOOK s", "RESULT"
    )
}

fn row(found: &Found) -> String {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    format!(
        "{:<38} {:>9} {:>9} {:>8} {:>8} {:>6}  {}",
        found.cell,
        number(found.landed_ms),
        found.verdict.as_deref().unwrap_or("-"),
        number(found.gap_ms),
        number(found.healed_ms),
        seconds(found.took_ms),
        result(found)
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
        assert_eq!(words("kill-leader-vtd/").unwrap().cells.len(), 11);
        assert_eq!(words("/moved --seed 7").unwrap().cells.len(), 16);
        assert_eq!(words("").unwrap().cells.len(), Cell::all().count());
        for wrong in ["moved", "kill-nobody/moved", "--seed", "--seed x"] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
