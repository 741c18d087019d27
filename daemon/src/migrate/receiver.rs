//! The task of one migration that comes in: it votes when everything is loaded, and lets the guest run when committed
//! state says that it has moved here. What to do is decided in [`super::destination`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    party::Failure,
    peer::IncomingState,
    verdict::Consequence,
};
use vt_sync::{
    Answer,
    command::{AbortMigration, FinishMigration, VoteDestLoaded},
    state,
};

use super::{
    destination::{Action, Event, Phase, step},
    receive::{Arrived, Incoming},
};
use crate::{
    party::{
        attempt::{DECIDES, LocalAttempt},
        failure::caused,
        local_vm::{Ended, LocalVm},
    },
    qemu::{
        flaws::takes_disks_too_early,
        qmp::{EventError, Events, QmpError, RunState},
    },
};

/// How long the source may take to say why the stream broke.
const SOURCE_EXPLAINS: Duration = Duration::from_secs(10);
/// How long QEMU may take to let the guest run.
const RESUMES: Duration = Duration::from_secs(60);
/// How long the end of a QEMU may take to be noticed after its monitor broke off.
const ENDS: Duration = Duration::from_secs(2);
/// A pause before a proposal is made again.
const AGAIN: Duration = Duration::from_millis(200);
/// A pause before a QEMU that may not be told `cont` yet is looked at again: the guest stands still meanwhile.
const LOOKS: Duration = Duration::from_millis(2);

/// The task of one migration that comes in.
pub(super) struct Receiver {
    pub(super) attempt: Arc<LocalAttempt>,
    pub(super) incoming: Arc<Incoming>,
    pub(super) vm: Arc<LocalVm>,
    pub(super) events: Events,
    pub(super) phase: Phase,
    /// Whether it is decided before the switch-over.
    pub(super) postcopy: bool,
    /// What happened while nobody listened.
    pub(super) replay: Option<Event>,
    /// Since when the guest stands still for want of a decision.
    pub(super) loaded: Option<Instant>,
}

impl Receiver {
    pub(super) async fn run(mut self) {
        let (tell, mut told) = mpsc::channel::<Event>(4);
        let mut states = self.attempt.cluster.watch();
        states.mark_changed();
        let mut silent_at: Option<Instant> = None;
        let mut listening = true;
        loop {
            let watched = matches!(self.phase, Phase::Receiving);
            let event = if let Some(event) = self.replay.take() {
                event
            } else {
                tokio::select! {
                    biased;
                    () = self.attempt.closing.cancelled() => return,
                    Some(event) = told.recv() => event,
                    changed = states.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        match self.decision(&states.borrow_and_update().clone()) {
                            Some(event) => event,
                            None => continue,
                        }
                    }
                    event = self.events.next(), if listening => match event {
                        Ok(event) if event.name == "MIGRATION" => {
                            Event::Qemu(event.text("status").unwrap_or_default().into())
                        }
                        Ok(_) => continue,
                        Err(EventError::Lagged(_)) => match self.vm.qemu.qmp().query_migrate().await {
                            Ok(info) => Event::Qemu(info.status),
                            Err(_) => continue,
                        },
                        Err(_) => {
                            listening = false;
                            continue;
                        }
                    },
                    ended = self.vm.ended(), if watched => Event::QemuEnded(Box::new(unvoted(&ended))),
                    () = async { sleep_until(silent_at.unwrap_or_else(Instant::now)).await }, if silent_at.is_some() => {
                        silent_at = None;
                        Event::SourceSilent
                    }
                }
            };
            let (next, action) = step(self.phase.clone(), event);
            self.phase = next;
            match action {
                None => {
                    if self.phase == Phase::Voted {
                        self.incoming.state.send_if_modified(|state| {
                            let receiving = *state == IncomingState::Receiving;
                            if receiving {
                                *state = IncomingState::Loaded;
                            }
                            receiving
                        });
                    }
                }
                Some(Action::Vote) => {
                    self.loaded = Some(Instant::now());
                    self.vote(tell.clone());
                }
                Some(Action::AwaitSource) => {
                    if let Phase::Broken(why) = &self.phase {
                        self.incoming.state.send_replace(IncomingState::Failed((**why).clone()));
                    }
                    silent_at = Some(Instant::now() + SOURCE_EXPLAINS);
                }
                Some(Action::Abort(why)) => self.abort(*why, tell.clone()),
                Some(Action::Run) => return self.let_run().await,
                Some(Action::TearDown) => return self.tear_down().await,
            }
        }
    }

    fn decision(&self, state: &vt_sync::State) -> Option<Event> {
        let migration = state.migration(&self.incoming.id)?;
        match &migration.phase {
            state::Phase::Moved { .. } => Some(Event::Moved),
            state::Phase::Aborted { why } => Some(Event::Aborted(Box::new(why.clone()))),
            _ => (self.postcopy && migration.source_completed).then_some(Event::PostcopyReady),
        }
    }

    /// Proposes the vote until the log has it; what the log says of it comes back as an event.
    fn vote(&self, tell: mpsc::Sender<Event>) {
        let (attempt, id, vm) = (self.attempt.clone(), self.incoming.id.clone(), self.vm.clone());
        tokio::spawn(async move {
            attempt.place("destination-votes").await;
            // Nothing was proposed yet: the source still has what is lost here.
            if let Err(why) = answers(&vm).await {
                let _ = tell.send(Event::EndedUnvoted(Box::new(why))).await;
                return;
            }
            attempt.close_disk(vm.qemu.qmp()).await;
            loop {
                let vote = VoteDestLoaded { migration: id.clone(), host: attempt.me() };
                let answer = attempt.propose("loaded", &id.to_string(), vote, DECIDES).await;
                let event = match answer.map(|applied| applied.answer) {
                    // Committed: the second vote moved the owner in its own entry.
                    Ok(Answer::Voted { moved: Some(_) }) => Event::Moved,
                    Ok(_) => Event::VoteCounted,
                    // No quorum: the vote may be in the log or not. Refused: the decision is there, and is read there.
                    Err(_) if attempt.closing.is_cancelled() => return,
                    Err(failure) => {
                        tracing::info!(%id, ?failure, "the vote is not known to be counted");
                        if attempt.cluster.state().migration(&id).is_some_and(|m| !m.is_under_way()) {
                            return;
                        }
                        sleep(AGAIN).await;
                        continue;
                    }
                };
                attempt.evidence.events.say(format!("{id}: the vote of the destination is in the log"));
                // The receiver may have read the decision already.
                let _ = tell.send(event).await;
                return;
            }
        });
    }

    fn abort(&self, why: Report, tell: mpsc::Sender<Event>) {
        let (attempt, id) = (self.attempt.clone(), self.incoming.id.clone());
        tokio::spawn(async move {
            while !attempt.closing.is_cancelled() {
                let abort = AbortMigration { migration: id.clone(), host: attempt.me(), why: why.clone() };
                if attempt.propose("abort", &id.to_string(), abort, DECIDES).await.is_ok() {
                    let _ = tell.send(Event::Aborted(Box::new(why))).await;
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }

    async fn let_run(mut self) {
        self.attempt.place("destination-runs").await;
        if !self.postcopy {
            self.incoming.close_inlet();
        }
        let seen = Instant::now();
        let id = &self.incoming.id.clone();
        let result = self.resume().await;
        let elapsed = seen.elapsed();
        match result {
            Ok(held) => {
                self.attempt.place("destination-tells").await;
                self.incoming.set_vm(None);
                self.attempt.put_vm(self.vm.clone());
                let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
                let (pid, qemu_version) = (self.vm.qemu.pid(), self.vm.qemu.version());
                self.incoming.state.send_replace(IncomingState::Resumed { elapsed_us, pid, qemu_version });
                // The decision may have been told before it was applied here: the guard asks for the epoch it gave.
                let me = self.attempt.me();
                let owned =
                    |state: &vt_sync::State| state.vms.get(&id.vm).filter(|vm| vm.owner == me).map(|vm| vm.epoch);
                if let Ok(epoch) = self.attempt.wait_state(owned).await {
                    self.vm.set_epoch(epoch);
                }
                self.attempt.evidence.events.say(format!("{id}: runs here, {elapsed_us} µs after the decision"));
                if self.postcopy
                    && let Err(failure) = self.await_pages().await
                {
                    self.incoming.arrival.send_replace(Some(Err(failure)));
                    return;
                }
                self.incoming.close_inlet();
                self.incoming.arrival.send_replace(Some(Ok(Some(Arrived { held, resumed: elapsed }))));
                let finish = FinishMigration { migration: id.clone(), host: self.attempt.me() };
                while !self.attempt.closing.is_cancelled() {
                    let done = self.attempt.propose("finish", &id.to_string(), finish.clone(), DECIDES).await;
                    match done {
                        Ok(_) | Err(Failure::Followed(_)) => return,
                        Err(_) => sleep(AGAIN).await,
                    }
                }
            }
            Err(report) => {
                self.attempt.evidence.events.warn(format!("{id}: {}", report.title));
                self.incoming.state.send_replace(IncomingState::Failed(report.clone()));
                self.incoming.arrival.send_replace(Some(Err(caused(report))));
            }
        }
    }

    /// `cont`, and the proof that the guest runs; returns how long it stood for want of `cont`. Called after the decision was
    /// read from committed state, and only then.
    async fn resume(&self) -> Result<Duration, Report> {
        let lost = |text: &str| Report::new(ErrorCode::VmLost, format!("the VM moved here and {text}"));
        let mut events = self.vm.qemu.qmp().events();
        let epoch = self.attempt.cluster.state().vms.get(&self.incoming.id.vm).map(|vm| vm.epoch);
        self.vm.set_epoch(epoch.unwrap_or_default());
        let resumed = async {
            self.attempt.take_disk(&self.vm).await?;
            self.attempt.guard_lets_run(&self.vm).await?;
            let held = self.loaded.map_or(Duration::ZERO, |loaded| loaded.elapsed());
            let qmp = self.vm.qemu.qmp();
            let refused = |error: QmpError| lost("could not be let run").with("QEMU", error.to_string());
            if self.postcopy && takes_disks_too_early(&self.vm.qemu.version()) {
                let deadline = Instant::now() + RESUMES;
                while qmp.query_status().await.map_err(refused)?.state == RunState::InMigrate {
                    if Instant::now() > deadline {
                        return Err(lost("its source did not switch over"));
                    }
                    sleep(LOOKS).await;
                }
            }
            qmp.cont().await.map_err(refused)?;
            // One that a daemon before this one had let run says no RESUME any more.
            if qmp.query_status().await.is_ok_and(|status| status.running) {
                return Ok(held);
            }
            let resumed = events.wait_for(|event| event.name == "RESUME", Instant::now() + RESUMES).await;
            resumed.map(|_| held).map_err(|_| lost("does not run"))
        };
        let result = tokio::select! {
            result = resumed => result,
            ended = self.vm.ended() => return Err(ended.report(ErrorCode::VmLost, "the VM moved here and its QEMU ended")),
        };
        match result {
            // A monitor that broke off may be the end of QEMU, which is noticed a moment later.
            Err(_) if timeout(ENDS, self.vm.qemu.died()).await.is_ok() => {
                Err(self.vm.ended().await.report(ErrorCode::VmLost, "the VM moved here and its QEMU ended"))
            }
            result => result,
        }
    }

    async fn tear_down(self) {
        let Phase::Down(why) = self.phase else { return };
        self.incoming.take_vm();
        self.vm.qemu.clone().kill().await;
        self.incoming.close_inlet();
        self.attempt.forget_copy(&self.vm.id.name).await;
        self.incoming.state.send_if_modified(|state| {
            let open = !matches!(state, IncomingState::Failed(_));
            if open {
                *state = IncomingState::Failed((*why).clone());
            }
            open
        });
        let arrival = match why.code {
            ErrorCode::MigrationCancelled => Ok(None),
            // The source tells the cause, for it knows more.
            _ => Err(Failure::Followed(Consequence::PeerGone(why.title))),
        };
        self.incoming.arrival.send_replace(Some(arrival));
    }
}

/// Whether QEMU is there to be voted for. What its monitor has told may be old: a daemon that stood still for a while reads
/// it after its guard has killed QEMU, and may read it before it hears of that.
async fn answers(vm: &LocalVm) -> Result<(), Report> {
    let Err(error) = vm.qemu.qmp().query_status().await else { return Ok(()) };
    match timeout(ENDS, vm.ended()).await {
        Ok(ended) => Err(unvoted(&ended)),
        Err(_) => Err(error.report()),
    }
}

/// What is told of a QEMU that ended before it was voted for.
fn unvoted(ended: &Ended) -> Report {
    let title = "the destination QEMU ended during the migration; the VM goes on at the source";
    ended.report(ErrorCode::DestinationLeft, title)
}
