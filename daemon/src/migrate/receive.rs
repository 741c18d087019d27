//! The destination of a migration: prepares a QEMU that listens, votes when everything is loaded, and lets the guest run
//! when committed state says that it has moved here. What to do is decided in [`super::destination`].

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, MigrationId},
    party::{Failure, Migrated, Move},
    peer::{IncomingState, Preflight, PrepareIncoming, Prepared},
    verdict::Consequence,
    vm::{Accelerator, MigrationSpec},
};
use vt_sync::{
    Answer,
    command::{AbortMigration, FinishMigration, MigrationPrepared, VoteDestLoaded},
    state,
};

use super::{
    destination::{Action, Event, Phase, step},
    preflight::{Here, differences, report},
};
use crate::{
    party::{
        attempt::{DECIDES, LocalAttempt},
        failure::caused,
        vms::LocalVm,
    },
    qemu::{
        Resolved,
        qmp::{EventError, Events},
    },
};

/// Ports that migrations come in on.
pub const PORTS: std::ops::RangeInclusive<u16> = 49152..=49215;
/// How long the source may take to say why the stream broke.
const SOURCE_EXPLAINS: Duration = Duration::from_secs(10);
/// How long QEMU may take to let the guest run.
const RESUMES: Duration = Duration::from_secs(60);
/// A pause before a proposal is made again.
const AGAIN: Duration = Duration::from_millis(200);

/// How a move ended here: the time from the decision to RESUME.
pub type Arrival = Result<Duration, Failure>;

/// One migration that comes in here.
#[derive(Debug)]
pub struct Incoming {
    /// Which.
    pub id: MigrationId,
    state: watch::Sender<IncomingState>,
    prepared: watch::Sender<Option<Result<Prepared, Report>>>,
    arrival: watch::Sender<Option<Arrival>>,
    vm: Mutex<Option<Arc<LocalVm>>>,
}

impl Incoming {
    fn new(id: MigrationId) -> Arc<Self> {
        Arc::new(Self {
            id,
            state: watch::Sender::new(IncomingState::Receiving),
            prepared: watch::Sender::new(None),
            arrival: watch::Sender::new(None),
            vm: Mutex::default(),
        })
    }

    /// Its QEMU, until it is torn down or becomes a VM of this host.
    pub fn vm(&self) -> Option<Arc<LocalVm>> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_vm(&self, vm: Option<Arc<LocalVm>>) -> Option<Arc<LocalVm>> {
        std::mem::replace(&mut *self.vm.lock().unwrap_or_else(PoisonError::into_inner), vm)
    }

    /// Its QEMU, which the caller ends.
    pub(crate) fn take_vm(&self) -> Option<Arc<LocalVm>> {
        self.set_vm(None)
    }

    /// How it is; waits up to `wait` while nothing is decided.
    pub async fn state(&self, wait: Duration) -> IncomingState {
        let mut watch = self.state.subscribe();
        let settled = |state: &IncomingState| !matches!(state, IncomingState::Receiving | IncomingState::Loaded);
        let _ = timeout(wait, watch.wait_for(settled)).await;
        let now = watch.borrow().clone();
        now
    }
}

/// Waits for a value that is set once. The sender lives as long as the caller holds its owner.
async fn once<T: Clone>(sender: &watch::Sender<Option<T>>) -> Option<T> {
    let mut watch = sender.subscribe();
    let found = watch.wait_for(Option::is_some).await.ok()?.clone();
    found
}

impl LocalAttempt {
    /// Makes ready to receive; asked by the source. Asked again it answers alike.
    ///
    /// # Errors
    /// The sides do not fit, or QEMU cannot be prepared; nothing is left then.
    pub async fn prepare_incoming(self: &Arc<Self>, asked: PrepareIncoming) -> Result<Prepared, Report> {
        let id = asked.migration.clone();
        let (incoming, made) = self.incoming_or(&id, || Incoming::new(id.clone()));
        if made {
            let attempt = self.clone();
            let task_incoming = incoming.clone();
            tokio::spawn(async move {
                let result = attempt.make_ready(&task_incoming, asked).await;
                if let Err(report) = &result {
                    attempt.evidence.events.warn(format!("{}: not prepared: {}", task_incoming.id, report.title));
                    if let Some(vm) = task_incoming.take_vm() {
                        vm.qemu.clone().kill().await;
                    }
                    task_incoming.state.send_replace(IncomingState::Failed(report.clone()));
                }
                task_incoming.prepared.send_replace(Some(result));
            });
        }
        once(&incoming.prepared).await.unwrap_or_else(|| Err(Report::new(ErrorCode::Internal, "not prepared")))
    }

    async fn make_ready(
        self: &Arc<Self>,
        incoming: &Arc<Incoming>,
        asked: PrepareIncoming,
    ) -> Result<Prepared, Report> {
        let id = &asked.migration;
        let refused = |text: String| Report::new(ErrorCode::MigrationRefused, text);
        // The source has seen its entry applied; this host may be a moment behind.
        let record = timeout(DECIDES, self.wait_state(|state| state.migration(id).cloned())).await;
        let record = record
            .map_err(|_| refused(format!("{id} is not on record here")))?
            .map_err(|_| refused(format!("the party of this host in {} has ended", self.id)))?;
        if record.to != self.me() || !record.is_under_way() {
            return Err(refused(format!("{id} is not under way to this host")));
        }
        let (from, me) = (self.name_of(record.from), self.name_of(self.me()));
        let features = self.features.of(&self.places.qemu).await?;
        let accelerator = self.local_accelerator().await;
        let mut found = differences(&asked.preflight, Here { features: &features, accelerator }, &asked.spec);
        let disk = self.places.disk(&id.vm);
        if !self.places.shared {
            found.push("the pool is not shared: the VM's disk is not seen on the destination".to_owned());
        } else if !disk.is_file() {
            found.push(format!("the VM's disk {} is not seen on the destination", disk.display()));
        }
        if let Some(report) = report(&found, &from, &me) {
            return Err(report);
        }
        let image = self.image(&asked.vm.image)?;
        let boot = image.boot(&asked.vm.nics);
        let resolved = Resolved {
            machine: asked.preflight.machine.clone(),
            accelerator: asked.preflight.accelerator,
            cpu_model: asked.preflight.cpu_model.clone(),
        };
        let incarnation = format!("in-{}", id.number);
        let qemu = self.launch(asked.vm, resolved, boot, &disk, &incarnation).await.map_err(|error| error.report())?;
        let vm = LocalVm::new(qemu, disk, Epoch::default());
        incoming.set_vm(Some(vm.clone()));
        let qmp = vm.qemu.qmp();
        let set = vm.set_migration(&capabilities(&asked.spec), &asked.spec.parameters).await;
        let set = set.map_err(|error| error.report())?;
        // Started here, where nobody waits for it, and not when the guest stands still.
        self.guard(&vm).await?;
        let events = qmp.events();
        let uri = self.listen(&vm).await?;
        let prepared = Prepared {
            uri: uri.clone(),
            preflight: Preflight {
                qemu_version: features.version.clone(),
                machine: vm.qemu.record().machine.clone(),
                cpu_model: vm.qemu.record().cpu_model.clone(),
                accelerator: vm.qemu.record().accelerator,
                capabilities: set.into_keys().collect(),
            },
            pid: vm.qemu.pid(),
        };
        let command = MigrationPrepared {
            migration: id.clone(),
            host: self.me(),
            address: uri,
            detail: prepared.pid.to_le_bytes().to_vec(),
        };
        self.propose("prepared", &id.to_string(), command, DECIDES)
            .await
            .map_err(|failure| refused(format!("{id} could not be prepared: {failure:?}")))?;
        self.evidence.events.say(format!("{id}: listens at {} (QEMU process {})", prepared.uri, prepared.pid));
        self.spawn_receiver(incoming.clone(), vm, events, Phase::Receiving);
        Ok(prepared)
    }

    async fn local_accelerator(&self) -> Accelerator {
        use vt_protocol::peer::{PeerReply, PeerRequest};
        match self.cluster.ask(self.me(), PeerRequest::Facts, DECIDES).await {
            Ok(PeerReply::Facts(facts)) => facts.qemu.map_or(Accelerator::Tcg, |qemu| qemu.accelerator),
            _ => Accelerator::Tcg,
        }
    }

    async fn listen(&self, vm: &LocalVm) -> Result<String, Report> {
        let (first, count) = (*PORTS.start(), PORTS.end() - PORTS.start() + 1);
        let begin = rand::rng().random_range(0..count);
        let mut last = String::new();
        for offset in 0..count {
            let port = first + (begin + offset) % count;
            let address = SocketAddr::new(self.places.migration, port);
            // Another daemon's QEMU may have it; asking the kernel first keeps QEMU's own errors for real ones.
            if let Err(error) = TcpListener::bind(address) {
                last = error.to_string();
                continue;
            }
            let uri = format!("tcp:{address}");
            match vm.qemu.qmp().migrate_incoming(&uri).await {
                Ok(()) => return Ok(uri),
                Err(error) if error.to_string().contains("in use") => last = error.to_string(),
                Err(error) => return Err(error.report()),
            }
        }
        Err(Report::new(ErrorCode::NetworkSetup, "no port for the migration could be opened")
            .with("address", self.places.migration.to_string())
            .with("ports", format!("{}-{}", PORTS.start(), PORTS.end()))
            .with("system", last))
    }

    fn spawn_receiver(self: &Arc<Self>, incoming: Arc<Incoming>, vm: Arc<LocalVm>, events: Events, phase: Phase) {
        let receiver = Receiver { attempt: self.clone(), incoming, vm, events, phase, replay: None };
        tokio::spawn(receiver.run());
    }

    /// Takes up again what came in here when the daemon ended.
    pub(crate) async fn resume_incoming(self: &Arc<Self>, record: &state::Migration, vm: Arc<LocalVm>) {
        let (incoming, made) = self.incoming_or(&record.id, || Incoming::new(record.id.clone()));
        if !made {
            return;
        }
        let events = vm.qemu.qmp().events();
        incoming.set_vm(Some(vm.clone()));
        let status = vm.qemu.qmp().query_migrate().await.map(|info| info.status);
        let phase = if record.dest_loaded { Phase::Voted } else { Phase::Receiving };
        let replay = status.ok().map(Event::Qemu);
        let receiver = Receiver { attempt: self.clone(), incoming, vm, events, phase, replay };
        tokio::spawn(receiver.run());
    }

    /// A party of the destination waits until its side is prepared.
    ///
    /// # Errors
    /// The source gave up: a consequence.
    pub(crate) async fn await_prepared(&self, call: &Move) -> Result<(), Failure> {
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let from = self.host_id(&call.from)?;
        let gone = || Failure::Followed(Consequence::PeerGone(call.from.to_string()));
        self.wait_state(|state| {
            if let Some(record) = state.migration(&id) {
                return match &record.phase {
                    state::Phase::Begun => None,
                    state::Phase::Prepared { .. } | state::Phase::Moved { .. } => Some(Ok(())),
                    state::Phase::Aborted { why } => {
                        Some(Err(Failure::Followed(Consequence::PeerGone(format!("{}: {}", call.from, why.title)))))
                    }
                };
            }
            let runs = state.attempts.get(&self.id).is_some_and(|attempt| attempt.runs_on(from));
            (!runs).then(|| Err(gone()))
        })
        .await?
    }

    /// A party of the destination takes part in a move.
    ///
    /// # Errors
    /// The VM did not arrive, or does not run.
    pub(crate) async fn receive(&self, call: &Move) -> Result<Migrated, Failure> {
        self.await_prepared(call).await?;
        let id = MigrationId { vm: self.vm_id(&call.vm), number: call.number };
        let Some(incoming) = self.incoming(&id) else {
            // It was decided and finished before this daemon was started.
            let here = self.vm(&call.vm).is_some();
            return if here {
                Ok(Migrated { result: None, resume_ms: None })
            } else {
                Err(Failure::Followed(Consequence::PeerGone(call.from.to_string())))
            };
        };
        let arrival = tokio::select! {
            arrival = once(&incoming.arrival) => arrival,
            () = self.closing.cancelled() => None,
        };
        let elapsed = arrival.unwrap_or(Err(Failure::Followed(Consequence::Closed)))?;
        Ok(Migrated { result: None, resume_ms: Some(elapsed.as_secs_f64() * 1000.0) })
    }
}

/// The task of one migration that comes in.
struct Receiver {
    attempt: Arc<LocalAttempt>,
    incoming: Arc<Incoming>,
    vm: Arc<LocalVm>,
    events: Events,
    phase: Phase,
    /// What happened while nobody listened.
    replay: Option<Event>,
}

impl Receiver {
    async fn run(mut self) {
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
                    died = self.vm.qemu.died(), if watched => {
                        let report = Report::new(
                            ErrorCode::DestinationLeft,
                            "the destination QEMU ended during the migration; the VM goes on at the source",
                        );
                        let seen = died.report().evidence;
                        Event::QemuEnded(Box::new(seen.into_iter().fold(report, |report, (k, v)| report.with(k, v))))
                    }
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
                Some(Action::Vote) => self.vote(tell.clone()),
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
        match &state.migration(&self.incoming.id)?.phase {
            state::Phase::Moved { .. } => Some(Event::Moved),
            state::Phase::Aborted { why } => Some(Event::Aborted(Box::new(why.clone()))),
            _ => None,
        }
    }

    /// Proposes the vote until the log has it; what the log says of it comes back as an event.
    fn vote(&self, tell: mpsc::Sender<Event>) {
        let (attempt, id) = (self.attempt.clone(), self.incoming.id.clone());
        tokio::spawn(async move {
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

    async fn let_run(self) {
        let seen = Instant::now();
        let id = &self.incoming.id;
        let result = self.resume().await;
        let elapsed = seen.elapsed();
        match result {
            Ok(()) => {
                self.incoming.set_vm(None);
                self.attempt.put_vm(self.vm.clone());
                let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
                self.incoming.state.send_replace(IncomingState::Resumed { elapsed_us });
                self.attempt.evidence.events.say(format!("{id}: runs here, {elapsed_us} µs after the decision"));
                self.incoming.arrival.send_replace(Some(Ok(elapsed)));
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

    /// `cont`, and the proof that the guest runs. Called after the decision was read from committed state, and only then.
    async fn resume(&self) -> Result<(), Report> {
        let lost = |text: &str| Report::new(ErrorCode::VmLost, format!("the VM moved here and {text}"));
        let mut events = self.vm.qemu.qmp().events();
        let epoch = self.attempt.cluster.state().vms.get(&self.incoming.id.vm).map(|vm| vm.epoch);
        self.vm.set_epoch(epoch.unwrap_or_default());
        let resumed = async {
            let resumed = events.wait_for(|event| event.name == "RESUME", Instant::now() + RESUMES);
            let (run, resumed) = tokio::join!(self.attempt.let_run(&self.vm), resumed);
            run.map_err(|error| lost("could not be let run").with("QEMU", error.title))?;
            if resumed.is_err() {
                // The event may have been before this listener, after a restart of the daemon.
                let running = self.vm.qemu.qmp().query_status().await.is_ok_and(|status| status.running);
                return if running { Ok(()) } else { Err(lost("does not run")) };
            }
            Ok(())
        };
        tokio::select! {
            result = resumed => result,
            died = self.vm.qemu.died() => {
                let seen = died.report().evidence;
                Err(seen.into_iter().fold(lost("its QEMU ended"), |report, (key, value)| report.with(key, value)))
            }
        }
    }

    async fn tear_down(self) {
        let Phase::Down(why) = self.phase else { return };
        self.incoming.take_vm();
        self.vm.qemu.clone().kill().await;
        self.incoming.state.send_if_modified(|state| {
            let open = !matches!(state, IncomingState::Failed(_));
            if open {
                *state = IncomingState::Failed((*why).clone());
            }
            open
        });
        // The source tells the cause, for it knows more.
        let failure = Failure::Followed(Consequence::PeerGone(why.title));
        self.incoming.arrival.send_replace(Some(Err(failure)));
    }
}

/// Capabilities as both sides set them: what was asked for, and what the order of a move needs.
pub(crate) fn capabilities(spec: &MigrationSpec) -> std::collections::BTreeMap<String, bool> {
    let mut all = spec.capabilities.clone();
    for name in ["events", "late-block-activate"] {
        all.insert(name.to_owned(), true);
    }
    all
}
