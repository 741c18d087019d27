//! One cell, played: a guest is booted and begins to move, the fault comes in its phase, is healed, and everything that was
//! promised is looked at.
//!
//! The guest is booted anew for each cell. A minimal guest is up in a few seconds here, so that a saved state would save
//! little, and would need a way into the daemon that users do not take.
//!
//! A cell whose fault did not fall into its phase has shown nothing. It is played again, [`PLAYS`] times at most, and says so;
//! one that shows something wrong is not.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    cell::{Cell, Fate, Fault, Length, Part, Phase},
    ground::{Cast, Ground},
    job::{Job, TooEarly},
    landing::{ALONE, landed, released_too_early, run_too_early},
    sighting::{Sighting, boots, doubles, longest_gap, steady},
    watch::{PORT, now_us},
};

/// Until a host that was healed knows what was decided without it, µs: two renewals.
const SETTLES_US: u64 = 2_000_000;
/// Exactly one source this long after healing.
const ONE: Duration = Duration::from_secs(15);
/// Until the job has ended, once it was released; that of a post-copy takes every page with it, there and back.
const ENDS: Duration = Duration::from_secs(45);
const POSTCOPY_ENDS: Duration = Duration::from_secs(120);
/// How often a cell is played whose fault does not land.
pub const PLAYS: u32 = 3;
/// How long a phase lasts on with the fault in it.
const LASTS_ON: Duration = Duration::from_millis(300);
/// A session that was not renewed for this long may have had its VM paused or ended by a guard.
const GUARDS: Duration = Duration::from_millis(5500);

/// What became of a cell.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Its name.
    pub cell: String,
    /// The seed that chose what is not in the name.
    pub seed: u64,
    /// What it chose, for people.
    pub chosen: String,
    /// How often it was played.
    pub plays: u32,
    /// When the fault came, ms after the job was submitted.
    pub landed_ms: Option<u64>,
    /// The verdict of the case.
    pub verdict: Option<String>,
    /// Why it is that one, as the user is told.
    pub cause: Option<String>,
    /// The longest silence of the guest since the fault, ms.
    pub gap_ms: Option<u64>,
    /// From the end of the fault until there was exactly one source for good, ms.
    pub healed_ms: Option<u64>,
    /// How long the whole cell took, all plays, ms.
    pub took_ms: u64,
    /// Why the fault is not known to have fallen into its phase, if it is not.
    pub not_landed: Option<String>,
    /// What is wrong.
    pub wrong: Vec<String>,
}

impl Found {
    /// Whether everything was as promised.
    pub fn green(&self) -> bool {
        self.wrong.is_empty() && self.not_landed.is_none()
    }

    /// In a word: what came of it.
    pub fn result(&self) -> &'static str {
        match (self.wrong.is_empty(), &self.not_landed) {
            (false, _) => "RED",
            (true, Some(_)) => "NOT LANDED",
            (true, None) => "green",
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Which places of which hosts are held so that the migration stays in a phase.
fn holds(cell: Cell, seed: u64) -> &'static [(Part, &'static str)] {
    use Part::{Destination, Source};
    match (cell.phase, cell.first_vote(seed)) {
        (Phase::Barrier, _) => &[(Destination, "barrier-before")],
        (Phase::Prepared, _) => &[(Source, "source-sends")],
        (Phase::Transferring | Phase::PostcopyActive, _) => &[],
        (Phase::SourceStopped, _) => &[(Source, "source-votes"), (Destination, "destination-votes")],
        (Phase::VotedByOne, Source) => &[(Destination, "destination-votes")],
        (Phase::VotedByOne, _) => &[(Source, "source-votes")],
        (Phase::VotedByBoth, _) => &[(Source, "source-lets-go"), (Destination, "destination-runs")],
        (Phase::Moved, _) => &[(Destination, "destination-runs")],
        (Phase::Resumed, _) => &[(Destination, "destination-tells")],
        (Phase::Verifying, _) => &[(Destination, "step-check")],
        (Phase::PostcopyPaused, _) => &[(Source, "source-recovers")],
    }
}

/// Plays a cell on a ground until its fault has landed or something is wrong.
pub fn play(ground: &mut Ground, cell: Cell, seed: u64) -> Found {
    play_and_tell(ground, cell, seed, &mut |_| {})
}

/// The same; `tell` hears of the job as soon as it was submitted.
pub fn play_and_tell(ground: &mut Ground, cell: Cell, seed: u64, tell: &mut dyn FnMut(&Job)) -> Found {
    let begun = Instant::now();
    let mut plays = 1;
    loop {
        let found = play_once(ground, cell, seed, tell);
        match &found.not_landed {
            Some(why) if found.wrong.is_empty() && plays < PLAYS => eprintln!("{cell}: played again: {why}"),
            _ => return Found { plays, took_ms: millis(begun.elapsed()), ..found },
        }
        plays += 1;
    }
}

/// Plays a cell on a ground, to the end.
fn play_once(ground: &mut Ground, cell: Cell, seed: u64, tell: &mut dyn FnMut(&Job)) -> Found {
    let begun = Instant::now();
    let mut found = Found {
        cell: cell.to_string(),
        seed,
        chosen: String::new(),
        plays: 1,
        landed_ms: None,
        verdict: None,
        cause: None,
        gap_ms: None,
        healed_ms: None,
        took_ms: 0,
        not_landed: None,
        wrong: Vec::new(),
    };
    if let Err(error) = played(ground, cell, seed, tell, &mut found) {
        found.wrong.push(format!("{error:#}"));
    }
    found.took_ms = millis(begun.elapsed());
    found
}

fn played(
    ground: &mut Ground,
    cell: Cell,
    seed: u64,
    tell: &mut dyn FnMut(&Job),
    found: &mut Found,
) -> anyhow::Result<()> {
    if matches!(cell.fault, Fault::FillDisk(_)) {
        ground.make_small()?;
    }
    let before = ground.inventory();
    let cast = Cast::new(&ground.leader()?, cell.leads(seed));
    let lasts = cell.lasts(seed);
    found.chosen = format!(
        "{}→{}, {} leads, {} {:.1} s",
        cast.source,
        cast.destination,
        cast.leader,
        cell.length(seed),
        lasts.as_secs_f64()
    );
    if cell.phase == Phase::VotedByOne {
        found.chosen += &format!(", {} votes first", cell.first_vote(seed));
    }
    ground.watcher.forget();
    for (part, place) in holds(cell, seed) {
        ground.hold(cast.host(*part), place)?;
    }
    let submitted_us = now_us();
    let job = submit(ground, cell, seed, &cast)?;
    tell(&job);

    let ends_session = cell.ends_session(seed).map(|part| cast.host(part));
    let session = ends_session.map(|host| ground.session(host));
    let come = come(ground, cell, seed, &cast, &job);
    let from = now_us();
    // What could not be broken is healed all the same, and the job ended.
    let made = come.and_then(|()| ground.make(cell.fault, &cast));
    let to = now_us();
    found.landed_ms = made.is_ok().then_some((to - submitted_us) / 1000);
    let reached = made.is_ok();
    match made {
        Ok(()) => {}
        // What the migration was held before has happened all the same.
        Err(error) if error.is::<TooEarly>() && !holds(cell, seed).is_empty() => found.wrong.push(format!("{error:#}")),
        Err(error) => found.not_landed = Some(format!("{error:#}")),
    }
    // What a host can notice of the fault while the phase lasts, it may.
    std::thread::sleep(LASTS_ON);
    ground.let_go()?;
    if reached {
        std::thread::sleep(lasts);
        ground.heal(cell.fault, &cast)?;
    }
    let healed_us = now_us();
    ground.lab().wait_for_live(super::ground::HOSTS as usize);
    let settled_us = now_us() + SETTLES_US;
    if let (Some(host), Some(before), true) = (ends_session, session, reached) {
        let now = ground.session(host);
        // A new leader waits before it ends anybody's session.
        if now == before && ground.leader()? == cast.leader {
            found.wrong.push(format!("the session of {host} came back under its epoch {now} after it had ended"));
        }
    }
    // On a busy machine a short fault may last longer than a guard waits.
    let guards = cell.length(seed) == Length::Short && Duration::from_micros(now_us() - from) > GUARDS + lasts;

    if reached && (cell.fate(seed) == Fate::Lives || guards) {
        let one = ground.wait("exactly one source", ONE, || {
            // A host that was away learns only now what became of its session, and gives its copy up where it is over.
            let seen = ground.watcher.since(submitted_us);
            let first = seen.iter().position(|sighting| sighting.at_us >= settled_us);
            let after = first.map_or(&[][..], |first| &seen[first..]);
            steady(after, now_us()).and_then(|_| steady(&seen, now_us())).ok_or_else(|| "none, or two".to_owned())
        });
        match one {
            Ok((_, since)) => found.healed_ms = Some(since.saturating_sub(healed_us) / 1000),
            Err(_) if guards => found.chosen += ", ended by its guard",
            Err(error) => found.wrong.push(format!("{error:#}")),
        }
    }
    let ends = if cell.phase.is_postcopy() { POSTCOPY_ENDS } else { ENDS };
    match job.released(ground, ends) {
        Ok(shown) => {
            let case = &shown["cases"][0];
            let verdict = case["verdict"].as_str().unwrap_or("none").to_owned();
            found.cause = case["cause"]["title"].as_str().map(str::to_owned);
            if reached {
                found.wrong.extend(wrong_verdict(cell, seed, &verdict, found.healed_ms.is_some()));
                found.wrong.extend(wrong_loss(cell, seed, found.cause.as_deref(), &verdict));
            }
            found.verdict = Some(verdict);
        }
        Err(error) => found.wrong.push(format!("{error:#}")),
    }
    found.wrong.extend(ground.is_as_before(&before).err().map(|error| format!("{error:#}")));

    let seen = ground.watcher.since(submitted_us);
    if reached {
        let first = cell.first_vote(seed);
        if let Err(why) = landed(cell.phase, first, &ground.marks(&cast, &job.attempt), (from / 1000, to / 1000)) {
            found.not_landed = Some(why);
        }
        found.gap_ms = Some(longest_gap(&seen, from) / 1000);
    }
    found.wrong.extend(run_too_early(&ground.marks(&cast, &job.attempt), cell.mute()));
    for host in [&cast.source, &cast.destination] {
        found.wrong.extend(released_too_early(&ground.events(host, &job.attempt)));
    }
    found.wrong.extend(wrong_guest(&seen, from));
    Ok(())
}

/// What is wrong with what was seen of a guest, however it ended. `from`: when the trouble began.
pub(super) fn wrong_guest(seen: &[Sighting], from: u64) -> Vec<String> {
    let double = doubles(seen).into_iter().next().map(|double| {
        format!(
            "two copies: host{} sent {} {} ms after the fault, when host{} had sent {}",
            double.host,
            double.sequence,
            double.at_us.saturating_sub(from) / 1000,
            double.before.1,
            double.before.0
        )
    });
    let again = (boots(seen) > 1).then(|| "the guest was booted twice".to_owned());
    double.into_iter().chain(again).collect()
}

/// How fast the guest goes over: some 90 MB, slow enough that a fault finds them on their way, and no slower.
fn pace(cell: Cell, seed: u64) -> Vec<String> {
    // Pages are missing for as long as the fault lasts.
    let missing: u64 = if cell.length(seed) == Length::Long { 4 << 20 } else { 12 << 20 };
    let postcopy = format!("at=active max-postcopy-bandwidth={missing}; pass:1 postcopy");
    match cell.phase {
        Phase::Transferring => vec!["mig_speed=16M".to_owned()],
        Phase::PostcopyActive => vec!["mig_speed=16M".to_owned(), postcopy],
        Phase::PostcopyPaused => vec!["mig_speed=16M".to_owned(), format!("{postcopy}; postcopy-active break")],
        _ => vec!["mig_speed=1G".to_owned()],
    }
}

/// Submits the case that is broken.
fn submit(ground: &Ground, cell: Cell, seed: u64, cast: &Cast) -> anyhow::Result<Job> {
    // A source whose time is over after its vote has to wait all the same.
    let timeout = if cell.phase == Phase::VotedByOne { "mig_timeout=5" } else { "mig_timeout=300" };
    // A guest that is held stands still for as long as the test wants.
    let still = ["clock_tolerance=120000", "max_standstill=120000"];
    // So few records that a second writer of them is seen from outside.
    let params = ["mem_probe=1M", "mem_rewrite=256K", "disk_probe=32K", timeout].into_iter().chain(still);
    let (pace, pool, beacon) = (pace(cell, seed), ground.pool_param(), format!("beacon={PORT}"));
    let params = params.chain(pace.iter().chain(&pool).chain([&beacon]).map(String::as_str));
    let words: Vec<&str> = std::iter::once("--keep").chain(params.flat_map(|param| ["-p", param])).collect();
    Job::submit(ground, cast, &words)
}

/// Waits until the migration has come to the phase and is held there.
fn come(ground: &Ground, cell: Cell, seed: u64, cast: &Cast, job: &Job) -> anyhow::Result<()> {
    job.comes_to(ground, cast, (cell.phase, cell.first_vote(seed)), || {
        let held = holds(cell, seed).iter().find(|(part, place)| !ground.is_held(cast.host(*part), place));
        held.map_or(Ok(()), |(part, place)| Err(format!("the {part} has not come to {place}")))
    })?;
    match cell.phase {
        Phase::Transferring | Phase::PostcopyActive => std::thread::sleep(cell.into_transfer(seed)),
        // One vote decides nothing, however long the other is awaited.
        Phase::VotedByOne => std::thread::sleep(ALONE),
        _ => {}
    }
    Ok(())
}

/// What is wrong with a verdict. PASS says that the guest is unhurt and everything was checked: never where a party or the
/// guest was lost. FAIL blames the product: never for what the lab did, but a QEMU that ends looks alike whoever ended it.
fn wrong_verdict(cell: Cell, seed: u64, verdict: &str, lives: bool) -> Option<String> {
    let wanted: &[&str] = match cell.fault {
        Fault::KillParty(_) => &["error"],
        Fault::KillQemu(_) if cell.fate(seed) == Fate::Ends => &["fail"],
        // The side that was killed had nothing left to do, or the guest went on where it was and the move failed.
        Fault::KillQemu(_) => &["pass", "fail", "error"],
        _ if cell.fate(seed) == Fate::Either => &["pass", "warn", "error"],
        _ if cell.fate(seed) == Fate::Ends || !lives => &["error"],
        _ => &["pass", "warn", "error"],
    };
    (!wanted.contains(&verdict)).then(|| format!("the verdict is {verdict}, and should be {}", wanted.join(" or ")))
}

/// LOST is said where a side of a post-copy ended while pages were missing, with the side, and nowhere else. A side that its
/// guard ended is lost as well, if its host is heard again in time to say so.
fn wrong_loss(cell: Cell, seed: u64, cause: Option<&str>, verdict: &str) -> Option<String> {
    let cause = cause.unwrap_or("none");
    match cell.loses() {
        Some(side) => {
            let wanted = format!("LOST: the {side} QEMU ended");
            (!cause.starts_with(&wanted)).then(|| format!("the cause is {cause:?}, and should say {wanted:?}"))
        }
        None => {
            let guarded = cell.phase.is_postcopy() && cell.fate(seed) != Fate::Lives && verdict == "error";
            (cause.starts_with("LOST") && !guarded).then(|| format!("said to be lost, and is not: {cause:?}"))
        }
    }
}
