//! `multihost_migration`: a guest that is kept busy goes from host to host and back, and is checked after every move.

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    journey::{Journey, taken},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS, fit},
    transfer,
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "multihost_migration",
    summary: "moves a busy VM from host to host and back, and checks it after every move",
    about: "One round leads from host1 over every other host back to host1. PASS: every move completes, and after each the guest \
            is the one it was (boot id, uptime, address), its memory and disk hold what was written, its clocks went with the \
            time that passed, its probes have got on, and console, agent, echo and ssh answer. A move that is to be cancelled \
            (at = … cancel) is followed by one that is not.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        &[("migrate_count", "1", "rounds; one round leads from host1 over every other host back to host1")],
        MOVE_PARAMS,
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, u32), ParamError> {
    Ok((Settings::read(params)?, fit(params.number("migrate_count", 1..=1000)?.unwrap_or(1))))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, rounds) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    for round in 1..=rounds {
        let round = format!("round {round}");
        for _ in party.hosts() {
            if transfer::is_cancelled(&spec) {
                journey.go(&format!("{round}, cancelled"), &spec).await?;
                journey.go(&format!("{round}, again"), &transfer::undisturbed(&spec)).await?;
            } else {
                journey.go(&round, &spec).await?;
            }
        }
    }
    journey.end(None).await
}
