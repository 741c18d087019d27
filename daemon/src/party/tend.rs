//! The life of one party on this host, from what committed state wants to what it is told at the end.
//!
//! ```text
//! record ──▶ process ──▶ watched ──▶ stopped ──▶ VMs given back ──▶ inventory ──▶ PartyEnded ──▶ record gone
//! ```
//!
//! Each stage can be entered again: a daemon that starts finds the record and goes on with what is alive. The end is
//! told only after everything was given back, so that the next attempt finds this host as this one found it.

use std::{collections::BTreeMap, fs, io, os::unix::fs::OpenOptionsExt, sync::Arc, time::Duration};

use rand::Rng;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Name},
    job::{Happening, PlannedCase},
    party::{Failure, Finish},
    verdict::{Blame, Cause, Consequence, Outcome},
};
use vt_sync::{State, command::PartyEnded, state::Attempt};

use super::{
    attempt::{DECIDES, LocalAttempt},
    giveback,
    places::secret_file,
    record::PartyRecord,
    supervisor::Supervisor,
};
use crate::{
    cluster::ProposeError,
    evidence::{
        EventLog, bound,
        files::{part_of, tail},
        unix_ms,
    },
    qemu::process::{Exit, Launch, Process},
};

/// File of a party's stdout and stderr, in the evidence.
pub const STDERR_FILE: &str = "party-stderr.log";
/// What a party gets between SIGTERM and SIGKILL.
const TERM: Duration = Duration::from_secs(2);
/// How long a party that has finished may take to exit.
const EXITS: Duration = Duration::from_secs(3);
/// A pause before something is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How much of a party's last words is quoted, bytes.
const QUOTE: u64 = 1200;

/// Why a party is not waited for any longer.
enum End {
    /// Its process ended.
    Exited(Exit),
    /// It told its outcome.
    Finished,
    /// The attempt is over for this host, or a user cancelled it.
    Over,
    /// The case has taken as long as it may.
    TooLong,
    /// The daemon stops; the party goes on.
    DaemonStops,
}

/// Tends one party until it is gone.
pub(super) async fn tend(
    supervisor: &Arc<Supervisor>,
    id: AttemptId,
    record: Option<PartyRecord>,
    give_up: CancellationToken,
) {
    let state = supervisor.cluster.state();
    let record = match record {
        Some(record) => record,
        None => {
            let Some(attempt) = state.attempts.get(&id).filter(|attempt| attempt.runs_on(supervisor.cluster.me()))
            else {
                return;
            };
            match new_record(supervisor, &state, attempt).await {
                Ok(record) => record,
                Err(report) => return refuse(supervisor, attempt, report).await,
            }
        }
    };
    let evidence = match supervisor.store.open(id) {
        Ok(evidence) => evidence,
        Err(error) => {
            let report = Report::new(ErrorCode::StorageFailed, "evidence of the attempt cannot be kept");
            if let Some(attempt) = state.attempts.get(&id) {
                refuse(supervisor, attempt, report.caused_by(&error)).await;
            }
            return;
        }
    };
    let found = record.process.clone();
    let attempt = LocalAttempt::new(
        record,
        evidence,
        supervisor.places.clone(),
        supervisor.cluster.clone(),
        supervisor.features.clone(),
        supervisor.renewals(),
    );
    let _logs = AbortOnDropHandle::new(tokio::spawn(bound::keep(attempt.evidence.dir().to_owned())));
    if found.is_some() {
        giveback::take_up(&attempt).await;
    }
    let process = match found {
        Some(process) => Process::attach(&process).unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "a party's process cannot be watched");
            None
        }),
        None => None,
    };
    supervisor.hold(&attempt);
    let outcome = live(supervisor, &attempt, process, &give_up).await;
    let Some(outcome) = outcome else { return };
    end(supervisor, &attempt, outcome).await;
}

/// Watches over the process to its end. `None`: the daemon stops.
async fn live(
    supervisor: &Supervisor,
    attempt: &Arc<LocalAttempt>,
    process: Option<Process>,
    give_up: &CancellationToken,
) -> Option<Outcome> {
    let begun = attempt.record().process.is_some();
    let process = match process {
        Some(process) => Some(process),
        None if begun || attempt.record().finish.is_some() => None,
        None => {
            // A daemon that ended between start and record has left a party that nobody knows of.
            giveback::end_strays(attempt).await;
            describe(attempt);
            let brought = tokio::select! {
                biased;
                () = supervisor.stop.cancelled() => return None,
                () = give_up.cancelled() => Err(Failure::Followed(Consequence::Closed)),
                () = sleep_until(attempt.until) => return Some(outcome(attempt, &End::TooLong)),
                brought = attempt.bring_images() => brought,
            };
            match brought {
                Ok(()) => {}
                Err(Failure::Caused(cause)) => return Some(Outcome::Caused(cause)),
                Err(Failure::Followed(consequence)) => return Some(Outcome::Followed(consequence)),
            }
            match start(attempt) {
                Ok(process) => Some(process),
                Err(error) => {
                    let report = Report::new(ErrorCode::PartyCrashed, "the party's process could not be started")
                        .with("program", attempt.places.party.join(" "))
                        .caused_by(&error);
                    return Some(Outcome::Caused(Cause { blame: Blame::Infrastructure, report }));
                }
            }
        }
    };
    let ended = match &process {
        Some(process) => wait(supervisor, attempt, process, give_up).await,
        None => End::Exited(Exit::Unknown),
    };
    if let (End::Finished, Some(process)) = (&ended, &process) {
        // It exits by itself; what does not is stopped below.
        let _ = timeout(EXITS, process.ended()).await;
    }
    let kept = if attempt.record().keep && matches!(ended, End::Finished | End::Exited(_)) {
        keep(supervisor, attempt, &ended, give_up).await
    } else {
        None
    };
    if matches!(kept.as_ref().unwrap_or(&ended), End::DaemonStops) {
        return None;
    }
    // Steps are closed with the party: where it was is asked for first.
    let outcome = outcome(attempt, &ended);
    attempt.closing.cancel();
    if let Some(process) = process {
        stop(attempt, &process).await;
    }
    Some(outcome)
}

async fn wait(
    supervisor: &Supervisor,
    attempt: &Arc<LocalAttempt>,
    process: &Process,
    give_up: &CancellationToken,
) -> End {
    let mut states = attempt.cluster.watch();
    states.mark_changed();
    let mut finish = attempt.finish.subscribe();
    let seen = attempt.record().seen;
    loop {
        tokio::select! {
            biased;
            () = supervisor.stop.cancelled() => return End::DaemonStops,
            finished = finish.wait_for(Option::is_some) => {
                drop(finished);
                return End::Finished;
            }
            exit = process.ended() => return End::Exited(exit),
            () = give_up.cancelled() => return End::Over,
            () = sleep_until(attempt.until) => return End::TooLong,
            changed = states.changed() => {
                if changed.is_err() {
                    return End::DaemonStops;
                }
                let state = states.borrow_and_update().clone();
                // After a restart the log is applied again: until it is where it was, it says nothing about an end.
                let cancelled = state.attempts.get(&attempt.id).is_some_and(|attempt| attempt.cancelled);
                if state.index >= seen && (cancelled || attempt.open_in(&state).is_err()) {
                    return End::Over;
                }
            }
        }
    }
}

/// Leaves everything as it is until the job is released: VMs, guards, and migrations that are under way. `None`: it was;
/// else what ended the wait before.
async fn keep(
    supervisor: &Supervisor,
    attempt: &Arc<LocalAttempt>,
    ended: &End,
    give_up: &CancellationToken,
) -> Option<End> {
    let job = attempt.id.case.job;
    let how = match outcome(attempt, ended) {
        Outcome::Passed { .. } => "passed".to_owned(),
        Outcome::Caused(cause) => cause.report.title,
        Outcome::Followed(consequence) => format!("{consequence:?}"),
    };
    attempt
        .evidence
        .events
        .say(format!("the party has ended ({how}) and keeps what it holds: vtctl job release {job}"));
    let mut states = attempt.cluster.watch();
    let seen = attempt.record().seen;
    // Without a job on record there is nobody who could release it.
    let released = states.wait_for(|state| {
        let wanted = state.jobs.get(&job).is_some_and(|job| !job.released);
        let runs = state.attempts.get(&attempt.id).is_some_and(|attempt| !attempt.cancelled);
        state.index >= seen && !(wanted && runs && attempt.open_in(state).is_ok())
    });
    tokio::select! {
        biased;
        () = supervisor.stop.cancelled() => Some(End::DaemonStops),
        released = released => released.is_err().then_some(End::DaemonStops),
        () = give_up.cancelled() => Some(End::Over),
        () = sleep_until(attempt.until) => Some(End::TooLong),
    }
}

fn outcome(attempt: &LocalAttempt, ended: &End) -> Outcome {
    if let Some(Finish { outcome, .. }) = attempt.record().finish {
        return outcome;
    }
    let caused = |blame, report| Outcome::Caused(Cause { blame, report });
    let steps = attempt.open_steps();
    let at = if steps.is_empty() { "no step".to_owned() } else { steps.join(", ") };
    match ended {
        End::Over | End::Finished | End::DaemonStops => Outcome::Followed(Consequence::Closed),
        End::TooLong => {
            let seconds = attempt.record().timeout_ms / 1000;
            let title = format!("the case did not end within {seconds} s");
            caused(Blame::Deadline, Report::new(ErrorCode::CaseTimeout, title).with("step under way", at))
        }
        End::Exited(exit) => {
            let words = tail(&attempt.evidence.dir().join(STDERR_FILE), QUOTE);
            let words: String = words.chars().filter(|c| !c.is_control() || *c == '\n').collect();
            let name = attempt.name_of(attempt.me());
            let report = Report::new(ErrorCode::PartyCrashed, format!("the party of {name} ended without a result"))
                .with("exit", exit.to_string())
                .with("step under way", at)
                .with("last words", if words.trim().is_empty() { "(nothing)" } else { words.trim() });
            caused(Blame::Infrastructure, report)
        }
    }
}

/// Gives back what the party held and tells its end.
async fn end(supervisor: &Supervisor, attempt: &Arc<LocalAttempt>, mut outcome: Outcome) {
    let left = giveback::give_back(attempt).await;
    supervisor.gone(attempt.id);
    if !left.is_empty() {
        for thing in &left {
            attempt.evidence.events.warn(format!("left behind: {thing}"));
        }
        if matches!(outcome, Outcome::Passed { .. }) {
            let title = format!("{} thing(s) were left on {}", left.len(), attempt.name_of(attempt.me()));
            let report = Report::new(ErrorCode::Leftover, title);
            let report = left.iter().take(8).fold(report, |report, thing| report.with("left", thing));
            outcome = Outcome::Caused(Cause { blame: Blame::Infrastructure, report });
        }
    }
    let told = match &outcome {
        Outcome::Passed { remark: None } => "passed".to_owned(),
        Outcome::Passed { remark: Some(remark) } => format!("passed: {remark}"),
        Outcome::Caused(cause) => cause.report.to_string(),
        Outcome::Followed(consequence) => format!("ended by what happened elsewhere: {consequence:?}"),
    };
    attempt.evidence.events.note(Happening::PartyEnded { outcome: told });
    let metrics: BTreeMap<String, u64> = attempt
        .record()
        .finish
        .map(|finish| finish.metrics)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_u64()?)))
        .chain([("elapsed_ms".to_owned(), unix_ms().saturating_sub(attempt.record().begun_unix_ms))])
        .collect();
    attempt.evidence.json("outcome.json", &serde_json::json!({ "outcome": outcome, "metrics": metrics }));
    let command = PartyEnded { attempt: attempt.id, epoch: attempt.epoch, host: attempt.me(), outcome, metrics };
    tell(supervisor, attempt.id, command).await;
    let places = &attempt.places;
    let record = places.record(attempt.id);
    // A daemon that was killed while it wrote leaves the part.
    for path in [part_of(&record), record, secret_file(&places.socket(), attempt.id)] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a party's file is left behind");
        }
    }
}

/// Proposes the end until the log has it or does not want it any more.
async fn tell(supervisor: &Supervisor, id: AttemptId, command: PartyEnded) {
    let me = supervisor.cluster.me();
    let request = vt_protocol::ids::RequestId::derived(&[
        b"party ended",
        id.to_string().as_bytes(),
        &command.epoch.0.to_le_bytes(),
        &me.0.to_le_bytes(),
    ]);
    loop {
        let state = supervisor.cluster.state();
        let wanted = state.attempts.get(&id).is_some_and(|a| a.epoch == command.epoch && a.runs_on(me));
        // A state that has not seen the attempt yet cannot say that it is over: the proposal finds out.
        if !wanted && state.index >= command.epoch.0 {
            return;
        }
        let proposed = supervisor.cluster.propose(request, command.clone().into(), DECIDES);
        let proposed = tokio::select! {
            proposed = proposed => proposed,
            () = supervisor.stop.cancelled() => return,
        };
        match proposed {
            // Until this host has applied it the party would look wanted, and be begun anew.
            Ok(applied) => {
                let mut watch = supervisor.cluster.watch();
                let _ = watch.wait_for(|state| state.index >= applied.index).await;
                return;
            }
            Err(ProposeError::Rejected(rejected)) => {
                tracing::info!(%id, %rejected, "the end of a party was not wanted");
                // The refusal was decided ahead of what this host has applied.
                let mut watch = supervisor.cluster.watch();
                let over = |state: &Arc<State>| !state.attempts.get(&id).is_some_and(|a| a.runs_on(me));
                let _ = timeout(DECIDES, watch.wait_for(over)).await;
                return;
            }
            Err(error) => {
                tracing::info!(%id, %error, "the end of a party is not told yet");
                sleep(AGAIN).await;
            }
        }
    }
}

/// Ends an attempt that this host cannot even begin.
async fn refuse(supervisor: &Supervisor, attempt: &Attempt, report: Report) {
    tracing::warn!(attempt = %attempt.id, %report, "the party cannot be started");
    let outcome = Outcome::Caused(Cause { blame: Blame::Infrastructure, report });
    let command = PartyEnded {
        attempt: attempt.id,
        epoch: attempt.epoch,
        host: supervisor.cluster.me(),
        outcome,
        metrics: BTreeMap::new(),
    };
    tell(supervisor, attempt.id, command).await;
}

async fn new_record(supervisor: &Supervisor, state: &State, attempt: &Attempt) -> Result<PartyRecord, Report> {
    let id = attempt.id;
    let plan = supervisor.plans.plan(id.case.job).await?;
    let Some((case, name_of_scenario)) = plan.case(id.case.index) else {
        return Err(Report::new(ErrorCode::StoreDamaged, format!("the plan has no case {}", id.case.index)));
    };
    let name = |host: &vt_protocol::ids::HostId| -> Result<Name, Report> {
        let host = state.hosts.get(host).ok_or_else(|| {
            Report::new(ErrorCode::UnknownHost, format!("{host} of the attempt is not in the cluster any more"))
        })?;
        Ok(host.name.clone())
    };
    let hosts = attempt.hosts.iter().map(|host| Ok((*host, name(host)?))).collect::<Result<Vec<_>, Report>>()?;
    let me = supervisor.cluster.me();
    let place = attempt.hosts.iter().position(|host| *host == me).unwrap_or(0);
    let params = plan.seen(case, name_of_scenario, place, &id.case.to_string());
    let secret: u128 = rand::rng().random();
    let record = PartyRecord {
        attempt: id,
        epoch: attempt.epoch,
        seen: state.index,
        hosts,
        scenario: name_of_scenario.to_owned(),
        case: PlannedCase { params, ..case.clone() },
        timeout_ms: plan.plan().case_timeout_ms,
        secret: format!("{secret:032x}"),
        begun_unix_ms: unix_ms(),
        process: None,
        finish: None,
        before: giveback::inventory(&supervisor.places, id),
        keep: plan.plan().keep,
        file: plan.plan().file.clone(),
    };
    let unusable = |error: io::Error| {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let code = if full { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
        Report::new(code, "the record of the party could not be written").caused_by(&error)
    };
    record.write(&supervisor.places.record(id)).map_err(unusable)?;
    write_secret(&supervisor.places.socket(), id, &record.secret).map_err(unusable)?;
    Ok(record)
}

fn write_secret(socket: &std::path::Path, id: AttemptId, secret: &str) -> io::Result<()> {
    let path = secret_file(socket, id);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, secret.as_bytes())
}

fn describe(attempt: &LocalAttempt) {
    let record = attempt.record();
    let params: BTreeMap<&str, serde_json::Value> = record
        .case
        .params
        .iter()
        .map(|(key, param)| (key, serde_json::json!({ "value": param.value, "origin": param.origin.to_string() })))
        .collect();
    let hosts: Vec<&str> = record.hosts.iter().map(|(_, name)| name.as_str()).collect();
    let described = serde_json::json!({
        "attempt": attempt.id.to_string(),
        "scenario": record.scenario,
        "case": record.case.name,
        "hosts": hosts,
        "host": attempt.name_of(attempt.me()),
        "params": params,
    });
    attempt.evidence.json("params.json", &described);
    attempt.evidence.json("inventory-before.json", &record.before);
}

fn start(attempt: &LocalAttempt) -> io::Result<Process> {
    let places = &attempt.places;
    let Some((program, words)) = places.party.split_first() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no program for parties"));
    };
    let mut args = words.to_vec();
    args.extend(["--socket".to_owned(), places.socket().display().to_string()]);
    args.extend(["--attempt".to_owned(), attempt.id.to_string()]);
    let cgroup =
        places.cgroups.as_ref().and_then(|groups| groups.create(&giveback::cgroup_name(places, attempt.id)).ok());
    let process = Process::spawn(&Launch {
        vtd: places.vtd.clone(),
        program: program.into(),
        args,
        output: attempt.evidence.dir().join(STDERR_FILE),
        cgroup,
        expendable: true,
        macvtaps: Vec::new(),
        environment: Vec::new(),
    })?;
    // A record that is not written loses sight of the process only when the daemon ends before the party.
    if let Err(error) = attempt.set_record(|record| record.process = Some(process.id().clone())) {
        note(&attempt.evidence.events, &error);
    }
    Ok(process)
}

fn note(events: &EventLog, error: &io::Error) {
    events.warn(format!("the party's record was not written: {error}"));
}

/// SIGTERM, then SIGKILL; and whatever else is in its control group.
async fn stop(attempt: &LocalAttempt, process: &Process) {
    if process.exit().is_none() {
        giveback::terminate(process.id());
        if timeout(TERM, process.ended()).await.is_err() {
            let _ = process.kill_and_wait(Duration::from_secs(20)).await;
        }
    }
    giveback::remove_cgroup(attempt).await;
}
