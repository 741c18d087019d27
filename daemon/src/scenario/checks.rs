//! What a guest must still be after it was moved, and what it showed: a reading before, a reading after, a judgement.
//!
//! What is hurt is found by [`crate::guest::checks`]; here is added that the guest was really at work meanwhile, for a
//! guest whose probes stand still proves nothing.

use std::time::Duration;

use serde::Serialize;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::Failure,
    probe::{Hello, PAGE_BYTES, Request},
};

use crate::{
    guest::checks::{Hurt, Limits, Snapshot, compare},
    party::{Party, failure::caused},
};

/// One question to the probe; checks of large memories under emulation take their time.
const ASK: Duration = Duration::from_secs(120);

/// Asks all probes; the clock last, so that it is as young as can be. A guest that has booted since `before` has none any
/// more, and is told for what it is.
pub(super) async fn read(party: &Party, vm: &Name, before: Option<&Hello>) -> Result<Snapshot, Failure> {
    let guest = party.guest(vm);
    let hello: Hello = guest.probe(Request::Hello, ASK).await?;
    if let Some(before) = before.filter(|before| before.boot_id != hello.boot_id) {
        let hurt = Hurt::Rebooted { before: before.boot_id.clone(), after: hello.boot_id };
        return Err(caused(hurt.report()));
    }
    let memory = Some(guest.probe(Request::MemCheck, ASK).await?);
    let disk = Some(guest.probe(Request::DiskCheck, ASK).await?);
    let clock = guest.probe(Request::Clock, ASK).await?;
    Ok(Snapshot { hello, clock, memory, disk })
}

/// What is allowed.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    pub(super) clock: Duration,
    pub(super) standstill: Duration,
    /// For how long the guest stood still only because the hosts had not decided yet whose it is.
    pub(super) held: Duration,
    /// Whether pages are being rewritten.
    pub(super) rewriting: bool,
    /// The address the guest must have.
    pub(super) address: Option<std::net::Ipv4Addr>,
}

/// What a good guest showed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Checked {
    pub(super) pages: u32,
    pub(super) pages_rewritten: u64,
    pub(super) rewritten_bytes_s: u64,
    pub(super) records: u32,
    pub(super) records_acknowledged: u64,
    pub(super) uptime_off_ms: i64,
    pub(super) clock_off_ms: i64,
    pub(super) standstill_ms: u64,
}

impl Checked {
    /// How long the guest stood still: what its clocks lost against the time that passed, or the longest step they made at
    /// once, where they went on without it.
    pub(super) fn stood_ms(&self) -> u64 {
        self.standstill_ms.max(u64::try_from(-self.uptime_off_ms).unwrap_or(0))
    }
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "memory {} pages, {:.1} MB/s rewritten · disk {} records, {} writes · clock {:+} ms · uptime {:+} ms · \
             standstill {} ms",
            self.pages,
            self.rewritten_bytes_s as f64 / 1e6,
            self.records,
            self.records_acknowledged,
            self.clock_off_ms,
            self.uptime_off_ms,
            self.standstill_ms,
        )
    }
}

fn hurt(before: &Snapshot, after: &Snapshot, elapsed: Duration, allowed: &Allowed) -> Vec<Hurt> {
    let stood = Duration::from_nanos(after.clock.gap_monotonic_ns);
    let limits = Limits {
        // The clocks stand still with the guest, which has a limit of its own.
        clock: allowed.clock + stood.min(allowed.standstill),
        standstill: allowed.standstill,
        address: allowed.address.map(|address| address.to_string()),
    };
    compare(before, after, elapsed, &limits)
}

/// Judges a guest by its readings; `elapsed` is how long the reader waited between them, by its own clock.
pub(super) fn judge(
    before: &Snapshot,
    after: &Snapshot,
    elapsed: Duration,
    allowed: &Allowed,
) -> Result<Checked, Report> {
    let hurt = hurt(before, after, elapsed, allowed);
    if let Some((first, rest)) = hurt.split_first() {
        let also =
            |report| rest.iter().take(6).fold(report, |report: Report, hurt| report.with("also", hurt.to_string()));
        // Whether it is hurt but for that time, in which its clocks stood as well.
        let unheld = Allowed { standstill: allowed.standstill + allowed.held, ..allowed.clone() };
        if allowed.held.is_zero()
            || !self::hurt(before, after, elapsed.saturating_sub(allowed.held), &unheld).is_empty()
        {
            return Err(also(first.report()));
        }
        let title =
            format!("the guest stood still for {:.1} s until the hosts had decided", allowed.held.as_secs_f64());
        return Err(also(Report::new(ErrorCode::DecisionLate, title).with("seen as", first.to_string())));
    }
    let idle = |what: &str, then: u64, now: u64| {
        Report::new(ErrorCode::GuestStopped, format!("{what} in the guest did not go on during the move"))
            .with("before", then.to_string())
            .with("after", now.to_string())
    };
    let mut checked = Checked {
        pages: 0,
        pages_rewritten: 0,
        rewritten_bytes_s: 0,
        records: 0,
        records_acknowledged: 0,
        uptime_off_ms: off(after.clock.clock.boottime_ns, before.clock.clock.boottime_ns, elapsed),
        clock_off_ms: off(after.clock.clock.realtime_ns, before.clock.clock.realtime_ns, elapsed),
        standstill_ms: after.clock.gap_monotonic_ns / 1_000_000,
    };
    if let (Some(then), Some(now)) = (&before.memory, &after.memory) {
        if then.seed != now.seed || then.pages_checked != now.pages_checked {
            return Err(Report::new(ErrorCode::MemoryDamaged, "the memory probe is another one than before")
                .with("pages before", then.pages_checked.to_string())
                .with("pages after", now.pages_checked.to_string()));
        }
        if allowed.rewriting && now.pages_rewritten <= then.pages_rewritten {
            return Err(idle("the memory probe", then.pages_rewritten, now.pages_rewritten));
        }
        checked.pages = now.pages_checked;
        checked.pages_rewritten = now.pages_rewritten - then.pages_rewritten;
        let running = u128::from(now.running_ns.saturating_sub(then.running_ns).max(1));
        let rate = u128::from(checked.pages_rewritten) * PAGE_BYTES as u128 * 1_000_000_000 / running;
        checked.rewritten_bytes_s = u64::try_from(rate).unwrap_or(u64::MAX);
    }
    if let (Some(then), Some(now)) = (&before.disk, &after.disk) {
        if then.seed != now.seed || now.acknowledged <= then.acknowledged {
            return Err(idle("the disk writer", then.acknowledged, now.acknowledged));
        }
        checked.records = now.records_checked;
        checked.records_acknowledged = now.acknowledged;
    }
    Ok(checked)
}

/// How far a clock is off from the time that passed, ms.
fn off(now_ns: u64, then_ns: u64, elapsed: Duration) -> i64 {
    let went = i128::from(now_ns) - i128::from(then_ns);
    let passed = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
    i64::try_from((went - passed) / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use vt_protocol::{
        probe::{Clock, ClockReport, DiskReport, MemReport},
        verdict::Blame,
    };

    use super::*;
    use crate::party::failure::blame;

    const S: u64 = 1_000_000_000;

    fn allowed() -> Allowed {
        Allowed {
            clock: Duration::from_secs(1),
            standstill: Duration::from_secs(2),
            held: Duration::ZERO,
            rewriting: true,
            address: Some([10, 0, 0, 9].into()),
        }
    }

    fn reading(at_s: u64) -> Snapshot {
        let clock = Clock { realtime_ns: (1000 + at_s) * S, monotonic_ns: at_s * S, boottime_ns: at_s * S };
        Snapshot {
            hello: Hello {
                version: 1,
                boot_id: "b".into(),
                clock,
                addresses: vec!["10.0.0.9/24".into()],
                memory_bytes: 1 << 28,
                cpus: 1,
                kernel: "k".into(),
                probe_pid: 7,
            },
            memory: Some(MemReport {
                seed: 1,
                pages_checked: 4096,
                pages_rewritten: at_s * 2000,
                running_ns: at_s * S,
                bad_pages: 0,
                findings: Vec::new(),
            }),
            disk: Some(DiskReport {
                seed: 2,
                records_checked: 256,
                acknowledged: at_s * 10,
                write_errors: 0,
                last_error: None,
                slowest_write_ns: 0,
                bad_records: 0,
                findings: Vec::new(),
            }),
            clock: ClockReport {
                clock,
                tick_ns: S / 100,
                ticks: at_s * 100,
                gap_monotonic_ns: S / 10,
                gap_realtime_ns: S / 10,
                back_realtime_ns: 0,
                back_monotonic_ns: 0,
            },
        }
    }

    #[test]
    fn an_unhurt_guest_passes_with_its_figures() {
        let checked = judge(&reading(10), &reading(15), Duration::from_secs(5), &allowed()).unwrap();
        assert_eq!(checked.pages_rewritten, 10_000);
        assert_eq!(checked.rewritten_bytes_s, 10_000 * 4096 / 5);
        assert_eq!((checked.uptime_off_ms, checked.clock_off_ms, checked.standstill_ms), (0, 0, 100));
        assert_eq!(checked.stood_ms(), 100, "its clocks went on while it stood");
        let stood = judge(&reading(10), &reading(15), Duration::from_millis(5700), &allowed()).unwrap();
        assert_eq!(stood.stood_ms(), 700, "its clocks stood with it");
    }

    #[test]
    fn each_check_bites() {
        use ErrorCode::*;
        type Hurt = fn(&mut Snapshot);
        let cases: &[(&str, Hurt, ErrorCode)] = &[
            ("another boot", |r| r.hello.boot_id = "c".into(), GuestRebooted),
            ("another probe", |r| r.hello.probe_pid = 8, GuestUnreachable),
            ("a bad page", |r| r.memory.as_mut().unwrap().bad_pages = 1, MemoryDamaged),
            ("fewer pages", |r| r.memory.as_mut().unwrap().pages_checked = 1, MemoryDamaged),
            ("another pattern", |r| r.memory.as_mut().unwrap().seed = 9, MemoryDamaged),
            ("no page rewritten", |r| r.memory.as_mut().unwrap().pages_rewritten = 20_000, GuestStopped),
            ("a bad record", |r| r.disk.as_mut().unwrap().bad_records = 1, DiskDamaged),
            ("a write refused", |r| r.disk.as_mut().unwrap().write_errors = 1, DiskDamaged),
            ("no write", |r| r.disk.as_mut().unwrap().acknowledged = 100, GuestStopped),
            ("an address gone", |r| r.hello.addresses.clear(), AddressLost),
            ("monotonic clock back", |r| r.clock.back_monotonic_ns = 1, ClockJumped),
            ("uptime back", |r| r.clock.clock.boottime_ns = 9 * S, ClockJumped),
            ("uptime ahead", |r| r.clock.clock.boottime_ns = 17 * S, ClockJumped),
            ("uptime behind", |r| r.clock.clock.boottime_ns = 13 * S, ClockJumped),
            ("wall clock ahead", |r| r.clock.clock.realtime_ns = 1017 * S, ClockJumped),
            ("wall clock behind", |r| r.clock.clock.realtime_ns = 1000 * S, ClockJumped),
            ("a long standstill", |r| r.clock.gap_monotonic_ns = 3 * S, GuestStopped),
        ];
        for (what, hurt, code) in cases {
            let mut after = reading(15);
            hurt(&mut after);
            let report = judge(&reading(10), &after, Duration::from_secs(5), &allowed()).expect_err(what);
            assert_eq!(report.code, *code, "{what}: {report:?}");
        }
    }

    #[test]
    fn a_guest_that_waited_for_a_late_decision_is_our_sides_fault_and_what_is_hurt_besides_is_not() {
        // 15 s outside, 5 s inside: 10 s it was held, once visible to itself and once not.
        let held = |seconds| Allowed { held: Duration::from_secs(seconds), ..allowed() };
        let passed = Duration::from_secs(15);
        for gap in [S / 10, 10 * S] {
            let mut after = reading(15);
            after.clock.gap_monotonic_ns = gap;
            let report = judge(&reading(10), &after, passed, &held(10)).unwrap_err();
            assert_eq!(
                (report.code, blame(report.code)),
                (ErrorCode::DecisionLate, Blame::Infrastructure),
                "{report:?}"
            );
            // Held for less than it is off; and hurt in a way that no waiting explains.
            assert_ne!(judge(&reading(10), &after, passed, &held(3)).unwrap_err().code, ErrorCode::DecisionLate);
            after.memory.as_mut().unwrap().bad_pages = 1;
            assert_eq!(judge(&reading(10), &after, passed, &held(10)).unwrap_err().code, ErrorCode::MemoryDamaged);
        }
        judge(&reading(10), &reading(15), Duration::from_secs(5), &held(1)).unwrap();
    }

    #[test]
    fn a_standstill_within_bounds_is_no_jump() {
        // 5 s outside, 3.2 s inside: the guest stood still for 1.5 s.
        let mut after = reading(15);
        after.clock.clock.boottime_ns = 13 * S + S / 5;
        after.clock.clock.realtime_ns = 1013 * S + S / 5;
        after.clock.gap_monotonic_ns = S * 3 / 2;
        judge(&reading(10), &after, Duration::from_secs(5), &allowed()).unwrap();
    }
}
