//! The program of a simulated host: the daemon's own loops (session, keeper, scheduler), the policy of members, and the
//! twin for its party and VMs, over a replica on a simulated disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use turmoil::net::TcpListener;
use vt_daemon::{
    cluster::{Cluster, ProposeError as NotProposed},
    control::{
        keeper::{self, Renewals},
        scheduler,
        session::{Held, Holdings, Session},
    },
    settings::Settings,
};
use vt_protocol::ids::{HostId, RequestId};
use vt_sync::{
    Applied, ProposeError, Rejected, Replica, ReplicaConfig, ReplicaRole, Request, Storage, command::StartAttempt,
};

use super::{
    HOSTS,
    cluster::{Mesh, keep_members},
    disk::Disk,
    machine::Machine,
    net::{Ask, Link, PORT, Said, receive, send},
    oracle::Oracle,
};
use crate::beginning;

/// How often a daemon looks at its party and its VMs, beside every change of state.
const LOOK: Duration = Duration::from_millis(20);
/// How long one of its proposals may take before it is made again.
const DECIDES: Duration = Duration::from_secs(5);

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

/// What hosts do beside keeping the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// All that daemons do: sessions, cases, VMs.
    Daemons,
    /// Nothing: one attempt is there, and its parties come from outside.
    Barrier,
}

/// The program of a host: serves until it is killed, or its disk lets it down.
pub(super) async fn host(
    load: Load,
    machine: Machine,
    disk: Disk,
    oracle: Oracle,
    ready: Arc<AtomicBool>,
) -> turmoil::Result {
    let me = machine.host;
    let [store, journal] = disk.open();
    let slow = disk.clone();
    let latency = Arc::new(move || slow.latency());
    let storage = Storage::Backend { store: Box::new(store), journal: Box::new(journal), latency };
    let replica = match Replica::open(storage, me, &config(), Arc::new(Link { me })).await {
        Ok(replica) => replica,
        Err(error) if disk.refuses() => {
            oracle.note(format!("{} cannot start on a full disk: {error}", beginning::name(me)));
            return std::future::pending().await;
        }
        Err(error) => {
            oracle.violation(format!("{me} cannot start: {error}"));
            return std::future::pending().await;
        }
    };
    let stop = CancellationToken::new();
    let incarnation = {
        let mut inner = machine.lock();
        inner.starts += 1;
        inner.twin.restarted(replica.state());
        inner.starts
    };
    tokio::spawn(watch_state(replica.clone(), oracle.clone()));
    tokio::spawn(watch_leadership(replica.clone(), oracle.clone(), stop.clone()));
    if me == HOSTS[0] && !ready.load(Ordering::Relaxed) {
        tokio::spawn(make_cluster(load, replica.clone(), oracle.clone(), ready));
    }
    let renewals = match load {
        Load::Daemons => run_loops(&replica, &machine, &oracle, incarnation, &stop),
        Load::Barrier => keeper::renewals().0,
    };
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let (replica, renewals, stop) = (replica.clone(), renewals.clone(), stop.clone());
        tokio::spawn(async move {
            if let Ok(ask) = receive::<Ask>(&mut stream).await
                && !stop.is_cancelled()
            {
                let said = answer(&replica, &renewals, ask).await;
                let _ = send(&mut stream, &said).await;
            }
        });
    }
}

/// Starts the daemon's loops.
fn run_loops(
    replica: &Replica,
    machine: &Machine,
    oracle: &Oracle,
    incarnation: u64,
    stop: &CancellationToken,
) -> Renewals {
    let mesh = Arc::new(Mesh { replica: replica.clone(), oracle: oracle.clone() });
    let times = Settings::default().session;
    let (renewals, keeper) = keeper::renewals();
    let (held, holds) = watch::channel(None);
    tokio::spawn(keeper.run(mesh.clone(), replica.leadership(), times, stop.clone()));
    tokio::spawn(scheduler::run(mesh.clone(), replica.leadership(), stop.clone()));
    tokio::spawn(keep_members(replica.clone(), oracle.clone(), stop.clone()));
    let session = Session {
        cluster: mesh.clone(),
        leadership: replica.leadership(),
        local: renewals.clone(),
        holdings: Arc::new(Hands(machine.clone())),
        incarnation,
        times,
        clock: machine.clock(),
        now: Arc::new(Notify::new()),
        held,
    };
    tokio::spawn(session.run(stop.clone()));
    tokio::spawn(act(mesh, machine.clone(), oracle.clone(), holds, stop.clone()));
    renewals
}

/// What hangs from the session of a machine.
struct Hands(Machine);

#[async_trait]
impl Holdings for Hands {
    async fn lost(&self) {
        self.0.lock().twin.session_lost();
    }
}

/// The daemon acts for its party and its VMs on the state it reads.
async fn act(
    mesh: Arc<Mesh>,
    machine: Machine,
    oracle: Oracle,
    mut holds: watch::Receiver<Option<Held>>,
    stop: CancellationToken,
) {
    let mut states = mesh.watch();
    let (answers, mut answered) = mpsc::channel::<(RequestId, Result<Applied, Rejected>)>(64);
    let mut asked = std::collections::BTreeSet::new();
    while !stop.is_cancelled() {
        tokio::select! {
            biased;
            Some((id, outcome)) = answered.recv() => {
                asked.remove(&id);
                machine.lock().twin.answered(id, outcome);
            }
            changed = holds.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(held) = *holds.borrow_and_update() {
                    let mut inner = machine.lock();
                    inner.twin.session_opened(held.opened);
                    inner.twin.renewed(held.since, machine.local());
                }
            }
            changed = states.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
        let state = states.borrow_and_update().clone();
        oracle.state(mesh.me(), &state);
        let mut inner = machine.lock();
        if inner.frozen {
            continue;
        }
        inner.twin.state = state;
        inner.twin.turn(machine.local());
        oracle.of_twin(&mut inner.twin);
        let wanted: Vec<_> = inner.twin.pending.iter().map(|(id, command)| (*id, command.clone())).collect();
        drop(inner);
        for (id, command) in wanted {
            if asked.insert(id) {
                let (mesh, answers) = (mesh.clone(), answers.clone());
                tokio::spawn(async move {
                    loop {
                        match mesh.propose(id, command.clone(), DECIDES).await {
                            Ok(applied) => return answers.send((id, Ok(applied))).await,
                            Err(NotProposed::Rejected(rejected)) => return answers.send((id, Err(rejected))).await,
                            Err(_) if answers.is_closed() => return Ok(()),
                            Err(_) => {}
                        }
                    }
                });
            }
        }
    }
}

async fn answer(replica: &Replica, renewals: &Renewals, ask: Ask) -> Said {
    let deadline = Duration::from_secs(2);
    match ask {
        Ask::Raft(from, bytes) => Said::Raft(replica.handle(from, &bytes).await),
        Ask::Propose(request) => replica.propose(*request, deadline).await.map_or_else(Said::from, Said::Applied),
        Ask::Read(key) => {
            let read = replica.read_barrier(deadline).await;
            read.map_or_else(Said::from, |state| Said::Value(state.settings.get(&key).cloned()))
        }
        Ask::Renew(renew) => match timeout(deadline, renewals.renew(renew)).await {
            Ok(reply) => Said::Peer(reply),
            Err(_) => Said::Elsewhere(None),
        },
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

/// Notes who leads. A replica that stops by itself met a disk that fails: its daemon ends with it.
async fn watch_leadership(replica: Replica, oracle: Oracle, stop: CancellationToken) {
    let mut watch = replica.leadership();
    loop {
        let now = watch.borrow_and_update().clone();
        match now.role {
            ReplicaRole::Leader => oracle.leads(replica.host(), now.term),
            ReplicaRole::Stopped => {
                oracle.note(format!("the daemon of {} ends: its disk fails", beginning::name(replica.host())));
                stop.cancel();
                return;
            }
            _ => {}
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

/// Host 1 makes the cluster and a user submits the job before there is any trouble; hosts become voters by the policy.
async fn make_cluster(load: Load, replica: Replica, oracle: Oracle, ready: Arc<AtomicBool>) {
    if make(load, &replica, &oracle).await.is_ok() {
        ready.store(true, Ordering::Relaxed);
    }
}

async fn make(load: Load, replica: &Replica, oracle: &Oracle) -> Result<(), ProposeError> {
    replica.init_single("host1").await?;
    let [one, two, three] = HOSTS;
    let cases: [&[HostId]; 5] = [&HOSTS, &[one, two], &[two, three], &[three, one], &HOSTS];
    let mut commands = beginning::cluster(&HOSTS);
    if load == Load::Barrier {
        commands.extend(beginning::sessions(&HOSTS));
    }
    commands.push(beginning::job(&cases));
    if load == Load::Barrier {
        commands.push(StartAttempt { case: beginning::case(1), number: 1, hosts: HOSTS.into() }.into());
    }
    for (id, command) in (1..).zip(commands) {
        let request = Request::with_id(RequestId(id), command);
        oracle.asked(&request);
        replica.propose(request, Duration::from_secs(10)).await?;
    }
    if load == Load::Barrier {
        for host in &HOSTS[1..] {
            replica.add_learner(*host, &beginning::name(*host)).await?;
        }
        return replica.change_voters(HOSTS.into()).await;
    }
    let mut leadership = replica.leadership();
    let all = |now: &vt_sync::Leadership| now.settled && now.voters.len() == HOSTS.len();
    let _ = leadership.wait_for(all).await;
    Ok(())
}
