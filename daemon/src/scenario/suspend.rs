//! `suspend`: a guest that has moved sleeps and wakes.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Limit, Scenario,
    journey::{ASK, Journey, SLACK, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, Settings, UNCHANGED, VM_PARAMS},
};
use crate::party::{Party, failure::caused};

/// How long the guest may take to fall asleep, or to be awake.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often QEMU is asked what it does.
const LOOK: Duration = Duration::from_millis(200);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "suspend",
    summary: "moves a guest, has it sleep (S3) and wakes it, then moves it back",
    about: "PASS: the guest moves and is whole; at the destination it suspends to RAM by its own wish, QEMU says suspended, a \
            wake-up brings back the very same guest (boot id, probes, memory, disk), and a move back leaves it whole. \
            guest_suspend_type = disk (S4) is SKIP: the built-in guest has no disk to hibernate to. A guest whose kernel \
            offers no such sleep is SKIP as well. Avocado-VT's test is ERROR there, and takes the guest to be asleep after ten \
            seconds; here QEMU's own state is waited for.",
    hosts: (2, 2),
    params: &[VM_PARAMS, MOVE_PARAMS, &[("guest_suspend_type", "mem", "mem; disk is skipped")]],
    aliases: &[ALIASES],
    types: &[Called { kind: "migration_multi_host", when: &[("post_sub_test", "guest_suspend")] }],
    limits: &[
        LIMITS,
        UNCHANGED,
        &[Limit {
            key: "guest_suspend_type",
            takes: |kind| matches!(kind, "" | "mem"),
            does: "has the guest sleep in its memory; it has no disk to hibernate to",
        }],
    ],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<Settings, ParamError> {
    let mut settings = Settings::read(params)?;
    // The sleep is part of what the next move is compared with.
    let chip = if settings.vm.has_pcie() { "ICH9-LPC" } else { "PIIX4_PM" };
    settings.vm.extra_args.extend(["-global".to_owned(), format!("{chip}.disable_s3=0")]);
    Ok(settings)
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let settings = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        let sleeps = in_guest(&journey.guest(), "cat /sys/power/state 2>/dev/null; true").await?;
        if !sleeps.split_whitespace().any(|word| word == "mem") {
            let title = "the kernel of the guest cannot suspend to RAM";
            let found = if sleeps.trim().is_empty() { "nothing" } else { sleeps.trim() };
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title).with("/sys/power/state", found)));
        }
    }
    party.barrier("can sleep", SLACK).await?;
    journey.go("there", &spec).await?;
    if journey.is_here() {
        let step = party.step("sleep").await?;
        let begun = Instant::now();
        in_guest(&journey.guest(), "(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &").await?;
        until(&journey, "suspended").await?;
        step.done(format!("asleep after {:.1} s", begun.elapsed().as_secs_f64())).await?;

        let step = party.step("wake up").await?;
        journey.monitor("system_wakeup", Value::Null).await?;
        until(&journey, "running").await?;
        journey.guest().agent_ping(ASK).await?;
        step.done("").await?;
    }
    party.barrier("awake again", PATIENCE * 2 + SLACK).await?;
    journey.go("back", &spec).await?;
    journey.end(None).await
}

/// Waits until QEMU is in a state.
async fn until(journey: &Journey<'_>, wanted: &str) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = journey.monitor("query-status", Value::Null).await?;
        if status["status"] == wanted {
            return Ok(());
        }
        if Instant::now() >= until {
            let title = format!("the machine was not {wanted} within {} s", PATIENCE.as_secs());
            return Err(product(Report::new(ErrorCode::GuestStopped, title).with("status", status.to_string())));
        }
        tokio::time::sleep(LOOK).await;
    }
}
