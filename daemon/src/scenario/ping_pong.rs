//! `ping_pong`: a loaded guest goes to and fro; after every move it is whole and its load goes on.

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    journey::{Journey, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS, fit},
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ping_pong",
    summary: "moves a loaded guest to and fro and checks guest and load after every move",
    about: "PASS: every move completes; after each the guest is whole and every program of the load has got on. stress_type says \
            which load: none (the probes alone), cpu_memory, disk, all. In Avocado-VT's test the look at the load after a move \
            stands in a method that nobody calls any more, so that a load which died was not noticed; here it is looked at \
            after every move, by the time it ran for.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[
            ("stress_type", "none", "none, cpu_memory, disk or all"),
            (
                "stress_memory",
                "50",
                "guest memory that is rewritten all the time where cpu_memory is meant, MiB; less in a small guest",
            ),
            ("migrate_count", "3", "moves"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_ping_pong")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// What a guest needs of its memory for itself, its system lying in memory too: with less its kernel kills the probe, MiB.
const REST_MIB: u64 = 96;

struct Wanted {
    settings: Settings,
    load: Option<Load>,
    moves: u32,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let mut settings = Settings::read(params)?;
    let load = Load::read(params)?;
    let most = u64::from(settings.vm.memory_mib).saturating_sub(REST_MIB).max(1);
    let memory = params.number("stress_memory", 1..=2048)?.unwrap_or_else(|| 50.min(most));
    let load = match params.text("stress_type").map(str::trim).unwrap_or_default() {
        "" | "none" => None,
        "cpu_memory" => Some(Load { readers: 0, ..load }),
        "disk" => Some(Load { loops: 0, ..load }),
        "all" => Some(load),
        _ => return Err(params.error("stress_type", "none, cpu_memory, disk or all")),
    };
    if load.is_some_and(|load| load.loops > 0) {
        if memory > most {
            let want = format!("at most {most} MiB, for a guest needs {REST_MIB} of its mem for itself");
            return Err(params.error("stress_memory", want));
        }
        settings.probe_pages = fit(memory * 256);
    }
    Ok(Wanted { settings, load, moves: fit(params.number("migrate_count", 1..=1000)?.unwrap_or(3)) })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, load, moves } = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if let Some(load) = load.filter(|_| journey.is_here()) {
        load.start(&journey).await?;
    }
    for round in 1..=moves {
        journey.go(&format!("move {round}"), &spec).await?;
        if let Some(load) = load.filter(|_| journey.is_here()) {
            load.check(&journey).await?;
        }
    }
    journey.end(None).await
}
