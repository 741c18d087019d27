//! Two or more hosts in one process, sharing one state behind a lock; asking another host calls its supervisor.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use vt_daemon::{
    cgroup::Cgroups,
    cluster::{AskError, Cluster, ProposeError},
    evidence::EvidenceStore,
    guard::{Times, clock::BootTime},
    migrate::lanes::Lanes,
    party::{Party, Places, Plans, Supervisor, giveback::cgroup_name, places::secret_file},
    plan::OpenPlan,
    qemu::binaries::Binaries,
};
use vt_protocol::{
    error::{ErrorCode, Report},
    facts::{HostFacts, PoolFacts, QemuFacts},
    ids::{AttemptId, CaseId, ClusterId, Digest, HostId, JobId, Name, RequestId, TokenId},
    job::{Plan, PlannedCase},
    params::{Origin, Params},
    party::Hello,
    peer::{PeerReply, PeerRequest},
    verdict::Verdict,
    vm::Accelerator,
};
use vt_sync::{
    Applied, Command, Request, State,
    command::{AdmitHost, CancelJob, CreateToken, InitCluster, NewCase, NewHost, OpenSession, StartAttempt, SubmitJob},
    state::{Attempt, CaseState, Role},
};

/// Longest wait for anything.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What goes wrong on purpose.
#[derive(Default)]
pub(crate) struct Faults {
    /// Hosts that cannot be asked.
    pub(crate) unreachable: BTreeSet<HostId>,
    /// Nothing is decided.
    pub(crate) no_quorum: bool,
}

/// How a host is asked: its supervisor while its daemon runs, and its evidence.
type Reached = (Weak<Supervisor>, Arc<EvidenceStore>);

/// The cluster of all hosts.
pub(crate) struct Shared {
    state: watch::Sender<Arc<State>>,
    /// Applying is serial.
    log: Mutex<u64>,
    hosts: Mutex<BTreeMap<HostId, Reached>>,
    pub(crate) faults: Mutex<Faults>,
    plan: Mutex<Option<Arc<OpenPlan>>>,
}

impl Shared {
    pub(crate) fn now(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    pub(crate) fn apply(&self, id: RequestId, command: Command) -> Result<Applied, vt_sync::Rejected> {
        let mut index = self.log.lock().unwrap();
        *index += 1;
        let mut state = State::clone(&self.state.borrow());
        let result = state.apply(*index, &Request::with_id(id, command));
        self.state.send_replace(Arc::new(state));
        result
    }

    pub(crate) fn propose(&self, command: impl Into<Command>) -> Applied {
        self.apply(RequestId::random(), command.into()).unwrap()
    }

    /// Waits until committed state is as wanted.
    pub(crate) async fn wait<T>(&self, what: &str, mut found: impl FnMut(&State) -> Option<T>) -> T {
        let mut watch = self.state.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = found(&watch.borrow_and_update().clone()) {
                    return found;
                }
                watch.changed().await.unwrap();
            }
        };
        tokio::time::timeout(2 * LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"))
    }
}

/// One host's view of it.
struct View {
    me: HostId,
    shared: Arc<Shared>,
}

#[async_trait]
impl Cluster for View {
    fn me(&self) -> HostId {
        self.me
    }

    fn state(&self) -> Arc<State> {
        self.shared.now()
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.shared.state.subscribe()
    }

    async fn propose(&self, id: RequestId, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        let until = Instant::now() + deadline;
        while self.shared.faults.lock().unwrap().no_quorum {
            if Instant::now() >= until {
                return Err(ProposeError::NoQuorum);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(self.shared.apply(id, command)?)
    }

    async fn ask(&self, host: HostId, request: PeerRequest, deadline: Duration) -> Result<PeerReply, AskError> {
        if self.shared.faults.lock().unwrap().unreachable.contains(&host) {
            return Err(AskError::Unreachable("cut off by the test".into()));
        }
        let found = self.shared.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(&host).cloned();
        let Some((supervisor, store)) = found else { return Err(AskError::Unreachable("no such host".into())) };
        let answering = async move {
            let supervisor = || supervisor.upgrade().ok_or_else(|| AskError::Unreachable("its daemon ended".into()));
            let refused = |report: Report| AskError::Refused(Box::new(report));
            Ok(match request {
                PeerRequest::PrepareIncoming(asked) => {
                    PeerReply::Prepared(supervisor()?.prepare_incoming(*asked).await.map_err(refused)?)
                }
                PeerRequest::IncomingState { migration, wait_ms } => {
                    let wait = Duration::from_millis(wait_ms.into());
                    PeerReply::Incoming(supervisor()?.incoming_state(&migration, wait).await)
                }
                PeerRequest::QemuOf(vm) => PeerReply::Qemu(Box::new(supervisor()?.qemu_of(vm).await.map_err(refused)?)),
                PeerRequest::Facts => PeerReply::Facts(Box::new(facts())),
                PeerRequest::EvidenceList(attempt) => PeerReply::EvidenceList(store.list(attempt).map_err(refused)?),
                PeerRequest::EvidenceRead { attempt, path, offset, length } => {
                    PeerReply::Bytes(store.read(attempt, &path, offset, length).map_err(refused)?)
                }
                other => panic!("not asked in these tests: {other:?}"),
            })
        };
        tokio::time::timeout(deadline, answering).await.unwrap_or(Err(AskError::TimedOut(deadline)))
    }
}

fn facts() -> HostFacts {
    HostFacts {
        build: "test".into(),
        kernel: String::new(),
        boot_id: String::new(),
        os: String::new(),
        cpu_model: String::new(),
        cpus: 2,
        memory_bytes: 1 << 32,
        qemus: vec![QemuFacts {
            name: "default".into(),
            path: "qemu-system-x86_64".into(),
            version: "10".into(),
            accelerator: Accelerator::Tcg,
            accelerator_reason: "the test says so".into(),
        }],
        kind: "namespace".into(),
        pool: PoolFacts { path: String::new(), shared: true, images: Vec::new() },
        times_ms: Vec::new(),
        hypervisor: String::new(),
        cpu_virtualisation: String::new(),
    }
}

#[async_trait]
impl Plans for Shared {
    async fn plan(&self, _: JobId) -> Result<Arc<OpenPlan>, Report> {
        let plan = self.plan.lock().unwrap().clone();
        plan.ok_or_else(|| Report::new(ErrorCode::ResultsMissing, "no plan"))
    }
}

/// One host: its supervisor runs until it is dropped or stopped.
pub(crate) struct TestHost {
    pub(crate) id: HostId,
    pub(crate) name: Name,
    pub(crate) places: Places,
    pub(crate) supervisor: Arc<Supervisor>,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
}

/// Hosts, and everything they have on disk.
pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hosts: Vec<TestHost>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) const JOB: JobId = JobId(0x1234_5678);

/// What a party is, in these tests.
pub(crate) fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script, "party"].map(str::to_owned).to_vec()
}

impl World {
    /// A cluster of `count` hosts whose parties are `party`.
    pub(crate) async fn new(count: u64, party: Vec<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("vtc").tempdir().unwrap();
        let shared = Arc::new(Shared {
            state: watch::Sender::new(Arc::default()),
            log: Mutex::default(),
            hosts: Mutex::default(),
            faults: Mutex::default(),
            plan: Mutex::default(),
        });
        let new_host = |number: u64| NewHost {
            id: HostId(number),
            name: format!("host{number}").parse().unwrap(),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 7465))],
            labels: BTreeMap::new(),
            role: None,
            public_key: vec![number as u8; 32],
            build: "test".into(),
            facts: None,
        };
        shared.propose(InitCluster {
            id: ClusterId(1),
            name: "test".parse().unwrap(),
            ca: Digest::of(b"ca"),
            host: NewHost { role: Some(Role::Voter), ..new_host(1) },
        });
        for number in 2..=count {
            let (token, secret_hash) = (TokenId(number), Digest::of(&[number as u8]));
            let (role, made_by) = (Role::Learner, String::new());
            shared.propose(CreateToken { token, secret_hash, role, made_by, expires_unix_s: 1 });
            shared.propose(AdmitHost { token, secret_hash, host: new_host(number) });
        }
        let mut world = Self { shared, hosts: Vec::new(), dir };
        for number in 1..=count {
            let host = HostId(number);
            world.shared.propose(OpenSession { host, incarnation: 1, resume: false });
            let places = world.places(number, party.clone());
            world.hosts.push(world.start(host, places));
        }
        world
    }

    fn places(&self, number: u64, party: Vec<String>) -> Places {
        let root = self.dir.path().join(format!("h{number}"));
        Places {
            in_flight: Duration::from_secs(2),
            data: root.join("data"),
            run: root.join("run"),
            images: std::env::var_os("VTMESH_IMAGES").map_or_else(|| "/var/lib/vtmesh/images".into(), PathBuf::from),
            disks: self.dir.path().join("disks"),
            shared: true,
            qemus: Binaries::only("qemu-system-x86_64"),
            bridge: None,
            uplink: None,
            guests: None,
            port: 7465,
            migration: IpAddr::V4(Ipv4Addr::LOCALHOST),
            lanes: Lanes::new(8, 8),
            vtd: env!("CARGO_BIN_EXE_vtd").into(),
            party,
            cgroups: Cgroups::detect("vtmesh-tests".as_ref()).ok(),
            libvirt: None,
            // No session is renewed here but at the start of a host.
            guard: Times {
                pause: Duration::from_secs(600),
                kill: Duration::from_secs(700),
                abandon: Duration::from_secs(800),
            },
        }
    }

    fn start(&self, id: HostId, places: Places) -> TestHost {
        let name: Name = format!("host{}", id.0).parse().unwrap();
        std::fs::create_dir_all(&places.run).unwrap();
        let store = Arc::new(EvidenceStore::new(&places.data, name.clone()));
        let view = Arc::new(View { me: id, shared: self.shared.clone() });
        let supervisor = Supervisor::new(view, places.clone(), store.clone(), self.shared.clone());
        self.shared.hosts.lock().unwrap().insert(id, (Arc::downgrade(&supervisor), store));
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (supervisor, stop) = (supervisor.clone(), stop.clone());
            async move {
                supervisor.session_opened(0);
                supervisor.renewed(BootTime::now());
                supervisor.run(stop).await.unwrap();
            }
        });
        TestHost { id, name, places, supervisor, stop, running: Some(running) }
    }

    /// Ends the daemon of a host; what runs goes on.
    pub(crate) async fn stop_daemon(&mut self, place: usize) {
        self.hosts[place].stop.cancel();
        let running = self.hosts[place].running.take().unwrap();
        tokio::time::timeout(LONG, running).await.unwrap().unwrap();
    }

    /// Starts it again on the same directories.
    pub(crate) fn start_daemon(&mut self, place: usize) {
        let (id, places) = (self.hosts[place].id, self.hosts[place].places.clone());
        self.hosts[place] = self.start(id, places);
    }

    /// Starts the daemon of a host anew, with guards that act within seconds.
    pub(crate) async fn guard_soon(&mut self, place: usize) {
        let [pause, kill, abandon] = [4, 8, 12].map(Duration::from_secs);
        self.change(place, |places| places.guard = Times { pause, kill, abandon }).await;
    }

    /// Starts the daemon of a host anew, with something changed.
    pub(crate) async fn change(&mut self, place: usize, change: impl FnOnce(&mut Places)) {
        self.stop_daemon(place).await;
        change(&mut self.hosts[place].places);
        self.start_daemon(place);
    }

    /// Submits a case on the first `hosts` hosts and starts its attempt.
    pub(crate) fn begin(&self, scenario: &str, hosts: usize, params: &[(&str, &str)], timeout: Duration) -> AttemptId {
        let mut all = Params::new();
        for (key, value) in params {
            all.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        let plan = Plan {
            scenario: scenario.into(),
            cases: vec![PlannedCase {
                name: scenario.into(),
                hosts: self.hosts[..hosts].iter().map(|host| host.name.clone()).collect(),
                params: all,
                ..PlannedCase::default()
            }],
            case_timeout_ms: timeout.as_millis() as u64,
            ..Plan::default()
        };
        *self.shared.plan.lock().unwrap() = Some(Arc::new(OpenPlan::new(plan).unwrap()));
        let ids: Vec<HostId> = self.hosts[..hosts].iter().map(|host| host.id).collect();
        self.shared.propose(SubmitJob {
            job: JOB,
            scenario: scenario.into(),
            plan: Digest::of(b"plan"),
            holders: Vec::new(),
            strict: false,
            submitted_by: "test".into(),
            submitted_unix_s: 1,
            cases: vec![NewCase::on(ids.clone())],
            refusals: vec![],
        });
        let case = CaseId { job: JOB, index: 1 };
        self.shared.propose(StartAttempt { case, number: 1, hosts: ids });
        AttemptId { case, number: 1 }
    }

    pub(crate) fn cancel(&self) {
        self.shared.propose(CancelJob { job: JOB, by: "test".into() });
    }

    /// The verdict of the case with its cause, once there is one.
    pub(crate) async fn verdict(&self) -> (Verdict, Option<Report>) {
        let found = |state: &State| match &state.case(CaseId { job: JOB, index: 1 })?.state {
            CaseState::Done { verdict, cause } => Some((*verdict, cause.clone())),
            _ => None,
        };
        self.shared.wait("a verdict", found).await
    }

    pub(crate) fn ended(&self, attempt: AttemptId) -> Arc<Attempt> {
        self.shared.now().attempt(attempt).unwrap().clone()
    }

    /// Acts as the party of a host, in its process' place.
    pub(crate) async fn act(&self, place: usize, attempt: AttemptId) -> Party {
        let host = &self.hosts[place];
        let socket = host.places.socket();
        let secret = wait_file(&secret_file(&socket, attempt)).await;
        // The supervisor has the attempt a moment after its files.
        let deadline = Instant::now() + LONG;
        while host.supervisor.attempt(attempt).is_none() {
            assert!(Instant::now() < deadline, "the party is not tended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Party::connect(&socket, Hello { attempt, secret }).await.unwrap()
    }

    /// The process of a party, once there is one.
    pub(crate) async fn party_pid(&self, place: usize, attempt: AttemptId) -> u32 {
        let deadline = Instant::now() + LONG;
        loop {
            let known = self.hosts[place].supervisor.attempt(attempt);
            if let Some(process) = known.and_then(|attempt| attempt.record().process) {
                return process.pid;
            }
            assert!(Instant::now() < deadline, "no process of a party");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing of a party or VM is left on any host. The end is told after it was given back, files of the record after.
    pub(crate) async fn assert_clean(&self) {
        for host in &self.hosts {
            let deadline = Instant::now() + LONG;
            loop {
                let mut left = vt_daemon::qemu::remains::inventory(&host.places.vms(), host.places.cgroups.as_ref())
                    .into_iter()
                    .collect::<Vec<_>>();
                for folder in [host.places.records(), host.places.run.join("parties"), host.places.disks.clone()] {
                    left.extend(files(&folder));
                }
                if left.is_empty() {
                    break;
                }
                assert!(Instant::now() < deadline, "left on {}: {left:#?}", host.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Everything in the event log of an attempt on a host, as JSON lines.
    pub(crate) fn events(&self, place: usize, attempt: AttemptId) -> String {
        let path = self.hosts[place].places.data.join("attempts").join(attempt.to_string()).join("events.jsonl");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    pub(crate) fn evidence(&self, place: usize, attempt: AttemptId, file: &str) -> String {
        let path = self.hosts[place].places.data.join("attempts").join(attempt.to_string()).join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

impl Drop for World {
    /// A test that fails leaves no QEMU and no party behind.
    fn drop(&mut self) {
        for host in &self.hosts {
            host.stop.cancel();
            for dir in vt_daemon::qemu::remains::run_dirs(&host.places.vms()) {
                vt_daemon::qemu::remains::clear(&dir);
            }
            if let Some(groups) = &host.places.cgroups {
                let attempt = AttemptId { case: CaseId { job: JOB, index: 1 }, number: 1 };
                let _ = groups.get(&cgroup_name(&host.places, attempt)).remove(Duration::from_secs(5));
            }
        }
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// What a party really is.
pub(crate) fn real() -> Vec<String> {
    [env!("CARGO_BIN_EXE_vtd"), "party"].map(str::to_owned).to_vec()
}

/// The content of a file, once it is there and not empty.
pub(crate) async fn wait_file(path: &Path) -> String {
    let deadline = Instant::now() + LONG;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return text,
            _ => assert!(Instant::now() < deadline, "{} does not come", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
