//! `migration_matrix`: one guest is moved in every way there is, one after the other, and checked after each.
//!
//! A cell is one way of [`super::ways`]: PASS, FAIL, SKIP where a side lacks something, N/A where a rule excludes it, of
//! ours or of QEMU's in its own words, ERROR for everything else. What a cell found is kept as `checks/cell-N.json`.
//! A guest that is hurt ends the case at once: what it would show in later cells would be of this one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::{Failure, Migrated},
    verdict::{Blame, Cause, Consequence},
    vm::{Backend, How, Intervention, MigrationResult, MigrationSpec, Moment},
};

use super::{
    Scenario,
    checks::Checked,
    downtime::Downtime,
    journey::{ASK, Journey, SLACK, taken},
    settings::{ALIASES, MOVE_PARAMS, Settings, VM_PARAMS, fit},
    transfer,
    ways::{Way, chosen},
};
use crate::party::{Party, failure::caused};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "migration_matrix",
    summary: "moves one busy VM in every way (transports, modes, both together) and tells what each showed",
    about: "Each way is a cell: PASS where the move completed and the guest is whole, SKIP with what a side lacks, N/A with the \
            rule that excludes it (ours, or QEMU's own words), FAIL, ERROR. A way that is to be cancelled passes where the guest \
            went on at its source, whole, and the next move of it went well. What a way sets (transport, capabilities, \
            parameters, moments) replaces what is set for all. PASS: no cell is FAIL or ERROR.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[
            (
                "ways",
                "all",
                "which cells: all, modes (each transport as it is, each mode over tcp), sample, cancels, or names of ways, e.g. \
                 \"tcp tls multifd-zstd\"",
            ),
            (
                "both_ways",
                "no",
                "yes: every cell from the guest's host to the next and again from there, as two hosts with different QEMUs want it",
            ),
            ("migrate_count", "1", "how often every cell is done"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[],
    limits: &[],
    check: |params| Plan::read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// What is to be done.
struct Plan {
    settings: Settings,
    ways: Vec<&'static Way>,
    rounds: u32,
    both_ways: bool,
}

impl Plan {
    fn read(params: &Params) -> Result<Self, ParamError> {
        let mut settings = Settings::read(params)?;
        // A cell shall be short: its transfer is what is looked at.
        if params.get("mem_probe").is_none() {
            settings.probe_pages = 1024;
        }
        if params.get("mem_rewrite").is_none() {
            settings.rewrite_bytes_s = 4 << 20;
        }
        let rounds = fit(params.number("migrate_count", 1..=1000)?.unwrap_or(1));
        let both_ways = params.flag("both_ways")?.unwrap_or(false);
        Ok(Self { settings, ways: chosen(params)?, rounds, both_ways })
    }
}

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Fate {
    #[serde(rename = "PASS")]
    Pass,
    #[serde(rename = "FAIL")]
    Fail,
    #[serde(rename = "SKIP")]
    Skip,
    #[serde(rename = "N/A")]
    Barred,
    #[serde(rename = "ERROR")]
    Error,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
            Self::Barred => "N/A",
            Self::Error => "ERROR",
        })
    }
}

/// Why a cell did not pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trouble {
    fate: Fate,
    report: Report,
}

impl Trouble {
    /// What a move was refused for before it began.
    fn refused(report: Report) -> Self {
        let by_qemu = report.code == ErrorCode::QmpFailed && report.title.starts_with("QEMU refused");
        let fate = match report.code {
            ErrorCode::CannotRunHere => Fate::Skip,
            ErrorCode::BadParameter => Fate::Barred,
            _ if by_qemu => Fate::Barred,
            _ => Fate::Error,
        };
        Self { fate, report }
    }

    /// What a move that had begun failed with.
    fn failed(cause: Cause) -> Self {
        let fate = if cause.blame == Blame::Product { Fate::Fail } else { Fate::Error };
        Self { fate, report: cause.report }
    }

    /// A cell in which nothing was done shows nothing.
    fn never_came(title: String) -> Self {
        Self { fate: Fate::Error, report: Report::new(ErrorCode::MigrationRefused, title) }
    }
}

/// What is known of one move: at every party the same, but for what was found in the guest, which only its host knows.
#[derive(Debug, Default)]
struct Seen {
    cancelled: bool,
    result: Option<MigrationResult>,
    trouble: Option<Trouble>,
    found: Option<Checked>,
    downtime: Downtime,
}

/// What one party tells the others of a move.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Told {
    cancelled: bool,
    result: Option<MigrationResult>,
    trouble: Option<Trouble>,
}

/// What a cell found, as it is kept.
#[derive(Debug, Serialize)]
struct Row<'a> {
    cell: u32,
    way: &'a str,
    typed: String,
    from: &'a Name,
    to: &'a Name,
    backend: Backend,
    source_qemu: Option<&'a str>,
    destination_qemu: Option<&'a str>,
    fate: Fate,
    why: Option<String>,
    evidence: Vec<(String, String)>,
    how: Option<How>,
    total_ms: Option<u64>,
    downtime: Downtime,
    transferred_bytes: Option<u64>,
    bytes_s: Option<u64>,
    found: Option<Checked>,
}

/// The guest on its way, and how the cells ended so far.
struct Walk<'a> {
    journey: Journey<'a>,
    cells: u32,
    first: Option<Trouble>,
    counts: BTreeMap<String, u32>,
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Plan { settings, ways, rounds, both_ways } = taken(party.params(), Plan::read)?;
    let journey = Journey::begin(party, settings).await?;
    let mut walk = Walk { journey, cells: 0, first: None, counts: BTreeMap::new() };
    for _ in 0..rounds {
        for way in &ways {
            walk.cell(way, both_ways).await?;
        }
    }
    let counts: Vec<String> = walk.counts.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
    let said = format!("{} cells: {}", walk.cells, counts.join(", "));
    party.metric("cells_passed", walk.counts.get("PASS").copied().unwrap_or(0));
    if walk.journey.is_here() {
        party.log(said.clone()).await?;
    }
    let remark = walk.journey.end(None).await?;
    match walk.first {
        Some(Trouble { fate, report }) => {
            let blame = if fate == Fate::Fail { Blame::Product } else { Blame::Infrastructure };
            Err(Failure::Caused(Cause { blame, report: report.with("matrix", said) }))
        }
        None => Ok(remark),
    }
}

impl Walk<'_> {
    /// One way, from the guest's host to the next; where both are wanted, from that one as well.
    async fn cell(&mut self, way: &Way, both_ways: bool) -> Result<(), Failure> {
        let (from, to) = (self.journey.here().clone(), self.journey.next().clone());
        let directions = if both_ways { 2 } else { 1 };
        match way.spec(self.journey.party.params()) {
            Ok(spec) => {
                for direction in 0..directions {
                    if direction == 1 && *self.journey.here() == from {
                        let spec = self.journey.settings.spec.clone();
                        self.journey.go("to the other side", &spec).await?;
                    }
                    let (from, to) = (self.journey.here().clone(), self.journey.next().clone());
                    match self.done(&spec).await {
                        Ok(seen) => self.note(way, (&from, &to), seen).await?,
                        Err(failure) => {
                            if let Failure::Caused(cause) = &failure {
                                let trouble = Some(Trouble::failed(cause.clone()));
                                // The case ends with what was found, whether it could be noted or not.
                                let _ = self.note(way, (&from, &to), Seen { trouble, ..Seen::default() }).await;
                            }
                            return Err(failure);
                        }
                    }
                }
            }
            // Every party reads the same table: nothing needs to be told.
            Err(rule) => {
                for (from, to) in [(&from, &to), (&to, &from)].into_iter().take(directions) {
                    let trouble = Trouble::refused(Report::new(ErrorCode::BadParameter, rule.clone()));
                    self.note(way, (from, to), Seen { trouble: Some(trouble), ..Seen::default() }).await?;
                }
            }
        }
        Ok(())
    }

    /// One move; where it is to be cancelled, another one after it.
    async fn done(&mut self, spec: &MigrationSpec) -> Result<Seen, Failure> {
        let seen = self.attempt(spec).await?;
        if !transfer::is_cancelled(spec) || (seen.trouble.is_some() && seen.result.is_none()) {
            return Ok(seen);
        }
        // One that is cancelled so late may have been faster.
        let late = |(moment, what): &(Moment, Intervention)| (*moment, what) == (Moment::Device, &Intervention::Cancel);
        if seen.cancelled {
            let mut again = transfer::undisturbed(spec);
            // What kept it under way until its moment.
            again.parameters.remove("max-bandwidth");
            self.attempt(&again).await
        } else if spec.interventions.iter().any(late) {
            Ok(Seen { trouble: None, ..seen })
        } else {
            let title = "the migration had completed before the moment at which it was to be cancelled";
            Ok(Seen { trouble: Some(Trouble::never_came(title.to_owned())), ..seen })
        }
    }

    /// One move of the guest with everything that is read around it.
    async fn attempt(&mut self, spec: &MigrationSpec) -> Result<Seen, Failure> {
        let (party, vm) = (self.journey.party, self.journey.vm.clone());
        let (from, to) = (self.journey.here().clone(), self.journey.next().clone());
        let (mut refused, mut before) = (None, None);
        if self.journey.is_here() {
            match party.prepare_migration(&vm, &from, &to, spec).await {
                Ok(()) => before = Some(self.journey.reading().await?),
                Err(Failure::Caused(cause)) => refused = Some(Trouble::refused(cause.report)),
                Err(followed) => return Err(followed),
            }
        }
        let ready = party.exchange("ready", &(refused, before), ASK + SLACK).await?;
        let (mut refused, mut before) = (None, None);
        for (_, (no, reading)) in ready {
            refused = refused.or(no);
            before = before.or(reading);
        }
        let Some(before) = before.filter(|_| refused.is_none()) else {
            party.skip_migration(&vm);
            return Ok(Seen { trouble: refused, ..Seen::default() });
        };
        let departure = self.journey.departs(before, spec);
        let migrated = party.migrate(&vm, &from, &to, spec).await;
        let held_ms = migrated.as_ref().ok().and_then(|migrated| migrated.as_ref()?.held_ms).unwrap_or(0.0);
        let mine = told_of(migrated)?;
        let told = party.exchange("moved", &mine, ASK + SLACK).await?;
        let Told { cancelled, result, trouble } = told.into_iter().fold(Told::default(), |all, (_, one)| Told {
            cancelled: all.cancelled || one.cancelled,
            result: all.result.or(one.result),
            trouble: all.trouble.or(one.trouble),
        });
        if let Some(trouble) = trouble.as_ref().filter(|trouble| is_lost(&trouble.report)) {
            // Without a guest there is nothing more to move.
            let gone = || Failure::Followed(Consequence::PeerGone(trouble.report.title.clone()));
            return Err(if party.me() == &from { caused(trouble.report.clone()) } else { gone() });
        }
        if result.is_some() {
            self.journey.moved_on();
        }
        let (found, downtime) = self.journey.inspect(&departure, held_ms, result.as_ref()).await?;
        Ok(Seen { cancelled, result, trouble, found, downtime })
    }

    /// Counts a cell, and has the guest's host keep what it found.
    async fn note(&mut self, way: &Way, (from, to): (&Name, &Name), seen: Seen) -> Result<(), Failure> {
        let Seen { result, trouble, found, downtime, .. } = seen;
        self.cells += 1;
        let fate = trouble.as_ref().map_or(Fate::Pass, |trouble| trouble.fate);
        *self.counts.entry(fate.to_string()).or_default() += 1;
        let row = Row {
            cell: self.cells,
            way: way.name,
            typed: way.typed(),
            from,
            to,
            backend: self.journey.settings.vm.backend,
            source_qemu: self.journey.qemu_of(from),
            destination_qemu: self.journey.qemu_of(to),
            fate,
            why: trouble.as_ref().map(|trouble| trouble.report.title.clone()),
            evidence: trouble.as_ref().map(|trouble| trouble.report.evidence.clone()).unwrap_or_default(),
            how: result.as_ref().map(|result| result.how.clone()),
            total_ms: result.as_ref().map(|result| result.total_ms),
            downtime,
            transferred_bytes: result.as_ref().map(|result| result.ram_transferred_bytes),
            bytes_s: result.as_ref().map(rate),
            found,
        };
        if self.journey.is_here() {
            let party = self.journey.party;
            let step = party.step(way.name).await?;
            let note = format!("{fate}  {row}");
            if let Ok(name) = format!("cell-{:04}", row.cell).parse() {
                party.keep(name, &row).await?;
            }
            step.done(note).await?;
        }
        if matches!(fate, Fate::Fail | Fate::Error) && self.first.is_none() {
            self.first = trouble;
        }
        Ok(())
    }
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.why, self.total_ms) {
            (Some(why), _) => f.write_str(why),
            (None, None) => write!(f, "{}", self.downtime),
            (None, Some(ms)) => {
                write!(f, "{ms} ms · {} · {:.1} MB/s", self.downtime, self.bytes_s.unwrap_or(0) as f64 / 1e6)
            }
        }
    }
}

/// What a party tells of its own call; an error that ends the case for it is passed on.
fn told_of(called: Result<Option<Migrated>, Failure>) -> Result<Told, Failure> {
    Ok(match called {
        Ok(migrated) => {
            let mut migrated = migrated.unwrap_or_default();
            // They are kept beside; what is exchanged is small.
            let missed = migrated.result.as_mut().and_then(|result| {
                result.samples.clear();
                result.missed.first().cloned()
            });
            let trouble = missed.map(|missed| Trouble::never_came(format!("its moment never came: {missed}")));
            Told { cancelled: migrated.cancelled, result: migrated.result, trouble }
        }
        Err(Failure::Caused(cause)) => Told { trouble: Some(Trouble::failed(cause)), ..Told::default() },
        // The other side tells why.
        Err(Failure::Followed(Consequence::PeerGone(_))) => Told::default(),
        Err(followed) => return Err(followed),
    })
}

fn is_lost(report: &Report) -> bool {
    matches!(report.code, ErrorCode::VmLost | ErrorCode::PostcopyLost | ErrorCode::VmFenced)
}

/// Bytes in a second of QEMU's own time.
fn rate(result: &MigrationResult) -> u64 {
    result.ram_transferred_bytes.saturating_mul(1000) / result.total_ms.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_skipped_and_what_a_rule_excludes_does_not_apply() {
        for (code, title, fate) in [
            (ErrorCode::CannotRunHere, "migration capability compress is not known to QEMU of the source", Fate::Skip),
            (ErrorCode::BadParameter, "mapped-ram is a form of a file", Fate::Barred),
            (ErrorCode::QmpFailed, "QEMU refused migrate-set-capabilities: dirty-limit requires KVM", Fate::Barred),
            (ErrorCode::QmpFailed, "the monitor was closed", Fate::Error),
            (ErrorCode::DestinationUnreachable, "host2 stopped answering", Fate::Error),
        ] {
            assert_eq!(Trouble::refused(Report::new(code, title)).fate, fate, "{title}");
        }
    }
}
