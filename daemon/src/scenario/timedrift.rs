//! `timedrift`: the guest's clock keeps up while it goes to and fro.

use std::time::Duration;

use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    probe::{Clock, ClockReport, Request},
};

use super::{
    Called, Scenario,
    journey::{ASK, Journey, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS, fit},
};
use crate::party::{Party, failure::caused};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "timedrift",
    summary: "moves a guest to and fro and compares its clock with the time that passed",
    about: "PASS: after every move, and over all of them, the guest's clock and its uptime differ from the time that passed by no \
            more than time_diff_limit and the downtime. Time that passed is counted by one host alone: by the new owner around \
            a move, by host1 from the beginning to each return. clocksource: the guest must use kvm-clock, or (any other word) \
            must not; kvm-clock needs KVM, else SKIP. Avocado-VT's test compares clocks of two hosts that it sets by ntp first, \
            and does not see a guest that runs ahead; here a clock may be off in neither direction.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[
            ("migrate_count", "6", "moves"),
            ("time_diff_limit", "1.5", "how far the clock may be off, seconds"),
            ("clocksource", "", "what the guest tells time by: kvm-clock, or another; default: whichever"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_timedrift")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    moves: u32,
    limit: Duration,
    kvm_clock: Option<bool>,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let mut settings = Settings::read(params)?;
    let limit = params.float("time_diff_limit")?.unwrap_or(1.5);
    if !(0.001..=3600.0).contains(&limit) {
        return Err(params.error("time_diff_limit", "seconds, 0.001 to 3600"));
    }
    let limit = Duration::from_secs_f64(limit);
    settings.clock_tolerance = limit;
    let source = params.text("clocksource").map(str::trim).filter(|text| !text.is_empty());
    let moves = fit(params.number("migrate_count", 1..=1000)?.unwrap_or(6));
    Ok(Wanted { settings, moves, limit, kvm_clock: source.map(|source| source == "kvm-clock") })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, moves, limit, kvm_clock } = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let standstill = settings.standstill;
    let mut journey = Journey::begin(party, settings).await?;
    let mut begun = None;
    if journey.is_here() {
        clock_source(&journey, kvm_clock).await?;
        begun = Some((Instant::now(), clock(&journey).await?));
    }
    for round in 1..=moves {
        journey.go(&format!("move {round}"), &spec).await?;
        if let Some((at, then)) = begun.filter(|_| journey.is_here()) {
            let step = party.step("drift since the beginning").await?;
            let off = drift(then, clock(&journey).await?, at.elapsed());
            party.metric("drift_ms", off);
            // Every move stands still for a while, which the clocks may not see.
            let allowed = limit + standstill * round.min(3);
            if Duration::from_millis(off.unsigned_abs()) > allowed {
                let title = format!("the guest's clock is off by {off} ms after {round} moves");
                let report = Report::new(ErrorCode::ClockJumped, title);
                return Err(product(report.with("allowed", format!("{} ms", allowed.as_millis()))));
            }
            step.done(format!("{off:+} ms after {round} moves")).await?;
        }
    }
    journey.end(None).await
}

async fn clock(journey: &Journey<'_>) -> Result<Clock, Failure> {
    let report: ClockReport = journey.guest().probe(Request::Clock, ASK).await?;
    Ok(report.clock)
}

/// How far the guest's wall clock went beyond the time that passed, ms.
fn drift(then: Clock, now: Clock, passed: Duration) -> i64 {
    let went = i128::from(now.realtime_ns) - i128::from(then.realtime_ns);
    let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
    i64::try_from((went - passed) / 1_000_000).unwrap_or(i64::MAX)
}

async fn clock_source(journey: &Journey<'_>, kvm_clock: Option<bool>) -> Result<(), Failure> {
    let Some(wanted) = kvm_clock else { return Ok(()) };
    if wanted && !journey.monitor("query-kvm", serde_json::Value::Null).await?["enabled"].as_bool().unwrap_or(false) {
        let title = "clocksource = kvm-clock needs KVM, and this guest is emulated";
        return Err(caused(Report::new(ErrorCode::CannotRunHere, title)));
    }
    let step = journey.party.step("clock source").await?;
    let read = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let found = in_guest(&journey.guest(), read).await?.trim().to_owned();
    if (found == "kvm-clock") != wanted {
        let word = if wanted { "kvm-clock" } else { "another clock source than kvm-clock" };
        return Err(product(Report::new(ErrorCode::ClockJumped, format!("the guest uses {found}, not {word}"))));
    }
    step.done(found).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_off_in_both_directions() {
        let at = |seconds: u64| Clock { realtime_ns: seconds * 1_000_000_000, monotonic_ns: 0, boottime_ns: 0 };
        assert_eq!(drift(at(100), at(110), Duration::from_secs(10)), 0);
        assert_eq!(drift(at(100), at(112), Duration::from_secs(10)), 2000);
        assert_eq!(drift(at(100), at(107), Duration::from_secs(10)), -3000);
    }
}
