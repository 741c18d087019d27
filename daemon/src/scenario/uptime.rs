//! `uptime`: one host, one VM: boot, log in, run `uptime`. The smallest example of a scenario.

use std::time::Duration;

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::Failure,
};

use super::{
    Scenario,
    journey::{described, taken},
    settings::{VM_PARAMS, VmSettings},
};
use crate::party::{Party, our_fault};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "uptime",
    summary: "boots a VM on one host, logs in and runs uptime",
    about: "PASS: the guest boots, lets in on its console, and runs a command.",
    hosts: (1, 1),
    params: &[VM_PARAMS],
    aliases: &[],
    types: &[],
    limits: &[],
    check: |params| VmSettings::read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let settings = taken(party.params(), VmSettings::read)?;
    let vm: Name = "vm1".parse().map_err(|_| our_fault(Report::new(ErrorCode::Internal, "vm1 is no name")))?;

    let step = party.step("boot").await?;
    let started = party.vm(vm.clone()).start(settings.start()).await?;
    party.metric("boot_ms", started.boot_ms);
    step.done(described(&started)).await?;

    let step = party.step("login").await?;
    party.guest(&vm).login(settings.login_timeout).await?;
    step.done("").await?;

    let step = party.step("uptime").await?;
    let (status, output) = party.guest(&vm).run("uptime", Duration::from_secs(60)).await?;
    party.expect(status == 0 && output.contains("load average"), || {
        Report::new(ErrorCode::GuestUnreachable, "uptime did not run in the guest")
            .with("exit status", status.to_string())
            .with("output", &output)
    })?;
    step.done(output.trim()).await?;

    if !party.welcome().keep {
        let step = party.step("stop").await?;
        party.vm(vm).stop().await?;
        step.done("").await?;
    }
    Ok(None)
}
