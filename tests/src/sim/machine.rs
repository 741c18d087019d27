//! What of a simulated host outlives its daemon: its clock, its QEMUs with their guards, and the parties.
//!
//! The daemon's program on the simulated network has it in its hands while it runs; when the daemon is killed it stays,
//! and when the power fails it goes.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use vt_daemon::{
    guard::clock::{BootTime, Clock},
    settings::Settings,
};
use vt_protocol::ids::HostId;

use crate::{drift::DriftingClock, twin::Twin};

/// True time, ms: what the simulation has come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Now(Arc<AtomicU64>);

impl Now {
    pub(super) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::Relaxed);
    }

    pub(super) fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A machine.
#[derive(Debug)]
pub(super) struct Inner {
    /// What its daemon knows of its party and its VMs, with the QEMUs themselves.
    pub(super) twin: Twin,
    /// Its daemon is stopped in the middle of what it did.
    pub(super) frozen: bool,
    /// How often its daemon was started.
    pub(super) starts: u64,
}

/// A machine. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) host: HostId,
    clock: DriftingClock,
    now: Now,
    inner: Arc<Mutex<Inner>>,
}

impl Machine {
    /// A machine whose party moves its VM so often, with so much time for each transfer.
    pub(super) fn new(host: HostId, clock: DriftingClock, now: Now, moves: u32, transfer: Duration) -> Self {
        let twin = Twin::new(host, Settings::default().session, moves, transfer);
        let inner = Arc::new(Mutex::new(Inner { twin, frozen: false, starts: 0 }));
        Self { host, clock, now, inner }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its clock shows.
    pub(super) fn local(&self) -> BootTime {
        self.clock.at(self.now.ms())
    }

    /// Its clock, for the daemon's loops.
    pub(super) fn clock(&self) -> Clock {
        let machine = self.clone();
        Arc::new(move || machine.local())
    }

    /// The guards look at their clock.
    pub(super) fn guards(&self) {
        let local = self.local();
        for copy in self.lock().twin.copies.values_mut() {
            if copy.deadline().is_some_and(|deadline| deadline <= local) {
                copy.tick(local);
            }
            copy.stop_returns(local);
        }
    }
}
