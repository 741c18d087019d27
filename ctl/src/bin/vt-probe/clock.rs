//! The guest's clocks, and a beacon: a thread that ticks and keeps the largest gaps it has seen.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use vt_protocol::probe::{Clock, ClockReport};

/// Distance of two ticks.
const TICK: Duration = Duration::from_millis(10);

fn nanoseconds(id: ClockId) -> u64 {
    // These three clocks are always there; a zero would be seen as a clock that went back.
    clock_gettime(id).map_or(0, |time| {
        let (seconds, rest) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
        seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(rest.unwrap_or(0))
    })
}

/// All clocks now.
pub(crate) fn now() -> Clock {
    Clock {
        realtime_ns: nanoseconds(ClockId::CLOCK_REALTIME),
        monotonic_ns: nanoseconds(ClockId::CLOCK_MONOTONIC),
        boottime_ns: nanoseconds(ClockId::CLOCK_BOOTTIME),
    }
}

struct Seen {
    last: Clock,
    report: ClockReport,
}

impl Seen {
    fn new(clock: Clock) -> Self {
        let report = ClockReport {
            clock,
            tick_ns: u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX),
            ticks: 0,
            gap_monotonic_ns: 0,
            gap_realtime_ns: 0,
            back_realtime_ns: 0,
            back_monotonic_ns: 0,
        };
        Self { last: clock, report }
    }

    fn tick(&mut self, clock: Clock) {
        let (last, report) = (self.last, &mut self.report);
        report.ticks += 1;
        report.gap_monotonic_ns = report.gap_monotonic_ns.max(clock.monotonic_ns.saturating_sub(last.monotonic_ns));
        report.gap_realtime_ns = report.gap_realtime_ns.max(clock.realtime_ns.saturating_sub(last.realtime_ns));
        report.back_monotonic_ns = report.back_monotonic_ns.max(last.monotonic_ns.saturating_sub(clock.monotonic_ns));
        report.back_realtime_ns = report.back_realtime_ns.max(last.realtime_ns.saturating_sub(clock.realtime_ns));
        self.last = clock;
    }
}

/// The ticking thread's findings.
#[derive(Clone)]
pub(crate) struct Beacon(Arc<Mutex<Seen>>);

impl Beacon {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let beacon = Self(Arc::new(Mutex::new(Seen::new(now()))));
        let ticking = beacon.clone();
        thread::Builder::new().name("clock".into()).spawn(move || {
            loop {
                thread::sleep(TICK);
                ticking.lock().tick(now());
            }
        })?;
        Ok(beacon)
    }

    /// What was seen; with `reset` the gaps begin anew.
    pub(crate) fn report(&self, reset: bool) -> ClockReport {
        let clock = now();
        let mut seen = self.lock();
        let report = ClockReport { clock, ..seen.report.clone() };
        if reset {
            *seen = Seen::new(clock);
        }
        report
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(realtime_ns: u64, monotonic_ns: u64) -> Clock {
        Clock { realtime_ns, monotonic_ns, boottime_ns: monotonic_ns }
    }

    #[test]
    fn gaps_and_steps_back_are_kept() {
        let mut seen = Seen::new(at(1000, 10));
        for (realtime, monotonic) in [(1010, 20), (1900, 910), (1700, 920), (1710, 915)] {
            seen.tick(at(realtime, monotonic));
        }
        let report = seen.report;
        assert_eq!((report.ticks, report.gap_monotonic_ns, report.gap_realtime_ns), (4, 890, 890));
        assert_eq!((report.back_realtime_ns, report.back_monotonic_ns), (200, 5));
    }
}
