//! `data_plane`: the guest's disk is served by a thread of its own while the guest moves under load.

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    journey::{Journey, SLACK, product, taken},
    load::{LOAD_PARAMS, Load},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::Party;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "data_plane",
    summary: "moves a guest whose disk is served by an I/O thread, under load of the disk",
    about: "PASS: QEMU has the I/O thread on both hosts, the guest moves there and back under readers of its disk and the disk \
            writer of the probe, and is whole after every move; the readers get on. Where Avocado-VT runs fio in the guest, \
            readers of the disk run here, past its cache. Its test looks for fio before the move only; here the readers must \
            have got on after every one.",
    hosts: (2, 64),
    params: &[VM_PARAMS, MOVE_PARAMS, LOAD_PARAMS],
    aliases: &[ALIASES],
    types: &[Called { kind: "migration_multi_host_with_stress", when: &[("test_control_file", "fio.control")] }],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, Load), ParamError> {
    let mut settings = Settings::read(params)?;
    settings.vm.io_thread = true;
    let load = Load::read(params)?;
    Ok((settings, Load { loops: 0, readers: load.readers.max(1) }))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, load) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        load.start(&journey).await?;
        has_thread(&journey).await?;
    }
    party.barrier("begun", SLACK).await?;
    for round in ["there", "back"] {
        journey.go(round, &spec).await?;
        if journey.is_here() {
            load.check(&journey).await?;
            has_thread(&journey).await?;
        }
    }
    journey.end(None).await
}

async fn has_thread(journey: &Journey<'_>) -> Result<(), Failure> {
    let threads = journey.monitor("query-iothreads", serde_json::Value::Null).await?;
    if threads.as_array().is_some_and(|threads| !threads.is_empty()) {
        return Ok(());
    }
    let title = "QEMU has no I/O thread";
    Err(product(Report::new(ErrorCode::MigrationFailed, title).with("threads", threads.to_string())))
}
