//! What a decision of the cluster costs: a durable commit, and a barrier from its last arrival to its last release.
//!
//! Three replicas run in this process, each with a log of its own on the disk of the labs, and call each other directly;
//! the parties of the barriers are simulated, so sockets and processes are not in these figures. Peers on the same disk
//! in the same run: one fdatasync, and a put into an etcd of three members ([`crate::etcd`]), asked through its HTTP door.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use vt_protocol::ids::{AttemptId, CaseId, Epoch, HostId};
use vt_sync::{
    Answer, Command, RaftTransport, Replica, ReplicaConfig, Request, Storage, Unreachable,
    command::{Arrive, SetSetting, StartAttempt},
    state::{BarrierKey, BarrierState},
};
use vt_tests::beginning;

use crate::{
    etcd::{Etcd, PUT_BYTES},
    figures::Figure,
};

const VOTERS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
const ATTEMPT: AttemptId = AttemptId { case: CaseId { job: beginning::JOB, index: 1 }, number: 1 };
const DECIDES: Duration = Duration::from_secs(20);
/// Requests in flight, of the second rate.
const MANY: usize = 64;
/// What is added to one fdatasync to make the floor of a barrier, ms.
const BARRIER_OVER_SYNC: f64 = 2.0;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Commits and puts, one after the other.
    pub(crate) singles: usize,
    /// Commits and puts of each of the [`MANY`].
    pub(crate) each: usize,
    /// Barriers of three parties; a quarter of it of larger ones.
    pub(crate) barriers: u32,
}

/// Measures everything below a new folder in `disk`.
pub(crate) fn measure(disk: &Path, extent: Extent) -> anyhow::Result<Vec<Figure>> {
    fs::create_dir_all(disk).with_context(|| format!("making {}", disk.display()))?;
    let folder = tempfile::tempdir_in(disk).context("a folder for logs")?;
    let sync = fdatasync(&folder.path().join("sync"), extent.singles)?;
    let etcd = Etcd::start(&folder.path().join("etcd"))?;
    let (mut put, mut puts) = (None, None);
    match &etcd {
        Some(etcd) => {
            put = Figure { values: etcd.put(1, extent.singles)?, ..Figure::new("", None) }.percentile(50.0);
            let begun = Instant::now();
            etcd.put(MANY, extent.each)?;
            puts = Some((MANY * extent.each) as f64 / begun.elapsed().as_secs_f64());
        }
        None => println!("etcd is not installed: commits are compared with nothing"),
    }
    drop(etcd);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut figures = runtime.block_on(commits(&folder.path().join("commits"), extent, put, puts))?;
    for (parties, rounds) in [(3, extent.barriers), (16, extent.barriers / 4), (50, extent.barriers / 4)] {
        let place = folder.path().join(format!("barrier{parties}"));
        let values = runtime.block_on(barriers(&place, parties, rounds.max(1)))?;
        let name = format!("barrier of {parties}, last arrival to last release, ms");
        let mut figure = Figure { values, ..Figure::new(name, None) };
        if parties == 3 {
            let over_sync = sync.percentile(50.0).map(|sync| sync + BARRIER_OVER_SYNC);
            figure.floor = over_sync.into_iter().chain(put).min_by(f64::total_cmp);
            figure.peer = put.map(|put| ("etcd put".to_owned(), put));
        }
        figures.push(figure);
    }
    figures.insert(0, sync);
    Ok(figures)
}

/// Appends of a page that are on disk.
fn fdatasync(file: &Path, rounds: usize) -> anyhow::Result<Figure> {
    let mut figure = Figure::new("one fdatasync of 4 KiB, ms", None);
    let mut file = fs::File::create(file)?;
    for _ in 0..rounds {
        file.write_all(&[7; 4096])?;
        let begun = Instant::now();
        file.sync_data()?;
        figure.values.push(millis(begun));
    }
    Ok(figure)
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

async fn commits(folder: &Path, extent: Extent, put: Option<f64>, puts: Option<f64>) -> anyhow::Result<Vec<Figure>> {
    let trio = Trio::start(folder, 3).await?;
    let mut single = Figure::new("a commit, ms", put);
    single.peer = put.map(|put| ("etcd put".to_owned(), put));
    for number in 0..extent.singles {
        let begun = Instant::now();
        trio.decide(setting(0, number)).await?;
        single.values.push(millis(begun));
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..MANY {
        let (leader, each) = (trio.leader.clone(), extent.each);
        tasks.spawn(async move {
            for number in 0..each {
                leader.propose(Request::new(setting(task, number)), DECIDES).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    // As a time, because a floor is the most that a figure may be.
    let each = begun.elapsed().as_secs_f64() * 1e6 / (MANY * extent.each) as f64;
    let peer = puts.map(|puts| 1e6 / puts);
    let mut many = Figure::new(format!("a commit with {MANY} in flight, µs"), peer);
    many.peer = peer.map(|peer| ("etcd put".to_owned(), peer));
    many.values.push(each);
    Ok(vec![single, many])
}

fn setting(task: usize, number: usize) -> Command {
    SetSetting { key: format!("bench{task}"), value: Some(format!("{number:0PUT_BYTES$}")) }.into()
}

async fn barriers(folder: &Path, parties: u64, rounds: u32) -> anyhow::Result<Vec<f64>> {
    let trio = Trio::start(folder, parties).await?;
    let epoch = trio.attempt(parties).await?;
    let mut values = Vec::new();
    for round in 1..=rounds {
        let barrier = BarrierKey { tag: format!("bench{round}"), generation: 1 };
        let arrive = |host: u64| Arrive {
            attempt: ATTEMPT,
            epoch,
            host: HostId(host),
            barrier: barrier.clone(),
            parties: Vec::new(),
            payload: Vec::new(),
        };
        for host in 1..parties {
            trio.decide(arrive(host)).await?;
        }
        let begun = Instant::now();
        let last = trio.decide(arrive(parties));
        let released = trio.replicas.iter().map(|replica| {
            let mut watch = replica.watch();
            let tag = barrier.tag.clone();
            async move {
                let told = watch.wait_for(|state| {
                    let barrier = state.attempts.get(&ATTEMPT).and_then(|attempt| attempt.barrier(&tag, 1));
                    barrier.is_some_and(|barrier| barrier.state == BarrierState::Released)
                });
                told.await.map(drop).context("a replica stopped")
            }
        });
        let mut waiting: tokio::task::JoinSet<_> = released.collect();
        last.await?;
        while let Some(told) = waiting.join_next().await {
            told??;
        }
        values.push(millis(begun));
    }
    Ok(values)
}

/// Three replicas of one cluster in this process.
struct Trio {
    replicas: Vec<Replica>,
    leader: Replica,
}

/// The way from one replica to the others.
#[derive(Clone, Default)]
struct Fabric(Arc<Mutex<BTreeMap<HostId, Replica>>>);

struct Link {
    me: HostId,
    fabric: Fabric,
}

#[async_trait]
impl RaftTransport for Link {
    async fn call(&self, target: HostId, request: Vec<u8>, _deadline: Duration) -> Result<Vec<u8>, Unreachable> {
        let replica = self.fabric.0.lock().unwrap_or_else(PoisonError::into_inner).get(&target).cloned();
        match replica {
            Some(replica) => Ok(replica.handle(self.me, &request).await),
            None => Err(Unreachable("it has not started".to_owned())),
        }
    }
}

impl Trio {
    /// A cluster of `hosts` hosts, of which the first three vote and are here.
    async fn start(folder: &Path, hosts: u64) -> anyhow::Result<Self> {
        let fabric = Fabric::default();
        let mut replicas = Vec::new();
        for me in VOTERS {
            let path = folder.join(me.to_string());
            fs::create_dir_all(&path)?;
            let link = Arc::new(Link { me, fabric: fabric.clone() });
            let storage = Storage::Directory { path, create: true };
            let replica = Replica::open(storage, me, &ReplicaConfig::default(), link).await?;
            fabric.0.lock().unwrap_or_else(PoisonError::into_inner).insert(me, replica.clone());
            replicas.push(replica);
        }
        let leader = replicas[0].clone();
        let trio = Self { replicas, leader };
        trio.leader.init_single("host1").await?;
        for command in beginning::cluster(&all(hosts)) {
            trio.decide(command).await?;
        }
        for host in &VOTERS[1..] {
            trio.leader.add_learner(*host, &host.to_string()).await?;
        }
        trio.leader.change_voters(VOTERS.into()).await?;
        Ok(trio)
    }

    async fn decide(&self, command: impl Into<Command>) -> anyhow::Result<Answer> {
        Ok(self.leader.propose(Request::new(command), DECIDES).await?.answer)
    }

    /// An attempt on all `hosts`.
    async fn attempt(&self, hosts: u64) -> anyhow::Result<Epoch> {
        let all = all(hosts);
        for command in beginning::sessions(&all).chain([beginning::job(&[&all])]) {
            self.decide(command).await?;
        }
        match self.decide(StartAttempt { case: ATTEMPT.case, number: ATTEMPT.number, hosts: all }).await? {
            Answer::Epoch(epoch) => Ok(epoch),
            other => bail!("an attempt was answered with {other:?}"),
        }
    }
}

fn all(hosts: u64) -> Vec<HostId> {
    (1..=hosts).map(HostId).collect()
}
