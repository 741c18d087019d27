//! The simulator: three replicas, their network and their disks on one thread, under faults that a seed decides.
//!
//! Hosts crash with their power, links are cut in one or both directions, messages take random times. Then all is healed
//! and the cluster must go on. A seed gives the same faults at the same simulated times again; what tokio itself draws
//! (the order of ready branches) is not seeded, so a run repeats closely and not bit for bit.

mod client;
pub mod disk;
mod host;
pub mod net;
pub mod oracle;
mod trouble;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use turmoil::Sim;
use vt_protocol::ids::HostId;

use self::{
    client::Meeting,
    disk::{Disk, Honesty},
    net::name,
    oracle::Oracle,
    trouble::Trouble,
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

/// A simulated cluster with what watches it.
struct World<'a> {
    sim: Sim<'a>,
    oracle: Oracle,
    disks: Vec<Disk>,
    ready: Arc<AtomicBool>,
    rng: StdRng,
    trouble: Trouble,
}

impl<'a> World<'a> {
    fn new(seed: u64) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(600))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(30))
            .build();
        let oracle = Oracle::default();
        let ready = Arc::new(AtomicBool::new(false));
        let disks: Vec<Disk> = HOSTS.iter().map(|_| Disk::default()).collect();
        for me in HOSTS {
            let (disk, oracle, ready) = (disks[me.0 as usize - 1].clone(), oracle.clone(), Arc::clone(&ready));
            sim.host(name(me), move || host::host(me, disk.clone(), oracle.clone(), Arc::clone(&ready)));
        }
        Self { sim, oracle, disks, ready, rng: StdRng::seed_from_u64(seed), trouble: Trouble::default() }
    }

    fn advance(&mut self, by: Duration) -> Result<(), String> {
        let until = self.sim.elapsed() + by;
        while self.sim.elapsed() < until {
            let stepped = self.sim.step();
            if let Some(violation) = self.oracle.verdict() {
                return Err(violation);
            }
            stepped.map_err(|error| format!("the simulation ended: {error}"))?;
        }
        Ok(())
    }

    /// Goes on until `done`, for [`HEALING`] at most.
    fn until(&mut self, what: &str, done: impl Fn(&Oracle) -> bool) -> Result<(), String> {
        let began = self.sim.elapsed();
        while !done(&self.oracle) {
            if self.sim.elapsed() > began + HEALING {
                return Err(format!("it never came that {what}"));
            }
            self.advance(Duration::from_millis(20))?;
        }
        Ok(())
    }

    fn until_made(&mut self) -> Result<(), String> {
        let ready = Arc::clone(&self.ready);
        self.until("the cluster is made", |_| ready.load(Ordering::Relaxed))
    }

    fn crash(&mut self, host: HostId) {
        self.trouble.crash(&mut self.sim, &self.disks, host, &mut self.rng);
    }
}

/// Runs one seed: clients count while hosts and links fail.
///
/// # Errors
/// The first thing seen that must not be.
pub fn run(options: Options) -> Result<Outcome, String> {
    let mut world = World::new(options.seed);
    let stop = Arc::new(AtomicBool::new(false));
    for number in 0..CLIENTS {
        let (ready, stop) = (Arc::clone(&world.ready), Arc::clone(&stop));
        let work = client::client(number, options.seed, world.oracle.clone(), ready, stop);
        world.sim.client(format!("client{number}"), work);
    }
    world.until_made()?;
    if options.honesty == Honesty::Lying {
        // Some time of good work, then one power failure for all: what was acknowledged is gone from every disk.
        world.advance(Duration::from_secs(2))?;
        world.disks.iter().for_each(Disk::begin_to_lie);
        world.advance(Duration::from_secs(3))?;
        HOSTS.into_iter().for_each(|host| world.crash(host));
    }
    let began = world.sim.elapsed();
    while options.honesty == Honesty::Honest && world.sim.elapsed() < began + TROUBLE {
        world.trouble.next(&mut world.sim, &world.disks, &mut world.rng);
        let pause = world.rng.random_range(100..1500);
        world.advance(Duration::from_millis(pause))?;
    }
    world.trouble.heal(&mut world.sim);

    // It goes on: every client gets further, and every host has all that was acknowledged.
    let last = |oracle: &Oracle, n: usize| oracle.last_acknowledged(&format!("client{n}"));
    let before: Vec<u64> = (0..CLIENTS).map(|n| last(&world.oracle, n)).collect();
    world.until("a healed cluster goes on", |oracle| (0..CLIENTS).all(|n| last(oracle, n) >= before[n] + 3))?;
    stop.store(true, Ordering::Relaxed);
    world.until("every host has what was acknowledged", |oracle| oracle.complete(&HOSTS))?;
    Ok(Outcome { faults: world.trouble.made, entries: world.oracle.entries() })
}

/// Runs one seed: parties meet at a barrier, and the leader dies between the first and the last arrival.
///
/// # Errors
/// The first thing seen that must not be.
pub fn run_barrier(seed: u64) -> Result<Outcome, String> {
    let mut world = World::new(seed);
    let meeting = Arc::new(Meeting { ready: Arc::new(AtomicBool::new(false)), ..Meeting::default() });
    world.until_made()?;
    world.until("an attempt is known", |oracle| oracle.attempt().is_some())?;
    let epoch = world.oracle.attempt().unwrap_or_default();
    for me in HOSTS {
        let work = client::party(me, seed, epoch, world.oracle.clone(), Arc::clone(&meeting));
        world.sim.client(format!("party{}", me.0), work);
    }
    meeting.ready.store(true, Ordering::Relaxed);
    let arrived = || meeting.arrived.load(Ordering::Relaxed);
    let wanted = 1 + usize::from(world.rng.random_bool(0.5));
    world.until("the first parties have arrived", |_| arrived() >= wanted)?;
    let leader = world.oracle.leader().ok_or("nobody leads")?;
    // Sometimes the last party sets out before the leader dies, sometimes after.
    meeting.last_may_come.store(world.rng.random_bool(0.5), Ordering::Relaxed);
    let pause = world.rng.random_range(0..60);
    world.advance(Duration::from_millis(pause))?;
    world.crash(leader);
    meeting.last_may_come.store(true, Ordering::Relaxed);
    let passed = || meeting.passed.load(Ordering::Relaxed);
    world.until("all parties are let pass", |_| passed() == HOSTS.len())?;
    world.trouble.heal(&mut world.sim);
    world.until("every host has seen the release", |oracle| oracle.released(&HOSTS))?;
    Ok(Outcome { faults: world.trouble.made, entries: world.oracle.entries() })
}
