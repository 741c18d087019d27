//! Three or more replicas, their files in temporary directories, and a network between them that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use vt_protocol::ids::{Digest, HostId, RequestId};
use vt_sync::{
    Command, RaftTransport, Replica, ReplicaConfig, Request, Storage, Unreachable,
    command::{InitCluster, NewHost, SetSetting},
};

/// Generous: other tests may have the processors.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Who can reach whom, and who is up.
#[derive(Default)]
pub(crate) struct Fabric {
    up: Mutex<BTreeMap<HostId, Replica>>,
    cut_off: Mutex<BTreeSet<HostId>>,
    /// Messages carried, for tests that want silence.
    pub(crate) carried: AtomicU64,
}

impl Fabric {
    pub(crate) fn cut(&self, host: HostId) {
        self.cut_off.lock().unwrap().insert(host);
    }

    pub(crate) fn heal(&self) {
        self.cut_off.lock().unwrap().clear();
    }

    fn passes(&self, from: HostId, to: HostId) -> bool {
        let cut = self.cut_off.lock().unwrap();
        !cut.contains(&from) && !cut.contains(&to)
    }
}

struct Link {
    me: HostId,
    fabric: Arc<Fabric>,
}

#[async_trait]
impl RaftTransport for Link {
    async fn call(&self, target: HostId, request: Vec<u8>, _deadline: Duration) -> Result<Vec<u8>, Unreachable> {
        if !self.fabric.passes(self.me, target) {
            return Err(Unreachable("cut off".into()));
        }
        let replica = self.fabric.up.lock().unwrap().get(&target).cloned();
        let replica = replica.ok_or_else(|| Unreachable("down".into()))?;
        self.fabric.carried.fetch_add(1, Ordering::Relaxed);
        let answer = replica.handle(self.me, &request).await;
        if !self.fabric.passes(target, self.me) {
            return Err(Unreachable("cut off on the way back".into()));
        }
        Ok(answer)
    }
}

pub(crate) fn config() -> ReplicaConfig {
    ReplicaConfig {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        ..ReplicaConfig::default()
    }
}

/// A cluster in one process.
pub(crate) struct Cluster {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) config: ReplicaConfig,
    dirs: BTreeMap<HostId, TempDir>,
}

impl Cluster {
    /// Host 1, as the only voter.
    pub(crate) async fn single(config: ReplicaConfig) -> Self {
        let mut cluster = Self { fabric: Arc::default(), config, dirs: BTreeMap::new() };
        cluster.add(1).await;
        cluster.at(1).init_single("host1").await.unwrap();
        cluster.leader(&[1]).await;
        let host = NewHost {
            id: HostId(1),
            name: "host1".parse().unwrap(),
            addresses: vec!["127.0.0.1:7465".parse().unwrap()],
            labels: BTreeMap::new(),
            role: None,
            public_key: vec![1; 44],
            build: "test".into(),
            facts: None,
        };
        let init = InitCluster {
            id: vt_protocol::ids::ClusterId(1),
            name: "test".parse().unwrap(),
            ca: Digest::of(b"ca"),
            host,
        };
        cluster.at(1).propose(Request::new(init), PATIENCE).await.unwrap();
        cluster
    }

    /// Hosts 1 to `n`, all voters.
    pub(crate) async fn of(n: u64, config: ReplicaConfig) -> Self {
        let mut cluster = Self::single(config).await;
        for host in 2..=n {
            cluster.add(host).await;
            cluster.at(1).add_learner(HostId(host), &format!("host{host}")).await.unwrap();
        }
        let all: Vec<u64> = (1..=n).collect();
        let voters: BTreeSet<HostId> = all.iter().copied().map(HostId).collect();
        let until = Instant::now() + PATIENCE;
        loop {
            // A busy machine may have the cluster elect anew meanwhile; the change is then asked of the next leader.
            let leader = cluster.leader(&all).await;
            let changed = leader.change_voters(voters.clone()).await;
            let now = leader.status().leadership;
            if changed.is_ok() && now.voters == voters && now.settled {
                break;
            }
            assert!(Instant::now() < until, "the voters were never changed: {changed:?}");
            sleep(Duration::from_millis(20)).await;
        }
        cluster
    }

    /// Starts a new host.
    pub(crate) async fn add(&mut self, host: u64) {
        self.dirs.insert(HostId(host), TempDir::new().unwrap());
        self.start_with(host, true).await;
    }

    /// Starts a host that was stopped.
    pub(crate) async fn start(&self, host: u64) {
        self.start_with(host, false).await;
    }

    async fn start_with(&self, host: u64, create: bool) {
        let host = HostId(host);
        let link = Arc::new(Link { me: host, fabric: Arc::clone(&self.fabric) });
        let storage = Storage::Directory { path: self.dirs[&host].path().to_owned(), create };
        let replica = Replica::open(storage, host, &self.config, link).await.unwrap();
        self.fabric.up.lock().unwrap().insert(host, replica);
    }

    /// Where a host keeps its store.
    pub(crate) fn directory(&self, host: u64) -> std::path::PathBuf {
        self.dirs[&HostId(host)].path().to_owned()
    }

    pub(crate) async fn stop(&self, host: u64) {
        let replica = self.fabric.up.lock().unwrap().remove(&HostId(host)).unwrap();
        replica.shutdown().await;
    }

    pub(crate) fn at(&self, host: u64) -> Replica {
        self.fabric.up.lock().unwrap().get(&HostId(host)).expect("the host is up").clone()
    }

    /// Waits until one of `hosts` leads and has a quorum.
    pub(crate) async fn leader(&self, hosts: &[u64]) -> Replica {
        wait("a leader", || {
            hosts.iter().map(|host| self.at(*host)).find(|replica| {
                let status = replica.status();
                status.leadership.leader == Some(status.host) && status.quorum
            })
        })
        .await
    }

    /// Sets a setting through whoever leads, and gives when it is acknowledged.
    pub(crate) async fn set(&self, hosts: &[u64], key: &str, value: &str) {
        let command = Command::from(SetSetting { key: key.into(), value: Some(value.into()) });
        let request = Request::with_id(RequestId::derived(&[key.as_bytes(), value.as_bytes()]), command);
        let until = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader(hosts).await;
            match leader.propose(request.clone(), Duration::from_secs(5)).await {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < until, "{key} was never accepted: {error}"),
            }
        }
    }

    /// Waits until `host` has applied a setting.
    pub(crate) async fn sees(&self, host: u64, key: &str, value: &str) {
        let mut watch = self.at(host).watch();
        let seen = watch.wait_for(|state| state.settings.get(key).is_some_and(|v| v == value));
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("host {host} never saw {key}")).unwrap();
    }
}

/// Waits for a condition.
pub(crate) async fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}
