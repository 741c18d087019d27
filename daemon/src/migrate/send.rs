//! The source of a migration: preflight, transfer, vote, and letting go or running on, as committed state decides. What
//! to do is decided in [`super::source`].
//!
//! Nothing here waits for time to pass: events are subscribed to before the command that causes them, the vote follows
//! the event at once, and the decision is read from the state this host applies or from the answer to its own vote.

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, MigrationId},
    job::Happening,
    party::{Failure, Migrated, Move},
    peer::{IncomingState, PeerReply, PeerRequest, Preflight, PrepareIncoming, Prepared},
    verdict::Consequence,
    vm::MigrationResult,
};
use vt_sync::{
    Answer,
    command::{AbortMigration, BeginMigration, VoteSourceCompleted},
    state,
};

use super::{
    receive::capabilities,
    source::{Action, Event, Phase, step},
};
use crate::{
    cluster::AskError,
    evidence::samples,
    party::{
        attempt::{DECIDES, LocalAttempt},
        failure::caused,
        vms::LocalVm,
    },
    qemu::{
        Sampler,
        qmp::{EventError, Events, MigrationInfo, MigrationStatus, RunState},
        vm::TRANSCRIPT_FILE,
    },
};

/// How long the destination may take to start a QEMU that listens.
const PREPARES: Duration = Duration::from_secs(90);
/// How long the destination may take to let the guest run, once that is decided.
const RESUMES: Duration = Duration::from_secs(90);
/// A pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// A migration that is ready to begin.
#[derive(Debug, Clone)]
pub struct Ready {
    id: MigrationId,
    uri: String,
    pid: u32,
}

impl LocalAttempt {
    /// A call to prepare a move, from either side.
    ///
    /// # Errors
    /// As a party is told.
    pub async fn prepare_move(self: &Arc<Self>, call: Move) -> Result<(), Failure> {
        let (from, to) = self.sides(&call)?;
        if to == self.me() {
            return self.await_prepared(&call).await;
        }
        self.ready(&call, from, to).await.map(drop)
    }

    /// A call to move, from either side.
    ///
    /// # Errors
    /// As a party is told.
    pub async fn migrate(self: &Arc<Self>, call: Move) -> Result<Migrated, Failure> {
        let called = Clock::now();
        let (from, to) = self.sides(&call)?;
        if to == self.me() {
            return self.receive(&call).await;
        }
        self.send(&call, from, to, called).await
    }

    fn sides(&self, call: &Move) -> Result<(HostId, HostId), Failure> {
        let (from, to) = (self.host_id(&call.from)?, self.host_id(&call.to)?);
        if from == to || (from != self.me() && to != self.me()) {
            let title = format!("{} is no side of a move from {} to {}", self.name_of(self.me()), call.from, call.to);
            return Err(caused(Report::new(ErrorCode::BadParameter, title)));
        }
        Ok((from, to))
    }

    /// Everything before the transfer. Called again for the same move it answers from the log.
    async fn ready(self: &Arc<Self>, call: &Move, from: HostId, to: HostId) -> Result<Ready, Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let Some(vm) = self.vm(&call.vm) else {
            let title = format!("{} is not on {}", call.vm, call.from);
            return Err(caused(Report::new(ErrorCode::NotOwner, title)));
        };
        if let Some(record) = self.cluster.state().migration(&id) {
            match &record.phase {
                state::Phase::Prepared { address, detail } => {
                    let pid = detail.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                    return Ok(Ready { id, uri: address.clone(), pid });
                }
                state::Phase::Aborted { why } => return Err(aborted(why.clone())),
                state::Phase::Moved { .. } => return Ok(Ready { id, uri: String::new(), pid: 0 }),
                state::Phase::Begun => {}
            }
        }
        let preflight = self.source_preflight(&vm).await.map_err(caused)?;
        let begin = BeginMigration { migration: id.clone(), from, epoch: vm.epoch(), to };
        self.propose("begin", &id.to_string(), begin, DECIDES).await?;
        let prepared = match self.ask_destination(&id, &vm, call, to, preflight).await {
            Ok(prepared) => prepared,
            Err(report) => {
                self.abort_move(&id, report.clone()).await;
                return Err(caused(report));
            }
        };
        if let Err(error) = vm.set_migration(&capabilities(&call.spec), &call.spec.parameters).await {
            let report = error.report();
            self.abort_move(&id, report.clone()).await;
            return Err(caused(report));
        }
        vm.set_prepared(id.clone());
        Ok(Ready { id, uri: prepared.uri, pid: prepared.pid })
    }

    async fn source_preflight(&self, vm: &LocalVm) -> Result<Preflight, Report> {
        let qmp = vm.qemu.qmp();
        let capabilities = qmp.query_migrate_capabilities().await.map_err(|error| error.report())?;
        let (major, minor, micro) = qmp.greeting().version;
        let record = vm.qemu.record();
        Ok(Preflight {
            qemu_version: format!("{major}.{minor}.{micro}"),
            machine: record.machine.clone(),
            cpu_model: record.cpu_model.clone(),
            accelerator: record.accelerator,
            capabilities: capabilities.into_keys().collect(),
        })
    }

    async fn ask_destination(
        &self,
        id: &MigrationId,
        vm: &LocalVm,
        call: &Move,
        to: HostId,
        preflight: Preflight,
    ) -> Result<Prepared, Report> {
        let request = PrepareIncoming {
            migration: id.clone(),
            epoch: vm.epoch(),
            vm: vm.qemu.record().spec.clone(),
            disk: vm.disk.display().to_string(),
            spec: call.spec.clone(),
            preflight,
        };
        match self.cluster.ask(to, PeerRequest::PrepareIncoming(Box::new(request)), PREPARES).await {
            Ok(PeerReply::Prepared(prepared)) => {
                let here = vm.qemu.qmp().greeting().version;
                let here = format!("{}.{}.{}", here.0, here.1, here.2);
                if prepared.preflight.qemu_version != here {
                    let there = &prepared.preflight.qemu_version;
                    self.evidence.events.say(format!("{id}: QEMU {here} moves the VM to QEMU {there}"));
                }
                Ok(prepared)
            }
            Ok(PeerReply::Refused(report)) => Err(report),
            Err(AskError::Refused(report)) => Err(*report),
            Ok(other) => Err(Report::new(ErrorCode::WireVersion, format!("{} answered with {other:?}", call.to))),
            Err(error) => Err(unreachable(&call.to.to_string(), &error)),
        }
    }

    async fn abort_move(&self, id: &MigrationId, why: Report) {
        let abort = AbortMigration { migration: id.clone(), host: self.me(), why };
        if let Err(failure) = self.propose("abort", &id.to_string(), abort, DECIDES).await {
            tracing::warn!(%id, ?failure, "the abort is not known to be in the log; the end of the attempt decides");
            return;
        }
        // The owner says that it is over, so that the next one may begin.
        let finish = vt_sync::command::FinishMigration { migration: id.clone(), host: self.me() };
        let _ = self.propose("finish", &id.to_string(), finish, DECIDES).await;
    }

    async fn send(self: &Arc<Self>, call: &Move, from: HostId, to: HostId, called: Clock) -> Result<Migrated, Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        if self.vm(&call.vm).is_none()
            && let Some(result) = self.stored_result(&id)
        {
            // Asked again after it was done.
            return Ok(Migrated { result: Some(result), resume_ms: None });
        }
        let ready = self.ready(call, from, to).await?;
        let Some(vm) = self.vm(&call.vm) else { return Err(Failure::Followed(Consequence::Closed)) };
        let prepared = called.elapsed();
        let events = vm.qemu.qmp().events();
        let phase = self.begin_or_resume(&vm, &ready).await?;
        let started = called.elapsed();
        let sender = Sender {
            attempt: self.clone(),
            vm: vm.clone(),
            ready,
            call: call.clone(),
            to,
            called,
            events,
            sampler: Some(Sampler::start(vm.qemu.qmp().clone(), called.into())),
            times: Times { prepared, started, ..Times::default() },
        };
        sender.run(phase).await
    }

    /// Begins the transfer, or finds out where one that this daemon did not begin is.
    async fn begin_or_resume(&self, vm: &LocalVm, ready: &Ready) -> Result<Phase, Failure> {
        let qmp = vm.qemu.qmp();
        if vm.take_prepared(&ready.id) {
            return self.begin_transfer(vm, ready).await;
        }
        let state = self.cluster.state();
        match state.migration(&ready.id) {
            Some(record) if !record.is_under_way() || record.source_completed => return Ok(Phase::Voted),
            _ => {}
        }
        match qmp.query_migrate().await.map_err(|error| caused(error.report()))?.status {
            MigrationStatus::Setup
            | MigrationStatus::Active
            | MigrationStatus::PreSwitchover
            | MigrationStatus::Device
            | MigrationStatus::WaitUnplug => return Ok(Phase::Sending),
            // One that completed and was aborted left QEMU so; it runs again, and the next one may begin.
            MigrationStatus::Completed
                if qmp.query_status().await.is_ok_and(|status| status.state == RunState::PostMigrate) =>
            {
                return Ok(Phase::Sending);
            }
            _ => {}
        }
        self.begin_transfer(vm, ready).await
    }

    async fn begin_transfer(&self, vm: &LocalVm, ready: &Ready) -> Result<Phase, Failure> {
        if let Err(error) = vm.qemu.qmp().migrate(&ready.uri).await {
            let report = Report::new(ErrorCode::MigrationFailed, "QEMU refused to begin the migration")
                .with("QEMU", error.to_string());
            self.abort_move(&ready.id, report.clone()).await;
            return Err(caused(report));
        }
        Ok(Phase::Sending)
    }

    fn stored_result(&self, id: &MigrationId) -> Option<MigrationResult> {
        let path = self.evidence.dir().join(result_file(id));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

fn result_file(id: &MigrationId) -> String {
    format!("migrations/{}-{}.json", id.vm.name, id.number)
}

fn unreachable(to: &str, error: &AskError) -> Report {
    Report::new(ErrorCode::DestinationUnreachable, format!("{to} stopped answering; the VM goes on at the source"))
        .with("destination", to)
        .with("last answer", error.to_string())
}

/// What a party of the source is told of an abort that it did not make itself.
fn aborted(why: Report) -> Failure {
    match why.code {
        // The destination's own story, which nobody else tells.
        ErrorCode::DestinationLeft | ErrorCode::DestinationUnreachable | ErrorCode::MigrationFailed => caused(why),
        _ => Failure::Followed(Consequence::PeerGone(why.title)),
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Times {
    prepared: Duration,
    started: Duration,
    completed: Duration,
    decided: Duration,
    resumed: Duration,
}

/// One transfer.
struct Sender {
    attempt: Arc<LocalAttempt>,
    vm: Arc<LocalVm>,
    ready: Ready,
    call: Move,
    to: HostId,
    called: Clock,
    events: Events,
    sampler: Option<Sampler>,
    times: Times,
}

impl Sender {
    async fn run(mut self, mut phase: Phase) -> Result<Migrated, Failure> {
        let (tell, mut told) = mpsc::channel::<Event>(4);
        let mut states = self.attempt.cluster.watch();
        states.mark_changed();
        let progress =
            self.sampler.as_ref().map(|sampler| tokio::spawn(progress(&self.attempt, &self.ready.id, sampler)));
        let _progress = progress.map(AbortOnDrop);
        let deadline = Instant::now() + Duration::from_millis(self.call.spec.timeout_ms);
        let mut listening = true;
        // What QEMU said before this listener was made, after a restart of the daemon.
        let mut replay = match phase {
            Phase::Sending => self.vm.qemu.qmp().query_migrate().await.ok().map(|info| Event::Qemu(info.status)),
            _ => None,
        };
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
                    died = self.vm.qemu.died(), if transferring => {
                        let report = Report::new(ErrorCode::VmLost, "the source QEMU ended during the migration");
                        let seen = died.report().evidence;
                        Event::QemuEnded(Box::new(seen.into_iter().fold(report, |report, (k, v)| report.with(k, v))))
                    }
                    () = sleep_until(deadline), if phase == Phase::Sending => {
                        Event::TooLong(Box::new(self.too_long().await))
                    }
                }
            };
            if matches!(&event, Event::Qemu(MigrationStatus::Completed)) && self.times.completed.is_zero() {
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
                    if let Err(error) = self.vm.qemu.qmp().migrate_cancel().await {
                        self.attempt.evidence.events.warn(format!("{}: {error}", self.ready.id));
                    }
                }
                Some(Action::Vote) => self.vote(tell.clone()),
                Some(Action::Abort(why)) => {
                    let why = self.explain(*why).await;
                    phase = Phase::Aborting(Box::new(why.clone()));
                    self.abort(why, tell.clone());
                }
                Some(Action::RunHere) => return Err(self.run_here(phase).await),
                Some(Action::LetGo) => return self.let_go().await,
            }
        }
    }

    fn vote(&self, tell: mpsc::Sender<Event>) {
        let (attempt, id) = (self.attempt.clone(), self.ready.id.clone());
        tokio::spawn(async move {
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
    async fn run_here(&mut self, phase: Phase) -> Failure {
        let Phase::Staying(why) = phase else { return Failure::Followed(Consequence::Closed) };
        let ours = matches!(
            why.code,
            ErrorCode::MigrationFailed | ErrorCode::MigrationTimeout | ErrorCode::VmLost | ErrorCode::QmpFailed
        );
        let samples = match self.sampler.take() {
            Some(sampler) => sampler.finish().await,
            None => Vec::new(),
        };
        self.keep_samples(&samples);
        if let Err(report) = self.run_on().await {
            return caused(report.with("migration", why.title));
        }
        self.attempt.evidence.events.say(format!("{}: the VM goes on here: {}", self.ready.id, why.title));
        let finish = vt_sync::command::FinishMigration { migration: self.ready.id.clone(), host: self.attempt.me() };
        let _ = self.attempt.propose("finish", &self.ready.id.to_string(), finish, DECIDES).await;
        if ours { caused(*why) } else { aborted(*why) }
    }

    /// QEMU lets a guest run on by itself where a migration failed before it completed; after it, it waits for us.
    async fn run_on(&self) -> Result<(), Report> {
        let qmp = self.vm.qemu.qmp();
        let lost = |what: String| {
            Report::new(ErrorCode::VmLost, "the VM should have gone on at the source and does not").with("QEMU", what)
        };
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
        let arrived = self.await_arrival().await;
        self.times.resumed = self.called.elapsed();
        let info = self.vm.qemu.qmp().query_migrate().await.ok();
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
        arrived?;
        self.attempt.evidence.json(&result_file(&self.ready.id), &self.kept(&result));
        Ok(Migrated { result: Some(result), resume_ms: None })
    }

    async fn await_arrival(&self) -> Result<(), Failure> {
        let until = Instant::now() + RESUMES;
        loop {
            let ask = PeerRequest::IncomingState { migration: self.ready.id.clone(), wait_ms: 5000 };
            let asked = tokio::select! {
                asked = self.attempt.cluster.ask(self.to, ask, Duration::from_secs(8)) => asked,
                () = self.attempt.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
            };
            let gone = |text: String| Failure::Followed(Consequence::PeerGone(text));
            match asked {
                Ok(PeerReply::Incoming(IncomingState::Resumed { .. })) => return Ok(()),
                // The VM is the destination's, and so is the story of its loss.
                Ok(PeerReply::Incoming(IncomingState::Failed(report))) => return Err(gone(report.title)),
                _ => {}
            }
            let state = self.attempt.cluster.state();
            self.attempt.open_in(&state)?;
            // Finished by its new owner: it was seen to run there.
            let record = state.vms.get(&self.ready.id.vm);
            if record.is_some_and(|vm| vm.owner == self.to && vm.migration.is_none()) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(gone(format!("{} did not say that the VM runs there", self.call.to)));
            }
            sleep(AGAIN).await;
        }
    }

    fn keep_samples(&self, samples: &[vt_protocol::vm::Sample]) {
        let write = || -> std::io::Result<()> {
            let folder = self.attempt.evidence.folder("migrations")?;
            let name = format!("{}-{}.csv", self.ready.id.vm.name, self.ready.id.number);
            std::fs::write(folder.join(name), samples::csv(samples))
        };
        if let Err(error) = write() {
            self.attempt.evidence.events.warn(format!("samples of {} were not written: {error}", self.ready.id));
        }
    }

    /// The figures, with where QEMU's own words are: relative to the evidence of either host.
    fn kept(&self, result: &MigrationResult) -> serde_json::Value {
        let mut kept = serde_json::json!(result);
        let source = self.vm.qemu.evidence().strip_prefix(self.attempt.evidence.dir()).unwrap_or("".as_ref());
        let vm = &self.ready.id.vm.name;
        kept["source_transcript"] = source.join(TRANSCRIPT_FILE).display().to_string().into();
        kept["destination_transcript"] = format!("{vm}/in-{}/{TRANSCRIPT_FILE}", self.ready.id.number).into();
        kept
    }

    fn result(&self, info: Option<MigrationInfo>, samples: Vec<vt_protocol::vm::Sample>) -> MigrationResult {
        let ram = info.as_ref().and_then(|info| info.ram).unwrap_or_default();
        let ms = |time: Duration| (time.as_secs_f64() * 100_000.0).round() / 100.0;
        let t = self.times;
        let part = |name: &str, from: Duration, to: Duration| (name.to_owned(), ms(to.saturating_sub(from)));
        let number = |value: Option<Option<u64>>| value.flatten().unwrap_or(0);
        MigrationResult {
            id: self.ready.id.clone(),
            from: self.call.from.clone(),
            to: self.call.to.clone(),
            total_ms: number(info.as_ref().map(|info| info.total_ms)),
            qemu_downtime_ms: number(info.as_ref().map(|info| info.downtime_ms)),
            setup_ms: number(info.as_ref().map(|info| info.setup_ms)),
            ram_transferred_bytes: ram.transferred,
            normal_pages: ram.normal,
            duplicate_pages: ram.duplicate,
            dirty_sync_count: ram.dirty_sync_count,
            wall_ms: ms(t.resumed),
            parts_ms: vec![
                part("prepare", Duration::ZERO, t.prepared),
                part("start", t.prepared, t.started),
                part("transfer", t.started, t.completed),
                part("vote and decision", t.completed, t.decided),
                part("resume", t.decided, t.resumed),
            ],
            source_pid: self.vm.qemu.pid(),
            destination_pid: self.ready.pid,
            samples,
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

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
        while latest.changed().await.is_ok() {
            let sample = latest.borrow_and_update().clone();
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
