//! What this host holds for one attempt while its party runs: evidence, VMs, calls under way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Epoch, HostId, MigrationId, Name, RequestId, VmId},
    party::{Failure, Finish, Reply},
    verdict::Consequence,
};
use vt_sync::{Applied, Command, State};

use super::{
    failure::{caused, not_proposed},
    local_vm::LocalVm,
    places::Places,
    record::PartyRecord,
    sessions::Session,
};
use crate::{
    cluster::Cluster,
    evidence::{Evidence, unix_ms},
    guard::clock::BootTime,
    migrate::{features::FeatureCache, receive::Incoming},
};

/// How long a decision that nobody else waits for may take.
pub(crate) const DECIDES: Duration = Duration::from_secs(20);

/// One attempt, on this host.
pub struct LocalAttempt {
    /// Which.
    pub id: AttemptId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its hosts with their names, host1 first.
    pub hosts: Vec<(HostId, Name)>,
    /// This host's place among them.
    pub place: usize,
    /// When the case has taken as long as it may.
    pub until: Instant,
    /// What is kept of it.
    pub evidence: Arc<Evidence>,
    /// Places of this host.
    pub places: Arc<Places>,
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// What QEMUs can do.
    pub features: Arc<FeatureCache>,
    /// When the last acknowledged renewal of this host's session was sent; `None` while it holds none.
    pub renewed: watch::Receiver<Option<BootTime>>,
    /// Cancelled when the party is to end: calls end with it.
    pub closing: CancellationToken,
    /// Tells what the party finished with.
    pub finish: watch::Sender<Option<Finish>>,
    record: Mutex<PartyRecord>,
    pub(super) calls: Mutex<BTreeMap<u64, Answering>>,
    pub(super) steps: Mutex<BTreeMap<String, Instant>>,
    vms: Mutex<BTreeMap<Name, Arc<LocalVm>>>,
    incoming: Mutex<BTreeMap<MigrationId, Arc<Incoming>>>,
    sessions: Mutex<BTreeMap<Name, Session>>,
}

/// A call that is being answered, or was.
pub(super) struct Answering {
    pub(super) content: [u8; 32],
    pub(super) reply: watch::Receiver<Option<Reply>>,
}

impl std::fmt::Debug for LocalAttempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalAttempt").field("id", &self.id).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalAttempt {
    /// Nothing is held yet.
    pub fn new(
        record: PartyRecord,
        evidence: Arc<Evidence>,
        places: Arc<Places>,
        cluster: Arc<dyn Cluster>,
        features: Arc<FeatureCache>,
        renewed: watch::Receiver<Option<BootTime>>,
    ) -> Arc<Self> {
        let me = cluster.me();
        // A record of this host has this host among its hosts.
        let place = record.hosts.iter().position(|(id, _)| *id == me).unwrap_or(0);
        let spent = Duration::from_millis(unix_ms().saturating_sub(record.begun_unix_ms));
        let until = Instant::now() + Duration::from_millis(record.timeout_ms).saturating_sub(spent);
        Arc::new(Self {
            id: record.attempt,
            epoch: record.epoch,
            hosts: record.hosts.clone(),
            place,
            until,
            evidence,
            places,
            cluster,
            features,
            renewed,
            closing: CancellationToken::new(),
            finish: watch::Sender::new(record.finish.clone()),
            record: Mutex::new(record),
            calls: Mutex::default(),
            steps: Mutex::default(),
            vms: Mutex::default(),
            incoming: Mutex::default(),
            sessions: Mutex::default(),
        })
    }

    /// The place of the session into a VM.
    pub(super) fn session(&self, vm: &Name) -> Session {
        locked(&self.sessions).entry(vm.clone()).or_default().clone()
    }

    /// Lets go of all sessions.
    pub(super) fn forget_sessions(&self) {
        locked(&self.sessions).clear();
    }

    /// A parameter of the case, as this host sees it.
    pub(super) fn param(&self, key: &str) -> Option<String> {
        locked(&self.record).case.params.text(key).map(str::to_owned)
    }

    /// What is on disk about the party.
    pub fn record(&self) -> PartyRecord {
        locked(&self.record).clone()
    }

    /// Changes what is on disk.
    ///
    /// # Errors
    /// It cannot be written; what is in memory is changed all the same.
    pub fn set_record(&self, change: impl FnOnce(&mut PartyRecord)) -> std::io::Result<()> {
        let mut record = locked(&self.record);
        change(&mut record);
        record.write(&self.places.record(self.id))
    }

    /// This host.
    pub fn me(&self) -> HostId {
        self.cluster.me()
    }

    /// The name of a host of the attempt.
    pub fn name_of(&self, host: HostId) -> String {
        self.hosts.iter().find(|(id, _)| *id == host).map_or_else(|| host.to_string(), |(_, name)| name.to_string())
    }

    /// The id of a host of the attempt.
    ///
    /// # Errors
    /// It is none of the attempt.
    pub fn host_id(&self, name: &Name) -> Result<HostId, Failure> {
        self.hosts.iter().find(|(_, n)| n == name).map(|(id, _)| *id).ok_or_else(|| {
            let known: Vec<&str> = self.hosts.iter().map(|(_, n)| n.as_str()).collect();
            caused(
                Report::new(ErrorCode::UnknownHost, format!("{name} is no host of this attempt"))
                    .with("hosts", known.join(", ")),
            )
        })
    }

    /// The id of a VM of the attempt.
    pub fn vm_id(&self, name: &Name) -> VmId {
        VmId { attempt: self.id, name: name.clone() }
    }

    /// A VM on this host.
    pub fn vm(&self, name: &Name) -> Option<Arc<LocalVm>> {
        locked(&self.vms).get(name).cloned()
    }

    /// All VMs on this host.
    pub fn vms(&self) -> Vec<Arc<LocalVm>> {
        locked(&self.vms).values().cloned().collect()
    }

    pub(crate) fn put_vm(&self, vm: Arc<LocalVm>) {
        locked(&self.vms).insert(vm.id.name.clone(), vm);
    }

    pub(crate) fn take_vm(&self, name: &Name) -> Option<Arc<LocalVm>> {
        locked(&self.vms).remove(name)
    }

    /// What comes in under that number.
    pub fn incoming(&self, migration: &MigrationId) -> Option<Arc<Incoming>> {
        locked(&self.incoming).get(migration).cloned()
    }

    /// Everything that comes in, or came.
    pub fn all_incoming(&self) -> Vec<Arc<Incoming>> {
        locked(&self.incoming).values().cloned().collect()
    }

    /// The one that comes in under that number, made by `make` where there is none.
    pub(crate) fn incoming_or(
        &self,
        migration: &MigrationId,
        make: impl FnOnce() -> Arc<Incoming>,
    ) -> (Arc<Incoming>, bool) {
        let mut all = locked(&self.incoming);
        if let Some(known) = all.get(migration) {
            return (known.clone(), false);
        }
        let made = make();
        all.insert(migration.clone(), made.clone());
        (made, true)
    }

    /// A place where a test may hold this host; see [`crate::hold`]. Ends with the party.
    pub(crate) async fn place(&self, place: &str) {
        let me = self.name_of(self.me());
        tokio::select! {
            () = crate::hold::at(&me, place) => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// An id that is the same for every repetition of the same thing in this attempt by this host.
    pub fn request_id(&self, what: &str, which: &str) -> RequestId {
        let (attempt, host) = (self.id.to_string(), self.me().0.to_le_bytes());
        RequestId::derived(&[attempt.as_bytes(), &self.epoch.0.to_le_bytes(), &host, what.as_bytes(), which.as_bytes()])
    }

    /// Proposes under such an id.
    ///
    /// # Errors
    /// As a party is told.
    pub async fn propose(
        &self,
        what: &str,
        which: &str,
        command: impl Into<Command>,
        deadline: Duration,
    ) -> Result<Applied, Failure> {
        self.cluster.propose(self.request_id(what, which), command.into(), deadline).await.map_err(not_proposed)
    }

    /// Waits until this host has applied up to `index`.
    pub async fn applied(&self, index: u64) -> Arc<State> {
        let mut watch = self.cluster.watch();
        match watch.wait_for(|state| state.index >= index).await {
            Ok(state) => state.clone(),
            // The daemon stops; what is read last is as good as it gets.
            Err(_) => self.cluster.state(),
        }
    }

    /// Waits for something in committed state; ends as well when the attempt is over for this host.
    ///
    /// # Errors
    /// The attempt was closed, or this host's part in it has ended.
    pub async fn wait_state<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> Result<T, Failure> {
        let mut watch = self.cluster.watch();
        loop {
            let now = watch.borrow_and_update().clone();
            if let Some(found) = found(&now) {
                return Ok(found);
            }
            self.open_in(&now)?;
            tokio::select! {
                changed = watch.changed() => {
                    if changed.is_err() {
                        return Err(Failure::Followed(Consequence::Closed));
                    }
                }
                () = self.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
            }
        }
    }

    /// Waits until another host's party in this attempt has ended.
    ///
    /// # Errors
    /// As [`LocalAttempt::wait_state`].
    pub async fn party_ends(&self, host: HostId) -> Result<(), Failure> {
        let ended = |state: &State| {
            let runs = state.attempts.get(&self.id).is_some_and(|attempt| attempt.runs_on(host));
            (!runs).then_some(())
        };
        self.wait_state(ended).await
    }

    /// Whether this host's party runs, by that state.
    ///
    /// # Errors
    /// It does not.
    pub fn open_in(&self, state: &State) -> Result<(), Failure> {
        let open = state
            .attempts
            .get(&self.id)
            .is_some_and(|attempt| attempt.epoch == self.epoch && attempt.runs_on(self.me()));
        if open { Ok(()) } else { Err(Failure::Followed(Consequence::Closed)) }
    }
}
