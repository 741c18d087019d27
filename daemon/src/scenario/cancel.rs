//! `cancel`: a migration of a loaded guest is cancelled; the guest goes on where it is, can be rebooted there, and then moves.

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
    vm::{Intervention, MigrationSpec, Moment},
};

use super::{
    Called, Scenario,
    journey::{Journey, SLACK, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
    transfer,
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "cancel",
    summary: "cancels a migration of a loaded guest, reboots the guest where it stayed, then moves it",
    about: "PASS: after the cancel the guest is whole at the source and its load goes on; it can be rebooted there; the next \
            migration of the same VM completes and the guest is whole at the destination. Avocado-VT's test cancels after ten \
            seconds, which is too late for a small guest and then blocks both hosts until their timeouts; here it is cancelled \
            at a named phase (cancel_at), told by QEMU's own event.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[("cancel_at", "pass:1", "phase in which it is cancelled: setup, active, pass:N, pre-switchover, device")],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_cancel")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, Load, MigrationSpec), ParamError> {
    let settings = Settings::read(params)?;
    let at = match params.text("cancel_at").map(str::trim).filter(|text| !text.is_empty()) {
        None => Moment::Pass(1),
        Some(text) => match text.parse() {
            Ok(Moment::PostcopyActive | Moment::Stalled) | Err(_) => {
                return Err(params.error("cancel_at", "setup, active, pass:N, pre-switchover or device"));
            }
            Ok(at) => at,
        },
    };
    let mut cancelled = settings.spec.clone();
    cancelled.interventions.push((at, Intervention::Cancel));
    Ok((settings, Load::read(params)?, cancelled))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, load, cancelled) = taken(party.params(), read)?;
    let again = transfer::undisturbed(&settings.spec);
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        load.start(&journey).await?;
    }
    journey.go("cancelled", &cancelled).await?;
    if journey.is_here() {
        load.check(&journey).await?;
        load.stop(&journey).await?;
        journey.reset().await?;
    }
    party.barrier("rebooted", journey.settings.vm.login_timeout + SLACK).await?;
    journey.go("again", &again).await?;
    journey.end(None).await
}
