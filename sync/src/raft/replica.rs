//! One host's replica of the cluster's state: what the daemon holds.
//!
//! Proposals are answered on the leader only; forwarding is the mesh's. No loop here polls: the beat ([`super::pace`]) and
//! openraft's timer wake everything that has to do with time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use openraft::{
    BasicNode, ChangeMembers, Config, Raft, ReadPolicy, SnapshotPolicy,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError},
    raft::{AppendEntriesResponse, SnapshotResponse},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use vt_protocol::{
    codec,
    error::{ErrorCode, Report},
    ids::HostId,
};

use super::{
    disk::{Disk, Latency, Place, StoreError},
    log::Log,
    machine::Machine,
    network::{Network, RaftTransport},
    pace::{self, Heard},
    status::{Leadership, ReplicaRole, Status},
    told::{Listeners, Teller},
    types::{Snapshot, TypeConfig},
    wire::{self, Arriving, Ask, Reply},
};
use crate::{
    answer::{Applied, Rejected},
    bounds,
    command::Request,
    state::State,
};

/// Times and sizes of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// How often the leader is heard.
    pub heartbeat: Duration,
    /// The least that a follower waits, drawn anew each time, before it stands for election when the lease of its leader
    /// has ended, which lasts for [`ReplicaConfig::election_max`] after it was heard; several heartbeats.
    pub election_min: Duration,
    /// The most of that. So a leader that dies is followed by another one after `election_max + election_min` at the
    /// earliest, and `2 * election_max` where two do not stand at the same moment.
    pub election_max: Duration,
    /// Entries after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Entries that are kept behind a snapshot, so that a peer that was away for a while needs none.
    pub keep_entries: u64,
    /// How long one part of a snapshot may take.
    pub part_timeout: Duration,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(300),
            election_min: Duration::from_millis(900),
            election_max: Duration::from_millis(1300),
            snapshot_entries: 5000,
            keep_entries: 4000,
            part_timeout: Duration::from_secs(10),
        }
    }
}

impl ReplicaConfig {
    fn raft(&self) -> Result<Config, OpenError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "vtmesh".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            // A follower that has just acknowledged entries needs no heartbeat as well.
            heartbeat_min_interval: Some(millis(self.heartbeat * 4 / 5)),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.part_timeout),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // A peer further behind than what is kept gets a snapshot.
            replication_lag_threshold: self.snapshot_entries + self.keep_entries,
            enable_pre_vote: Some(true),
            // A voter that lost its log must not come back as if nothing had happened.
            allow_log_reversion: Some(false),
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config.validate().map_err(|error| OpenError::Config(error.to_string()))
    }
}

/// Where a replica keeps its log and snapshots.
pub enum Storage {
    /// Files in this directory.
    Directory {
        /// The directory; it exists.
        path: PathBuf,
        /// Make a new store where there is none: for a host that was just admitted, and never again.
        create: bool,
    },
    /// Backends whose calls return at once, for simulations.
    Backend {
        /// For vote and snapshot.
        store: Box<dyn redb::StorageBackend>,
        /// For the log.
        journal: Box<dyn redb::StorageBackend>,
        /// How long the next write has to wait.
        latency: Latency,
    },
}

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings contradict each other.
    #[error("the times of the replica do not fit together: {0}")]
    Config(String),
    /// openraft refused what it read.
    #[error("the replica cannot start: {0}")]
    Raft(String),
}

impl From<&OpenError> for Report {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Store(error) => error.into(),
            OpenError::Config(_) => Report::new(ErrorCode::BadConfig, error.to_string()),
            OpenError::Raft(_) => Report::new(ErrorCode::StoreDamaged, error.to_string()),
        }
    }
}

/// Why a proposal did not give an answer of the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The state refused it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Another host leads, or none is known. Nothing happened here.
    #[error("this host does not lead")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<HostId>,
    },
    /// No answer in time: it may or may not happen. The same request can be proposed again.
    #[error("it is not known whether the request will take effect")]
    Unknown,
    /// The request is larger than the log takes.
    #[error("a request of {bytes} bytes is more than {}", bounds::REQUEST_BYTES)]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A change of membership is not possible as things stand.
    #[error("membership cannot be changed so: {0}")]
    Membership(String),
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// A running replica. Clones are handles to the same one.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    host: HostId,
    raft: Raft<TypeConfig, Machine>,
    state: Listeners<Arc<State>>,
    leadership: Listeners<Leadership>,
    forwarder: JoinHandle<()>,
    pace: JoinHandle<()>,
    arriving: Arriving,
    closing: watch::Receiver<()>,
    heard: Heard,
    lease: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.forwarder.abort();
        self.pace.abort();
    }
}

/// Pauses between attempts while no leader is known.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(100);
/// How long tasks of a stopped replica may hold the store.
const CLOSING: Duration = Duration::from_secs(10);

impl Replica {
    /// Opens the store and starts to take part.
    ///
    /// # Errors
    /// The store is missing, damaged or another host's, or the settings contradict each other.
    pub async fn open(
        storage: Storage,
        host: HostId,
        config: &ReplicaConfig,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Self, OpenError> {
        let raft_config = Arc::new(config.raft()?);
        let disk = match storage {
            Storage::Directory { path, create } => {
                let open = move || Disk::open(Place::Directory { path: &path, create }, host);
                tokio::task::spawn_blocking(open).await.map_err(|error| OpenError::Raft(error.to_string()))??
            }
            Storage::Backend { store, journal, latency } => {
                Disk::open(Place::Backend { store, journal, latency }, host)?
            }
        };
        let disk = Arc::new(disk);
        let machine = Machine::open(Arc::clone(&disk))?;
        let state = machine.listeners();
        let network = Network { transport };
        let closing = disk.closing();
        let raft = Raft::new(host.raft(), raft_config, network, Log::new(disk), machine)
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let (leadership, forwarder) = forward_leadership(&raft);
        let heard = Heard::default();
        let pace = tokio::spawn(pace::keep(raft.clone(), leadership.listen(), heard.clone(), config.heartbeat));
        let inner = Inner {
            host,
            raft,
            state,
            leadership,
            forwarder,
            pace,
            arriving: Arriving::default(),
            closing,
            heard,
            lease: config.election_max,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes this replica the only voter of a new cluster. Does nothing where it is a member already.
    ///
    /// # Errors
    /// The replica has stopped.
    pub async fn init_single(&self, address: &str) -> Result<(), ProposeError> {
        let members = BTreeMap::from([(self.inner.host.raft(), BasicNode::new(address))]);
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ProposeError::Stopped(error.to_string())),
        }
    }

    /// This host.
    pub fn host(&self) -> HostId {
        self.inner.host
    }

    /// Answers a message of another replica. `from` is who the mesh says it is.
    pub async fn handle(&self, from: HostId, request: &[u8]) -> Vec<u8> {
        let reply = match wire::decode::<Ask>(request) {
            Ok(ask) if ask.speaker() != from.raft() => {
                Reply::Refused(format!("{from} speaks in the name of {}", HostId(ask.speaker())))
            }
            Ok(ask) => self.answer(from, ask).await.unwrap_or_else(Reply::Refused),
            Err(error) => Reply::Refused(error.to_string()),
        };
        wire::encode(&reply).unwrap_or_default()
    }

    async fn answer(&self, from: HostId, ask: Ask) -> Result<Reply, String> {
        let raft = &self.inner.raft;
        Ok(match ask {
            Ask::Append(ask) => {
                let reply = raft.append_entries(ask).await.map_err(|e| e.to_string())?;
                if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
                    self.inner.heard.now(from);
                }
                Reply::Append(reply)
            }
            Ask::Vote(ask) => Reply::Vote(raft.vote(ask).await.map_err(|e| e.to_string())?),
            Ask::PreVote(ask) => Reply::Vote(raft.pre_vote(ask).await.map_err(|e| e.to_string())?),
            Ask::TransferLeader(ask) => {
                Reply::TransferLeader(raft.handle_transfer_leader(ask).await.map_err(|e| e.to_string())?)
            }
            Ask::Snapshot(part) => match self.inner.arriving.take(from, &part)? {
                Err(next) => Reply::SnapshotNext(next),
                Ok(bytes) => {
                    let snapshot = Snapshot { meta: part.meta, snapshot: Arc::new(bytes) };
                    let SnapshotResponse { vote } =
                        raft.install_full_snapshot(part.vote, snapshot).await.map_err(|e| e.to_string())?;
                    Reply::Snapshot(SnapshotResponse { vote })
                }
            },
        })
    }

    /// Proposes a request and waits until it took effect here. Where no leader is known it is tried again until the
    /// deadline; so is what an election discarded, for a request takes effect once however often it is proposed.
    ///
    /// # Errors
    /// The state refused it; another host leads; or nothing is known of its fate.
    pub async fn propose(&self, request: Request, deadline: Duration) -> Result<Applied, ProposeError> {
        let bytes = codec::encode_as(0, &request, usize::MAX).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > bounds::REQUEST_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let until = Instant::now() + deadline;
        let mut pause = RETRY_MIN;
        let mut discarded = false;
        loop {
            let written = match timeout_at(until, self.inner.raft.client_write(request.clone())).await {
                Ok(written) => written,
                Err(_) => return Err(ProposeError::Unknown),
            };
            let forward = match written {
                Ok(written) => {
                    let response = written.data.0;
                    return response.unwrap_or_else(|| unreachable_response(&request)).map_err(Into::into);
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => forward,
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward))) => {
                    discarded = true;
                    forward
                }
                Err(RaftError::APIError(other)) => return Err(ProposeError::Membership(other.to_string())),
                Err(RaftError::Fatal(fatal)) => return Err(ProposeError::Stopped(fatal.to_string())),
            };
            if let Some(leader) = self.elsewhere(&forward) {
                return Err(ProposeError::NotLeader { leader: Some(leader) });
            }
            if Instant::now() + pause >= until {
                return Err(if discarded { ProposeError::Unknown } else { ProposeError::NotLeader { leader: None } });
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// The leader, if it is known and another host.
    fn elsewhere(&self, forward: &ForwardToLeader<TypeConfig>) -> Option<HostId> {
        forward.leader_id.map(HostId).filter(|leader| *leader != self.inner.host)
    }

    /// The state as far as it is applied here; [`State::index`] says how far that is.
    pub fn state(&self) -> Arc<State> {
        self.inner.state.value()
    }

    /// The state, told at every change.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.listen()
    }

    /// Who leads and who votes, told at every change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.listen()
    }

    /// How this replica stands now.
    pub fn status(&self) -> Status {
        Status::of(&self.inner.raft.metrics().borrow_watched(), self.inner.heard.silent(), self.inner.lease)
    }

    /// Which other host was heard last as leader, and how long ago; while this one leads: who led before it.
    pub fn heard(&self) -> Option<(HostId, Duration)> {
        self.inner.heard.last()
    }

    /// The log index that a read must have seen to be current: ReadIndex, confirmed by most voters. On the leader.
    ///
    /// # Errors
    /// Another host leads, or most voters did not confirm in time.
    pub async fn read_index(&self, deadline: Duration) -> Result<u64, ProposeError> {
        let until = Instant::now() + deadline;
        let mut pause = RETRY_MIN;
        loop {
            let reading = self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex);
            let forward = match timeout_at(until, reading).await {
                Err(_) => return Err(ProposeError::Unknown),
                Ok(Ok((read, _))) => return Ok(read.log_id().index),
                Ok(Err(RaftError::Fatal(fatal))) => return Err(ProposeError::Stopped(fatal.to_string())),
                Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => Some(forward),
                Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => None,
            };
            if let Some(leader) = forward.as_ref().and_then(|forward| self.elsewhere(forward)) {
                return Err(ProposeError::NotLeader { leader: Some(leader) });
            }
            if Instant::now() + pause >= until {
                return Err(ProposeError::NotLeader { leader: None });
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits until this replica has applied up to `index` and gives the state then.
    ///
    /// # Errors
    /// Not within the deadline, or the replica has stopped.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<Arc<State>, ProposeError> {
        let mut watch = self.watch();
        let reached = watch.wait_for(|state| state.index >= index);
        match tokio::time::timeout(deadline, reached).await {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Err(ProposeError::Stopped("its state is gone".to_owned())),
            Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// A state that is current: [`Self::read_index`], then applied here. On the leader.
    ///
    /// # Errors
    /// As of the two.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<Arc<State>, ProposeError> {
        let until = Instant::now() + deadline;
        let index = self.read_index(deadline).await?;
        self.wait_applied(index, until.saturating_duration_since(Instant::now())).await
    }

    /// Has a host follow without a vote. Does not wait for it to catch up.
    ///
    /// # Errors
    /// Another host leads, or a change is under way.
    pub async fn add_learner(&self, host: HostId, address: &str) -> Result<(), ProposeError> {
        let nodes = BTreeMap::from([(host.raft(), BasicNode::new(address))]);
        self.change(ChangeMembers::AddNodes(nodes)).await
    }

    /// Replaces the voters by a joint change. Who leaves stays as learner.
    ///
    /// # Errors
    /// Another host leads, a change is under way, or a host is no learner.
    pub async fn change_voters(&self, voters: BTreeSet<HostId>) -> Result<(), ProposeError> {
        let voters = voters.into_iter().map(HostId::raft).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Stops replicating to a learner.
    ///
    /// # Errors
    /// Another host leads, a change is under way, or the host votes.
    pub async fn remove_learner(&self, host: HostId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([host.raft()]))).await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), ProposeError> {
        match self.inner.raft.change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: self.elsewhere(&forward) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(ProposeError::Unknown),
            Err(RaftError::APIError(other)) => Err(ProposeError::Membership(other.to_string())),
        }
    }

    /// Asks the leader, which is this host, to hand over to another voter. [`Self::leadership`] tells when it did.
    ///
    /// # Errors
    /// The replica has stopped.
    pub async fn transfer_leader(&self, to: HostId) -> Result<(), ProposeError> {
        let sent = self.inner.raft.trigger().transfer_leader(to.raft()).await;
        sent.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))
    }

    /// Takes a snapshot now. [`Self::status`] tells when it is there.
    ///
    /// # Errors
    /// The replica has stopped.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        let sent = self.inner.raft.trigger().snapshot().await;
        sent.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))
    }

    /// Stops and waits, for ten seconds at most, until the store is closed, so that it can be opened again.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "the replica ended badly");
        }
        let mut closing = self.inner.closing.clone();
        let closed = async { while closing.changed().await.is_ok() {} };
        if tokio::time::timeout(CLOSING, closed).await.is_err() {
            tracing::warn!("the store of the replica is still in use");
        }
    }
}

/// A request's entry always gives an outcome; should it not, the caller is told that nothing is known.
fn unreachable_response(request: &Request) -> Result<Applied, Rejected> {
    Err(Rejected::new(ErrorCode::Internal, format!("{request} gave no outcome")))
}

/// Tells changes of leadership without waking at every heartbeat.
fn forward_leadership(raft: &Raft<TypeConfig, Machine>) -> (Listeners<Leadership>, JoinHandle<()>) {
    let mut metrics = raft.server_metrics();
    let teller = Teller::new(Leadership::of_server(&metrics.borrow_watched()));
    let listeners = teller.listeners();
    let told = listeners.clone();
    let forwarder = tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let now = Leadership::of_server(&metrics.borrow_watched());
            if now != told.value() {
                teller.tell(now);
            }
        }
        teller.tell(Leadership { role: ReplicaRole::Stopped, ..told.value() });
    });
    (listeners, forwarder)
}
