//! `firewall_block`: packets of a transfer are dropped at its destination, for ever or for a moment.

use std::{collections::btree_map::Entry, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    probe::{Hello, Request},
    vm::{Intervention, MigrationSpec, Moment},
};

use super::{
    Called, Limit, Scenario,
    journey::{ASK, Journey, SLACK, product, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::{Party, our_fault};

/// Bytes that have been sent when the packets begin to be dropped.
const UNDER_WAY: u64 = 4 << 20;
/// How long the transfer may take until it is under way.
const BEGINS: Duration = Duration::from_secs(60);
/// How often QEMU is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// How long packets are dropped in a short interruption.
const INTERRUPTION: Duration = Duration::from_secs(3);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "firewall_block",
    summary: "drops a transfer's packets at its destination, for ever or for a moment",
    about: "PASS by sub_type. long_wait: a transfer under way is cut off for good; it ends without moving the guest (cancelled \
            when blocked_timeout has passed), the guest goes on at the source with its load and answers on every way in, the \
            destination never runs it, and once packets pass again the next move completes. short_interrupt: packets are \
            dropped for three seconds; the transfer completes and the guest is whole at the destination. Avocado-VT's test \
            flushes every rule of the host when it cleans up, and its short_interrupt first does a long_wait whose other half \
            never comes; here the rules are a table of this attempt's own, which alone is removed.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[
            ("sub_type", "long_wait", "long_wait or short_interrupt"),
            ("blocked_timeout", "20", "long_wait: seconds after which the transfer that is cut off is cancelled"),
        ],
    ],
    aliases: &[ALIASES, &["mig_cancel"]],
    types: &[Called::plainly("migration_multi_host_firewall_block")],
    limits: &[
        LIMITS,
        PLAIN,
        &[Limit {
            key: "mig_protocol",
            takes: |value| matches!(value, "" | "tcp"),
            does: "cuts off transfers over tcp",
        }],
    ],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    load: Load,
    for_good: bool,
    blocked: MigrationSpec,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let settings = Settings::read(params)?;
    let for_good = match params.text("sub_type").map(str::trim).unwrap_or_default() {
        "" | "long_wait" => true,
        "short_interrupt" => false,
        _ => return Err(params.error("sub_type", "long_wait or short_interrupt")),
    };
    let seconds = params.number("blocked_timeout", 5..=3600)?.unwrap_or(20);
    let mut blocked = settings.spec.clone();
    // Slow enough that it is still under way when the packets are dropped…
    if let Entry::Vacant(speed) = blocked.parameters.entry("max-bandwidth".into()) {
        speed.insert(4 << 20);
        // … and then as fast as it goes: the guest writes more than that.
        let fast = Intervention::Set([("max-bandwidth".to_owned(), 10 << 30)].into());
        blocked.interventions.push((Moment::Pass(2), fast));
    }
    if for_good {
        blocked.timeout_ms = seconds * 1000;
    }
    Ok(Wanted { settings, load: Load::read(params)?, for_good, blocked })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, load, for_good, blocked } = taken(party.params(), read)?;
    let mut again = settings.spec.clone();
    again.parameters.retain(|name, _| name != "max-bandwidth");
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        load.start(&journey).await?;
    }
    party.barrier("begun", SLACK).await?;
    if for_good {
        cut_off(&journey, &blocked).await?;
        if journey.is_here() {
            answers(&journey).await?;
            load.check(&journey).await?;
        } else {
            party.firewall(false).await?;
        }
        party.barrier("passes again", ASK + SLACK).await?;
    } else {
        let vm = journey.vm.clone();
        let meddle = interrupt(party, &vm, journey.is_here(), Some(INTERRUPTION));
        let (meddled, moved) = tokio::join!(meddle, journey.go("interrupted", &blocked));
        moved?;
        meddled?;
    }
    journey.go("undisturbed", &again).await?;
    if journey.is_here() {
        load.check(&journey).await?;
    }
    journey.end(None).await
}

/// A transfer that is cut off for good ends without having moved the guest.
async fn cut_off(journey: &Journey<'_>, spec: &MigrationSpec) -> Result<(), Failure> {
    let (party, vm) = (journey.party, journey.vm.clone());
    let (from, to) = (journey.here().clone(), journey.next().clone());
    party.prepare_migration(&vm, &from, &to, spec).await?;
    party.barrier("ready", ASK + SLACK).await?;
    let step = party.step(&format!("migrate {from} → {to}, cut off")).await?;
    let meddle = interrupt(party, &vm, journey.is_here(), None);
    let (meddled, ended) = tokio::join!(meddle, party.migrate(&vm, &from, &to, spec));
    meddled?;
    let why = match ended {
        Ok(_) => {
            let title = "the transfer completed although its packets were dropped";
            return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title)));
        }
        // What the source says decides; the other side learns of it.
        Err(Failure::Caused(cause)) if is_cut_off(cause.report.code) => cause.report.title,
        Err(Failure::Followed(_)) if !journey.is_here() => "the source gave it up".to_owned(),
        Err(failure) => return Err(failure),
    };
    step.done(why).await?;
    party.barrier("given up", ASK + SLACK).await
}

/// How a transfer ends that is cut off.
fn is_cut_off(code: ErrorCode) -> bool {
    use ErrorCode::{DestinationLeft, DestinationUnreachable, MigrationFailed, MigrationTimeout};
    matches!(code, MigrationTimeout | MigrationFailed | DestinationUnreachable | DestinationLeft)
}

/// Once the transfer is under way, the destination drops its packets, for a while or until told otherwise.
async fn interrupt(
    party: &Party,
    vm: &vt_protocol::ids::Name,
    source: bool,
    pause: Option<Duration>,
) -> Result<(), Failure> {
    if source {
        let until = Instant::now() + BEGINS;
        loop {
            let info = party.vm(vm.clone()).monitor("query-migrate", Value::Null).await?;
            if info["ram"]["transferred"].as_u64().unwrap_or(0) >= UNDER_WAY {
                break;
            }
            if Instant::now() >= until {
                let title = format!("the transfer was not under way within {} s", BEGINS.as_secs());
                return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    party.barrier("under way", BEGINS + SLACK).await?;
    if !source {
        party.firewall(true).await?;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
            party.firewall(false).await?;
        }
    }
    Ok(())
}

/// The guest goes on at the source, and answers on every way in.
async fn answers(journey: &Journey<'_>) -> Result<(), Failure> {
    let step = journey.party.step("goes on at the source").await?;
    let status = journey.monitor("query-status", Value::Null).await?;
    if status["running"] != true {
        let title = "the guest does not run at the source after its transfer was cut off";
        return Err(product(Report::new(ErrorCode::GuestStopped, title).with("status", status.to_string())));
    }
    let guest = journey.guest();
    let _: Hello = guest.probe(Request::Hello, ASK).await?;
    guest.login(ASK).await?;
    guest.agent_ping(ASK).await?;
    if journey.address().is_some() {
        guest.ssh_greeting(ASK).await?;
    }
    step.done("").await
}
