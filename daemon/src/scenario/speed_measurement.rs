//! `speed_measurement`: how near a transfer comes to the speed it was allowed.

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    vm::Sample,
};

use super::{
    Called, Scenario,
    journey::{Journey, SLACK, product, taken},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "speed_measurement",
    summary: "measures the throughput of a transfer against its limit",
    about: "PASS: the average throughput of the first pass, in which all RAM is sent, is within mig_speed ± mig_speed_accuracy. \
            WARN: it is lower, as a link or a host that is slower than the limit makes it, or the transfer was over before it \
            could be measured. FAIL: it is higher. The guest is whole afterwards. Avocado-VT's test never applies mig_speed to \
            the VM and measures a link instead; here the limit is set, and QEMU's own counter is read ten times a second.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[("mig_speed_accuracy", "0.2", "how far off it may be, as a part of mig_speed, which is 16M here by default")],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_with_speed_measurement")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    speed: u64,
    accuracy: f64,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let mut settings = Settings::read(params)?;
    let speed = *settings.spec.parameters.entry("max-bandwidth".into()).or_insert(16 << 20);
    let accuracy = params.float("mig_speed_accuracy")?.unwrap_or(0.2);
    if !(0.0..=1.0).contains(&accuracy) {
        return Err(params.error("mig_speed_accuracy", "a number from 0 to 1"));
    }
    Ok(Wanted { settings, speed, accuracy })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, speed, accuracy } = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    let migrated = journey.go("measured", &spec).await?;
    let mut remark = None;
    if let Some(result) = migrated.and_then(|migrated| migrated.result) {
        let step = party.step("throughput").await?;
        let rate = of_first_pass(&result.samples);
        if let Some(rate) = rate {
            party.metric("first_pass_bytes_s", rate);
        }
        remark = judged(rate, speed, accuracy).map_err(product)?;
        step.done(rate.map_or_else(String::new, |rate| format!("{:.1} MB/s", rate as f64 / 1e6))).await?;
    }
    party.barrier("measured", SLACK).await?;
    journey.end(remark).await
}

/// Bytes a second of the first pass; `None` where it was too short.
fn of_first_pass(samples: &[Sample]) -> Option<u64> {
    let mut pass = samples.iter().filter(|sample| sample.dirty_sync_count == 1);
    let (first, last) = pass.next().zip(pass.next_back())?;
    let ms = last.t_ms.checked_sub(first.t_ms).filter(|ms| *ms >= 500)?;
    Some(last.ram_transferred_bytes.saturating_sub(first.ram_transferred_bytes) * 1000 / ms)
}

/// A remark where it was not as fast as it may be.
fn judged(rate: Option<u64>, speed: u64, accuracy: f64) -> Result<Option<String>, Report> {
    let mb = |rate: u64| rate as f64 / 1e6;
    let Some(rate) = rate else {
        return Ok(Some("the transfer was over before its speed could be measured: -p mig_speed=8M".to_owned()));
    };
    let of_limit = rate as f64 / speed as f64;
    if of_limit > 1.0 + accuracy {
        let title = format!("the transfer went at {:.1} MB/s where {:.1} were allowed", mb(rate), mb(speed));
        return Err(Report::new(ErrorCode::MigrationFailed, title));
    }
    let slow = || format!("{:.1} MB/s, {:.0} % of what was allowed", mb(rate), of_limit * 100.0);
    Ok((of_limit < 1.0 - accuracy).then(slow))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(t_ms: u64, ram_transferred_bytes: u64, dirty_sync_count: u64) -> Sample {
        Sample { t_ms, ram_transferred_bytes, dirty_sync_count, ..Sample::default() }
    }

    #[test]
    fn only_the_first_pass_is_measured() {
        let samples = [sample(0, 0, 0), sample(100, 10, 1), sample(1100, 1_000_010, 1), sample(1200, 9_000_000, 2)];
        assert_eq!(of_first_pass(&samples), Some(1_000_000));
        assert_eq!(of_first_pass(&samples[..2]), None);
        assert_eq!(of_first_pass(&[sample(0, 0, 1), sample(400, 9, 1)]), None);
    }

    #[test]
    fn slower_is_a_remark_and_faster_a_failure() {
        assert_eq!(judged(Some(90), 100, 0.2).unwrap(), None);
        assert!(judged(Some(70), 100, 0.2).unwrap().unwrap().contains("70 %"));
        assert!(judged(Some(121), 100, 0.2).is_err());
        assert!(judged(None, 100, 0.2).unwrap().is_some());
    }
}
