//! The daemon of a host that belongs to a cluster: everything put together.
//!
//! A [`Host`] owns the endpoint, the replica, the stores and the loops, and is what the mesh serves. It decides nothing
//! itself: requests go to [`crate::api`], loops live in [`crate::control`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vt_protocol::{
    admin::AdminRequest,
    bulk::Outgoing,
    endpoint::MeshEndpoint,
    error::{ErrorCode, Report},
    hello::{BUILD, Hello},
    identity::Identity,
    ids::{Digest, HostId, MigrationId, RequestId},
    join::{EnrollRequest, JoinAnswer, JoinRequest},
    peer::{Certified, PeerReply, PeerRequest},
};
use vt_sync::{
    Applied, Command, Request, State,
    command::{InitCluster, NewHost},
    raft::{Leadership, Replica, ReplicaRole},
    state::Role,
};

use crate::{
    api::views::Consensus,
    audit::Audit,
    blob::BlobStore,
    cluster::{AskError, Cluster, ProposeError},
    control::{
        announce, authority, copies,
        keeper::{self, Renewals},
        leads, membership, scheduler,
        session::{Held, Holdings, Session},
        sweep, tokens,
    },
    data::DataDir,
    evidence::EvidenceStore,
    facts::Facts,
    guard::clock::BootTime,
    images::{Images, Pools},
    members::Members,
    mesh::{
        AdminService, Caller, Membership, MembershipView, Peers, ReplySink, Router, Services,
        join::{
            claim::{Claim, Record},
            member::{self, QuicProber},
        },
    },
    migrate::inlet::clear_states,
    party::{Places, Supervisor},
    plan::Plans,
    settings::Settings,
};

mod log;
mod propose;

/// How long the first entry of a cluster may take.
const FOUNDS: Duration = Duration::from_secs(20);
/// Handing over leadership at the end of the daemon may take this long.
const HANDOVER: Duration = Duration::from_millis(1000);
/// The last renewal before that may take this long.
const RENEWS: Duration = Duration::from_millis(400);

/// What a new cluster is told of its first host.
#[derive(Debug, Clone)]
pub struct First {
    /// Its role.
    pub role: Role,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for First {
    fn default() -> Self {
        Self { role: Role::Voter, labels: BTreeMap::new() }
    }
}

/// What a host is made of.
pub struct Parts {
    /// Settings.
    pub settings: Arc<Settings>,
    /// The data directory.
    pub data: Arc<DataDir>,
    /// Facts about this machine.
    pub facts: Arc<Facts>,
    /// This start of the daemon.
    pub incarnation: u64,
    /// Identity and record.
    pub claim: Claim,
    /// Where this host founds its cluster: what it says of itself.
    pub first: First,
    /// Where it is written down who did what.
    pub audit: Arc<Audit>,
    /// Told why this host cannot go on.
    pub broken: watch::Sender<Option<String>>,
    /// Told of a later generation of its cluster.
    pub superseded: watch::Sender<Option<u64>>,
}

/// The daemon of a host that belongs to a cluster.
pub struct Host {
    itself: Weak<Host>,
    settings: Arc<Settings>,
    data: Arc<DataDir>,
    facts: Arc<Facts>,
    incarnation: u64,
    record: Record,
    endpoint: MeshEndpoint,
    members: Arc<Members>,
    peers: Arc<Peers>,
    replica: Replica,
    leadership: watch::Receiver<Leadership>,
    blobs: BlobStore,
    images: Images,
    evidence: Arc<EvidenceStore>,
    plans: Plans,
    renewals: Renewals,
    held: watch::Receiver<Option<Held>>,
    renew_now: Arc<Notify>,
    places: Places,
    supervisor: OnceLock<Arc<Supervisor>>,
    audit: Arc<Audit>,
    broken: watch::Sender<Option<String>>,
    superseded: watch::Sender<Option<u64>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Host {
    /// Puts a host together and starts it.
    ///
    /// # Errors
    /// The port is taken, or the log is damaged; nothing runs then.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, Report> {
        let Parts {
            settings,
            data,
            facts,
            incarnation,
            claim: Claim { identity, record },
            first,
            audit,
            broken,
            superseded,
        } = parts;
        let listen = settings.host.listen;
        let endpoint = MeshEndpoint::serve(listen, Arc::new(identity)).map_err(|error| port(listen, &error))?;
        let bulk = TcpListener::bind(listen).await.map_err(|error| port(listen, &error))?;
        let members = Members::new(record.cluster, record.generation, record.host, record.members.clone());
        let mine = Hello::of(Some(record.cluster), Some(record.host), incarnation);
        let peers = Peers::new(endpoint.clone(), members.clone(), mine);
        let blobs = BlobStore::open(data.blobs())?;
        let images = Images::new(Pools::new(&settings));
        let replica = log::open_replica(&settings, &data, &record, Arc::clone(&peers)).await?;
        members.follow(replica.watch());
        let places = Places::new(&settings, record.advertise.ip());
        let (renewals, keeper) = keeper::renewals();
        let (held_sender, held) = watch::channel(None);
        let host = Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            evidence: Arc::new(EvidenceStore::new(data.path(), record.name.clone())),
            leadership: replica.leadership(),
            settings,
            data,
            facts,
            incarnation,
            record,
            endpoint,
            members,
            peers,
            replica,
            blobs,
            images,
            plans: Plans::default(),
            renewals,
            held,
            renew_now: Arc::default(),
            places,
            supervisor: OnceLock::new(),
            audit,
            broken,
            superseded,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let founded = host.found(first).await;
        let served = founded.and_then(|()| host.serve(bulk));
        if let Err(report) = served {
            let failure = host.replica.status().failure;
            host.stop().await;
            return Err(failure.map_or(report, |why| {
                Report::new(ErrorCode::StorageFailed, "the log of the cluster cannot be kept on this host")
                    .with("system", why)
                    .help(format!(
                        "see to the disk of {} (df -h, findmnt -T), then do it again",
                        host.data.path().display()
                    ))
            }));
        }
        // Before the session is opened: what this host still holds from before is taken up first.
        host.supervise();
        host.run_loops(keeper, held_sender);
        Ok(host)
    }

    /// Makes the cluster where this host is its first and nobody has yet.
    async fn found(self: &Arc<Self>, first: First) -> Result<(), Report> {
        let alone = matches!(&self.record.members[..], [only] if only.host == self.record.host);
        if !alone || self.state().cluster.is_some() {
            return Ok(());
        }
        let record = &self.record;
        let founding = self.replica.init_single(&record.advertise.to_string()).await;
        founding.map_err(|error| Report::new(ErrorCode::Internal, "the cluster was not made").caused_by(&error))?;
        let command = InitCluster {
            id: record.cluster,
            name: record.cluster_name.clone(),
            ca: Digest::of(self.identity().ca()),
            host: NewHost {
                id: record.host,
                name: record.name.clone(),
                addresses: vec![record.advertise],
                labels: first.labels,
                role: Some(first.role),
                public_key: self.identity().key().public().0,
                build: BUILD.to_owned(),
                facts: None,
            },
        };
        let id = RequestId::derived(&[b"init", &record.cluster.0.to_le_bytes()]);
        self.propose(id, command.into(), FOUNDS).await?;
        Ok(())
    }

    fn serve(self: &Arc<Self>, bulk: TcpListener) -> Result<(), Report> {
        let router = Router::new(self.endpoint.clone(), self.clone());
        self.spawn(router.run(self.stop.clone()));
        let bulk = crate::bulk_source::server(bulk, self)?;
        self.spawn(bulk.run(self.stop.clone()));
        Ok(())
    }

    fn supervise(self: &Arc<Self>) {
        clear_states(&self.places.states());
        let supervisor = Supervisor::new(self.clone(), self.places.clone(), Arc::clone(&self.evidence), self.clone());
        let running = Arc::clone(&supervisor).run(self.stop.clone());
        // A host is put together once.
        let _ = self.supervisor.set(supervisor);
        if let Some(supervisor) = self.supervisor.get() {
            self.spawn(extend_guards(Arc::clone(supervisor), self.held.clone(), self.stop.clone()));
        }
        let host = Arc::clone(self);
        self.spawn(async move {
            if let Err(error) = running.await {
                host.broken.send_replace(Some(format!("parties cannot reach this daemon: {error}")));
            }
        });
    }

    fn run_loops(self: &Arc<Self>, keeper: keeper::Keeper, held: watch::Sender<Option<Held>>) {
        let (stop, times) = (self.stop.clone(), self.settings.session);
        self.spawn(Arc::clone(self).replica_stops());
        self.spawn(Arc::clone(self).is_left_behind());
        self.spawn(keeper.run(self.clone(), self.leadership.clone(), times, stop.clone()));
        self.spawn(scheduler::run(self.clone(), self.leadership.clone(), stop.clone()));
        self.spawn(tokens::run(self.clone(), self.leadership.clone(), stop.clone()));
        self.spawn(membership::run(self.clone(), stop.clone()));
        self.spawn(authority::run(self.clone(), stop.clone()));
        self.spawn(announce::run(self.clone(), stop.clone()));
        self.spawn(copies::run(self.clone(), stop.clone()));
        self.spawn(sweep::run(self.clone(), stop.clone()));
        let session = Session {
            cluster: self.clone(),
            leadership: self.leadership.clone(),
            local: self.renewals.clone(),
            holdings: self.clone(),
            incarnation: self.incarnation,
            times,
            clock: Arc::new(BootTime::now),
            now: Arc::clone(&self.renew_now),
            held,
        };
        self.spawn(session.run(stop));
    }

    /// A replica that stops by itself met a disk that fails or is damaged: this host must not seem to be well.
    async fn replica_stops(self: Arc<Self>) {
        let mut leadership = self.leadership.clone();
        let stopped = leadership.wait_for(|now| now.role == ReplicaRole::Stopped);
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = stopped => {
                let why = self.replica.status().failure.unwrap_or_else(|| "it does not say why".to_owned());
                self.broken.send_replace(Some(format!("the log of the cluster cannot be kept on this host: {why}")));
            }
        }
    }

    /// A host that learns that its cluster was recovered without it lets go of everything.
    async fn is_left_behind(self: Arc<Self>) {
        let mut met = self.peers.superseded();
        tokio::select! {
            () = self.stop.cancelled() => {}
            Ok(found) = met.wait_for(Option::is_some) => {
                self.superseded.send_replace(*found);
            }
        }
    }

    /// Closes log and state, and waits until another may open them.
    pub(crate) async fn close_log(&self) {
        self.replica.shutdown().await;
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn(task)
    }

    /// Hands leadership over, stops taking anything, and closes log and port. VMs and parties go on.
    pub async fn stop(&self) {
        self.renew_once_more().await;
        self.hand_over().await;
        self.stop.cancel();
        self.endpoint.close(Duration::from_millis(300)).await;
        self.peers.forget_all();
        if timeout(Duration::from_millis(1200), self.replica.shutdown()).await.is_err() {
            tracing::info!("the replica is still closing: what it acknowledged is on disk");
        }
        self.tasks.close();
        if timeout(Duration::from_millis(300), self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks did not end in time");
        }
    }

    /// A daemon that is only restarted should be back before anyone misses it: the silence counts from here.
    async fn renew_once_more(&self) {
        let mut held = self.held.clone();
        if held.borrow_and_update().is_some() {
            self.renew_now.notify_one();
            // Without a leader there is nobody to renew with; then this is given up soon.
            let _ = timeout(RENEWS, held.changed()).await;
        }
    }

    async fn hand_over(&self) {
        let status = self.replica.status();
        if status.leadership.role != ReplicaRole::Leader {
            return;
        }
        let voters = &status.leadership.voters;
        let candidates = status.followers.iter().filter(|(host, follower)| {
            voters.contains(host) && follower.silent.is_some_and(|silent| silent < Duration::from_secs(1))
        });
        let Some((to, _)) = candidates.min_by_key(|(_, follower)| follower.lag) else { return };
        tracing::info!(to = self.state().host_name(*to), "handing leadership over");
        if let Err(error) = self.replica.transfer_leader(*to).await {
            return tracing::debug!(%error, "leadership is not handed over");
        }
        let mut leadership = self.leadership.clone();
        let other = leadership.wait_for(|now| !leads(now) && now.leader.is_some());
        if !matches!(timeout(HANDOVER, other).await, Ok(Ok(_))) {
            tracing::info!("no other host took over in time");
        }
    }

    /// Settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The data directory.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// Facts about this machine.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What this host was told when it was claimed.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What it shows to others.
    pub fn identity(&self) -> Arc<Identity> {
        self.endpoint.identity()
    }

    pub(crate) fn endpoint(&self) -> &MeshEndpoint {
        &self.endpoint
    }

    /// BLAKE3 of the CA's certificate, as it is shown on every host.
    pub fn ca_fingerprint(&self) -> String {
        Digest::of(self.identity().ca()).to_string()
    }

    /// Who did what here.
    pub fn audit_trail(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// Its blobs.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Its images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Its evidence.
    pub fn evidence(&self) -> &Arc<EvidenceStore> {
        &self.evidence
    }

    /// Places and programs of this host.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The parties of this host; `None` while the host is being put together.
    pub(crate) fn supervisor(&self) -> Option<&Arc<Supervisor>> {
        self.supervisor.get()
    }

    pub(crate) fn plans(&self) -> &Plans {
        &self.plans
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Who leads and who votes, told at every change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    pub(crate) fn renewals(&self) -> &Renewals {
        &self.renewals
    }

    /// How consensus stands, as this host sees it.
    pub fn consensus(&self) -> Consensus {
        let status = self.replica.status();
        let leads = status.leadership.role == ReplicaRole::Leader;
        // With pre-vote a host that is cut off keeps the name of its last leader; that its session is renewed is proof.
        let times = self.settings.session;
        let heard =
            self.held.borrow().is_some_and(|held| BootTime::now().since(held.since) < times.suspect + 2 * times.renew);
        Consensus {
            voters: status.leadership.voters,
            leader: status.leadership.leader,
            term: status.leadership.term,
            quorum: status.quorum && (leads || heard),
            lag: status.followers.iter().map(|(host, follower)| (*host, follower.lag)).collect(),
        }
    }

    /// How this host is, on one line, for systemd.
    pub fn one_line(&self) -> String {
        let (state, consensus) = (self.state(), self.consensus());
        let role = if consensus.voters.contains(&self.me()) { "voter" } else { "learner" };
        let leader =
            consensus.leader.map_or_else(|| "no leader".to_owned(), |it| format!("leader {}", state.host_name(it)));
        let live = state.hosts.values().filter(|host| host.is_live()).count();
        format!("{role}, {leader}, {live}/{} live, {} VMs", state.hosts.len(), state.vms.len())
    }
}

fn port(address: SocketAddr, error: &dyn std::error::Error) -> Report {
    Report::new(ErrorCode::StorageFailed, format!("this daemon cannot listen on {address}"))
        .caused_by(error)
        .help("another program may use the port: ss -lnptu")
        .help("another address: listen under [host] in the settings")
}

/// Tells the guards of each renewal.
async fn extend_guards(supervisor: Arc<Supervisor>, mut held: watch::Receiver<Option<Held>>, stop: CancellationToken) {
    loop {
        let renewed = *held.borrow_and_update();
        if let Some(renewed) = renewed {
            supervisor.session_opened(renewed.opened);
            supervisor.renewed(renewed.since);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = held.changed() => if changed.is_err() { return },
        }
    }
}

#[async_trait]
impl Cluster for Host {
    fn me(&self) -> HostId {
        self.record.host
    }

    fn state(&self) -> Arc<State> {
        self.replica.state()
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.replica.watch()
    }

    fn heard_leader(&self) -> Option<(HostId, Duration)> {
        self.replica().heard()
    }

    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        self.propose_until_decided(Request::with_id(id, command), deadline).await
    }

    async fn ask(&self, host: HostId, request: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError> {
        let by = Instant::now() + deadline;
        let reply = if host == self.me() {
            let Some(itself) = self.itself.upgrade() else { return Err(AskError::Unreachable("stopping".to_owned())) };
            let answer = itself.answer_peer(host, request, by);
            timeout_at(by, answer).await.map_err(|_| AskError::TimedOut(deadline))?
        } else {
            self.peers.peer(host, &request, by).await.map_err(|error| match error {
                vt_protocol::call::CallError::Failed(report) => AskError::Refused(report),
                vt_protocol::call::CallError::Deadline { .. } => AskError::TimedOut(deadline),
                error => AskError::Unreachable(error.to_string()),
            })?
        };
        match reply {
            PeerReply::Refused(report) => Err(AskError::Refused(Box::new(report))),
            reply => Ok(reply),
        }
    }

    async fn migration_stream(&self, to: HostId, id: &MigrationId, deadline: Duration) -> Result<Outgoing, AskError> {
        self.stream_to(to, id, deadline).await
    }

    async fn give_state(&self, to: HostId, id: &MigrationId, file: &Path, by: Instant) -> Result<u64, AskError> {
        self.state_to(to, id, file, by).await
    }

    async fn certify(&self, id: &MigrationId, request: Vec<u8>, deadline: Duration) -> Result<Certified, AskError> {
        match self.itself.upgrade() {
            Some(itself) => itself.certificate_for(id, request, deadline).await,
            None => Err(AskError::Unreachable("stopping".to_owned())),
        }
    }
}

#[async_trait]
impl AdminService for Host {
    fn hello(&self) -> Hello {
        Hello::of(Some(self.record.cluster), Some(self.record.host), self.incarnation).in_generation(self.generation())
    }

    fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    async fn admin(&self, caller: Caller, request: AdminRequest, replies: ReplySink, by: Instant) {
        if let Some(itself) = self.itself.upgrade() {
            itself.answer_admin(caller, request, replies, by).await;
        }
    }
}

impl MembershipView for Host {
    fn membership(&self) -> Arc<Membership> {
        self.members.membership()
    }

    fn generation(&self) -> u64 {
        self.members.generation()
    }
}

#[async_trait]
impl Services for Host {
    async fn raft(&self, from: HostId, request: Vec<u8>, _by: Instant) -> Result<Vec<u8>, Report> {
        Ok(self.replica.handle(from, &request).await)
    }

    async fn peer(&self, from: HostId, request: PeerRequest, by: Instant) -> PeerReply {
        match self.itself.upgrade() {
            Some(itself) => itself.answer_peer(from, request, by).await,
            None => PeerReply::Refused(Report::new(ErrorCode::Unreachable, "the daemon is stopping").retryable()),
        }
    }

    async fn join(&self, request: JoinRequest, _from: SocketAddr, by: Instant) -> JoinAnswer {
        let prober = QuicProber::new(self.endpoint.clone(), self.hello(), self.record.name.clone());
        member::admit(self, &prober, &self.endpoint, request, by).await
    }

    async fn enroll(&self, request: EnrollRequest, by: Instant) -> JoinAnswer {
        self.enroll_client(request, by).await
    }
}

#[async_trait]
impl Holdings for Host {
    async fn lost(&self) {
        if let Some(supervisor) = self.supervisor() {
            supervisor.give_up().await;
        }
    }
}
