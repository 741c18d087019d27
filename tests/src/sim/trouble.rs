//! Faults, drawn by the seed: power failures, cut links, and their repair.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use turmoil::Sim;
use vt_protocol::ids::HostId;

use super::{HOSTS, disk::Disk, net::name};

/// What is broken at the moment.
#[derive(Default)]
pub(super) struct Trouble {
    down: Vec<HostId>,
    cuts: Vec<(HostId, HostId)>,
    /// Faults made so far.
    pub(super) made: usize,
}

impl Trouble {
    pub(super) fn crash(&mut self, sim: &mut Sim<'_>, disks: &[Disk], host: HostId, rng: &mut StdRng) {
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

    pub(super) fn next(&mut self, sim: &mut Sim<'_>, disks: &[Disk], rng: &mut StdRng) {
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

    pub(super) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.repair(sim);
        while !self.down.is_empty() {
            self.start(sim, 0);
        }
    }
}
