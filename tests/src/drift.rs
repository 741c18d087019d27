//! A clock that counts on its own: it began anywhere and goes a little wrong, as every host's does.

use std::time::{Duration, Instant};

use vt_daemon::guard::clock::BootTime;

/// A host's clock, told the true time in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct DriftingClock {
    /// What it showed at true time 0, ns.
    pub offset: u64,
    /// How much faster it goes than true time, in millionths.
    pub drift: i64,
}

impl DriftingClock {
    /// A true millisecond in its nanoseconds.
    fn rate(self) -> u64 {
        1_000_000_u64.saturating_add_signed(self.drift)
    }

    /// What it shows at a true time, ms.
    pub fn at(self, now: u64) -> BootTime {
        BootTime::from_ns(self.offset + now * self.rate())
    }

    /// The same for those who count in the runtime's time.
    pub fn instant(self, now: u64, origin: Instant) -> Instant {
        origin + Duration::from_nanos(self.at(now).ns())
    }

    /// The true time, ms, at which it will show that.
    pub fn when(self, shows: BootTime) -> u64 {
        shows.ns().saturating_sub(self.offset).div_ceil(self.rate())
    }
}
