//! CLOCK_BOOTTIME: it goes on while the machine is suspended, so a sleeping host's right to act runs out.

use std::{sync::Arc, time::Duration};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment on this host's CLOCK_BOOTTIME. It means nothing on another host, or after a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootTime(u64);

/// A host's clock: the machine's, or a simulated one.
pub type Clock = Arc<dyn Fn() -> BootTime + Send + Sync>;

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        // CLOCK_BOOTTIME exists since Linux 2.6.39; zero would be long past, so that everything is stopped.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
        Self(now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64))
    }

    /// From nanoseconds since boot.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since boot.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// How long after `earlier` it is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)))
    }
}
