//! `downtime_and_speed`: limits of a transfer, set before it begins or changed while it runs.

use std::collections::BTreeMap;

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    vm::{Intervention, MigrationResult, MigrationSpec, Moment},
};

use super::{
    Called, Scenario,
    journey::{Journey, product, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::Party;

const MIB: u64 = 1 << 20;
/// A pass begins with an event, and a change takes effect with the next; the guest gets this much on top, ms.
const TOLERANCE_MS: u64 = 500;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "downtime_and_speed",
    summary: "limits a transfer's downtime or speed, before it begins or while it runs",
    about: "PASS by sub_type. before_migrate: the limit is set first, and QEMU's downtime is within it. after_migrate: the transfer \
            begins with a limit that it cannot meet, which is raised by a second at every pass; it completes, with a downtime \
            within the limit of its last pass. speed: the bandwidth is raised in equal steps, one at every pass; it completes, \
            and its first pass kept to the first limit. stop_during: the guest is paused at the source while it is being sent; \
            the transfer completes and the guest goes on at the destination. In all of them the guest is whole afterwards. \
            Avocado-VT's test changes limits by the clock; its after_migrate reads max_mig_downtime where its configuration \
            sets max_downtime, and a failed check of a downtime ends in an exception of another kind; here both spellings are \
            read and the check fails as such.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[
            ("sub_type", "before_migrate", "before_migrate, after_migrate, speed or stop_during"),
            ("max_mig_downtime", "10", "after_migrate: most seconds the limit is raised to"),
            ("min_migration_speed", "10M", "speed: bytes/s of the first pass"),
            ("max_migration_speed", "500M", "speed: bytes/s of the last step"),
            ("count_of_change", "10", "speed: steps"),
        ],
    ],
    aliases: &[ALIASES, &["max_downtime"]],
    types: &[Called::plainly("migration_multi_host_downtime_and_speed")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// What is changed, and how it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Before { limit_ms: u64 },
    After { most_s: u64 },
    Speed { first: u64 },
    Stop,
}

fn read(params: &Params) -> Result<(Settings, Load, Kind), ParamError> {
    let mut settings = Settings::read(params)?;
    let spec = &mut settings.spec;
    let kind = match params.text("sub_type").map(str::trim).unwrap_or_default() {
        "" | "before_migrate" => {
            let limit_ms = *spec.parameters.entry("downtime-limit".into()).or_insert(3000);
            Kind::Before { limit_ms }
        }
        "after_migrate" => {
            let key = if params.get("max_mig_downtime").is_some() { "max_mig_downtime" } else { "max_downtime" };
            let most_s = params.number(key, 2..=16)?.unwrap_or(10);
            let speed = 3 * settings.rewrite_bytes_s.max(4 * MIB) / 2;
            spec.parameters.insert("downtime-limit".into(), 0);
            // More than is rewritten, so that passes become shorter; little enough for several of them.
            spec.parameters.entry("max-bandwidth".into()).or_insert(speed);
            each_pass(spec, (1..most_s).map(|limit| ("downtime-limit", limit * 1000)));
            Kind::After { most_s }
        }
        "speed" => {
            let speed = |key, default| params.size(key, MIB, MIB..=1 << 40).map(|speed| speed.unwrap_or(default));
            let (first, last) = (speed("min_migration_speed", 10 * MIB)?, speed("max_migration_speed", 500 * MIB)?);
            let steps = params.number("count_of_change", 1..=15)?.unwrap_or(10);
            if last < first {
                return Err(params.error("max_migration_speed", "at least min_migration_speed"));
            }
            spec.parameters.insert("max-bandwidth".into(), first);
            each_pass(spec, (1..=steps).map(|step| ("max-bandwidth", first + (last - first) * step / steps)));
            Kind::Speed { first }
        }
        "stop_during" => {
            spec.interventions.push((Moment::Pass(1), Intervention::Stop));
            Kind::Stop
        }
        _ => return Err(params.error("sub_type", "before_migrate, after_migrate, speed or stop_during")),
    };
    Ok((settings, Load::read(params)?, kind))
}

/// One change at every pass, from the second on: in the first all RAM is sent.
fn each_pass(spec: &mut MigrationSpec, changes: impl Iterator<Item = (&'static str, u64)>) {
    let one = |(pass, (name, value)): (u32, (&str, u64))| {
        (Moment::Pass(pass), Intervention::Set(BTreeMap::from([(name.to_owned(), value)])))
    };
    spec.interventions.extend((2..).zip(changes).map(one));
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, load, kind) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        load.start(&journey).await?;
    }
    let migrated = journey.go("limited", &spec).await?;
    if let Some(result) = migrated.and_then(|migrated| migrated.result) {
        let step = party.step("limits kept").await?;
        let note = judged(kind, &result).map_err(product)?;
        step.done(note).await?;
    }
    party.barrier("judged", super::journey::SLACK).await?;
    if journey.is_here() {
        load.check(&journey).await?;
    }
    journey.end(None).await
}

/// Whether a transfer kept to its limits, as its source saw it.
fn judged(kind: Kind, result: &MigrationResult) -> Result<String, Report> {
    let downtime = |limit_ms: u64| {
        let took = result.qemu_downtime_ms;
        if took <= limit_ms {
            return Ok(format!("downtime {took} ms of {limit_ms} ms"));
        }
        Err(Report::new(
            ErrorCode::GuestStopped,
            format!("the downtime was {took} ms where {limit_ms} ms were allowed"),
        )
        .with("passes", result.dirty_sync_count.to_string()))
    };
    match kind {
        Kind::Before { limit_ms } => downtime(limit_ms),
        Kind::After { most_s } => {
            let raised = result.dirty_sync_count.saturating_sub(1).clamp(1, most_s - 1);
            downtime(raised * 1000 + TOLERANCE_MS)
        }
        Kind::Speed { first } => {
            let begun = result.samples.iter().find(|sample| sample.dirty_sync_count >= 1);
            let mut of_pass = result.samples.iter().filter(|sample| sample.dirty_sync_count <= 1);
            let Some((begun, last)) =
                begun.zip(of_pass.next_back()).filter(|(begun, last)| last.t_ms > begun.t_ms + 500)
            else {
                return Ok("the first pass was over before its speed could be seen".to_owned());
            };
            let bytes = last.ram_transferred_bytes.saturating_sub(begun.ram_transferred_bytes);
            let rate = bytes * 1000 / (last.t_ms - begun.t_ms);
            // QEMU counts in slices of 100 ms and may overrun one.
            if rate > first + first / 2 {
                let title = format!("the first pass went at {rate} bytes/s where {first} were allowed");
                return Err(Report::new(ErrorCode::MigrationFailed, title));
            }
            Ok(format!("first pass at {:.1} MB/s of {:.1}", rate as f64 / 1e6, first as f64 / 1e6))
        }
        Kind::Stop => Ok(format!("paused in the first pass, complete after {} passes", result.dirty_sync_count)),
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::{
        ids::{MigrationId, VmId},
        params::Origin,
        vm::{Backend, How, Sample},
    };

    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<(Settings, Load, Kind), ParamError> {
        let mut params = Params::new();
        for (key, value) in pairs {
            params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        read(&params)
    }

    fn result(downtime: u64, passes: u64, samples: Vec<Sample>) -> MigrationResult {
        MigrationResult {
            how: How::default(),
            backend: Backend::Qmp,
            capabilities: vec![],
            id: MigrationId {
                vm: VmId { attempt: "7f3k2a.1.1".parse().unwrap(), name: "vm1".parse().unwrap() },
                number: 1,
            },
            from: "host1".parse().unwrap(),
            to: "host2".parse().unwrap(),
            total_ms: 5000,
            qemu_downtime_ms: downtime,
            setup_ms: 1,
            ram_transferred_bytes: 1,
            normal_pages: 1,
            duplicate_pages: 1,
            dirty_sync_count: passes,
            postcopy_requests: 0,
            wall_ms: 1.0,
            parts_ms: vec![],
            source_pid: 1,
            destination_pid: 2,
            source_qemu: String::new(),
            destination_qemu: String::new(),
            missed: vec![],
            stalled_ms: 0,
            samples,
        }
    }

    #[test]
    fn both_spellings_of_the_old_limits_are_read() {
        for key in ["max_mig_downtime", "max_downtime"] {
            let (settings, _, kind) = wanted(&[("sub_type", "after_migrate"), (key, "4")]).unwrap();
            assert_eq!((kind, settings.spec.interventions.len()), (Kind::After { most_s: 4 }, 3), "{key}");
        }
        let (settings, _, kind) = wanted(&[("mig_downtime", "5")]).unwrap();
        assert_eq!((kind, settings.spec.parameters["downtime-limit"]), (Kind::Before { limit_ms: 5000 }, 5000));
        assert_eq!(wanted(&[("sub_type", "sideways")]).unwrap_err().key, "sub_type");
        let fast = [("sub_type", "speed"), ("min_migration_speed", "600M")];
        assert_eq!(wanted(&fast).unwrap_err().key, "max_migration_speed");
    }

    #[test]
    fn speed_goes_up_in_equal_steps() {
        let (settings, _, _) =
            wanted(&[("sub_type", "speed"), ("count_of_change", "2"), ("max_migration_speed", "30M")]).unwrap();
        let speeds: Vec<u64> = settings
            .spec
            .interventions
            .iter()
            .map(|(_, what)| match what {
                Intervention::Set(set) => set["max-bandwidth"] / MIB,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((settings.spec.parameters["max-bandwidth"] / MIB, speeds), (10, vec![20, 30]));
    }

    #[test]
    fn what_is_over_a_limit_fails() {
        assert!(judged(Kind::Before { limit_ms: 300 }, &result(300, 2, vec![])).is_ok());
        assert_eq!(
            judged(Kind::Before { limit_ms: 300 }, &result(301, 2, vec![])).unwrap_err().code,
            ErrorCode::GuestStopped
        );
        // The third pass had the second step: 2 s.
        assert!(judged(Kind::After { most_s: 10 }, &result(2400, 3, vec![])).is_ok());
        assert!(judged(Kind::After { most_s: 10 }, &result(2600, 3, vec![])).is_err());
        let sample = |t_ms, ram_transferred_bytes, dirty_sync_count| Sample {
            t_ms,
            ram_transferred_bytes,
            dirty_sync_count,
            ..Sample::default()
        };
        let at = |rate: u64| result(1, 3, vec![sample(0, 0, 1), sample(1000, rate, 1), sample(2000, 90 * rate, 2)]);
        assert!(judged(Kind::Speed { first: 10 * MIB }, &at(11 * MIB)).is_ok());
        assert!(judged(Kind::Speed { first: 10 * MIB }, &at(16 * MIB)).is_err());
    }
}
