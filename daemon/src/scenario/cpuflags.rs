//! `cpuflags`: what the guest sees of its CPUs stays as it is when it moves.

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    journey::{Journey, SLACK, product, taken},
    load::{LOAD_PARAMS, Load, run as in_guest},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS, fit},
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "cpuflags",
    summary: "moves a guest of a named CPU model and checks what it sees of its CPUs",
    about: "PASS by test_type. test_multi_host_migration: under load, the guest is whole after every move, its load has got on, \
            and its CPUs have the very flags they had. test_multi_host_migration_onoff_cpu: CPUs taken offline in the guest stay \
            offline over every move, /proc/cpuinfo and the kernel's list agree, and they come back on when asked at the end. \
            Avocado-VT's test names no mig_protocol and is refused by its own framework, and asks both hosts for the same \
            guest; here it is tcp, and the host asks that has the guest.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        LOAD_PARAMS,
        &[
            ("test_type", "test_multi_host_migration", "or test_multi_host_migration_onoff_cpu"),
            ("migrate_count", "2", "moves"),
            ("disable_cpus", "1", "CPUs that are taken offline, by number"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[
        Called { kind: "cpuflags", when: &[("test_type", "test_multi_host_migration")] },
        Called { kind: "cpuflags", when: &[("test_type", "test_multi_host_migration_onoff_cpu")] },
    ],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    moves: u32,
    what: What,
}

enum What {
    Flags(Load),
    Offline(Vec<u64>),
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let mut settings = Settings::read(params)?;
    let moves = fit(params.number("migrate_count", 1..=1000)?.unwrap_or(2));
    let what = match params.text("test_type").map(str::trim).unwrap_or_default() {
        "" | "test_multi_host_migration" => What::Flags(Load::read(params)?),
        "test_multi_host_migration_onoff_cpu" => {
            if params.get("smp").is_none() {
                settings.vm.cpus = 2;
            }
            let list = params.list("disable_cpus", None);
            let list = if list.is_empty() { vec!["1"] } else { list };
            let number = |text: &str| text.parse().ok().filter(|n| (1..u64::from(settings.vm.cpus)).contains(n));
            let cpus = list.into_iter().map(number).collect::<Option<Vec<u64>>>();
            What::Offline(cpus.ok_or_else(|| params.error("disable_cpus", "numbers of CPUs, from 1 to below smp"))?)
        }
        _ => {
            let want = "test_multi_host_migration or test_multi_host_migration_onoff_cpu";
            return Err(params.error("test_type", want));
        }
    };
    Ok(Wanted { settings, moves, what })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, moves, what } = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    let mut seen = None;
    if journey.is_here() {
        match &what {
            What::Flags(load) => load.start(&journey).await?,
            What::Offline(cpus) => turn(&journey, cpus, false).await?,
        }
        seen = Some(look(&journey, &what).await?);
    }
    let told: Vec<(Name, Option<String>)> = party.exchange("seen", &seen, SLACK).await?;
    let before = told.into_iter().find_map(|(_, seen)| seen).unwrap_or_default();
    for round in 1..=moves {
        journey.go(&format!("move {round}"), &spec).await?;
        if journey.is_here() {
            let after = look(&journey, &what).await?;
            if after != before {
                let title = "the guest sees other CPUs than before the move";
                let report = Report::new(ErrorCode::GuestStopped, title);
                return Err(product(report.with("before", &before).with("after", after)));
            }
            if let What::Flags(load) = &what {
                load.check(&journey).await?;
            }
        }
    }
    if let What::Offline(cpus) = &what
        && journey.is_here()
    {
        turn(&journey, cpus, true).await?;
    }
    journey.end(None).await
}

/// Takes CPUs of the guest off or puts them on.
async fn turn(journey: &Journey<'_>, cpus: &[u64], on: bool) -> Result<(), Failure> {
    let step = journey.party.step(if on { "CPUs on" } else { "CPUs off" }).await?;
    let digit = u8::from(on);
    for cpu in cpus {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        in_guest(&journey.guest(), &format!("echo {digit} >{file} && [ $(cat {file}) = {digit} ]")).await?;
    }
    step.done(format!("{cpus:?}")).await
}

/// What the guest sees that may not change: flags of its CPUs, or which are online, by two ways.
async fn look(journey: &Journey<'_>, what: &What) -> Result<String, Failure> {
    let step = journey.party.step("CPUs").await?;
    let command = match what {
        What::Flags(_) => "grep -m 1 '^flags' /proc/cpuinfo",
        What::Offline(_) => {
            "n=$(grep -c '^processor' /proc/cpuinfo); on=0; for c in /sys/devices/system/cpu/cpu[0-9]*; do \
             [ ! -e $c/online ] || [ $(cat $c/online) = 1 ] && on=$((on+1)); done; \
             echo online $(cat /sys/devices/system/cpu/online), $n processors; [ $n = $on ]"
        }
    };
    let seen = in_guest(&journey.guest(), command).await?.trim().to_owned();
    let words = seen.split_whitespace().count();
    step.done(match what {
        What::Flags(_) => format!("{} flags", words.saturating_sub(2)),
        What::Offline(_) => seen.clone(),
    })
    .await?;
    Ok(seen)
}
