//! `with_reboot`: the machine is reset again and again while its guest is being moved.

use std::time::Duration;

use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    early_boot::{PAUSE_PARAMS, Pause},
    journey::{Journey, SLACK, taken},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, Settings, UNCHANGED, VM_PARAMS},
};
use crate::party::{Party, our_fault};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "with_reboot",
    summary: "resets the machine again and again while its guest is being moved",
    about: "PASS: at least one reset came while the transfer ran, the transfer completes, and the guest comes up at the \
            destination; a move back, with its probes on, leaves it whole. Avocado-VT's test resets in a thread that nobody \
            waits for, so that a reset which failed went unnoticed; here they are counted, and one that fails fails the case.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        PAUSE_PARAMS,
        &[
            ("reboot_method", "system_reset", "how: system_reset"),
            ("reboot_timeout", "10", "seconds for which it is reset again and again"),
            ("reboot_speed", "8M", "most bandwidth of the transfer meanwhile, bytes/s, where mig_speed says nothing"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_with_reboot")],
    limits: &[LIMITS, UNCHANGED],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    pause: Pause,
    resets: Duration,
    speed: u64,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    if !matches!(params.text("reboot_method").map(str::trim), None | Some("" | "system_reset")) {
        return Err(params.error("reboot_method", "system_reset"));
    }
    let speed = params.size("reboot_speed", 1, 1..=1 << 40)?.unwrap_or(8 << 20);
    let resets = Duration::from_secs(params.number("reboot_timeout", 1..=3600)?.unwrap_or(10));
    Ok(Wanted { settings: Settings::read(params)?, pause: Pause::read(params)?, resets, speed })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, pause, resets: most, speed } = taken(party.params(), read)?;
    let back = settings.spec.clone();
    let mut slow = back.clone();
    slow.parameters.entry("max-bandwidth".into()).or_insert(speed);
    let mut journey = Journey::start(party, settings, false).await?;
    if journey.is_here() {
        let vm = journey.vm.clone();
        let (over, moved) = watch::channel(false);
        let moving = async {
            let migrated = journey.carry("while it is reset", &slow).await;
            over.send_replace(true);
            migrated
        };
        let (resets, migrated) = tokio::join!(resets(party, &vm, pause, most, moved), moving);
        // Why the transfer failed comes before why a reset did.
        migrated?;
        let resets = resets?;
        party.metric("resets", resets);
        if resets == 0 {
            let title = "the transfer was over before the machine was reset: -p reboot_speed=4M";
            return Err(our_fault(Report::new(ErrorCode::MigrationRefused, title)));
        }
    } else {
        journey.carry("while it is reset", &slow).await?;
    }
    if journey.is_here() {
        journey.awaken().await?;
    }
    party.barrier("awake", journey.settings.vm.login_timeout + SLACK).await?;
    journey.go("back", &back).await?;
    journey.end(None).await
}

/// Resets the machine until it has moved, or for as long as it may be; returns how often. Every reset makes most of the
/// guest's memory anew, so that a transfer may not end before the resets do.
async fn resets(
    party: &Party,
    vm: &vt_protocol::ids::Name,
    pause: Pause,
    most: Duration,
    mut moved: watch::Receiver<bool>,
) -> Result<u32, Failure> {
    let until = Instant::now() + most;
    for number in 0.. {
        if Instant::now() >= until {
            return Ok(number);
        }
        tokio::select! {
            biased;
            _ = moved.wait_for(|moved| *moved) => return Ok(number),
            () = tokio::time::sleep(pause.draw(party, number)) => {}
        }
        match party.vm(vm.clone()).monitor("system_reset", Value::Null).await {
            Ok(_) => party.log(format!("reset {}", number + 1)).await?,
            // It left meanwhile.
            Err(_) if *moved.borrow() => return Ok(number),
            Err(Failure::Caused(cause)) if cause.report.code == ErrorCode::NotOwner => return Ok(number),
            Err(failure) => return Err(failure),
        }
    }
    Ok(0)
}
