//! The parties of this host: what committed state wants, compared with what is on record and alive.
//!
//! One code path for the happy case and the case after a crash: [`Supervisor::run`] looks at every change of committed
//! state, takes up what is on record, begins what is new, and ends what is over. Each party is tended by a task of its
//! own ([`super::tend`]).

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, HostId, JobId, MigrationId, VmId},
    peer::{IncomingState, PrepareIncoming, Prepared, QemuOffer},
    vm::Transport,
};
use vt_sync::State;

use super::{attempt::LocalAttempt, places::Places, record::PartyRecord, server::PartySocket, tend};
use crate::{
    cluster::Cluster,
    evidence::EvidenceStore,
    guard::clock::BootTime,
    mesh::bulk::BlobSink,
    migrate::{carry::Duplex, features::FeatureCache},
    plan::OpenPlan,
};

/// Where plans come from.
#[async_trait]
pub trait Plans: Send + Sync + 'static {
    /// The plan of a job.
    ///
    /// # Errors
    /// It is on no host that answers.
    async fn plan(&self, job: JobId) -> Result<Arc<OpenPlan>, Report>;
}

/// How long this host may be behind another one that asks about an attempt.
const KNOWS: Duration = Duration::from_secs(20);
/// No entry: without a session nothing is begun.
const NO_SESSION: u64 = u64::MAX;

/// Supervises the parties of this host.
pub struct Supervisor {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) places: Arc<Places>,
    pub(super) store: Arc<EvidenceStore>,
    pub(super) plans: Arc<dyn Plans>,
    pub(super) features: Arc<FeatureCache>,
    /// The daemon stops: parties and VMs go on without it.
    pub(super) stop: CancellationToken,
    tended: Mutex<BTreeMap<AttemptId, Tended>>,
    count: watch::Sender<usize>,
    renewed: watch::Sender<Option<BootTime>>,
    /// The entry that opened the session; nothing is begun on a state that is older, which may show what is long over.
    acts_from: watch::Sender<u64>,
    tasks: TaskTracker,
}

/// An attempt that a task tends.
struct Tended {
    /// Set once what this host holds for it is known.
    attempt: Option<Arc<LocalAttempt>>,
    /// Told when its party is to end without waiting for committed state.
    give_up: CancellationToken,
    /// Everything was given back.
    gone: bool,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Tends nothing yet.
    pub fn new(
        cluster: Arc<dyn Cluster>,
        places: Places,
        store: Arc<EvidenceStore>,
        plans: Arc<dyn Plans>,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            places: Arc::new(places),
            store,
            plans,
            features: Arc::default(),
            stop: CancellationToken::new(),
            tended: Mutex::default(),
            count: watch::Sender::new(0),
            renewed: watch::Sender::new(None),
            acts_from: watch::Sender::new(NO_SESSION),
            tasks: TaskTracker::new(),
        })
    }

    fn tended(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Tended>> {
        // Nothing panics while it holds the lock.
        self.tended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what is on record, serves the party socket, and follows committed state until `stop`. What runs goes on
    /// after it.
    ///
    /// # Errors
    /// The party socket cannot be made.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> io::Result<()> {
        // Before the socket: a party that comes back finds its attempt.
        for record in PartyRecord::all(&self.places.records()) {
            self.tend(record.attempt, Some(record));
        }
        self.known().await;
        let socket = PartySocket::bind(&self.places.socket())?;
        let serving = tokio::spawn(socket.serve(self.clone(), self.stop.clone()));
        let mut watch = self.cluster.watch();
        let mut opened = self.acts_from.subscribe();
        watch.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = opened.changed() => self.reconcile(&self.cluster.state()),
                changed = watch.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let state = watch.borrow_and_update().clone();
                    self.reconcile(&state);
                }
            }
        }
        self.stop.cancel();
        let _ = serving.await;
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }

    /// Begins what committed state wants of this host and nobody tends yet.
    pub fn reconcile(self: &Arc<Self>, state: &State) {
        if state.index < *self.acts_from.borrow() {
            return;
        }
        let me = self.cluster.me();
        for attempt in state.attempts.values().filter(|attempt| attempt.runs_on(me)) {
            if !self.tended().contains_key(&attempt.id) {
                self.tend(attempt.id, None);
            }
        }
    }

    fn tend(self: &Arc<Self>, id: AttemptId, record: Option<PartyRecord>) {
        let give_up = CancellationToken::new();
        self.tended().insert(id, Tended { attempt: None, give_up: give_up.clone(), gone: false });
        self.count.send_modify(|count| *count += 1);
        let supervisor = self.clone();
        self.tasks.spawn(async move {
            tend::tend(&supervisor, id, record, give_up).await;
            supervisor.tended().remove(&id);
            supervisor.count.send_modify(|count| *count -= 1);
        });
    }

    /// Waits until everything that is tended has its [`LocalAttempt`] or is gone.
    async fn known(&self) {
        let mut count = self.count.subscribe();
        loop {
            let waiting = self.tended().values().any(|tended| tended.attempt.is_none());
            if !waiting || count.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn hold(&self, attempt: &Arc<LocalAttempt>) {
        if let Some(tended) = self.tended().get_mut(&attempt.id) {
            tended.attempt = Some(attempt.clone());
        }
        self.count.send_modify(|_| {});
    }

    /// What this host holds for an attempt.
    pub fn attempt(&self, id: AttemptId) -> Option<Arc<LocalAttempt>> {
        self.tended().get(&id).and_then(|tended| tended.attempt.clone())
    }

    /// Everything this host holds.
    pub fn attempts(&self) -> Vec<Arc<LocalAttempt>> {
        self.tended().values().filter_map(|tended| tended.attempt.clone()).collect()
    }

    /// Ends every party and VM of this host, and returns when they are gone: its session is over.
    pub async fn give_up(&self) {
        for tended in self.tended().values() {
            tended.give_up.cancel();
        }
        self.renewed.send_replace(None);
        self.acts_from.send_replace(NO_SESSION);
        let mut count = self.count.subscribe();
        while !self.tended().values().all(|tended| tended.gone) {
            if count.changed().await.is_err() {
                return;
            }
        }
    }

    /// The session was opened, or resumed, by that entry.
    pub fn session_opened(&self, index: u64) {
        self.acts_from.send_if_modified(|from| std::mem::replace(from, index) != index);
    }

    /// The session was renewed; the acknowledged renewal was sent at `at`. Every guard may wait from there, and a VM that
    /// its guard has paused goes on where this host still owns it under the epoch it knows.
    pub fn renewed(&self, at: BootTime) {
        self.renewed.send_replace(Some(at));
        let acts_from = *self.acts_from.borrow();
        for attempt in self.attempts() {
            attempt.extend_guards(at, acts_from);
        }
    }

    pub(super) fn renewals(&self) -> watch::Receiver<Option<BootTime>> {
        self.renewed.subscribe()
    }

    pub(super) fn gone(&self, id: AttemptId) {
        if let Some(tended) = self.tended().get_mut(&id) {
            tended.gone = true;
        }
        self.count.send_modify(|_| {});
    }

    /// Answers [`vt_protocol::peer::PeerRequest::PrepareIncoming`].
    ///
    /// # Errors
    /// As the source is told.
    pub async fn prepare_incoming(&self, asked: PrepareIncoming) -> Result<Prepared, Report> {
        self.awaited(asked.migration.vm.attempt).await?.prepare_incoming(asked).await
    }

    /// Answers [`vt_protocol::peer::PeerRequest::QemuOf`].
    ///
    /// # Errors
    /// As [`LocalAttempt::offer`].
    pub async fn qemu_of(&self, vm: VmId) -> Result<QemuOffer, Report> {
        self.awaited(vm.attempt).await?.offer(&vm.name).await
    }

    /// What this host holds for an attempt that whoever asks knows of: they may be ahead of this host by some entries, and
    /// it is about to be known here.
    async fn awaited(&self, id: AttemptId) -> Result<Arc<LocalAttempt>, Report> {
        let found = tokio::time::timeout(KNOWS, async {
            let mut count = self.count.subscribe();
            loop {
                if let Some(attempt) = self.attempt(id) {
                    return attempt;
                }
                if count.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        });
        let stranger = |_| Report::new(ErrorCode::MigrationRefused, format!("this host takes no part in attempt {id}"));
        found.await.map_err(stranger)
    }

    /// Answers [`vt_protocol::peer::PeerRequest::RecoverIncoming`].
    ///
    /// # Errors
    /// As [`LocalAttempt::recover_incoming`].
    pub async fn recover_incoming(&self, migration: &MigrationId, transport: Transport) -> Result<String, Report> {
        self.attempt_of(migration)?.recover_incoming(migration, transport).await
    }

    /// Answers [`vt_protocol::bulk::BulkRequest::Migration`].
    ///
    /// # Errors
    /// As [`LocalAttempt::inlet`].
    pub(crate) async fn inlet(&self, from: HostId, migration: &MigrationId) -> Result<Box<dyn Duplex>, Report> {
        self.attempt_of(migration)?.inlet(from, migration).await
    }

    /// Answers [`vt_protocol::bulk::BulkRequest::State`].
    ///
    /// # Errors
    /// As [`LocalAttempt::state_inlet`].
    pub(crate) async fn state_inlet(
        &self,
        from: HostId,
        migration: &MigrationId,
        length: u64,
    ) -> Result<Option<Box<dyn BlobSink>>, Report> {
        self.attempt_of(migration)?.state_inlet(from, migration, length).await
    }

    fn attempt_of(&self, migration: &MigrationId) -> Result<Arc<LocalAttempt>, Report> {
        let missing = || Report::new(ErrorCode::MigrationRefused, format!("{migration} has no party here"));
        self.attempt(migration.vm.attempt).ok_or_else(missing)
    }

    /// Answers [`vt_protocol::peer::PeerRequest::IncomingState`].
    pub async fn incoming_state(&self, migration: &MigrationId, wait: Duration) -> IncomingState {
        let incoming = self.attempt(migration.vm.attempt).and_then(|attempt| attempt.incoming(migration));
        match incoming {
            Some(incoming) => incoming.state(wait.min(Duration::from_secs(5))).await,
            None => IncomingState::Unknown,
        }
    }
}
