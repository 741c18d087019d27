//! Both sides of a movement: the real decisions of source and destination, with modelled QEMUs under them.
//!
//! One event is taken in at a time, in the order in which the real loops look for them.

use std::time::Duration;

use vt_daemon::{
    guard::clock::BootTime,
    migrate::{destination, source},
    qemu::qmp::MigrationStatus,
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
};
use vt_sync::{
    Answer, State,
    command::{
        AbortMigration, BeginMigration, FinishMigration, MigrationPrepared, VoteDestLoaded, VoteSourceCompleted,
    },
    state::Phase,
};

use super::{Twin, copy::Copy, party::Progress};

/// How long the source may take to say why the stream broke.
const EXPLAINS: Duration = Duration::from_secs(10);

/// A movement that leaves this host.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: MigrationId,
    phase: source::Phase,
    until: BootTime,
    told_too_long: bool,
    vote_answered: bool,
    abort: Option<Report>,
    replay: Option<MigrationStatus>,
    /// The state in which a decision was looked for last.
    seen: Option<u64>,
}

/// A movement that comes in.
#[derive(Debug)]
pub(super) struct Incoming {
    phase: destination::Phase,
    silent_at: Option<BootTime>,
    vote_answered: bool,
    abort: Option<Report>,
    replay: Option<MigrationStatus>,
    /// The state in which a decision was looked for last.
    seen: Option<u64>,
    /// It runs here, and the record is to be finished.
    pub(super) runs: bool,
}

fn boxed(code: ErrorCode, text: &str) -> Box<Report> {
    Box::new(Report::new(code, text))
}

/// What the log decided, once for every state.
fn decision(state: &State, id: &MigrationId, seen: &mut Option<u64>) -> Option<Phase> {
    if seen.replace(state.index) == Some(state.index) {
        return None;
    }
    state.migration(id).filter(|m| !m.is_under_way()).map(|m| m.phase.clone())
}

impl Twin {
    /// The source's part of a movement, from the proposal to the end.
    pub(super) fn send(&mut self, id: &MigrationId, to: HostId, now: BootTime) -> Progress {
        if self.outgoing.as_ref().is_none_or(|outgoing| outgoing.id != *id) {
            match self.begin(id, to, now) {
                Ok(Some(outgoing)) => self.outgoing = Some(outgoing),
                Ok(None) => return Progress::Waits,
                Err(ended) => return ended,
            }
        }
        let Some(mut outgoing) = self.outgoing.take() else { return Progress::Waits };
        let ended = self.step_source(&mut outgoing, now);
        if ended.is_none() {
            self.outgoing = Some(outgoing);
        }
        ended.unwrap_or(Progress::Waits)
    }

    /// Proposes it, waits for the destination, and begins or finds the transfer.
    fn begin(&mut self, id: &MigrationId, to: HostId, now: BootTime) -> Result<Option<Outgoing>, Progress> {
        let gone = || Progress::followed("the VM is not here any more");
        let Some(copy) = self.copies.get(&id.vm) else { return Err(gone()) };
        let (from, until) = (self.me, now + self.transfer);
        let outgoing = |phase, replay| Outgoing {
            id: id.clone(),
            phase,
            until,
            told_too_long: false,
            vote_answered: false,
            abort: None,
            replay,
            seen: None,
        };
        let Some(record) = self.state.migration(id) else {
            let begin = BeginMigration { migration: id.clone(), from, epoch: copy.epoch, to };
            return match self.ask("begin", &id.to_string(), begin) {
                Some(Err(_)) => Err(Progress::failed(ErrorCode::MigrationRefused, "the movement could not be begun")),
                _ => Ok(None),
            };
        };
        if !record.is_under_way() || record.source_completed {
            return Ok(Some(outgoing(source::Phase::Voted, None)));
        }
        if record.phase == Phase::Begun {
            return Ok(None);
        }
        let Some(copy) = self.copies.get_mut(&id.vm) else { return Err(gone()) };
        match copy.status() {
            // It was begun before this daemon was started.
            Some(status @ (MigrationStatus::Active | MigrationStatus::Completed))
                if !copy.runs() || copy.is_sending() =>
            {
                Ok(Some(outgoing(source::Phase::Sending, Some(status))))
            }
            _ if copy.begin_transfer() => {
                self.note(format!("sends {}", id.vm.name));
                Ok(Some(outgoing(source::Phase::Sending, None)))
            }
            _ => {
                let why = Report::new(ErrorCode::VmLost, "QEMU has ended");
                Ok(Some(Outgoing {
                    abort: Some(why.clone()),
                    ..outgoing(source::Phase::Aborting(Box::new(why)), None)
                }))
            }
        }
    }

    fn step_source(&mut self, outgoing: &mut Outgoing, now: BootTime) -> Option<Progress> {
        let event = self.source_event(outgoing, now)?;
        let (phase, action) = source::step(outgoing.phase.clone(), event);
        outgoing.phase = phase;
        let id = &outgoing.id;
        match action? {
            source::Action::Continue | source::Action::Vote => {}
            source::Action::Cancel => {
                if let Some(copy) = self.copies.get_mut(&id.vm) {
                    copy.fail(MigrationStatus::Cancelled, now);
                }
            }
            source::Action::Abort(why) => outgoing.abort = Some(*why),
            source::Action::RunHere => {
                self.note(format!("lets {} run again", id.vm.name));
                if let Some(copy) = self.copies.get_mut(&id.vm) {
                    copy.let_run(now);
                    copy.settle();
                }
                return Some(Progress::failed(ErrorCode::MigrationFailed, "the VM stayed"));
            }
            source::Action::LetGo => {
                self.note(format!("lets {} go", id.vm.name));
                self.end_copy(&id.vm.clone());
                return Some(Progress::Done);
            }
        }
        None
    }

    fn source_event(&mut self, outgoing: &mut Outgoing, now: BootTime) -> Option<source::Event> {
        use source::{Event, Phase as At};
        if let Some(status) = outgoing.replay.take() {
            return Some(Event::Qemu(status));
        }
        let (id, which) = (outgoing.id.clone(), outgoing.id.to_string());
        if matches!(outgoing.phase, At::Voting) && !outgoing.vote_answered {
            let vote = VoteSourceCompleted { migration: id.clone(), host: self.me };
            if let Some(outcome) = self.ask_at_once("completed", &which, vote) {
                outgoing.vote_answered = true;
                return Some(match outcome.map(|applied| applied.answer) {
                    Ok(Answer::Voted { moved: Some(_) }) => Event::Moved,
                    // Refused: the decision is in the log, and is read there.
                    _ => Event::VoteCounted,
                });
            }
        }
        if let Some(why) = outgoing.abort.clone() {
            let abort = AbortMigration { migration: id.clone(), host: self.me, why: why.clone() };
            if let Some(Ok(_)) = self.ask_at_once("abort", &which, abort) {
                outgoing.abort = None;
                return Some(Event::Aborted(Box::new(why)));
            }
        }
        match decision(&self.state, &id, &mut outgoing.seen) {
            Some(Phase::Moved { .. }) => return Some(Event::Moved),
            Some(Phase::Aborted { why }) => return Some(Event::Aborted(Box::new(why))),
            _ => {}
        }
        let copy = self.copies.get_mut(&id.vm);
        if let Some(status) = copy.and_then(Copy::next_news) {
            return Some(Event::Qemu(status));
        }
        let gone = self.copies.get(&id.vm).is_none_or(Copy::ended);
        if gone && matches!(outgoing.phase, At::Sending | At::Cancelling(_)) {
            return Some(Event::QemuEnded(boxed(ErrorCode::VmLost, "the source QEMU ended")));
        }
        if now >= outgoing.until && !outgoing.told_too_long {
            outgoing.told_too_long = true;
            return Some(Event::GiveUp(boxed(ErrorCode::MigrationTimeout, "the transfer took too long")));
        }
        None
    }

    /// Makes ready for what the log says is to come in, and takes each movement one event further.
    pub(super) fn receive(&mut self, now: BootTime) {
        let begun: Vec<MigrationId> = self
            .state
            .vms
            .values()
            .filter_map(|vm| vm.migration.as_ref())
            .filter(|m| m.to == self.me && m.phase == Phase::Begun)
            .filter(|m| self.takes_part(m.id.vm.attempt) && !self.copies.contains_key(&m.id.vm))
            .map(|m| m.id.clone())
            .collect();
        for id in begun {
            // Without a session no VM may be started.
            let Some(renewed_at) = self.held else { continue };
            self.note(format!("listens for {}", id.vm.name));
            self.copies.insert(id.vm.clone(), Copy::listening(id.clone(), self.guard_times(), renewed_at));
            self.incoming.insert(id, Incoming::new(destination::Phase::Receiving, None));
        }
        let ids: Vec<MigrationId> = self.incoming.keys().cloned().collect();
        for id in ids {
            let Some(mut incoming) = self.incoming.remove(&id) else { continue };
            if self.step_destination(&id, &mut incoming, now) {
                self.incoming.insert(id, incoming);
            }
        }
    }

    /// Whether there is more to do.
    fn step_destination(&mut self, id: &MigrationId, incoming: &mut Incoming, now: BootTime) -> bool {
        if incoming.runs {
            // The decision may have been told before it was applied here.
            let epoch = self.state.vms.get(&id.vm).filter(|vm| vm.owner == self.me).map(|vm| vm.epoch);
            if let (Some(copy), Some(epoch)) = (self.copies.get_mut(&id.vm), epoch) {
                copy.epoch = epoch;
            }
            let finish = FinishMigration { migration: id.clone(), host: self.me };
            return self.ask("finish", &id.to_string(), finish).is_none();
        }
        let prepared = MigrationPrepared {
            migration: id.clone(),
            host: self.me,
            address: "tcp:10.0.0.2:49152".to_owned(),
            detail: Vec::new(),
        };
        self.ask("prepared", &id.to_string(), prepared);
        let Some(event) = self.destination_event(id, incoming, now) else { return true };
        let (phase, action) = destination::step(incoming.phase.clone(), event);
        incoming.phase = phase;
        match action {
            None | Some(destination::Action::Vote) => true,
            Some(destination::Action::AwaitSource) => {
                incoming.silent_at = Some(now + EXPLAINS);
                true
            }
            Some(destination::Action::Abort(why)) => {
                incoming.abort = Some(*why);
                true
            }
            Some(destination::Action::Run) => {
                self.note(format!("lets {} run", id.vm.name));
                let epoch = self.state.vms.get(&id.vm).map(|vm| vm.epoch);
                if let Some(copy) = self.copies.get_mut(&id.vm) {
                    copy.epoch = epoch.unwrap_or_default();
                    copy.tick(now);
                    copy.let_run(now);
                    copy.settle();
                }
                incoming.runs = true;
                true
            }
            Some(destination::Action::TearDown) => {
                self.note(format!("gives {} up", id.vm.name));
                self.end_copy(&id.vm);
                false
            }
        }
    }

    fn destination_event(
        &mut self,
        id: &MigrationId,
        incoming: &mut Incoming,
        now: BootTime,
    ) -> Option<destination::Event> {
        use destination::{Event, Phase as At};
        if let Some(status) = incoming.replay.take() {
            return Some(Event::Qemu(status));
        }
        let which = id.to_string();
        if matches!(incoming.phase, At::Voting) && !incoming.vote_answered {
            let vote = VoteDestLoaded { migration: id.clone(), host: self.me };
            if let Some(outcome) = self.ask_at_once("loaded", &which, vote) {
                incoming.vote_answered = true;
                return Some(match outcome.map(|applied| applied.answer) {
                    Ok(Answer::Voted { moved: Some(_) }) => Event::Moved,
                    _ => Event::VoteCounted,
                });
            }
        }
        if let Some(why) = incoming.abort.clone() {
            let abort = AbortMigration { migration: id.clone(), host: self.me, why: why.clone() };
            if let Some(Ok(_)) = self.ask_at_once("abort", &which, abort) {
                return Some(Event::Aborted(Box::new(why)));
            }
        }
        match decision(&self.state, id, &mut incoming.seen) {
            Some(Phase::Moved { .. }) => return Some(Event::Moved),
            Some(Phase::Aborted { why }) => return Some(Event::Aborted(Box::new(why))),
            _ => {}
        }
        if let Some(status) = self.copies.get_mut(&id.vm).and_then(Copy::next_news) {
            return Some(Event::Qemu(status));
        }
        let gone = self.copies.get(&id.vm).is_none_or(Copy::ended);
        if gone && matches!(incoming.phase, At::Receiving) {
            return Some(Event::QemuEnded(boxed(ErrorCode::DestinationLeft, "the destination QEMU ended")));
        }
        if incoming.silent_at.is_some_and(|at| now >= at) {
            incoming.silent_at = None;
            return Some(Event::SourceSilent);
        }
        None
    }

    /// A daemon that starts finds its QEMUs again, and takes up what comes in.
    pub(super) fn take_up(&mut self) {
        let vms: Vec<_> = self.copies.keys().cloned().collect();
        for vm in vms {
            let record = self.state.vms.get(&vm);
            let migration = record.and_then(|record| record.migration.clone());
            let mine = record.is_some_and(|record| record.owner == self.me);
            let epoch = record.map(|record| record.epoch);
            let Some(copy) = self.copies.get_mut(&vm) else { continue };
            copy.forget_news();
            match migration {
                Some(migration) if copy.incoming.is_some() && migration.to == self.me => {
                    let voted = migration.dest_loaded;
                    let phase = if voted { destination::Phase::Voted } else { destination::Phase::Receiving };
                    let status = copy.status();
                    self.incoming.insert(migration.id, Incoming::new(phase, status));
                }
                Some(migration) if migration.from == self.me => copy.epoch = epoch.unwrap_or_default(),
                _ if mine => copy.epoch = epoch.unwrap_or_default(),
                _ => self.end_copy(&vm),
            }
        }
    }
}

impl Incoming {
    fn new(phase: destination::Phase, replay: Option<MigrationStatus>) -> Self {
        Self { phase, silent_at: None, vote_answered: false, abort: None, replay, seen: None, runs: false }
    }
}
