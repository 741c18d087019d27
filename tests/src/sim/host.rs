//! The program of a simulated host.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use turmoil::net::TcpListener;
use vt_protocol::ids::{CaseId, ClusterId, Digest, HostId, JobId, RequestId, TokenId};
use vt_sync::{
    Command, ProposeError, Replica, ReplicaConfig, ReplicaRole, Request, Storage,
    command::{AdmitHost, CreateToken, InitCluster, NewCase, NewHost, OpenSession, StartAttempt, SubmitJob},
    state::Role,
};

use super::{
    HOSTS,
    disk::Disk,
    net::{Ask, Link, PORT, Said, name, receive, send},
    oracle::Oracle,
};

/// The job whose only case runs on all hosts.
pub(super) const CASE: CaseId = CaseId { job: JobId(1), index: 1 };

fn config() -> ReplicaConfig {
    ReplicaConfig {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        // Small, so that snapshots are taken and sent.
        snapshot_entries: 40,
        keep_entries: 10,
        part_timeout: Duration::from_secs(2),
    }
}

fn new_host(id: HostId) -> NewHost {
    NewHost {
        id,
        name: name(id).parse().expect("it is a name"),
        addresses: vec![([10, 0, 0, 1], PORT).into()],
        labels: BTreeMap::new(),
        role: None,
        public_key: id.0.to_le_bytes().to_vec(),
        build: "sim".to_owned(),
        facts: None,
    }
}

/// The program of a host: serves until its power fails.
pub(super) async fn host(me: HostId, disk: Disk, oracle: Oracle, ready: Arc<AtomicBool>) -> turmoil::Result {
    let storage = Storage::Backend(Box::new(disk.open()));
    let replica = Replica::open(storage, me, &config(), Arc::new(Link { me })).await.map_err(|error| {
        oracle.violation(format!("{me} cannot start: {error}"));
        error
    })?;
    tokio::spawn(watch_state(replica.clone(), oracle.clone()));
    tokio::spawn(watch_leadership(replica.clone(), oracle));
    if me == HOSTS[0] && !ready.load(Ordering::Relaxed) {
        tokio::spawn(make_cluster(replica.clone(), ready));
    }
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let replica = replica.clone();
        tokio::spawn(async move {
            if let Ok(ask) = receive::<Ask>(&mut stream).await {
                let said = answer(&replica, ask).await;
                let _ = send(&mut stream, &said).await;
            }
        });
    }
}

async fn answer(replica: &Replica, ask: Ask) -> Said {
    let deadline = Duration::from_secs(2);
    match ask {
        Ask::Raft(from, bytes) => Said::Raft(replica.handle(from, &bytes).await),
        Ask::Propose(request) => replica.propose(*request, deadline).await.map_or_else(Said::from, Said::Applied),
        Ask::Read(key) => {
            let read = replica.read_barrier(deadline).await;
            read.map_or_else(Said::from, |state| Said::Value(state.settings.get(&key).cloned()))
        }
    }
}

async fn watch_state(replica: Replica, oracle: Oracle) {
    let mut watch = replica.watch();
    loop {
        let state = watch.borrow_and_update().clone();
        oracle.state(replica.host(), &state);
        if watch.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_leadership(replica: Replica, oracle: Oracle) {
    let mut watch = replica.leadership();
    loop {
        let now = watch.borrow_and_update().clone();
        if now.role == ReplicaRole::Leader {
            oracle.leads(replica.host(), now.term);
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

/// Host 1 makes the cluster, and an attempt on all hosts, before there is any trouble.
async fn make_cluster(replica: Replica, ready: Arc<AtomicBool>) {
    if make(&replica).await.is_ok() {
        ready.store(true, Ordering::Relaxed);
    }
}

async fn make(replica: &Replica) -> Result<(), ProposeError> {
    replica.init_single("host1").await?;
    for (id, command) in (1..).zip(beginning()) {
        replica.propose(Request::with_id(RequestId(id), command), Duration::from_secs(10)).await?;
    }
    for host in &HOSTS[1..] {
        replica.add_learner(*host, &name(*host)).await?;
    }
    replica.change_voters(HOSTS.into()).await
}

/// The first commands: the cluster, its hosts with their sessions, a job, its attempt.
fn beginning() -> Vec<Command> {
    let name = "sim".parse().expect("it is a name");
    let mut commands: Vec<Command> =
        vec![InitCluster { id: ClusterId(1), name, ca: Digest::of(b"ca"), host: new_host(HOSTS[0]) }.into()];
    let secret_hash = Digest::of(b"secret");
    for host in &HOSTS[1..] {
        let token = TokenId(host.0);
        let made_by = "sim".to_owned();
        commands.push(CreateToken { token, secret_hash, role: Role::Voter, made_by, expires_unix_s: 0 }.into());
        commands.push(AdmitHost { token, secret_hash, host: new_host(*host) }.into());
    }
    commands.extend(HOSTS.map(|host| OpenSession { host, incarnation: 1, resume: false }.into()));
    let submit = SubmitJob {
        job: CASE.job,
        scenario: "sim".to_owned(),
        plan: Digest::of(b"plan"),
        holders: Vec::new(),
        strict: false,
        submitted_by: "sim".to_owned(),
        submitted_unix_s: 0,
        cases: vec![NewCase { hosts: HOSTS.into() }],
    };
    commands.push(submit.into());
    commands.push(StartAttempt { case: CASE, number: 1, hosts: HOSTS.into() }.into());
    commands
}
