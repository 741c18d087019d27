//! `with_stress`: a guest under load moves once; guest and load go on at the destination.

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Limit, Scenario,
    journey::{Journey, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "with_stress",
    summary: "moves a guest whose CPUs, memory and disk are under load",
    about: "PASS: the move completes; at the destination the guest is whole, every program of the load has got on since, and it \
            can be ended. Where Avocado-VT copies and compiles `stress` in the guest, busy loops and readers of the disk run \
            here; memory is rewritten by the probe (mem_probe, mem_rewrite), which also checks every page. Its test does \
            not go over fd, and leaves the load running where it says need_cleanup = no; here it goes over everything, and the \
            load is ended.",
    hosts: (2, 2),
    params: &[VM_PARAMS, MOVE_PARAMS, LOAD_PARAMS],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_with_stress")],
    limits: &[
        LIMITS,
        PLAIN,
        &[Limit {
            key: "test_control_file",
            takes: |file| matches!(file, "" | "stress.control"),
            does: "puts a load of its own on the guest, not that of fio",
        }],
    ],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, Load), ParamError> {
    Ok((Settings::read(params)?, Load::read(params)?))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, load) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        load.start(&journey).await?;
    }
    journey.go("under load", &spec).await?;
    if journey.is_here() {
        load.check(&journey).await?;
        load.stop(&journey).await?;
    }
    journey.end(None).await
}
