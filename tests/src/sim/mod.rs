//! The simulator: three hosts, their daemons' decisions, their network, clocks, disks and QEMUs on one thread, under faults
//! that a seed decides.
//!
//! The daemons' own loops run here: sessions, the keeper, the scheduler, over real replicas; the policy of members; and
//! the [`crate::twin`] for parties, movements and guards. Hosts lose their power, daemons are killed or frozen, disks are
//! full or slow, links are cut in every shape and direction, messages take random times, clocks drift. Then all is healed: the
//! cluster must go on, every case must come to its verdict, and nothing may run any more.
//!
//! A seed is its run, to the last line: ids, timers and what a disk loses come from it ([`vt_protocol::chance`]), and
//! whoever waits for the same is woken in order (tokio's `watch` draws that order, so none with two waiting receivers is
//! on the way). `make sim SEED=17` runs one again and tells what happened, with a hash of all of it.

mod client;
mod cluster;
pub mod disk;
mod host;
mod machine;
pub mod net;
pub mod oracle;
mod trouble;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use turmoil::Sim;
use vt_protocol::{chance, ids::HostId};

use self::{
    client::Meeting,
    disk::{Disk, Honesty},
    host::Load,
    machine::{Machine, Now},
    net::name,
    oracle::Oracle,
    trouble::Trouble,
};
use crate::{drift::DriftingClock, seeds, twin::copy::transfer};

const HOSTS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
const CLIENTS: usize = 2;
const TICK: Duration = Duration::from_millis(4);
/// A stage of a transfer takes so many ticks.
const STAGE_TICKS: u64 = 10;
/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(10);
/// And in some runs: such a time is over while the votes are on their way, or just before or after.
const SHORT_TRANSFER: std::ops::Range<u64> = 100..400;
/// How long faults go on, in simulated time.
const TROUBLE: Duration = Duration::from_secs(40);
/// How long a healed cluster may take until everybody has everything.
const HEALING: Duration = Duration::from_secs(60);
/// How long a healed cluster may take until every case has its verdict.
const JUDGING: Duration = Duration::from_secs(240);
/// Clocks are wrong by so many millionths at most.
const DRIFT: i64 = 50_000;

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides faults, delays and what a power failure leaves.
    pub seed: u64,
    /// Whether the disks keep what they said they have.
    pub honesty: Honesty,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Faults that were made.
    pub faults: usize,
    /// Entries that were applied.
    pub entries: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// How the cases ended.
    pub verdicts: Vec<String>,
}

/// A run: how it ended, and all that happened.
#[derive(Debug)]
pub struct Run {
    /// The first thing seen that must not be, or what was done.
    pub outcome: Result<Outcome, String>,
    /// What happened, line by line.
    pub trace: Vec<String>,
}

impl Run {
    /// A number that two runs share if and only if they did the same at the same times.
    pub fn hash(&self) -> String {
        seeds::hash(&self.trace)
    }
}

/// A simulated cluster with what watches it.
struct World<'a> {
    sim: Sim<'a>,
    oracle: Oracle,
    machines: Vec<Machine>,
    disks: Vec<Disk>,
    ready: Arc<AtomicBool>,
    now: Now,
    rng: StdRng,
    trouble: Trouble,
    ticks: u64,
}

impl World<'_> {
    fn new(seed: u64, load: Load) -> Self {
        chance::seed(Some(seed));
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(30))
            // What was held while a daemon was frozen comes all at once when it goes on.
            .tcp_capacity(1 << 16)
            .build();
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Now::default();
        let oracle = Oracle::new(now.clone());
        let ready = Arc::new(AtomicBool::new(false));
        let disks: Vec<Disk> = HOSTS.iter().map(|_| Disk::default()).collect();
        let moves = rng.random_range(1..4);
        let short = rng.random_bool(0.3).then(|| Duration::from_millis(rng.random_range(SHORT_TRANSFER)));
        let transfer = short.unwrap_or(TRANSFER);
        let machines: Vec<Machine> = HOSTS
            .iter()
            .map(|host| {
                let offset = rng.random_range(1..1_000_000) * 1_000_000_000;
                let clock = DriftingClock { offset, drift: rng.random_range(-DRIFT..DRIFT) };
                Machine::new(*host, clock, now.clone(), moves, transfer)
            })
            .collect();
        for (machine, disk) in machines.iter().zip(&disks) {
            let (machine, disk, oracle, ready) = (machine.clone(), disk.clone(), oracle.clone(), Arc::clone(&ready));
            sim.host(name(machine.host), move || {
                host::host(load, machine.clone(), disk.clone(), oracle.clone(), Arc::clone(&ready))
            });
        }
        let trouble = Trouble::new(machines.clone(), disks.clone(), oracle.clone());
        Self { sim, oracle, machines, disks, ready, now, rng, trouble, ticks: 0 }
    }

    fn advance(&mut self, by: Duration) -> Result<(), String> {
        let until = self.sim.elapsed() + by;
        while self.sim.elapsed() < until {
            let elapsed = u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.now.set(elapsed);
            let stepped = self.sim.step();
            self.hypervisors();
            if let Some(violation) = self.oracle.verdict() {
                return Err(violation);
            }
            stepped.map_err(|error| format!("the simulation ended: {error}"))?;
        }
        Ok(())
    }

    /// What goes on on the machines whatever their daemons do: guards look at their clocks, transfers go on.
    fn hypervisors(&mut self) {
        self.ticks += 1;
        self.machines.iter().for_each(Machine::guards);
        if self.ticks.is_multiple_of(STAGE_TICKS) {
            self.transfers();
        }
        let mut running = BTreeSet::new();
        for machine in &self.machines {
            let inner = machine.lock();
            let copies = inner.twin.copies.values().filter(|copy| copy.runs());
            running.extend(copies.map(|copy| (copy.vm.clone(), machine.host)));
        }
        self.oracle.runs(running);
    }

    fn transfers(&mut self) {
        for from in self.machines.clone() {
            let sending = from.lock().twin.copies.values().find(|copy| copy.is_sending()).map(|copy| copy.vm.clone());
            let Some(vm) = sending else { continue };
            let comes_in = |machine: &&Machine| {
                machine.host != from.host
                    && machine.lock().twin.copies.get(&vm).is_some_and(|copy| copy.incoming.is_some())
            };
            let to = self.machines.iter().find(comes_in).cloned();
            let cut = to.as_ref().is_some_and(|to| {
                self.trouble.cuts.iter().any(|cut| *cut == (from.host, to.host) || *cut == (to.host, from.host))
            });
            let breaks = cut || self.rng.random_bool(0.05);
            let local = from.local();
            let mut source = from.lock();
            let mut destination = to.as_ref().map(Machine::lock);
            let into = destination.as_mut().and_then(|inner| inner.twin.copies.get_mut(&vm));
            if let Some(copy) = source.twin.copies.get_mut(&vm) {
                let went = transfer(copy, local, into, breaks);
                self.oracle.note(format!("the transfer from {}: {went:?}", name(from.host)));
            }
        }
    }

    /// Goes on until `done`, for so long at most.
    fn within(&mut self, patience: Duration, what: &str, done: impl Fn(&Oracle) -> bool) -> Result<(), String> {
        let began = self.sim.elapsed();
        while !done(&self.oracle) {
            if self.sim.elapsed() > began + patience {
                return Err(format!("it never came that {what}"));
            }
            self.advance(Duration::from_millis(20))?;
        }
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Oracle) -> bool) -> Result<(), String> {
        self.within(HEALING, what, done)
    }

    fn until_made(&mut self) -> Result<(), String> {
        let ready = Arc::clone(&self.ready);
        self.until("the cluster is made", |_| ready.load(Ordering::Relaxed))
    }

    fn crash(&mut self, host: HostId) {
        self.trouble.crash(&mut self.sim, host, &mut self.rng);
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            faults: self.trouble.made,
            entries: self.oracle.entries(),
            simulated: self.sim.elapsed(),
            verdicts: self.oracle.verdicts(),
        }
    }

    fn end(self, outcome: Result<Outcome, String>) -> Run {
        chance::seed(None);
        Run { outcome, trace: self.oracle.trace() }
    }
}

/// Runs one seed: cases run and clients count while hosts, disks and links fail.
pub fn run(options: Options) -> Run {
    let mut world = World::new(options.seed, Load::Daemons);
    let outcome = chaos(&mut world, options);
    world.end(outcome)
}

fn chaos(world: &mut World<'_>, options: Options) -> Result<Outcome, String> {
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
        world.trouble.next(&mut world.sim, &mut world.rng);
        let pause = world.rng.random_range(100..4000);
        world.advance(Duration::from_millis(pause))?;
    }
    world.trouble.heal(&mut world.sim);

    // It goes on: every client gets further, every host has all that was acknowledged, every case is judged.
    let last = |oracle: &Oracle, n: usize| oracle.last_value(&format!("client{n}"));
    let before: Vec<u64> = (0..CLIENTS).map(|n| last(&world.oracle, n)).collect();
    world.until("a healed cluster goes on", |oracle| (0..CLIENTS).all(|n| last(oracle, n) >= before[n] + 3))?;
    stop.store(true, Ordering::Relaxed);
    world.until("every host has what was acknowledged", |oracle| oracle.complete(&HOSTS))?;
    world.within(JUDGING, "every case has its verdict and nothing runs", Oracle::judged)?;
    Ok(world.outcome())
}

/// Runs one seed: parties meet at a barrier, and the leader dies between the first and the last arrival.
pub fn run_barrier(seed: u64) -> Run {
    let mut world = World::new(seed, Load::Barrier);
    let outcome = leader_dies(&mut world, seed);
    world.end(outcome)
}

fn leader_dies(world: &mut World<'_>, seed: u64) -> Result<Outcome, String> {
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
    Ok(world.outcome())
}
