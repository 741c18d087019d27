//! `module_reload`: the guest's network driver is taken out and put in again, before and after a move.

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    journey::{ASK, ECHO_PORT, Journey, SLACK, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
};
use crate::party::{Party, failure::caused};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "module_reload",
    summary: "takes the guest's network driver out and puts it in again, before and after a move",
    about: "PASS: the driver of the guest's network card can be unloaded and loaded `repeats` times, the guest's echo answers at \
            its address after every time, and all of that again at the destination; the guest is whole. Avocado-VT's test logs \
            in over a second card meanwhile; here the serial console is used, so that no other card is needed.",
    hosts: (2, 2),
    params: &[VM_PARAMS, MOVE_PARAMS, &[("repeats", "5", "how often, on each host")]],
    aliases: &[ALIASES],
    types: &[Called { kind: "migration_multi_host_with_stress", when: &[("bg_stress_test", "driver_load")] }],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, u64), ParamError> {
    Ok((Settings::read(params)?, params.number("repeats", 1..=1000)?.unwrap_or(5)))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, repeats) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    reload(&journey, repeats).await?;
    party.barrier("reloaded", SLACK + ASK * 2).await?;
    journey.go("reloaded", &spec).await?;
    reload(&journey, repeats).await?;
    party.barrier("reloaded", SLACK + ASK * 2).await?;
    journey.go("back", &spec).await?;
    journey.end(None).await
}

async fn reload(journey: &Journey<'_>, repeats: u64) -> Result<(), Failure> {
    let Some(address) = journey.address() else {
        let title = "the guest has no network card here: it has no driver to take out";
        return Err(caused(Report::new(ErrorCode::CannotRunHere, title)));
    };
    if !journey.is_here() {
        return Ok(());
    }
    let step = journey.party.step("driver out and in").await?;
    // The address goes with the card; its prefix and the route are taken from what there was.
    let once = format!(
        "set -- $(ip -o -4 addr show | grep 'inet {address}/'); dev=$2; cidr=$4; rmmod virtio_net && \
         ! [ -e /sys/class/net/$dev ] && insmod /lib/modules/virtio_net.ko && ip addr add $cidr dev $dev && \
         ip link set $dev up"
    );
    for _ in 0..repeats {
        in_guest(&journey.guest(), &once).await?;
        journey.guest().tcp_echo(ECHO_PORT, ASK).await?;
    }
    step.done(format!("{repeats} times, the echo answered each time")).await
}
