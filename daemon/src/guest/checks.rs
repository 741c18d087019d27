//! Whether a guest is unhurt: two snapshots of its probes, one before a move and one after it, and what differs that
//! may not. Pure.
//!
//! The guest's clocks are compared with time that passed on the observer's side, never with a clock of another host.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    probe::{self, ClockReport, DiskReport, Hello, MemReport},
};

/// What the probes said at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Who the guest was.
    pub hello: Hello,
    /// Its clocks.
    pub clock: ClockReport,
    /// Its memory, where the probe runs.
    pub memory: Option<MemReport>,
    /// Its disk, where the writer runs.
    pub disk: Option<DiskReport>,
}

/// What a guest may do in a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How far its clocks may be off from the time that passed.
    pub clock: Duration,
    /// How long it may stand still, as far as it can see that itself.
    pub standstill: Duration,
    /// The address it must have, as `10.1.2.3`.
    pub address: Option<String>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hurt {
    /// The boot id changed.
    Rebooted {
        /// Before.
        before: String,
        /// After.
        after: String,
    },
    /// The probe is another process, so what it guarded is gone.
    ProbeRestarted {
        /// Process id before.
        before: u32,
        /// Process id after.
        after: u32,
    },
    /// A probe that ran does not run any more.
    ProbeGone(&'static str),
    /// Pages do not hold what was written.
    Memory {
        /// How many.
        bad: u32,
        /// Of how many.
        checked: u32,
        /// The first.
        first: Option<probe::Finding>,
    },
    /// Acknowledged records are lost or torn.
    Disk {
        /// How many.
        bad: u32,
        /// Of how many.
        checked: u32,
        /// The first.
        first: Option<probe::Finding>,
    },
    /// The disk refused writes.
    DiskErrors {
        /// How many.
        errors: u64,
        /// In the words of the guest's kernel.
        last: String,
    },
    /// A counter that only grows is lower than before: the guest fell back to an earlier state.
    FellBack {
        /// Which counter.
        what: &'static str,
        /// Before.
        before: u64,
        /// After.
        after: u64,
    },
    /// A clock is off from the time that passed.
    ClockOff {
        /// Which clock.
        clock: &'static str,
        /// How far it went, ns.
        went_ns: u64,
        /// How much time passed, ns.
        passed_ns: u64,
    },
    /// CLOCK_MONOTONIC went back.
    MonotonicBack {
        /// How far, ns.
        ns: u64,
    },
    /// The guest stood still for too long.
    StoodStill {
        /// How long, ns.
        ns: u64,
        /// How long it may, ns.
        limit_ns: u64,
    },
    /// The guest has not the address it must have.
    AddressLost {
        /// Which.
        wanted: String,
        /// What it has.
        found: Vec<String>,
    },
}

/// What of the guest is hurt. `passed`: time between the two snapshots on the observer's clock.
pub fn compare(before: &Snapshot, after: &Snapshot, passed: Duration, limits: &Limits) -> Vec<Hurt> {
    if before.hello.boot_id != after.hello.boot_id {
        let (before, after) = (before.hello.boot_id.clone(), after.hello.boot_id.clone());
        // Nothing else can be said about a guest that began anew.
        return vec![Hurt::Rebooted { before, after }];
    }
    let mut hurt = Vec::new();
    if before.hello.probe_pid != after.hello.probe_pid {
        hurt.push(Hurt::ProbeRestarted { before: before.hello.probe_pid, after: after.hello.probe_pid });
    }
    memory(before.memory.as_ref(), after.memory.as_ref(), &mut hurt);
    disk(before.disk.as_ref(), after.disk.as_ref(), &mut hurt);
    clocks(&before.clock, &after.clock, passed, limits, &mut hurt);
    if let Some(wanted) = &limits.address {
        let has = after.hello.addresses.iter().any(|found| found.split('/').next() == Some(wanted));
        if !has {
            hurt.push(Hurt::AddressLost { wanted: wanted.clone(), found: after.hello.addresses.clone() });
        }
    }
    hurt
}

fn memory(before: Option<&MemReport>, after: Option<&MemReport>, hurt: &mut Vec<Hurt>) {
    let Some(after) = after else {
        hurt.extend(before.map(|_| Hurt::ProbeGone("memory probe")));
        return;
    };
    if after.bad_pages > 0 {
        let first = after.findings.first().cloned();
        hurt.push(Hurt::Memory { bad: after.bad_pages, checked: after.pages_checked, first });
    }
    if let Some(before) = before.filter(|before| before.seed == after.seed) {
        fell_back("pages rewritten", before.pages_rewritten, after.pages_rewritten, hurt);
    }
}

fn disk(before: Option<&DiskReport>, after: Option<&DiskReport>, hurt: &mut Vec<Hurt>) {
    let Some(after) = after else {
        hurt.extend(before.map(|_| Hurt::ProbeGone("disk writer")));
        return;
    };
    if after.bad_records > 0 {
        let first = after.findings.first().cloned();
        hurt.push(Hurt::Disk { bad: after.bad_records, checked: after.records_checked, first });
    }
    let before = before.filter(|before| before.seed == after.seed);
    let errors = after.write_errors.saturating_sub(before.map_or(0, |before| before.write_errors));
    if errors > 0 {
        let last = after.last_error.clone().unwrap_or_default();
        hurt.push(Hurt::DiskErrors { errors, last: last.chars().take(200).collect() });
    }
    if let Some(before) = before {
        fell_back("records acknowledged", before.acknowledged, after.acknowledged, hurt);
    }
}

fn fell_back(what: &'static str, before: u64, after: u64, hurt: &mut Vec<Hurt>) {
    if after < before {
        hurt.push(Hurt::FellBack { what, before, after });
    }
}

fn clocks(before: &ClockReport, after: &ClockReport, passed: Duration, limits: &Limits, hurt: &mut Vec<Hurt>) {
    let (then, now) = (before.clock, after.clock);
    fell_back("uptime in ns", then.boottime_ns, now.boottime_ns, hurt);
    if after.back_monotonic_ns > 0 || now.monotonic_ns < then.monotonic_ns {
        let ns = after.back_monotonic_ns.max(then.monotonic_ns.saturating_sub(now.monotonic_ns));
        hurt.push(Hurt::MonotonicBack { ns });
    }
    let (passed_ns, limit) = (nanos(passed), nanos(limits.clock));
    for (clock, then, now) in
        [("CLOCK_REALTIME", then.realtime_ns, now.realtime_ns), ("CLOCK_BOOTTIME", then.boottime_ns, now.boottime_ns)]
    {
        // A clock that went back has gone no way forward; how far it is off is larger than that by its step back.
        let off = i128::from(now) - i128::from(then) - i128::from(passed_ns);
        if off.unsigned_abs() > u128::from(limit) {
            hurt.push(Hurt::ClockOff { clock, went_ns: now.saturating_sub(then), passed_ns });
        }
    }
    let (gap, limit_ns) = (after.gap_monotonic_ns.max(after.gap_realtime_ns), nanos(limits.standstill));
    if gap > limit_ns {
        hurt.push(Hurt::StoodStill { ns: gap, limit_ns });
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl fmt::Display for Hurt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebooted { .. } => write!(f, "the guest was restarted instead of moved"),
            Self::ProbeRestarted { before, after } => {
                write!(f, "the probe in the guest was restarted (process {before}, now {after})")
            }
            Self::ProbeGone(what) => write!(f, "the {what} in the guest does not run any more"),
            Self::Memory { bad, checked, .. } => {
                write!(f, "{bad} of {checked} pages of the guest's memory are damaged")
            }
            Self::Disk { bad, checked, .. } => {
                write!(f, "{bad} of {checked} acknowledged records on the guest's disk are lost or torn")
            }
            Self::DiskErrors { errors, .. } => write!(f, "the guest's disk refused {errors} writes"),
            Self::FellBack { what, before, after } => {
                write!(f, "the guest fell back to an earlier state: {what} went from {before} to {after}")
            }
            Self::ClockOff { clock, went_ns, passed_ns } => {
                write!(f, "the guest's {clock} went {:.3} s in {:.3} s", seconds(*went_ns), seconds(*passed_ns))
            }
            Self::MonotonicBack { ns } => write!(f, "the guest's CLOCK_MONOTONIC went back by {:.6} s", seconds(*ns)),
            Self::StoodStill { ns, limit_ns } => {
                write!(f, "the guest stood still for {:.3} s, allowed are {:.3} s", seconds(*ns), seconds(*limit_ns))
            }
            Self::AddressLost { wanted, .. } => write!(f, "the guest has lost its address {wanted}"),
        }
    }
}

impl Hurt {
    /// The code of a case that fails because of it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Rebooted { .. } => ErrorCode::GuestRebooted,
            Self::ProbeRestarted { .. } | Self::ProbeGone(_) => ErrorCode::GuestUnreachable,
            Self::Memory { .. } | Self::FellBack { what: "pages rewritten", .. } => ErrorCode::MemoryDamaged,
            Self::Disk { .. } | Self::DiskErrors { .. } | Self::FellBack { what: "records acknowledged", .. } => {
                ErrorCode::DiskDamaged
            }
            Self::FellBack { .. } | Self::ClockOff { .. } | Self::MonotonicBack { .. } => ErrorCode::ClockJumped,
            Self::StoodStill { .. } => ErrorCode::GuestStopped,
            Self::AddressLost { .. } => ErrorCode::AddressLost,
        }
    }

    /// As a user is told.
    pub fn report(&self) -> Report {
        let report = Report::new(self.code(), self.to_string());
        match self {
            Self::Rebooted { before, after } => report.with("boot id before", before).with("boot id after", after),
            Self::Memory { first: Some(first), .. } => finding(report, "first page", first),
            Self::Disk { first: Some(first), .. } => finding(report, "first record", first),
            Self::DiskErrors { last, .. } => report.with("last error", last),
            Self::AddressLost { found, .. } => {
                let found: Vec<_> = found.iter().take(8).cloned().collect();
                report.with("addresses now", if found.is_empty() { "none".into() } else { found.join(" ") })
            }
            _ => report,
        }
    }
}

fn finding(report: Report, what: &str, first: &probe::Finding) -> Report {
    let damage = match first.damage {
        probe::Damage::Stale => "an earlier generation: an update was lost",
        probe::Damage::Changed => "bytes differ from what was written",
        probe::Damage::Missing => "nothing of what was written is there",
        probe::Damage::Unreadable => "cannot be read",
    };
    let found =
        format!("wanted generation {}, found {}, differs from byte {}", first.expected, first.found, first.offset);
    report.with(what, first.index.to_string()).with("damage", damage).with("content", found)
}

#[cfg(test)]
mod tests {
    use vt_protocol::probe::{Clock, Damage, Finding};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Snapshot {
        let clock = Clock {
            realtime_ns: (1000 + seconds) * SECOND,
            monotonic_ns: seconds * SECOND,
            boottime_ns: seconds * SECOND,
        };
        Snapshot {
            hello: Hello {
                version: 1,
                boot_id: "b".into(),
                clock,
                addresses: vec!["10.1.2.3/24".into()],
                memory_bytes: 1,
                cpus: 1,
                kernel: "k".into(),
                probe_pid: 7,
            },
            clock: ClockReport {
                clock,
                tick_ns: 1,
                ticks: 1,
                gap_monotonic_ns: SECOND / 10,
                gap_realtime_ns: SECOND / 10,
                back_realtime_ns: 0,
                back_monotonic_ns: 0,
            },
            memory: Some(MemReport {
                seed: 1,
                pages_checked: 10,
                pages_rewritten: seconds * 100,
                running_ns: 1,
                bad_pages: 0,
                findings: Vec::new(),
            }),
            disk: Some(DiskReport {
                seed: 1,
                records_checked: 10,
                acknowledged: seconds * 10,
                write_errors: 0,
                last_error: None,
                slowest_write_ns: 1,
                bad_records: 0,
                findings: Vec::new(),
            }),
        }
    }

    fn limits() -> Limits {
        Limits { clock: Duration::from_secs(2), standstill: Duration::from_secs(1), address: Some("10.1.2.3".into()) }
    }

    fn found(change: impl FnOnce(&mut Snapshot)) -> Vec<Hurt> {
        let mut after = at(30);
        change(&mut after);
        compare(&at(20), &after, Duration::from_secs(10), &limits())
    }

    fn finding() -> Finding {
        Finding { index: 4, damage: Damage::Stale, expected: 3, found: 2, offset: 16 }
    }

    #[test]
    fn an_unhurt_guest_has_no_finding() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn every_kind_of_hurt_is_found_with_its_code_and_numbers() {
        use ErrorCode::*;
        type Change = fn(&mut Snapshot);
        let table: [(ErrorCode, &str, Change); 15] = [
            (GuestRebooted, "restarted", |s| s.hello.boot_id = "c".into()),
            (GuestUnreachable, "process 7, now 8", |s| s.hello.probe_pid = 8),
            (GuestUnreachable, "memory probe", |s| s.memory = None),
            (GuestUnreachable, "disk writer", |s| s.disk = None),
            (MemoryDamaged, "1 of 10 pages", |s| {
                let memory = s.memory.as_mut().unwrap();
                (memory.bad_pages, memory.findings) = (1, vec![finding()]);
            }),
            (MemoryDamaged, "from 2000 to 5", |s| s.memory.as_mut().unwrap().pages_rewritten = 5),
            (DiskDamaged, "2 of 10", |s| s.disk.as_mut().unwrap().bad_records = 2),
            (DiskDamaged, "refused 1 writes", |s| s.disk.as_mut().unwrap().write_errors = 1),
            (DiskDamaged, "from 200 to 199", |s| s.disk.as_mut().unwrap().acknowledged = 199),
            (ClockJumped, "went 15.000 s in 10.000 s", |s| s.clock.clock.realtime_ns += 5 * SECOND),
            (ClockJumped, "went 7.000 s in 10.000 s", |s| s.clock.clock.boottime_ns -= 3 * SECOND),
            (ClockJumped, "went back by 0.000001 s", |s| s.clock.back_monotonic_ns = 1000),
            (ClockJumped, "went 0.000 s", |s| s.clock.clock.realtime_ns = 0),
            (GuestStopped, "1.500 s", |s| s.clock.gap_monotonic_ns = SECOND * 3 / 2),
            (AddressLost, "10.1.2.3", |s| s.hello.addresses = vec!["10.1.2.30/24".into()]),
        ];
        for (code, words, change) in table {
            let hurt = found(change);
            assert_eq!(hurt.len(), 1, "{words}: {hurt:?}");
            assert_eq!(hurt[0].code(), code, "{words}");
            assert!(hurt[0].to_string().contains(words), "{words}: {}", hurt[0]);
            assert_eq!(hurt[0].report().code, code);
        }
    }

    #[test]
    fn an_uptime_that_went_back_is_found_although_the_boot_id_is_the_same() {
        let hurt = found(|s| s.clock.clock.boottime_ns = 19 * SECOND);
        assert!(hurt.iter().any(|hurt| matches!(hurt, Hurt::FellBack { what: "uptime in ns", .. })), "{hurt:?}");
    }

    #[test]
    fn a_reboot_is_told_alone() {
        let hurt = found(|s| {
            *s = at(1);
            s.hello.boot_id = "new".into();
            s.memory = None;
        });
        assert_eq!(hurt, [Hurt::Rebooted { before: "b".into(), after: "new".into() }]);
    }

    #[test]
    fn the_greatest_numbers_do_not_overflow() {
        let mut wild = at(0);
        for value in [0, 1, u64::MAX] {
            wild.clock.clock = Clock { realtime_ns: value, monotonic_ns: value, boottime_ns: value };
            (wild.clock.gap_monotonic_ns, wild.clock.back_monotonic_ns) = (value, value);
            for passed in [Duration::ZERO, Duration::MAX] {
                let (one, other) =
                    (compare(&at(20), &wild, passed, &limits()), compare(&wild, &at(20), passed, &limits()));
                assert!(one.iter().chain(&other).all(|hurt| !hurt.report().title.is_empty()));
            }
        }
    }

    #[test]
    fn evidence_names_the_first_damaged_page() {
        let hurt = Hurt::Memory { bad: 1, checked: 2, first: Some(finding()) };
        let report = hurt.report();
        assert!(report.evidence.contains(&("first page".into(), "4".into())), "{report:?}");
    }
}
