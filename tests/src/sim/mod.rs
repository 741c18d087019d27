//! The simulator: three replicas, their network and their disks on one thread, under faults that a seed decides.
//!
//! Hosts crash with their power, links are cut in one or both directions, messages take random times. Then all is healed
//! and the cluster must go on. A seed gives the same faults at the same simulated times again; what tokio itself draws
//! (the order of ready branches) is not seeded, so a run repeats closely and not bit for bit.

pub mod disk;
pub mod net;
pub mod oracle;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::sleep;
use turmoil::{Sim, net::TcpListener};
use vt_protocol::ids::{ClusterId, Digest, HostId, RequestId};
use vt_sync::{
    Replica, ReplicaConfig, ReplicaRole, Request, Storage,
    command::{InitCluster, NewHost, SetSetting},
};

use self::{
    disk::{Disk, Honesty},
    net::{Ask, Link, PORT, Said, name, receive, send},
    oracle::Oracle,
};

const HOSTS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
const CLIENTS: usize = 2;
const TICK: Duration = Duration::from_millis(4);
/// How long faults go on, in simulated time.
const TROUBLE: Duration = Duration::from_secs(15);
/// How long a healed cluster may take until everybody has everything.
const HEALING: Duration = Duration::from_secs(30);

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides faults, delays and what a power failure leaves.
    pub seed: u64,
    /// Whether the disks keep what they said they have.
    pub honesty: Honesty,
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Faults that were made.
    pub faults: usize,
    /// Entries that were applied.
    pub entries: u64,
}

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

fn new_host() -> NewHost {
    NewHost {
        id: HOSTS[0],
        name: "host1".parse().expect("it is a name"),
        addresses: vec![([10, 0, 0, 1], PORT).into()],
        labels: Default::default(),
        role: None,
        public_key: vec![1],
        build: "sim".to_owned(),
        facts: None,
    }
}

/// The program of a host: serves until its power fails.
async fn host(me: HostId, disk: Disk, oracle: Oracle, ready: Arc<AtomicBool>) -> turmoil::Result {
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
        Ask::Propose(request) => replica.propose(request, deadline).await.map_or_else(Said::from, Said::Applied),
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

/// Host 1 makes the cluster before there is any trouble.
async fn make_cluster(replica: Replica, ready: Arc<AtomicBool>) {
    let made = async {
        replica.init_single("host1").await?;
        let init = InitCluster {
            id: ClusterId(1),
            name: "sim".parse().expect("it is a name"),
            ca: Digest::of(b"ca"),
            host: new_host(),
        };
        replica.propose(Request::with_id(RequestId(1), init), Duration::from_secs(10)).await?;
        for host in &HOSTS[1..] {
            replica.add_learner(*host, &name(*host)).await?;
        }
        replica.change_voters(HOSTS.into()).await
    };
    if made.await.is_ok() {
        ready.store(true, Ordering::Relaxed);
    }
}

/// A client: sets its own setting to 1, 2, 3…, each until it is acknowledged, and reads it back now and then.
async fn client(
    number: usize,
    seed: u64,
    oracle: Oracle,
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
) -> turmoil::Result {
    let mut rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1) << 32);
    let key = format!("client{number}");
    while !ready.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(20)).await;
    }
    let mut target = HOSTS[number % HOSTS.len()];
    for value in 1_u64.. {
        let id = RequestId::derived(&[key.as_bytes(), &value.to_le_bytes()]);
        let request = Request::with_id(id, SetSetting { key: key.clone(), value: Some(value.to_string()) });
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match net::ask(target, &Ask::Propose(request.clone()), Duration::from_secs(3)).await {
                Ok(Said::Applied(_)) => break,
                Ok(Said::Rejected(rejected)) => {
                    oracle.violation(format!("{request} was rejected: {rejected}"));
                    return Ok(());
                }
                Ok(Said::Elsewhere(Some(leader))) => target = leader,
                _ => target = *HOSTS.choose(&mut rng).expect("there are hosts"),
            }
            sleep(Duration::from_millis(rng.random_range(5..50))).await;
        }
        oracle.acknowledged(&key, value);
        if value.is_multiple_of(4) {
            // Whoever answers must know what was acknowledged before it was asked.
            let asked = *HOSTS.choose(&mut rng).expect("there are hosts");
            if let Ok(Said::Value(got)) = net::ask(asked, &Ask::Read(key.clone()), Duration::from_secs(3)).await {
                oracle.read(&key, got.and_then(|value| value.parse().ok()).unwrap_or(0), value);
            }
        }
        sleep(Duration::from_millis(rng.random_range(10..60))).await;
    }
    Ok(())
}

/// What is broken at the moment.
#[derive(Default)]
struct Trouble {
    down: Vec<HostId>,
    cuts: Vec<(HostId, HostId)>,
    made: usize,
}

impl Trouble {
    fn crash(&mut self, sim: &mut Sim<'_>, disks: &[Disk], host: HostId, rng: &mut StdRng) {
        if !self.down.contains(&host) {
            // First the power: a program that is ended must not write any more.
            disks[host.0 as usize - 1].power_failure(rng);
            sim.crash(name(host));
            self.down.push(host);
            self.made += 1;
        }
    }

    fn start(&mut self, sim: &mut Sim<'_>, at: usize) {
        let host = self.down.remove(at);
        sim.bounce(name(host));
    }

    fn next(&mut self, sim: &mut Sim<'_>, disks: &[Disk], rng: &mut StdRng) {
        let host = *HOSTS.choose(rng).expect("there are hosts");
        match rng.random_range(0..100) {
            0..20 => self.crash(sim, disks, host, rng),
            20..23 => HOSTS.into_iter().for_each(|host| self.crash(sim, disks, host, rng)),
            23..60 if !self.down.is_empty() => {
                let at = rng.random_range(0..self.down.len());
                self.start(sim, at);
            }
            60..75 => {
                for other in HOSTS.into_iter().filter(|other| *other != host) {
                    sim.partition(name(host), name(other));
                    self.cuts.push((host, other));
                }
                self.made += 1;
            }
            75..85 => {
                let other = *HOSTS.choose(rng).expect("there are hosts");
                if other != host {
                    sim.partition_oneway(name(host), name(other));
                    self.cuts.push((host, other));
                    self.made += 1;
                }
            }
            _ => self.repair(sim),
        }
    }

    fn repair(&mut self, sim: &mut Sim<'_>) {
        for (one, other) in self.cuts.drain(..) {
            sim.repair(name(one), name(other));
        }
    }

    fn heal(&mut self, sim: &mut Sim<'_>) {
        self.repair(sim);
        while !self.down.is_empty() {
            self.start(sim, 0);
        }
    }
}

/// Runs one seed.
///
/// # Errors
/// The first thing seen that must not be.
pub fn run(options: Options) -> Result<Outcome, String> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(options.seed)
        .simulation_duration(Duration::from_secs(600))
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(30))
        .build();
    let oracle = Oracle::default();
    let (ready, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let disks: Vec<Disk> = HOSTS.iter().map(|_| Disk::default()).collect();
    let starts = Arc::new(AtomicUsize::new(0));
    for me in HOSTS {
        let (disk, oracle, ready, starts) =
            (disks[me.0 as usize - 1].clone(), oracle.clone(), Arc::clone(&ready), Arc::clone(&starts));
        sim.host(name(me), move || {
            starts.fetch_add(1, Ordering::Relaxed);
            host(me, disk.clone(), oracle.clone(), Arc::clone(&ready))
        });
    }
    for number in 0..CLIENTS {
        let work = client(number, options.seed, oracle.clone(), Arc::clone(&ready), Arc::clone(&stop));
        sim.client(format!("client{number}"), work);
    }
    let fails = |oracle: &Oracle, why: String| oracle.verdict().unwrap_or(why);
    let advance = |sim: &mut Sim<'_>, by: Duration| {
        let until = sim.elapsed() + by;
        while sim.elapsed() < until {
            sim.step().map_err(|error| fails(&oracle, format!("the simulation ended: {error}")))?;
            if let Some(violation) = oracle.verdict() {
                return Err(violation);
            }
        }
        Ok(())
    };

    let mut trouble = Trouble::default();
    while !ready.load(Ordering::Relaxed) {
        if sim.elapsed() > HEALING {
            return Err("the cluster was never made".to_owned());
        }
        advance(&mut sim, Duration::from_millis(50))?;
    }
    if options.honesty == Honesty::Lying {
        // Some time of good work, then one power failure for all: what was acknowledged is gone from every disk.
        advance(&mut sim, Duration::from_secs(2))?;
        disks.iter().for_each(Disk::begin_to_lie);
        advance(&mut sim, Duration::from_secs(3))?;
        HOSTS.into_iter().for_each(|host| trouble.crash(&mut sim, &disks, host, &mut rng));
    }
    let began = sim.elapsed();
    while options.honesty == Honesty::Honest && sim.elapsed() < began + TROUBLE {
        trouble.next(&mut sim, &disks, &mut rng);
        advance(&mut sim, Duration::from_millis(rng.random_range(100..1500)))?;
    }
    trouble.heal(&mut sim);

    // It goes on: every client gets further, and every host has all that was acknowledged.
    let before: Vec<u64> = (0..CLIENTS).map(|n| oracle.last_acknowledged(&format!("client{n}"))).collect();
    let healed = sim.elapsed();
    let further = || (0..CLIENTS).all(|n| oracle.last_acknowledged(&format!("client{n}")) >= before[n] + 3);
    while !further() {
        if sim.elapsed() > healed + HEALING {
            return Err("the healed cluster does not go on".to_owned());
        }
        advance(&mut sim, Duration::from_millis(100))?;
    }
    stop.store(true, Ordering::Relaxed);
    while !oracle.complete(&HOSTS) {
        if sim.elapsed() > healed + HEALING * 2 {
            return Err("a host of the healed cluster lacks what was acknowledged".to_owned());
        }
        advance(&mut sim, Duration::from_millis(100))?;
    }
    Ok(Outcome { faults: trouble.made, entries: oracle.entries() })
}
