//! `firewall_block`: packets of a transfer are dropped at its destination, for ever or for a moment.

use std::time::Duration;

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
    vm::{Intervention, MigrationSpec, Moment},
};

use super::{
    Called, Limit, Scenario,
    cut::{cut_off, interrupt, slowly},
    journey::{ASK, Journey, SLACK, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::Party;

/// How long packets are dropped in a short interruption.
const INTERRUPTION: Duration = Duration::from_secs(3);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "firewall_block",
    summary: "drops a transfer's packets at its destination, for ever or for a moment",
    about: "PASS by sub_type. long_wait: a transfer under way is cut off for good; it ends without moving the guest (with \
            mig_cancel = yes it is cancelled as soon as it is stalled, else when blocked_timeout has passed), the guest goes on at the source with its load and answers on every way in, the \
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
            ("mig_cancel", "no", "yes: it is cancelled as soon as its readings say that it is stalled"),
        ],
    ],
    aliases: &[ALIASES],
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
    slowly(&mut blocked);
    let cancel = params.flag("mig_cancel")?.unwrap_or(false);
    if for_good {
        blocked.timeout_ms = if cancel { blocked.timeout_ms } else { seconds * 1000 };
        blocked.interventions.extend(cancel.then_some((Moment::Stalled, Intervention::Cancel)));
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
        cut_off(&journey, journey.next_place(), &blocked, true).await?;
        if journey.is_here() {
            let step = party.step("goes on at the source").await?;
            journey.answers().await?;
            step.done("").await?;
            load.check(&journey).await?;
        } else {
            party.cut(&[]).await?;
        }
        party.barrier("passes again", ASK + SLACK).await?;
    } else {
        let vm = journey.vm.clone();
        let meddle = interrupt(party, &vm, journey.part(journey.next_place()), &blocked, Some(INTERRUPTION));
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
