//! The proof that an image has one writer, over seeds.
//!
//! ```text
//! writers [--pool nfs|gluster|iscsi|shared|separate] [--runs N] [--from SEED] [--reproduce SEED]
//! ```
//!
//! Guests have their disks in a pool of that kind, and the host of one that writes is cut off: in a move, and where one disk is
//! for all, before another guest has it. Behind our own export, `nfs`, writers without guests are played besides, also on hosts
//! that stand still as a whole. Each ends with a control: without what keeps writers apart it has to go red.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use vt_tests::{
    faults::cell::Phase,
    nfs_server::NfsServer,
    seeds::Words,
    writers::{
        Margin, Trouble, fence,
        given::{self, KINDS, by_claim, by_move, ground},
    },
};

/// What became of the seeds of one kind of play.
struct Sum {
    name: &'static str,
    seeds: u64,
    red: u64,
    took: Duration,
    /// Whether the control went red; `None`: there is nothing to be taken out.
    control: Option<bool>,
}

impl Sum {
    /// Plays every seed that is asked for; `play` says whether it was green.
    fn over(
        words: &Words,
        name: &'static str,
        mut play: impl FnMut(u64) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let (mut done, mut red) = (0, 0);
        let seeds = words.reproduce.map_or(words.from..u64::MAX, |seed| seed..seed.saturating_add(1));
        for seed in seeds {
            if !words.go_on(done, begun) {
                break;
            }
            done += 1;
            red += u64::from(!play(seed).with_context(|| format!("{name}, seed {seed}"))?);
        }
        Ok(Self { name, seeds: done, red, took: begun.elapsed(), control: None })
    }

    fn is_good(&self) -> bool {
        self.seeds > 0 && self.red == 0 && self.control != Some(false)
    }

    fn tell(&self) {
        let each = self.took.as_secs_f64() / self.seeds.max(1) as f64;
        let control = match self.control {
            Some(true) => "red without the margin, as it should be",
            Some(false) => "NOT RED without the margin",
            None => "nothing to be taken out",
        };
        println!("{}: {} seeds, {} red, {each:.1} s each; {control}", self.name, self.seeds, self.red);
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let kind = match arguments.iter().position(|word| word == "--pool") {
        Some(at) => {
            arguments.remove(at);
            ensure!(at < arguments.len(), "--pool wants a kind: {}", KINDS.join(", "));
            arguments.remove(at)
        }
        None => "nfs".to_owned(),
    };
    ensure!(KINDS.contains(&kind.as_str()), "--pool {kind}: it is {}", KINDS.join(", "));
    let words = Words::read(arguments.into_iter())?;
    let mut sums = Vec::new();
    match kind.as_str() {
        "nfs" => sums.push(fenced(&words)?),
        "iscsi" => {
            for (name, trouble) in [
                ("iscsi, to another guest, its host cut off", Trouble::CutOff),
                ("iscsi, to another guest, its host cut off from the others alone", Trouble::Unaware),
            ] {
                sums.push(claimed(&words, name, trouble)?);
            }
        }
        _ => {}
    }
    sums.push(moved(&words, &kind)?);
    sums.iter().for_each(Sum::tell);
    Ok(if sums.iter().all(Sum::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Behind our own export.
fn fenced(words: &Words) -> anyhow::Result<Sum> {
    let server = NfsServer::alone();
    let mut sum = Sum::over(words, "nfs, its fence", |seed| {
        let mut green = true;
        for trouble in Trouble::ALL {
            let shown = fence::play(&server, seed, trouble, Margin::Kept)?;
            green &= shown.stale == 0;
            println!(
                "seed {seed}, {trouble:?}: {} blocks by the first, {} by the second, {} overwritten by the first after that",
                shown.first, shown.second, shown.stale
            );
        }
        Ok(green)
    })?;
    let mut seen = true;
    for trouble in Trouble::ALL {
        let control = fence::play(&server, 0, trouble, Margin::TakenOut)?;
        println!("{trouble:?}, without the margin: {} blocks are overwritten", control.stale);
        seen &= control.stale > 0;
    }
    sum.control = Some(seen);
    Ok(sum)
}

/// One disk, which goes from guest to guest.
fn claimed(words: &Words, name: &'static str, trouble: Trouble) -> anyhow::Result<Sum> {
    let on = ground("iscsi", trouble, Margin::Kept)?;
    let mut sum = Sum::over(words, name, |seed| {
        let shown = by_claim(&on, seed, trouble)?;
        println!(
            "seed {seed}, {trouble:?}: {} records by the first, {} by the second {:.1} s after that, {} late, {}",
            shown.records.0,
            shown.records.1,
            shown.after.as_secs_f64(),
            shown.late.len(),
            shown.verdict
        );
        Ok(shown.is_green())
    })?;
    drop(on);
    let control = by_claim(&ground("iscsi", trouble, Margin::TakenOut)?, words.from, trouble);
    println!("{trouble:?}, without the margin: {control:?}");
    // The second guest may have been hurt so that its case ends as no case should.
    sum.control = Some(control.is_ok_and(|shown| !shown.late.is_empty()));
    Ok(sum)
}

/// With its guest.
fn moved(words: &Words, kind: &str) -> anyhow::Result<Sum> {
    let mut on = Some(ground(kind, Trouble::CutOff, Margin::Kept)?);
    let mut sum = Sum::over(words, "in a move", |seed| {
        // One on which something was red is not trusted any more.
        let mut at = match on.take() {
            Some(at) => at,
            None => ground(kind, Trouble::CutOff, Margin::Kept)?,
        };
        let shown = by_move(&mut at, seed, given::phase(seed))?;
        println!(
            "seed {seed}: {} ({}), {}, {} late",
            shown.found.cell,
            shown.found.chosen,
            shown.found.result(),
            shown.late.len()
        );
        for wrong in shown.found.wrong.iter().chain(&shown.found.not_landed) {
            println!("  {wrong}");
        }
        let green = shown.is_green();
        on = green.then_some(at);
        Ok(green)
    })?;
    drop(on);
    // Elsewhere the server, or QEMU's own lock, refuses a second copy.
    if ["gluster", "separate"].contains(&kind) {
        let mut on = ground(kind, Trouble::CutOff, Margin::TakenOut)?;
        let control = by_move(&mut on, words.from, Phase::Moved)?;
        println!(
            "without the margin: {}, {} late: {:?}",
            control.found.result(),
            control.late.len(),
            control.found.wrong
        );
        sum.control = Some(!control.found.wrong.is_empty() || !control.late.is_empty());
    }
    Ok(sum)
}
