//! A round: while the memory of a guest is on its way the daemon of one side is stopped, as systemd stops it, and started
//! again, as the same build or as the next one. Nobody may notice but who looks at the daemon: the transfer goes on, the case
//! passes with the ssh session that its source's daemon began, and the guest stands still once, when it changes hosts.
//!
//! As in a cell of the table, whether all of the restart fell into the transfer is read from what the hosts wrote down, and
//! a round where it did not is played again.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;

use super::{
    cell::{Part, Phase},
    ground::{Cast, Ground},
    job::Job,
    landing::{Mark, landed, released_too_early, run_too_early},
    play::{PLAYS, millis, wrong_guest},
    sighting::{longest_gap, steady, stops},
    watch::now_us,
};

/// Slow enough that stopping and starting a debug build on busy cores fits in: some 90 MB are sent.
const PACE: &str = "mig_speed=8M";
/// So much is on its way before the daemon is stopped, bytes: half a second of it.
const INTO: u64 = 4 << 20;
/// Until the guest runs at its destination for good, and until the job has ended then.
const MOVES: Duration = Duration::from_secs(120);
const ENDS: Duration = Duration::from_secs(60);
/// A stop: so much of its time a guest loses for good, µs. A guest that is paused loses all of it; one that is only late,
/// however long, loses none.
const STOP_US: u64 = 50_000;

/// What is done in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Counts from 1.
    pub number: u64,
    /// Whose daemon is restarted.
    pub side: Part,
    /// Which part the leader plays beside.
    pub leads: Part,
    /// The program that it is started again as, if it is another one.
    pub next: Option<PathBuf>,
}

impl Round {
    /// The rounds: the sides in turn, and two after two an upgrade where there is a next build. Within six rounds of a kind
    /// the leader has been either side and none.
    pub fn all(times: u64, next: Option<&Path>) -> impl Iterator<Item = Self> {
        (0..times).map(move |index| Self {
            number: index + 1,
            side: if index % 2 == 0 { Part::Source } else { Part::Destination },
            leads: [Part::Source, Part::Leader, Part::Destination][(index % 3) as usize],
            next: next.filter(|_| index / 2 % 2 == 1).map(Path::to_owned),
        })
    }

    /// The ground that it needs. One on which a daemon was upgraded is of no use for another.
    ///
    /// # Errors
    /// It cannot be made.
    ///
    /// # Panics
    /// The lab cannot be made.
    pub fn ground(&self) -> anyhow::Result<Ground> {
        if self.next.is_some() { Ground::to_upgrade() } else { Ground::new(None, None) }
    }
}

/// What became of a round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Restarted {
    /// Its number.
    pub round: u64,
    /// `restart` or `upgrade`.
    pub what: &'static str,
    /// Whose daemon.
    pub side: String,
    /// The hosts, for people.
    pub hosts: String,
    /// How often it was played.
    pub plays: u32,
    /// From SIGTERM until the daemon answered again, ms.
    pub away_ms: Option<u64>,
    /// How much of the transfer was left then, ms.
    pub left_ms: Option<u64>,
    /// How long the guest stood still when it changed hosts, ms; none where that was no stop, for it was too short.
    pub stood_ms: Option<u64>,
    /// How often it stood still besides.
    pub more_stops: usize,
    /// The longest silence of its beacon since SIGTERM, ms: the switch-over, or a guest that was late on busy cores.
    pub silence_ms: Option<u64>,
    /// The verdict of the case.
    pub verdict: Option<String>,
    /// How long the round took, all plays, ms.
    pub took_ms: u64,
    /// Why the restart is not known to have fallen into the transfer, if it is not.
    pub not_landed: Option<String>,
    /// What is wrong.
    pub wrong: Vec<String>,
}

impl Restarted {
    /// Whether everything was as promised.
    pub fn green(&self) -> bool {
        self.wrong.is_empty() && self.not_landed.is_none()
    }
}

/// Plays a round on its ground until the restart has fallen into the transfer or something is wrong.
pub fn play(ground: &mut Ground, round: &Round) -> Restarted {
    let begun = Instant::now();
    let mut plays = 1;
    loop {
        let mut found = Restarted {
            round: round.number,
            what: if round.next.is_some() { "upgrade" } else { "restart" },
            side: round.side.to_string(),
            plays,
            ..Restarted::default()
        };
        if let Err(error) = played(ground, round, &mut found) {
            found.wrong.push(format!("{error:#}"));
        }
        found.took_ms = millis(begun.elapsed());
        // After an upgrade there is nothing to be upgraded any more.
        let again = round.next.is_none() && found.wrong.is_empty() && plays < PLAYS;
        match &found.not_landed {
            Some(why) if again => eprintln!("round {}: played again: {why}", round.number),
            _ => return found,
        }
        plays += 1;
    }
}

fn played(ground: &mut Ground, round: &Round, found: &mut Restarted) -> anyhow::Result<()> {
    let before = ground.inventory();
    let cast = Cast::new(&ground.leader()?, round.leads);
    found.hosts = format!("{}→{}, {} leads", cast.source, cast.destination, cast.leader);
    ground.watcher.forget();
    let submitted_us = now_us();
    let params = ["mem_probe=1M", "mem_rewrite=256K", "shell_client=ssh", PACE];
    let words = [&["--keep"][..], &params.map(|param| ["-p", param]).concat()].concat();
    let job = Job::submit(ground, &cast, &words)?;
    job.comes_to(ground, &cast, (Phase::Transferring, Part::Source), || {
        let events = ground.events(&cast.source, &job.attempt);
        let sent = |event: &Value| event["what"]["progress"]["sample"]["ram_transferred_bytes"].as_u64();
        let most = events.iter().filter_map(sent).max().unwrap_or_default();
        if most >= INTO { Ok(()) } else { Err(format!("{most} bytes are sent")) }
    })?;

    let from = now_us();
    if let Some(next) = &round.next {
        ground.install(next)?;
    }
    found.away_ms = Some(millis(ground.restart(cast.host(round.side))?));
    let to = now_us();

    let moved = ground.wait("the guest to run at its destination", MOVES, || {
        let seen = ground.watcher.since(submitted_us);
        let one = steady(&seen, now_us()).map(|(host, _)| format!("host{host}"));
        if one.as_ref() == Some(&cast.destination) { Ok(()) } else { Err(format!("{one:?}")) }
    });
    found.wrong.extend(moved.err().map(|error| format!("{error:#}")));
    let passed = ground.wait("the party to have checked its guest", ENDS, || {
        ground.has_ended(&cast, &job.attempt).ok_or_else(|| "it has not ended".to_owned())
    });
    found.wrong.extend(passed.err().map(|error| format!("{error:#}")));
    // From here on the guest is ended.
    let until = now_us();
    match job.released(ground, ENDS) {
        Ok(shown) => {
            let case = &shown["cases"][0];
            let verdict = case["verdict"].as_str().unwrap_or("none").to_owned();
            if verdict != "pass" {
                let cause = case["cause"]["title"].as_str().unwrap_or("-");
                found.wrong.push(format!("the verdict is {verdict}: {cause}"));
            }
            found.verdict = Some(verdict);
        }
        Err(error) => found.wrong.push(format!("{error:#}")),
    }
    found.wrong.extend(ground.is_as_before(&before).err().map(|error| format!("{error:#}")));

    let marks = ground.marks(&cast, &job.attempt);
    found.not_landed = landed(Phase::Transferring, Part::Source, &marks, (from / 1000, to / 1000)).err();
    found.left_ms = marks.get(&Mark::Completed).map(|at| at.saturating_sub(to / 1000));
    found.wrong.extend(run_too_early(&marks, None));
    for host in [&cast.source, &cast.destination] {
        found.wrong.extend(released_too_early(&ground.events(host, &job.attempt)));
    }
    let seen = ground.watcher.since(submitted_us);
    found.wrong.extend(wrong_guest(&seen, from));
    found.silence_ms = Some(longest_gap(&seen, from) / 1000);
    // The job moves it there and back: it stands still once for either.
    let number = |host: &str| host.trim_start_matches("host").parse().unwrap_or(0);
    let (there, back) = (number(&cast.source), number(&cast.destination));
    let mut expected = vec![(there, back), (back, there)];
    for stop in stops(&seen, STOP_US).into_iter().filter(|stop| stop.at_us < until) {
        match expected.iter().position(|hosts| *hosts == stop.hosts) {
            Some(place) => {
                if expected.remove(place) == (there, back) {
                    found.stood_ms = Some(stop.stood_us / 1000);
                }
            }
            None => {
                let (stood, after) = (stop.stood_us / 1000, stop.at_us.saturating_sub(from) / 1000);
                found
                    .wrong
                    .push(format!("it stood still {stood} ms more on host{}, {after} ms after SIGTERM", stop.hosts.0));
                found.more_stops += 1;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sides_take_turns_and_the_leader_is_anywhere_with_and_without_an_upgrade() {
        let kinds = |rounds: &[Round]| -> BTreeSet<(Part, Part, bool)> {
            rounds.iter().map(|round| (round.side, round.leads, round.next.is_some())).collect()
        };
        let same: Vec<Round> = Round::all(6, None).collect();
        assert_eq!(kinds(&same).len(), 6, "{same:?}");
        let both: Vec<Round> = Round::all(12, Some(Path::new("/next/vtd"))).collect();
        assert_eq!(kinds(&both).len(), 12, "{both:?}");
        assert!(both.iter().zip(&same).all(|(one, other)| (one.number, one.side) == (other.number, other.side)));
    }
}
