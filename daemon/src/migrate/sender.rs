//! The task of one transfer at the source: follows QEMU's events, votes, and lets go or runs on as committed state decides.
//! What to do is decided in [`super::source`].

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
    job::Happening,
    party::{Failure, Migrated, Move},
    peer::{IncomingState, PeerReply, PeerRequest},
    verdict::Consequence,
    vm::{Intervention, Moment, Sample},
};
use vt_sync::{
    Answer,
    command::{AbortMigration, FinishMigration, VoteSourceCompleted},
    state::{self, VmState},
};

use super::{
    domain_move::{DomainMove, GIVES_UP},
    figures::result_file,
    moments::{Interventions, moment},
    outlet::Outlet,
    send::{Ready, aborted, unreachable},
    source::{Action, Event, Phase, step},
};
use crate::{
    party::{
        attempt::{DECIDES, LocalAttempt},
        failure::caused,
        local_vm::LocalVm,
    },
    qemu::{
        Sampler,
        qmp::{self, EventError, Events, MigrationInfo, MigrationStatus},
    },
};

/// How long the destination may take to let the guest run, once that is decided.
const RESUMES: Duration = Duration::from_secs(90);
/// So many passes are told one by one, and then each of so many.
const PASSES_TOLD: u32 = 32;
/// A pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Times {
    pub(super) prepared: Duration,
    pub(super) started: Duration,
    /// By QEMU's own words.
    pub(super) written: Duration,
    /// And delivered, where QEMU wrote a file; else the same.
    pub(super) completed: Duration,
    pub(super) decided: Duration,
    pub(super) resumed: Duration,
    /// Zero where nothing followed, as in all but post-copy.
    pub(super) ended: Duration,
}

/// One transfer.
pub(super) struct Sender {
    pub(super) attempt: Arc<LocalAttempt>,
    pub(super) vm: Arc<LocalVm>,
    pub(super) ready: Ready,
    pub(super) call: Move,
    pub(super) to: HostId,
    pub(super) called: Clock,
    pub(super) events: Events,
    pub(super) outlet: Outlet,
    /// Where libvirt makes the move: its answer counts, and not what QEMU says of it.
    pub(super) domain_move: Option<DomainMove>,
    pub(super) sampler: Option<Sampler>,
    pub(super) interventions: Interventions,
    pub(super) times: Times,
}

impl Sender {
    pub(super) async fn run(mut self, mut phase: Phase) -> Result<Migrated, Failure> {
        let (tell, mut told) = mpsc::channel::<Event>(4);
        let mut states = self.attempt.cluster.watch();
        states.mark_changed();
        let progress =
            self.sampler.as_ref().map(|sampler| tokio::spawn(progress(&self.attempt, &self.ready.id, sampler)));
        let _progress = progress.map(AbortOnDrop);
        let readings = self.sampler.as_ref().map(Sampler::latest);
        let mut readings = readings.filter(|_| self.interventions.await_moment(Moment::Stalled));
        let deadline = Instant::now() + Duration::from_millis(self.call.spec.timeout_ms);
        let mut suspend_at = self.call.spec.suspend_after_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let mut given_up_at: Option<Instant> = None;
        let mut too_long = false;
        let mut listening = true;
        let mut replay = if phase == Phase::Sending { self.missed().await } else { None };
        loop {
            let transferring = matches!(phase, Phase::Sending | Phase::Cancelling(_));
            let event = if let Some(event) = replay.take() {
                event
            } else {
                tokio::select! {
                    biased;
                    () = self.attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
                    Some(event) = told.recv() => event,
                    changed = states.changed() => {
                        if changed.is_err() {
                            return Err(Failure::Followed(Consequence::Closed));
                        }
                        match decision(&states.borrow_and_update().clone(), &self.ready.id) {
                            Some(event) => event,
                            None => continue,
                        }
                    }
                    event = self.events.next(), if listening => match event {
                        Ok(event) => match self.heard(&event, transferring).await {
                            Some(event) => event,
                            None => continue,
                        },
                        Err(EventError::Lagged(_)) if self.domain_move.is_some() => continue,
                        Err(EventError::Lagged(_)) => match self.vm.qemu.qmp().query_migrate().await {
                            Ok(info) => self.status(info.status).await,
                            Err(_) => continue,
                        },
                        Err(_) => {
                            listening = false;
                            continue;
                        }
                    },
                    () = stalls(&mut readings), if transferring => match self.at(Moment::Stalled).await {
                        Some(event) => event,
                        None => continue,
                    },
                    answer = outcome(&mut self.domain_move, &self.vm), if transferring => match (answer, &phase) {
                        (Ok(()), _) => Event::Qemu(MigrationStatus::Completed),
                        // As it was told to.
                        (Err(_), Phase::Cancelling(_)) => Event::Qemu(MigrationStatus::Cancelled),
                        (Err(why), _) => Event::Undelivered(Box::new(why)),
                    },
                    // libvirt ends it before it answers.
                    ended = self.vm.ended(), if transferring && self.domain_move.is_none() => {
                        let title = "the source QEMU ended during the migration";
                        Event::QemuEnded(Box::new(ended.report(ErrorCode::VmLost, title)))
                    }
                    () = at_last(given_up_at), if transferring => {
                        given_up_at = Some(Instant::now() + GIVES_UP);
                        let Some(domain) = &mut self.domain_move else { continue };
                        if !domain.is_given_up(&self.vm).await {
                            continue;
                        }
                        Event::Qemu(MigrationStatus::Cancelled)
                    }
                    () = at_last(suspend_at), if transferring => {
                        suspend_at = None;
                        self.suspend().await;
                        continue;
                    }
                    () = sleep_until(deadline), if !too_long => {
                        too_long = true;
                        Event::GiveUp(Box::new(self.too_long().await))
                    }
                }
            };
            let completed =
                |event: &Event| matches!(event, Event::Qemu(MigrationStatus::Completed) | Event::PostcopyReady);
            if completed(&event) && self.times.written.is_zero() {
                self.times.written = self.called.elapsed();
            }
            let event = match event {
                Event::Qemu(MigrationStatus::Completed) if transferring && self.outlet.is_file() => {
                    self.deliver(deadline).await?
                }
                event => event,
            };
            if completed(&event) && self.times.completed.is_zero() {
                self.times.completed = self.called.elapsed();
            }
            if matches!(&event, Event::Moved) {
                self.times.decided = self.called.elapsed();
            }
            let (next, action) = step(phase, event);
            phase = next;
            match action {
                None => {}
                Some(Action::Continue) => {
                    if let Err(error) = self.vm.qemu.qmp().migrate_continue(&MigrationStatus::PreSwitchover).await {
                        self.attempt.evidence.events.warn(format!("{}: {error}", self.ready.id));
                    }
                }
                Some(Action::Cancel) => {
                    self.cancel().await;
                    given_up_at = self.domain_move.as_ref().map(|_| Instant::now() + GIVES_UP);
                }
                Some(Action::Vote) => self.vote(tell.clone()),
                Some(Action::Abort(why)) => {
                    let why = self.explain(*why).await;
                    phase = Phase::Aborting(Box::new(why.clone()));
                    self.abort(why, tell.clone());
                }
                // Under a broken rule alone: it runs here as well, and all goes on as if it did not.
                Some(Action::RunHere) if phase == Phase::Gone => {
                    let twice = self.run_on().await;
                    self.attempt
                        .evidence
                        .events
                        .warn(format!("{}: a rule is broken on purpose: {twice:?}", self.ready.id));
                    return self.let_go().await;
                }
                Some(Action::RunHere) => return self.run_here(phase).await,
                Some(Action::LetGo) => return self.let_go().await,
            }
        }
    }

    /// Pauses the guest of a transfer that takes as long as it may without. It goes on where it is afterwards.
    async fn suspend(&self) {
        let (id, events) = (&self.ready.id, &self.attempt.evidence.events);
        match self.vm.qemu.qmp().stop().await {
            Ok(()) => events.say(format!("{id}: it takes long: the guest is paused")),
            Err(error) => events.warn(format!("{id}: it takes long, and the guest cannot be paused: {error}")),
        }
    }

    /// Has the transfer given up; an event tells whether that was in time.
    async fn cancel(&self) {
        let told = match &self.domain_move {
            Some(domain) => domain.abort(&self.vm).await,
            None => self.vm.qemu.qmp().migrate_cancel().await.map_err(|error| error.report()),
        };
        if let Err(report) = told {
            self.attempt.evidence.events.warn(format!("{}: {report}", self.ready.id));
        }
    }

    /// The source's QEMU has completed when its file is written; the transfer has when the destination reads it.
    async fn deliver(&self, by: Instant) -> Result<Event, Failure> {
        let delivered = tokio::select! {
            delivered = self.outlet.deliver(&self.attempt, (&self.ready.id, self.to), by) => delivered,
            () = self.attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
        };
        Ok(match delivered {
            Ok(bytes) => {
                self.attempt.evidence.events.say(format!("{}: its file of {bytes} bytes is delivered", self.ready.id));
                Event::Qemu(MigrationStatus::Completed)
            }
            Err(report) => Event::Undelivered(Box::new(report)),
        })
    }

    /// What QEMU said before this listener was made, after a restart of the daemon.
    async fn missed(&mut self) -> Option<Event> {
        let status = self.vm.qemu.qmp().query_migrate().await.ok()?.status;
        match self.domain_move {
            None => Some(self.status(status).await),
            Some(_) if status == MigrationStatus::Active => self.libvirt_sends().await,
            Some(_) => None,
        }
    }

    /// What an event of the monitor means, once what was to be done at its moment is done.
    async fn heard(&mut self, event: &qmp::Event, transferring: bool) -> Option<Event> {
        if let Some(moment) = moment(event).filter(|_| transferring) {
            // Of a transfer that does not end the passes are many and alike.
            if let (Moment::Pass(number), Some(sampler)) = (moment, &self.sampler)
                && (number <= PASSES_TOLD || number.is_multiple_of(PASSES_TOLD))
            {
                let left = sampler.latest().borrow().ram_remaining_bytes;
                self.attempt
                    .evidence
                    .events
                    .say(format!("{}: pass {number} begins, {left} bytes are left", self.ready.id));
            }
            if let Some(given_up) = self.at(moment).await {
                return Some(given_up);
            }
        }
        if event.name != "MIGRATION" {
            return None;
        }
        let status: MigrationStatus = event.text("status").unwrap_or_default().into();
        match (&mut self.domain_move, status) {
            (None, status) => Some(self.status(status).await),
            (Some(_), MigrationStatus::Active) if transferring => self.libvirt_sends().await,
            (Some(domain), status) => {
                domain.note(&self.vm, &status).await;
                None
            }
        }
    }

    /// Does what is due at a moment; an event where the transfer is to be given up.
    async fn at(&mut self, moment: Moment) -> Option<Event> {
        for (moment, what) in self.interventions.due(moment) {
            if let Err(why) = self.intervene(moment, what).await {
                return Some(Event::GiveUp(Box::new(why)));
            }
        }
        None
    }

    /// libvirt's QEMU has begun to send. A post-copy is decided now, with the guest paused: nothing goes on without us.
    async fn libvirt_sends(&mut self) -> Option<Event> {
        if !self.call.spec.is_postcopy() {
            return None;
        }
        // Not done yet where a daemon before this one was told of the moment.
        Some(self.at(Moment::Active).await.unwrap_or(Event::PostcopyReady))
    }

    /// What a status of the migration means. Before the switch-over a disk that is copied is there to the last write.
    async fn status(&self, status: MigrationStatus) -> Event {
        if status == MigrationStatus::PreSwitchover
            && let Err(why) = self.attempt.finish_disk(&self.vm, &self.ready).await
        {
            return Event::GiveUp(Box::new(why));
        }
        match status {
            MigrationStatus::PreSwitchover if self.call.spec.is_postcopy() => Event::PostcopyReady,
            status => Event::Qemu(status),
        }
    }

    /// Does what is due; an error is the reason to give the transfer up.
    pub(super) async fn intervene(&self, moment: Moment, what: Intervention) -> Result<(), Report> {
        let qmp = self.vm.qemu.qmp();
        let (done, said) = match &what {
            Intervention::Set(parameters) => {
                let values = parameters.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
                (qmp.migrate_set_parameters(&values).await.map(drop), format!("set {parameters:?}"))
            }
            Intervention::Stop => (qmp.stop().await, "the guest is paused".to_owned()),
            // libvirt goes over once it is decided.
            Intervention::Postcopy if self.domain_move.is_some() => {
                (qmp.stop().await, "the guest is paused for the post-copy to be decided".to_owned())
            }
            Intervention::Postcopy => (qmp.migrate_start_postcopy().await, "over to post-copy".to_owned()),
            Intervention::Break => (qmp.migrate_pause().await, "the connection is broken".to_owned()),
            Intervention::Cancel => {
                let title = format!("the migration was cancelled at {moment}, as the scenario wants");
                return Err(Report::new(ErrorCode::MigrationCancelled, title));
            }
        };
        self.attempt.evidence.events.say(format!("{}: at {moment}: {said}", self.ready.id));
        done.map_err(|error| {
            let title = format!("QEMU refused what the scenario wants at {moment}");
            Report::new(ErrorCode::MigrationRefused, title).with("wanted", said).with("QEMU", error.to_string())
        })
    }

    fn vote(&self, tell: mpsc::Sender<Event>) {
        let (attempt, id) = (self.attempt.clone(), self.ready.id.clone());
        tokio::spawn(async move {
            attempt.place("source-votes").await;
            loop {
                let vote = VoteSourceCompleted { migration: id.clone(), host: attempt.me() };
                let event = match attempt.propose("completed", &id.to_string(), vote, DECIDES).await {
                    Ok(applied) => match applied.answer {
                        Answer::Voted { moved: Some(_) } => Event::Moved,
                        _ => Event::VoteCounted,
                    },
                    Err(_) if attempt.closing.is_cancelled() => return,
                    // Refused: the decision is in the log. Not known: the same vote again until it is.
                    Err(failure) => match decision(&attempt.cluster.state(), &id) {
                        Some(event) => event,
                        None => {
                            tracing::info!(%id, ?failure, "the vote is not known to be counted");
                            sleep(AGAIN).await;
                            continue;
                        }
                    },
                };
                attempt.evidence.events.say(format!("{id}: the vote of the source is in the log"));
                // The sender may have read the decision already.
                let _ = tell.send(event).await;
                return;
            }
        });
    }

    fn abort(&self, why: Report, tell: mpsc::Sender<Event>) {
        let (attempt, id) = (self.attempt.clone(), self.ready.id.clone());
        tokio::spawn(async move {
            while !attempt.closing.is_cancelled() {
                let abort = AbortMigration { migration: id.clone(), host: attempt.me(), why: why.clone() };
                let event = match attempt.propose("abort", &id.to_string(), abort, DECIDES).await {
                    Ok(_) => Some(Event::Aborted(Box::new(why.clone()))),
                    Err(_) => decision(&attempt.cluster.state(), &id),
                };
                if let Some(event) = event {
                    let _ = tell.send(event).await;
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }

    async fn too_long(&self) -> Report {
        let seconds = self.call.spec.timeout_ms as f64 / 1000.0;
        let title = format!("the migration did not complete within {seconds} s and was cancelled");
        let report = Report::new(ErrorCode::MigrationTimeout, title);
        match self.vm.qemu.qmp().query_migrate().await {
            Ok(MigrationInfo { ram: Some(ram), .. }) => report
                .with("RAM remaining", format!("{} bytes", ram.remaining))
                .with("dirty rate", format!("{} pages/s", ram.dirty_pages_rate))
                .with("throughput", format!("{:.1} Mbit/s", ram.mbps))
                .help("-p mig_timeout=SECONDS, -p mig_speed=…, or -p capabilities=auto-converge"),
            _ => report,
        }
    }

    /// Adds QEMU's own words, and asks the destination for its story where the stream broke.
    async fn explain(&self, why: Report) -> Report {
        if why.code != ErrorCode::MigrationFailed {
            return why;
        }
        let why = match self.vm.qemu.qmp().query_migrate().await {
            Ok(MigrationInfo { error: Some(words), .. }) => why.with("QEMU", words),
            _ => why,
        };
        let ask = PeerRequest::IncomingState { migration: self.ready.id.clone(), wait_ms: 1500 };
        match self.attempt.cluster.ask(self.to, ask, Duration::from_secs(4)).await {
            Ok(PeerReply::Incoming(IncomingState::Failed(story))) => {
                why.evidence.iter().fold(story, |s, (k, v)| s.with(format!("source {k}"), v))
            }
            Ok(_) => why,
            Err(error) => {
                why.evidence.iter().fold(unreachable(self.call.to.as_str(), &error), |s, (k, v)| s.with(k, v))
            }
        }
    }

    /// The VM stays: see that it runs here, and finish the record so that the next move may begin.
    async fn run_here(&mut self, phase: Phase) -> Result<Migrated, Failure> {
        let Phase::Staying(why) = phase else { return Err(Failure::Followed(Consequence::Closed)) };
        let ours = matches!(
            why.code,
            ErrorCode::MigrationFailed
                | ErrorCode::MigrationTimeout
                | ErrorCode::MigrationRefused
                | ErrorCode::VmLost
                | ErrorCode::VmFenced
                | ErrorCode::QmpFailed
        );
        let samples = match self.sampler.take() {
            Some(sampler) => sampler.finish().await,
            None => Vec::new(),
        };
        self.keep_samples(&samples);
        self.attempt.give_up_disk(&self.vm, &self.ready).await;
        if let Err(report) = self.run_on().await {
            return Err(caused(report.with("migration", why.title)));
        }
        self.attempt.evidence.events.say(format!("{}: the VM goes on here: {}", self.ready.id, why.title));
        let finish = FinishMigration { migration: self.ready.id.clone(), host: self.attempt.me() };
        let _ = self.attempt.propose("finish", &self.ready.id.to_string(), finish, DECIDES).await;
        match why.code {
            ErrorCode::MigrationCancelled => Ok(Migrated { cancelled: true, ..Migrated::default() }),
            _ if ours => Err(caused(*why)),
            _ => Err(aborted(*why)),
        }
    }

    /// QEMU lets a guest run on by itself where a migration failed before it completed; after it, it waits for us.
    async fn run_on(&mut self) -> Result<(), Report> {
        const GONE: &str = "the VM should have gone on at the source and does not";
        if self.vm.qemu.process().exit().is_some() {
            return Err(self.vm.ended().await.report(ErrorCode::VmLost, GONE));
        }
        let lost = |what: String| Report::new(ErrorCode::VmLost, GONE).with("QEMU", what);
        self.leave_switchover().await.map_err(&lost)?;
        let qmp = self.vm.qemu.qmp();
        let status = qmp.query_status().await.map_err(|error| lost(error.to_string()))?;
        if status.running {
            return Ok(());
        }
        self.attempt.let_run(&self.vm).await.map_err(|error| lost(error.title))?;
        let status = qmp.query_status().await.map_err(|error| lost(error.to_string()))?;
        if status.running { Ok(()) } else { Err(lost(status.state.to_string())) }
    }

    /// The VM is the destination's: wait until it runs there, keep the figures, and end the QEMU here.
    async fn let_go(mut self) -> Result<Migrated, Failure> {
        self.attempt.place("source-lets-go").await;
        self.attempt.evidence.events.say(format!("{}: decided: the VM is owned by {}", self.ready.id, self.call.to));
        let _watch = self.end_what_runs_on();
        if self.call.spec.is_postcopy() {
            self.go_on().await;
        }
        let mut arrived = self.await_arrival().await;
        self.times.resumed = self.called.elapsed();
        if self.call.spec.is_postcopy() && arrived.is_ok() {
            arrived = self.await_pages().await;
            self.times.ended = self.called.elapsed();
        }
        for (moment, what) in self.interventions.missed() {
            self.attempt.evidence.events.warn(format!("{}: {moment} never came: {what:?} was not done", self.ready.id));
        }
        let info = match &mut self.domain_move {
            Some(domain) => {
                domain.let_go(&self.vm).await;
                domain.last.take()
            }
            None => self.vm.qemu.qmp().query_migrate().await.ok(),
        };
        let samples = match self.sampler.take() {
            Some(sampler) => sampler.finish().await,
            None => Vec::new(),
        };
        self.keep_samples(&samples);
        let result = self.result(info, samples);
        let pid = self.vm.qemu.pid();
        self.attempt.take_vm(&self.call.vm);
        let ending = self.vm.qemu.clone().teardown().await;
        for left in ending.left {
            self.attempt.evidence.events.warn(format!("left behind by QEMU {pid}: {left}"));
        }
        self.attempt.forget_copy(&self.call.vm).await;
        arrived?;
        self.attempt.evidence.json(&result_file(&self.ready.id), &self.kept(&result));
        Ok(Migrated { result: Some(result), ..Migrated::default() })
    }

    async fn await_arrival(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + RESUMES;
        loop {
            let ask = PeerRequest::IncomingState { migration: self.ready.id.clone(), wait_ms: 5000 };
            let asked = tokio::select! {
                asked = self.attempt.cluster.ask(self.to, ask, Duration::from_secs(8)) => asked,
                () = self.attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
            };
            let gone = |text: String| Failure::Followed(Consequence::PeerGone(text));
            match asked {
                Ok(PeerReply::Incoming(IncomingState::Resumed { pid, qemu_version, .. })) => {
                    (self.ready.pid, self.ready.qemu_version) = (pid, qemu_version);
                    return Ok(());
                }
                // The VM is the destination's, and so is the story of its loss.
                Ok(PeerReply::Incoming(IncomingState::Failed(report))) => return Err(gone(report.title)),
                _ => {}
            }
            let state = self.attempt.cluster.state();
            self.attempt.open_in(&state)?;
            if let Some(vm) = state.vms.get(&self.ready.id.vm).filter(|vm| vm.owner == self.to) {
                // Finished by its new owner: it was seen to run there.
                if vm.migration.is_none() {
                    return Ok(());
                }
                if vm.state == VmState::Lost {
                    return Err(gone(format!(
                        "{} lost its session before it said that the VM runs there",
                        self.call.to
                    )));
                }
            }
            if Instant::now() >= until {
                return Err(gone(format!("{} did not say that the VM runs there", self.call.to)));
            }
            sleep(AGAIN).await;
        }
    }
}

/// Pending for ever where there is no such moment.
async fn at_last(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Returns once, when a reading says that the transfer is stalled; pending for ever where nobody waits for that.
async fn stalls(readings: &mut Option<watch::Receiver<Sample>>) {
    let stalled = match readings {
        Some(latest) => latest.wait_for(|sample| sample.stalled).await.is_ok(),
        None => false,
    };
    *readings = None;
    if !stalled {
        std::future::pending::<()>().await;
    }
}

/// Pending for ever where libvirt was not asked.
async fn outcome(domain_move: &mut Option<DomainMove>, vm: &LocalVm) -> Result<(), Report> {
    match domain_move {
        Some(domain_move) => domain_move.outcome(vm).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells each reading to those who watch.
fn progress(
    attempt: &Arc<LocalAttempt>,
    id: &MigrationId,
    sampler: &Sampler,
) -> impl Future<Output = ()> + Send + use<> {
    let (attempt, id, mut latest) = (attempt.clone(), id.to_string(), sampler.latest());
    async move {
        let mut stalled = false;
        while latest.changed().await.is_ok() {
            let sample = latest.borrow_and_update().clone();
            if sample.stalled != stalled {
                stalled = sample.stalled;
                let words = if stalled { "is stalled" } else { "gets on again" };
                let left = sample.ram_remaining_bytes;
                attempt.evidence.events.say(format!("{id}: the transfer {words}: {left} bytes are left to send"));
            }
            attempt.evidence.events.note(Happening::Progress { migration: id.clone(), sample });
        }
    }
}

fn decision(state: &vt_sync::State, id: &MigrationId) -> Option<Event> {
    match &state.migration(id)?.phase {
        state::Phase::Moved { .. } => Some(Event::Moved),
        state::Phase::Aborted { why } => Some(Event::Aborted(Box::new(why.clone()))),
        _ => None,
    }
}
