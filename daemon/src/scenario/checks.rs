//! What a guest must still be after it was moved: memory, disk, clock, uptime, boot and address.
//!
//! A reading before, a reading after, and a judgement without I/O, so that each check can be shown to bite.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::Failure,
    probe::{ClockReport, DiskReport, Finding, Hello, MemReport, PAGE_BYTES, Request},
};

use crate::party::Party;

/// One question to the probe; checks of large memories under emulation take their time.
const ASK: Duration = Duration::from_secs(120);

/// What the probes of a guest say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reading {
    pub(super) hello: Hello,
    pub(super) memory: MemReport,
    pub(super) disk: DiskReport,
    pub(super) clock: ClockReport,
}

impl Reading {
    /// Asks all probes; the clock last, so that it is as young as can be.
    pub(super) async fn take(party: &Party, vm: &Name) -> Result<Self, Failure> {
        let guest = party.guest(vm);
        let hello = guest.probe(Request::Hello, ASK).await?;
        let memory = guest.probe(Request::MemCheck, ASK).await?;
        let disk = guest.probe(Request::DiskCheck, ASK).await?;
        let clock = guest.probe(Request::Clock, ASK).await?;
        Ok(Self { hello, memory, disk, clock })
    }
}

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) clock: Duration,
    pub(super) standstill: Duration,
    /// Whether pages are being rewritten.
    pub(super) rewriting: bool,
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

/// Judges a guest by its readings; `elapsed` is how long the reader waited between them, by its own clock.
pub(super) fn judge(before: &Reading, after: &Reading, elapsed: Duration, allowed: Allowed) -> Result<Checked, Report> {
    if after.hello.boot_id != before.hello.boot_id {
        return Err(Report::new(ErrorCode::GuestRebooted, "the guest was restarted instead of moved")
            .with("boot id before", &before.hello.boot_id)
            .with("boot id after", &after.hello.boot_id));
    }
    if after.hello.probe_pid != before.hello.probe_pid {
        return Err(Report::new(ErrorCode::GuestRebooted, "the probe in the guest was restarted during the move")
            .with("probe before", before.hello.probe_pid.to_string())
            .with("probe after", after.hello.probe_pid.to_string()));
    }
    memory(&before.memory, &after.memory, allowed)?;
    disk(&before.disk, &after.disk)?;
    if after.hello.addresses != before.hello.addresses {
        return Err(Report::new(ErrorCode::AddressLost, "the addresses of the guest changed")
            .with("before", before.hello.addresses.join(" "))
            .with("after", after.hello.addresses.join(" ")));
    }
    let (uptime_off_ms, clock_off_ms) = clock(before, after, elapsed, allowed)?;
    let running = after.memory.running_ns.saturating_sub(before.memory.running_ns).max(1);
    let rewritten = after.memory.pages_rewritten.saturating_sub(before.memory.pages_rewritten);
    let bytes = u128::from(rewritten) * PAGE_BYTES as u128 * 1_000_000_000 / u128::from(running);
    Ok(Checked {
        pages: after.memory.pages_checked,
        pages_rewritten: rewritten,
        rewritten_bytes_s: u64::try_from(bytes).unwrap_or(u64::MAX),
        records: after.disk.records_checked,
        records_acknowledged: after.disk.acknowledged,
        uptime_off_ms,
        clock_off_ms,
        standstill_ms: after.clock.gap_monotonic_ns / 1_000_000,
    })
}

fn memory(before: &MemReport, after: &MemReport, allowed: Allowed) -> Result<(), Report> {
    if after.bad_pages > 0 {
        let title = format!("{} of {} pages of guest memory are damaged", after.bad_pages, after.pages_checked);
        return Err(findings(Report::new(ErrorCode::MemoryDamaged, title), "page", &after.findings));
    }
    if after.seed != before.seed || after.pages_checked != before.pages_checked {
        return Err(Report::new(ErrorCode::MemoryDamaged, "the memory probe is another one than before")
            .with("pages before", before.pages_checked.to_string())
            .with("pages after", after.pages_checked.to_string()));
    }
    if allowed.rewriting && after.pages_rewritten <= before.pages_rewritten {
        return Err(Report::new(ErrorCode::GuestStopped, "no page was rewritten in the guest during the move")
            .with("pages rewritten", after.pages_rewritten.to_string()));
    }
    Ok(())
}

fn disk(before: &DiskReport, after: &DiskReport) -> Result<(), Report> {
    if after.bad_records > 0 {
        let title = format!("{} acknowledged records on the guest's disk are lost or torn", after.bad_records);
        return Err(findings(Report::new(ErrorCode::DiskDamaged, title), "record", &after.findings));
    }
    if after.write_errors > before.write_errors {
        return Err(Report::new(ErrorCode::DiskDamaged, "the guest's disk refused writes during the move")
            .with("refused", (after.write_errors - before.write_errors).to_string())
            .with("last error", after.last_error.clone().unwrap_or_default()));
    }
    if after.seed != before.seed || after.acknowledged <= before.acknowledged {
        return Err(Report::new(ErrorCode::DiskDamaged, "the disk writer did not go on")
            .with("writes before", before.acknowledged.to_string())
            .with("writes after", after.acknowledged.to_string()));
    }
    Ok(())
}

fn findings(mut report: Report, what: &str, all: &[Finding]) -> Report {
    for finding in all.iter().take(8) {
        let value = format!(
            "{:?} at byte {}: generation {} wanted, {} found",
            finding.damage, finding.offset, finding.expected, finding.found
        );
        report = report.with(format!("{what} {}", finding.index), value);
    }
    report
}

/// How far uptime and wall clock are off, ms.
fn clock(before: &Reading, after: &Reading, elapsed: Duration, allowed: Allowed) -> Result<(i64, i64), Report> {
    let (was, is) = (&before.clock.clock, &after.clock.clock);
    if after.clock.back_monotonic_ns > 0 || is.monotonic_ns < was.monotonic_ns || is.boottime_ns < was.boottime_ns {
        return Err(Report::new(ErrorCode::ClockJumped, "the guest's uptime went back")
            .with("uptime before", millis(was.boottime_ns))
            .with("uptime after", millis(is.boottime_ns))
            .with("monotonic clock went back", millis(after.clock.back_monotonic_ns)));
    }
    let passed = i128::from(is.boottime_ns) - i128::from(was.boottime_ns);
    let uptime_off = passed - elapsed.as_nanos() as i128;
    // The guest stands still during the switch-over, and its uptime with it: late is allowed that much.
    let late = allowed.clock + allowed.standstill;
    if uptime_off > allowed.clock.as_nanos() as i128 || -uptime_off > late.as_nanos() as i128 {
        return Err(Report::new(ErrorCode::ClockJumped, "the guest's uptime jumped")
            .with("passed outside", format!("{} ms", elapsed.as_millis()))
            .with("passed in the guest", format!("{} ms", passed / 1_000_000)));
    }
    let wall = i128::from(is.realtime_ns) - i128::from(was.realtime_ns);
    let clock_off = wall - elapsed.as_nanos() as i128;
    if clock_off > allowed.clock.as_nanos() as i128 || -clock_off > late.as_nanos() as i128 {
        return Err(Report::new(ErrorCode::ClockJumped, "the guest's wall clock jumped")
            .with("passed outside", format!("{} ms", elapsed.as_millis()))
            .with("passed by the guest's clock", format!("{} ms", wall / 1_000_000)));
    }
    if after.clock.gap_monotonic_ns > allowed.standstill.as_nanos() as u64 {
        return Err(Report::new(ErrorCode::GuestStopped, "the guest stood still for longer than allowed")
            .with("standstill", millis(after.clock.gap_monotonic_ns))
            .with("allowed", format!("{} ms", allowed.standstill.as_millis()))
            .help("-p max_standstill=MS allows more"));
    }
    let ms = |ns: i128| i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX);
    Ok((ms(uptime_off), ms(clock_off)))
}

fn millis(ns: u64) -> String {
    format!("{} ms", ns / 1_000_000)
}

#[cfg(test)]
mod tests {
    use vt_protocol::probe::{Clock, Damage};

    use super::*;

    const S: u64 = 1_000_000_000;
    const ALLOWED: Allowed =
        Allowed { clock: Duration::from_secs(1), standstill: Duration::from_secs(2), rewriting: true };

    fn reading(at_s: u64) -> Reading {
        let clock = Clock { realtime_ns: (1000 + at_s) * S, monotonic_ns: at_s * S, boottime_ns: at_s * S };
        Reading {
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
            memory: MemReport {
                seed: 1,
                pages_checked: 4096,
                pages_rewritten: at_s * 2000,
                running_ns: at_s * S,
                bad_pages: 0,
                findings: Vec::new(),
            },
            disk: DiskReport {
                seed: 2,
                records_checked: 256,
                acknowledged: at_s * 10,
                write_errors: 0,
                last_error: None,
                slowest_write_ns: 0,
                bad_records: 0,
                findings: Vec::new(),
            },
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
        let checked = judge(&reading(10), &reading(15), Duration::from_secs(5), ALLOWED).unwrap();
        assert_eq!(checked.pages_rewritten, 10_000);
        assert_eq!(checked.rewritten_bytes_s, 10_000 * 4096 / 5);
        assert_eq!((checked.uptime_off_ms, checked.clock_off_ms, checked.standstill_ms), (0, 0, 100));
    }

    #[test]
    fn each_check_bites() {
        use ErrorCode::*;
        type Hurt = fn(&mut Reading);
        let finding = |damage| Finding { index: 3, damage, expected: 9, found: 8, offset: 40 };
        assert_eq!(finding(Damage::Stale).index, 3);
        let cases: &[(&str, Hurt, ErrorCode)] = &[
            ("another boot", |r| r.hello.boot_id = "c".into(), GuestRebooted),
            ("another probe", |r| r.hello.probe_pid = 8, GuestRebooted),
            ("a bad page", |r| r.memory.bad_pages = 1, MemoryDamaged),
            ("fewer pages", |r| r.memory.pages_checked = 1, MemoryDamaged),
            ("another pattern", |r| r.memory.seed = 9, MemoryDamaged),
            ("no page rewritten", |r| r.memory.pages_rewritten = 20_000, GuestStopped),
            ("a bad record", |r| r.disk.bad_records = 1, DiskDamaged),
            ("a write refused", |r| r.disk.write_errors = 1, DiskDamaged),
            ("no write", |r| r.disk.acknowledged = 100, DiskDamaged),
            ("an address gone", |r| r.hello.addresses.clear(), AddressLost),
            ("monotonic clock back", |r| r.clock.back_monotonic_ns = 1, ClockJumped),
            ("uptime back", |r| r.clock.clock.boottime_ns = 9 * S, ClockJumped),
            ("uptime ahead", |r| r.clock.clock.boottime_ns = 17 * S, ClockJumped),
            ("uptime behind", |r| r.clock.clock.boottime_ns = 11 * S, ClockJumped),
            ("wall clock ahead", |r| r.clock.clock.realtime_ns = 1017 * S, ClockJumped),
            ("wall clock behind", |r| r.clock.clock.realtime_ns = 1000 * S, ClockJumped),
            ("a long standstill", |r| r.clock.gap_monotonic_ns = 3 * S, GuestStopped),
        ];
        for (what, hurt, code) in cases {
            let mut after = reading(15);
            hurt(&mut after);
            let report = judge(&reading(10), &after, Duration::from_secs(5), ALLOWED).expect_err(what);
            assert_eq!(report.code, *code, "{what}");
        }
    }

    #[test]
    fn a_standstill_within_bounds_is_no_jump() {
        // 5 s outside, 3.5 s inside: the guest stood still for 1.5 s.
        let mut after = reading(15);
        after.clock.clock.boottime_ns = 13 * S + S / 2;
        after.clock.clock.realtime_ns = 1013 * S + S / 2;
        after.clock.gap_monotonic_ns = S;
        judge(&reading(10), &after, Duration::from_secs(5), ALLOWED).unwrap();
    }

    #[test]
    fn damage_is_described_page_by_page() {
        let mut after = reading(15);
        after.memory.bad_pages = 20;
        after.memory.findings = (0..20)
            .map(|index| Finding { index, damage: Damage::Changed, expected: 2, found: 2, offset: 100 })
            .collect();
        let report = judge(&reading(10), &after, Duration::from_secs(5), ALLOWED).unwrap_err();
        assert!(report.title.contains("20 of 4096"), "{}", report.title);
        assert_eq!(report.evidence[0], ("page 0".into(), "Changed at byte 100: generation 2 wanted, 2 found".into()));
    }
}
