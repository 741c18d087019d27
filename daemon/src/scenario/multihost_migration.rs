//! `multihost_migration`: guests that are kept busy go from host to host and back, and are checked after every move.

use futures_util::future::try_join_all;
use vt_protocol::{
    ids::Name,
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Limit, Scenario,
    journey::{Journey, taken},
    settings::{ALIASES, MOVE_PARAMS, PLAIN, SEVERAL, Settings, VM_PARAMS, fit},
    transfer,
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "multihost_migration",
    summary: "moves busy VMs from host to host and back, and checks them after every move",
    about: "One round leads from host1 over every other host back to host1. PASS: every move completes, and after each the guest \
            is the one it was (boot id, uptime, address), its memory and disk hold what was written, its clocks went with the \
            time that passed, its probes have got on, and console, agent, echo and ssh answer; with shell_client = ssh a session \
            from its first host lives through all of them. A move that is to be cancelled \
            (at = … cancel) is followed by one that is not. Several VMs (vms) move at the same time, as many as the hosts' \
            [migration] at_once and per_link allow; with vms_start = spread they begin on different hosts, so that they move in \
            both directions at once. What ends in _vm2 is vm2's own. \
            Avocado-VT's test looks after its background command over tcp alone, lets a third host wait for a barrier that nobody \
            comes to, and turns every error of a move into a FAIL that says True; here the probes are looked at whatever carries \
            the VM, every host takes part, and the first cause is told.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        &[
            ("migrate_count", "1", "rounds; one round leads from host1 over every other host back to host1"),
            ("vms", "vm1", "names of the VMs; all of them move at the same time"),
            (
                "vms_start",
                "together",
                "together: all begin on host1; spread: vm1 on host1, the next on host2, and so on",
            ),
        ],
        MOVE_PARAMS,
        &[
            (
                "shell_client",
                "console",
                "ssh: a session by ssh begins before the first move, and its shell has to be there after each",
            ),
            ("shell_port", "22", "port of the guest's ssh server"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host")],
    limits: &[SEVERAL, PLAIN, SESSIONS],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// What Avocado-VT's guests without ssh are spoken to by.
const SESSIONS: &[Limit] = &[Limit {
    key: "shell_client",
    takes: |client| matches!(client, "" | "console" | "ssh"),
    does: "speaks to guests by console or ssh",
}];

/// Most VMs of a case.
const VMS_MAX: usize = 8;

struct Wanted {
    vms: Vec<(Name, Settings)>,
    session: bool,
    spread: bool,
    rounds: u32,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let wrong = || params.error("vms", format!("at most {VMS_MAX} names of VMs, each once"));
    let mut vms: Vec<(Name, Settings)> = Vec::new();
    let names = params.list("vms", None);
    for name in if names.is_empty() { vec!["vm1"] } else { names } {
        let vm: Name = name.parse().map_err(|_| wrong())?;
        if vms.len() >= VMS_MAX || vms.iter().any(|(known, _)| *known == vm) {
            return Err(wrong());
        }
        vms.push((vm, Settings::read(&params.object(name))?));
    }
    let spread = match params.text("vms_start").map(str::trim).unwrap_or_default() {
        "" | "together" => false,
        "spread" => true,
        _ => return Err(params.error("vms_start", "together or spread")),
    };
    let session = match params.text("shell_client").map(str::trim).unwrap_or_default() {
        "" | "console" => false,
        "ssh" => true,
        _ => return Err(params.error("shell_client", "ssh or console")),
    };
    params.number("shell_port", 1..=65_535)?;
    Ok(Wanted { vms, session, spread, rounds: fit(params.number("migrate_count", 1..=1000)?.unwrap_or(1)) })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { vms, session, spread, rounds } = taken(party.params(), read)?;
    let hosts = party.hosts().len();
    let place = |number: usize| if spread { number % hosts } else { 0 };
    let mut begun = Vec::new();
    for (number, (vm, settings)) in vms.into_iter().enumerate() {
        begun.push(Journey::begin_at(party, vm, place(number), settings));
    }
    let mut journeys = try_join_all(begun).await?;
    if session {
        for journey in &mut journeys {
            journey.hold_session().await?;
        }
    }
    for round in 1..=rounds {
        for _ in 0..hosts {
            let mut legs = Vec::new();
            for journey in &mut journeys {
                legs.push(leg(journey, round));
            }
            try_join_all(legs).await?;
        }
    }
    Journey::end_all(journeys).await
}

/// One move of one VM; where it is to be cancelled, another one after it.
async fn leg(journey: &mut Journey<'_>, round: u32) -> Result<(), Failure> {
    let (round, spec) = (format!("round {round}"), journey.settings.spec.clone());
    if transfer::is_cancelled(&spec) {
        journey.go(&format!("{round}, cancelled"), &spec).await?;
        journey.go(&format!("{round}, again"), &transfer::undisturbed(&spec)).await?;
    } else {
        journey.go(&round, &spec).await?;
    }
    Ok(())
}
