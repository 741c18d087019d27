//! Hosts of a cluster on loopback addresses, over the real router, endpoint and join; the log is one state behind a lock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vt_daemon::audit::Audit;
use vt_daemon::cluster::{AskError, Cluster, ProposeError};
use vt_daemon::mesh::join::member::{self, QuicProber};
use vt_daemon::mesh::{AdminService, Caller, Membership, MembershipView, Peers, ReplySink, Router, Services};
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest};
use vt_protocol::endpoint::MeshEndpoint;
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::hello::Hello;
use vt_protocol::identity::{ClusterCa, Identity, PrivateKey, Validity};
use vt_protocol::ids::{ClusterId, Digest, HostId, Name, RequestId, TokenId};
use vt_protocol::join::{EnrollRequest, JoinAnswer, JoinRefusal, JoinRequest, host_id_of};
use vt_protocol::peer::{PeerReply, PeerRequest};
use vt_protocol::token::{Secret, Token};
use vt_sync::command::{
    AdmitClient, AdmitHost, CreateClientToken, CreateToken, InitCluster, NewHost, RemoveClient, RemoveHost,
};
use vt_sync::state::{ClientGrant, Role};
use vt_sync::{Applied, Command, Request, State};

use crate::admission::{ClusterAdmission, membership_of};

/// The cluster of most tests.
pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// A deadline no test should come near.
pub(crate) fn by() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Waits until `holds`, with a message for when it does not.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = by();
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An address of its own on loopback, so that tests side by side do not meet.
pub(crate) fn address() -> SocketAddr {
    let [a, b, c]: [u8; 3] = rand::random();
    SocketAddr::from(([127, a, b, c.clamp(1, 254)], 7465))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// What happens to the next entry that admits a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is applied.
    Applied,
    /// It is lost before it is in the log.
    LostBefore,
    /// It is in the log, and its proposer never hears of it.
    LostAfter,
}

/// The replicated log of a test: one state behind a lock.
pub(crate) struct Log {
    state: Mutex<State>,
    seen: watch::Sender<Arc<State>>,
    fate: Mutex<Fate>,
    /// Hosts that joined. An admission that is repeated counts once.
    pub(crate) admissions: AtomicUsize,
}

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            seen: watch::Sender::new(Arc::default()),
            fate: Mutex::new(Fate::Applied),
            admissions: AtomicUsize::new(0),
        })
    }

    pub(crate) fn apply(&self, command: impl Into<Command>) -> Result<Applied, vt_sync::Rejected> {
        self.apply_request(&Request::new(command)).0
    }

    /// The outcome, and by how many hosts the cluster grew.
    fn apply_request(&self, request: &Request) -> (Result<Applied, vt_sync::Rejected>, usize) {
        let mut state = self.state.lock().unwrap();
        let (index, before) = (state.index + 1, state.hosts.len());
        let applied = state.apply(index, request);
        self.seen.send_replace(Arc::new(state.clone()));
        (applied, state.hosts.len().saturating_sub(before))
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.seen.borrow().clone()
    }

    /// Decides what happens to the next admission.
    pub(crate) fn next_admission(&self, fate: Fate) {
        *self.fate.lock().unwrap() = fate;
    }
}

/// The log as one host sees it.
struct Seat {
    log: Arc<Log>,
    me: HostId,
}

#[async_trait]
impl Cluster for Seat {
    fn me(&self) -> HostId {
        self.me
    }

    fn state(&self) -> Arc<State> {
        self.log.state()
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.log.seen.subscribe()
    }

    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        let admits = matches!(command, Command::AdmitHost(AdmitHost { .. }));
        let fate = match admits {
            true => std::mem::replace(&mut *self.log.fate.lock().unwrap(), Fate::Applied),
            false => Fate::Applied,
        };
        if fate == Fate::LostBefore {
            return Err(ProposeError::TimedOut(deadline));
        }
        let (applied, grown) = self.log.apply_request(&Request::with_id(id, command));
        self.log.admissions.fetch_add(grown, Ordering::SeqCst);
        if fate == Fate::LostAfter {
            return Err(ProposeError::TimedOut(deadline));
        }
        applied.map_err(ProposeError::from)
    }

    async fn ask(&self, _: HostId, _: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError> {
        Err(AskError::TimedOut(deadline))
    }
}

/// A cluster: its CA and its log.
pub(crate) struct Lab {
    pub(crate) ca: Arc<ClusterCa>,
    pub(crate) log: Arc<Log>,
}

impl Lab {
    /// A cluster with one host that runs.
    pub(crate) async fn with_host() -> (Lab, Host) {
        let lab = Lab { ca: Arc::new(ClusterCa::generate(CLUSTER).unwrap()), log: Log::new() };
        let identity = lab.identity("host1");
        let at = address();
        let init = InitCluster {
            id: CLUSTER,
            name: name("lab"),
            ca: Digest::of(b"ca"),
            host: new_host(&identity, "host1", at),
        };
        lab.log.apply(init).unwrap();
        let host = lab.start(identity, "host1", at);
        (lab, host)
    }

    /// Another host that is admitted and runs.
    pub(crate) async fn add(&self, text: &str) -> Host {
        let identity = self.identity(text);
        let at = address();
        self.admit(&identity, text, at);
        self.start(identity, text, at)
    }

    /// An identity that the cluster's CA signed for a host; not admitted yet.
    pub(crate) fn identity(&self, text: &str) -> Arc<Identity> {
        let key = PrivateKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        let certificate = self.ca.issue_host(&request, host_id_of(&key.public()), &name(text)).unwrap();
        Arc::new(Identity::new(key, certificate, self.ca.certificate().clone()).unwrap())
    }

    /// Admits a key.
    pub(crate) fn admit(&self, identity: &Identity, text: &str, at: SocketAddr) {
        let (token, secret) = (TokenId(rand::random()), Secret::random());
        self.create_token(token, &secret, u64::MAX);
        let host = new_host(identity, text, at);
        self.log.apply(AdmitHost { token, secret_hash: secret.hash(), host }).unwrap();
    }

    fn create_token(&self, token: TokenId, secret: &Secret, expires_unix_s: u64) {
        let made = CreateToken {
            token,
            secret_hash: secret.hash(),
            role: Role::Learner,
            made_by: "test".to_owned(),
            expires_unix_s,
        };
        self.log.apply(made).unwrap();
    }

    /// A join token for hosts at `addresses`.
    pub(crate) fn token(&self, expires: u64, addresses: &[SocketAddr]) -> Token {
        let token = Token {
            cluster: CLUSTER,
            ca: self.ca.digest(),
            id: TokenId(rand::random()),
            secret: Secret::random(),
            expires,
            addresses: addresses.to_vec(),
        };
        self.create_token(token.id, &token.secret, expires);
        token
    }

    /// Takes a host out of the cluster.
    pub(crate) fn remove(&self, host: HostId) {
        self.log.apply(RemoveHost { host }).unwrap();
    }

    /// The identity of a client that is admitted.
    pub(crate) fn client(&self, role: AccessRole, dates: Validity) -> Arc<Identity> {
        let key = PrivateKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        let client = name(&format!("c{:08x}", rand::random::<u32>()));
        let certificate = self.ca.issue_client(&request, role, &client, dates).unwrap();
        let (token, secret_hash) = (TokenId(rand::random()), Secret::random().hash());
        let grant = ClientGrant { role, name: Some(client.clone()), valid_s: 60 };
        let made_by = "test".to_owned();
        let made = CreateClientToken { token, secret_hash, grant, made_by, expires_unix_s: u64::MAX };
        self.log.apply(made).unwrap();
        let key_digest = key.public().digest();
        let admit = AdmitClient { token, secret_hash, key: key_digest, name: client, until_unix_s: dates.until };
        self.log.apply(admit).unwrap();
        Arc::new(Identity::new(key, certificate, self.ca.certificate().clone()).unwrap())
    }

    /// Takes a client's key out of the cluster.
    pub(crate) fn revoke(&self, client: &Identity) {
        self.log.apply(RemoveClient { key: client.key().public().digest() }).unwrap();
    }

    /// Starts the daemon's side of the mesh for an identity.
    pub(crate) fn start(&self, identity: Arc<Identity>, text: &str, at: SocketAddr) -> Host {
        let id = host_id_of(&identity.key().public());
        let hello = Hello::of(Some(CLUSTER), Some(id), rand::random());
        let endpoint = MeshEndpoint::serve(at, identity).unwrap();
        let seat = Arc::new(Seat { log: Arc::clone(&self.log), me: id });
        let directory = tempfile::tempdir().unwrap();
        let services = Arc::new(Daemon {
            hello: hello.clone(),
            log: Arc::clone(&self.log),
            admission: ClusterAdmission::new(seat, name("lab"), Some(Arc::clone(&self.ca))),
            prober: QuicProber::new(endpoint.clone(), hello.clone(), name(text)),
            endpoint: endpoint.clone(),
            audit: Audit::new(directory.path()),
            _directory: directory,
            watching: Arc::default(),
            finished: Arc::default(),
        });
        let peers = Peers::new(endpoint.clone(), Arc::clone(&services) as Arc<dyn MembershipView>, hello.clone());
        let stop = CancellationToken::new();
        tokio::spawn(Router::new(endpoint.clone(), Arc::clone(&services) as Arc<dyn Services>).run(stop.clone()));
        Host { id, at, endpoint, services, peers, hello, stop }
    }
}

fn new_host(identity: &Identity, text: &str, at: SocketAddr) -> NewHost {
    let key = identity.key().public();
    NewHost {
        id: host_id_of(&key),
        name: name(text),
        addresses: vec![at],
        labels: BTreeMap::new(),
        role: None,
        public_key: key.0,
        build: "test".to_owned(),
        facts: None,
    }
}

/// A host whose side of the mesh runs. Dropping it stops it.
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) at: SocketAddr,
    pub(crate) endpoint: MeshEndpoint,
    pub(crate) services: Arc<Daemon>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) hello: Hello,
    stop: CancellationToken,
}

impl Host {
    /// Calls the raft service of `to`, whose test answer is the caller's id and the bytes.
    pub(crate) async fn echo(&self, to: &Host, bytes: &[u8]) -> Result<Vec<u8>, vt_protocol::call::CallError> {
        use vt_protocol::transport::Transport;
        self.peers.call(to.id, vt_protocol::service::Service::Raft, bytes.to_vec(), by()).await
    }

    /// Ends like a process that is killed: from now on nothing of it is heard or said at its address, and the port is
    /// free.
    pub(crate) async fn die(self) {
        self.stop.cancel();
        // Moved away first: what it still says comes from a port that nobody listens to. Twice, because an endpoint
        // holds on to the socket before its last.
        for _ in 0..2 {
            self.endpoint.quic().rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        }
        self.endpoint.close(Duration::ZERO).await;
        let at = self.at;
        until("the port of a dead host is free", || std::net::UdpSocket::bind(at).is_ok()).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the tests' daemon does with requests.
pub(crate) struct Daemon {
    hello: Hello,
    log: Arc<Log>,
    admission: ClusterAdmission,
    prober: QuicProber,
    endpoint: MeshEndpoint,
    pub(crate) audit: Arc<Audit>,
    _directory: tempfile::TempDir,
    /// Watches that run.
    pub(crate) watching: Arc<AtomicUsize>,
    /// Requests that change something and came to their end.
    pub(crate) finished: Arc<AtomicUsize>,
}

impl MembershipView for Daemon {
    fn membership(&self) -> Arc<Membership> {
        Arc::new(membership_of(&self.log.state()).unwrap_or_default())
    }

    fn generation(&self) -> u64 {
        1
    }
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl AdminService for Daemon {
    fn hello(&self) -> Hello {
        self.hello.clone()
    }

    fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    async fn admin(&self, caller: Caller, request: AdminRequest, replies: ReplySink, _by: Instant) {
        match request {
            // A stream of three.
            AdminRequest::JobList => {
                for count in 0..3 {
                    let _ = replies.send(AdminReply::Inventory(vec![count.to_string()])).await;
                }
            }
            // A watch on which nothing more happens.
            AdminRequest::JobWatch(_) => {
                let _watching = Counted::new(&self.watching);
                let _ = replies.send(AdminReply::Done).await;
                std::future::pending::<()>().await;
            }
            // A request whose answer never comes.
            AdminRequest::VmList => std::future::pending().await,
            AdminRequest::Inventory => panic!("a handler with a bug"),
            // Changes something, slowly.
            AdminRequest::JobCancel(_) => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.finished.fetch_add(1, Ordering::SeqCst);
                let _ = replies.send(AdminReply::Done).await;
            }
            _ => {
                let said = format!("{:?} {:?}", caller.role(), caller.is_local());
                let _ = replies.send(AdminReply::Inventory(vec![said])).await;
            }
        }
    }
}

#[async_trait]
impl Services for Daemon {
    async fn raft(&self, from: HostId, request: Vec<u8>, _by: Instant) -> Result<Vec<u8>, Report> {
        match request.as_slice() {
            b"pend" => std::future::pending().await,
            b"fail" => Err(Report::new(ErrorCode::NoQuorum, "no quorum")),
            _ => Ok([&from.0.to_le_bytes(), request.as_slice()].concat()),
        }
    }

    async fn peer(&self, _from: HostId, request: PeerRequest, _by: Instant) -> PeerReply {
        match request {
            PeerRequest::Ping => PeerReply::Done,
            _ => PeerReply::Refused(Report::new(ErrorCode::HostBusy, "busy")),
        }
    }

    async fn join(&self, request: JoinRequest, _from: SocketAddr, by: Instant) -> JoinAnswer {
        member::admit(&self.admission, &self.prober, &self.endpoint, request, by).await
    }

    async fn enroll(&self, _request: EnrollRequest, _by: Instant) -> JoinAnswer {
        JoinAnswer::Refused(JoinRefusal::TokenUnknown)
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a raft echo from `host` looks like.
pub(crate) fn echoed(host: HostId, bytes: &[u8]) -> Vec<u8> {
    [&host.0.to_le_bytes(), bytes].concat()
}
