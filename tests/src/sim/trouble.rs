//! Faults, drawn by the seed: power failures, killed and frozen daemons, full and slow disks, cut links, dead QEMUs; and their
//! repair.

use std::time::Duration;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use turmoil::Sim;
use vt_protocol::ids::HostId;

use super::{HOSTS, disk::Disk, machine::Machine, net::name, oracle::Oracle};

/// Milliseconds that a write to a slow disk takes: from shorter than a heartbeat to longer than the time of an election.
const SLOW: std::ops::Range<u64> = 20..1500;

/// What is broken at the moment.
pub(super) struct Trouble {
    machines: Vec<Machine>,
    disks: Vec<Disk>,
    oracle: Oracle,
    down: Vec<HostId>,
    frozen: Vec<HostId>,
    /// Links that are cut, from one to the other.
    pub(super) cuts: Vec<(HostId, HostId)>,
    /// Faults made so far.
    pub(super) made: usize,
}

impl Trouble {
    pub(super) fn new(machines: Vec<Machine>, disks: Vec<Disk>, oracle: Oracle) -> Self {
        Self { machines, disks, oracle, down: Vec::new(), frozen: Vec::new(), cuts: Vec::new(), made: 0 }
    }

    fn note(&mut self, what: String) {
        self.made += 1;
        self.oracle.note(what);
    }

    fn disk(&self, host: HostId) -> &Disk {
        &self.disks[host.0 as usize - 1]
    }

    fn machine(&self, host: HostId) -> &Machine {
        &self.machines[host.0 as usize - 1]
    }

    /// The power of a host fails.
    pub(super) fn crash(&mut self, sim: &mut Sim<'_>, host: HostId, rng: &mut StdRng) {
        if !self.down.contains(&host) {
            // First the power: a program that is ended must not write any more.
            self.disk(host).power_failure(rng);
            self.machine(host).lock().twin.lost_power();
            self.end(sim, host);
            self.note(format!("the power of {} fails", name(host)));
        }
    }

    /// The daemon of a host is killed; its QEMUs, their guards and its party live on, and so does what it wrote.
    fn kill(&mut self, sim: &mut Sim<'_>, host: HostId) {
        if !self.down.contains(&host) {
            self.disk(host).program_ended();
            self.end(sim, host);
            self.note(format!("the daemon of {} is killed", name(host)));
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, host: HostId) {
        self.thaw(sim, host);
        sim.crash(name(host));
        self.down.push(host);
    }

    fn start(&mut self, sim: &mut Sim<'_>, at: usize) {
        let host = self.down.remove(at);
        self.disk(host).refuse(None);
        sim.bounce(name(host));
        self.oracle.note(format!("{} is started again", name(host)));
    }

    fn freeze(&mut self, sim: &mut Sim<'_>, host: HostId) {
        if self.down.contains(&host) || self.frozen.contains(&host) {
            return;
        }
        for other in HOSTS.into_iter().filter(|other| *other != host) {
            sim.hold(name(host), name(other));
        }
        self.machine(host).lock().frozen = true;
        self.frozen.push(host);
        self.note(format!("the daemon of {} freezes", name(host)));
    }

    fn thaw(&mut self, sim: &mut Sim<'_>, host: HostId) {
        if !self.frozen.contains(&host) {
            return;
        }
        self.frozen.retain(|frozen| *frozen != host);
        self.machine(host).lock().frozen = false;
        for other in HOSTS.into_iter().filter(|other| *other != host) {
            if !self.frozen.contains(&other) {
                sim.release(name(host), name(other));
            }
        }
        self.oracle.note(format!("the daemon of {} goes on", name(host)));
    }

    /// The next fault, or repair.
    pub(super) fn next(&mut self, sim: &mut Sim<'_>, rng: &mut StdRng) {
        let host = *HOSTS.choose(rng).expect("there are hosts");
        match rng.random_range(0..100) {
            0..10 => self.crash(sim, host, rng),
            10..22 => self.kill(sim, host),
            22..24 => HOSTS.into_iter().for_each(|host| self.crash(sim, host, rng)),
            24..34 => self.freeze(sim, host),
            34..44 => {
                if let Some(frozen) = self.frozen.choose(rng).copied() {
                    self.thaw(sim, frozen);
                }
            }
            44..60 if !self.down.is_empty() => {
                let at = rng.random_range(0..self.down.len());
                self.start(sim, at);
            }
            60..78 => self.cut(sim, host, rng),
            78..82 => {
                self.disk(host).refuse(Some(std::io::ErrorKind::StorageFull));
                self.note(format!("the disk of {} is full", name(host)));
            }
            82..86 => {
                let machine = self.machine(host).clone();
                let mut inner = machine.lock();
                if let Some(copy) = inner.twin.copies.values_mut().next() {
                    copy.kill();
                    drop(inner);
                    self.note(format!("a QEMU of {} is killed", name(host)));
                }
            }
            86..90 => {
                let latency = Duration::from_millis(rng.random_range(SLOW));
                self.disk(host).slow_down(latency);
                self.note(format!("a write of {} takes {latency:?}", name(host)));
            }
            _ => self.repair(sim),
        }
    }

    /// Cuts links around a host, in any of the shapes that three hosts can be parted in.
    fn cut(&mut self, sim: &mut Sim<'_>, host: HostId, rng: &mut StdRng) {
        let others: Vec<HostId> = HOSTS.into_iter().filter(|other| *other != host).collect();
        let other = *others.choose(rng).expect("there are hosts");
        let from = |one: HostId| HOSTS.into_iter().filter(move |other| *other != one).map(move |other| (one, other));
        let to = |one: HostId| from(one).map(|(one, other)| (other, one));
        let (one, two) = (name(host), name(other));
        let (links, what): (Vec<_>, _) = match rng.random_range(0..18) {
            0..7 => (from(host).chain(to(host)).collect(), format!("{one} is cut off")),
            7..11 => (vec![(host, other)], format!("{one} does not reach {two}")),
            11..13 => (vec![(host, other), (other, host)], format!("{one} and {two} do not reach each other")),
            13..15 => (from(host).collect(), format!("{one} reaches nobody")),
            15..17 => (to(host).collect(), format!("nobody reaches {one}")),
            _ => (HOSTS.into_iter().flat_map(from).collect(), "nobody reaches anybody".to_owned()),
        };
        for (one, other) in links {
            sim.partition_oneway(name(one), name(other));
            self.cuts.push((one, other));
        }
        self.note(what);
    }

    fn repair(&mut self, sim: &mut Sim<'_>) {
        for (one, other) in self.cuts.drain(..) {
            sim.repair(name(one), name(other));
        }
        self.disks.iter().for_each(|disk| disk.slow_down(Duration::ZERO));
        self.oracle.note("every link is whole, every disk is fast".to_owned());
    }

    /// Ends all trouble.
    pub(super) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.repair(sim);
        for host in HOSTS {
            self.thaw(sim, host);
            // A daemon whose disk was full has ended; somebody frees the disk and starts it.
            if self.disk(host).refuses() && !self.down.contains(&host) {
                self.kill(sim, host);
            }
        }
        while !self.down.is_empty() {
            self.start(sim, 0);
        }
    }
}
