//! `auto_converge`: a guest that rewrites memory faster than it can be sent is slowed down until it can.

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    vm::{Intervention, MigrationSpec, Moment, Sample},
};

use super::{
    Called, Scenario,
    journey::{Journey, SLACK, product, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
    transfer,
};
use crate::party::Party;

const MIB: u64 = 1 << 20;
const CAPABILITY: &str = "auto-converge";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "auto_converge",
    summary: "a transfer that does not converge completes once auto-converge slows the guest down",
    about: "The guest rewrites memory faster than mig_speed lets it be sent. PASS: without auto-converge the transfer has not \
            converged after unconverged_passes passes (it is cancelled there; WARN where it completed); with it the transfer \
            completes, and the throttle went from the first of cpu-throttle-initial up, never above 99 %; WARN where there was \
            nothing to throttle, for the transfer completed as soon as one without it is given up. The guest is whole \
            afterwards. Avocado-VT's test waits 180 s for what does not end, leaves its busy loops on the host for ever, and \
            compares loads of two runs that differ by nature; here passes are counted, the load is the probe's, and nothing is \
            left on a host. Its stress_load and io_load burn the host's CPUs: they are the same test here.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[
            ("unconverged_passes", "4", "after so many passes without auto-converge it is taken not to converge"),
            ("parameters_value", "30 20", "cpu-throttle-initial and cpu-throttle-increment, percent"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_auto_converge")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    load: Load,
    without: MigrationSpec,
    with: MigrationSpec,
    initial: u64,
    passes: u64,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    // `parameters` lists bare names in the old form; what they are set to stands in parameters_value.
    let old = params.text("parameters").is_some_and(|text| !text.contains('='));
    let mut plain = params.clone();
    if old && let Some(param) = params.get("parameters") {
        plain.set("parameters", "", param.origin.clone());
    }
    let mut settings = Settings::read(&plain)?;
    let values = params.list("parameters_value", None);
    let value = |place: usize, default: u64| match values.get(place).map(|text| text.parse::<u64>()) {
        None => Ok(default),
        Some(Ok(percent)) if (1..=99).contains(&percent) => Ok(percent),
        Some(_) => Err(params.error("parameters_value", "two numbers from 1 to 99")),
    };
    let (initial, increment) = (value(0, 30)?, value(1, 20)?);
    let passes = params.number("unconverged_passes", 2..=100)?.unwrap_or(4);
    // Faster than it can be sent, where nobody said otherwise.
    if params.get("mem_probe").is_none() {
        settings.probe_pages = 24 * 256;
    }
    if params.get("mem_rewrite").is_none() {
        settings.rewrite_bytes_s = 64 * MIB;
    }
    let spec = &mut settings.spec;
    spec.parameters.entry("max-bandwidth".into()).or_insert(6 * MIB);
    spec.capabilities.remove(CAPABILITY);
    let mut without = spec.clone();
    without.interventions.push((Moment::Pass(super::settings::fit(passes)), Intervention::Cancel));
    let mut with = transfer::undisturbed(spec);
    with.capabilities.insert(CAPABILITY.to_owned(), true);
    with.parameters.insert("cpu-throttle-initial".into(), initial);
    with.parameters.insert("cpu-throttle-increment".into(), increment);
    Ok(Wanted { settings, load: Load::read(params)?, without, with, initial, passes })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, load, without, with, initial, passes } = taken(party.params(), read)?;
    let mut journey = Journey::begin(party, settings).await?;
    // One busy loop for each CPU that the probe does not keep busy: more would keep the probe from rewriting.
    let load = Load { loops: load.loops.min(1), readers: 0 };
    if journey.is_here() {
        load.start(&journey).await?;
    }
    let alone = journey.go_or_stay("without auto-converge", &without).await?;
    let mut remark = alone
        .is_some_and(|migrated| !migrated.cancelled)
        .then(|| "the transfer completed without auto-converge: there was nothing to throttle".to_owned());
    let migrated = journey.go("with auto-converge", &with).await?;
    if let Some(result) = migrated.and_then(|migrated| migrated.result) {
        let step = party.step("throttle").await?;
        match throttled(&result.samples, initial) {
            Some(Ok(note)) => step.done(note).await?,
            Some(Err(report)) => return Err(product(report)),
            None if remark.is_none() && result.dirty_sync_count > passes => {
                let title = "auto-converge never throttled the guest, and the transfer did not converge by itself";
                let report = Report::new(ErrorCode::MigrationFailed, title);
                return Err(product(report.with("passes", result.dirty_sync_count.to_string())));
            }
            None => {
                step.done("never on").await?;
                let passes = result.dirty_sync_count;
                remark.get_or_insert_with(|| format!("it completed after {passes} passes, before it was throttled"));
            }
        }
    }
    party.barrier("throttled", SLACK).await?;
    if journey.is_here() {
        load.check(&journey).await?;
    }
    journey.end(remark).await
}

/// The values of the throttle, in the order in which they were seen, each once; `None` where it was never on.
fn throttled(samples: &[Sample], initial: u64) -> Option<Result<String, Report>> {
    let mut seen: Vec<u64> = samples.iter().map(|sample| sample.cpu_throttle_pct).filter(|pct| *pct > 0).collect();
    seen.dedup();
    let first = seen.first()?;
    let shown = seen.iter().map(|pct| format!("{pct} %")).collect::<Vec<_>>().join(", ");
    if *first == initial && seen.iter().all(|pct| (initial..=99).contains(pct)) {
        return Some(Ok(shown));
    }
    let title = format!("the throttle did not begin at {initial} %, or left {initial} to 99 %");
    Some(Err(Report::new(ErrorCode::MigrationFailed, title).with("throttle", shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_begins_where_it_was_told_and_stays_below_100() {
        let samples = |values: &[u64]| {
            let one = |pct: &u64| Sample { cpu_throttle_pct: *pct, ..Sample::default() };
            values.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(throttled(&samples(&[0, 30, 30, 50, 0]), 30).unwrap().unwrap(), "30 %, 50 %");
        for wrong in [&[20, 30], &[30, 100]] {
            assert!(throttled(&samples(wrong), 30).unwrap().is_err(), "{wrong:?}");
        }
        assert!(throttled(&samples(&[0, 0]), 30).is_none() && throttled(&[], 30).is_none());
    }
}
