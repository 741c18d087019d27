//! `suspend`: a guest that has moved sleeps and wakes.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
    vm::DriveContent,
};

use super::{
    Called, Scenario,
    drives::made,
    journey::{ASK, Journey, SLACK, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, Settings, UNCHANGED, VM_PARAMS},
};
use crate::party::{Party, failure::caused};

/// How long the guest may take to fall asleep, or to be awake.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where its memory is written to a disk, and read after a boot.
const BY_DISK: Duration = Duration::from_secs(300);
/// The disk that it sleeps on.
const SWAP: &str = "swap";
/// How long it may take to answer while it is not known whether it is awake.
const ANSWERS: Duration = Duration::from_secs(5);
/// What it has printed when it has slept on it.
const WOKE: &str = "woke-up-from-disk";
/// How often QEMU is asked what it does.
const LOOK: Duration = Duration::from_millis(200);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "suspend",
    summary: "moves a guest, has it sleep (S3 or S4) and wakes it, then moves it back",
    about: "PASS: the guest moves and is whole; at the destination it suspends to RAM by its own wish, QEMU says suspended, a \
            wake-up brings back the very same guest (boot id, probes, memory, disk), and a move back leaves it whole. \
            guest_suspend_type = disk (S4): it writes its memory to a disk made for that, its machine begins anew, and what boots \
            finds the memory there and goes on as that very guest. A guest whose kernel offers no such sleep is SKIP; for S4 there \
            is `vtctl image build --recipe devices`, -p image=devices. Avocado-VT's test is ERROR there, takes the guest to be \
            asleep after ten seconds, and starts another QEMU where the guest has powered off; here QEMU's own state is waited \
            for, and the guest has its machine reset.",
    hosts: (2, 2),
    params: &[VM_PARAMS, MOVE_PARAMS, &[("guest_suspend_type", "mem", "mem or disk")]],
    aliases: &[ALIASES],
    types: &[Called { kind: "migration_multi_host", when: &[("post_sub_test", "guest_suspend")] }],
    limits: &[LIMITS, UNCHANGED],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, Kind), ParamError> {
    let kind = match params.text("guest_suspend_type").map(str::trim).unwrap_or_default() {
        "" | "mem" => Kind::Memory,
        "disk" => Kind::Disk,
        _ => return Err(params.error("guest_suspend_type", "mem or disk")),
    };
    let mut settings = Settings::read(params)?;
    if kind == Kind::Disk {
        let name = SWAP.parse().map_err(|_| params.error("images", "names"))?;
        let bytes = u64::from(settings.vm.memory_mib) << 20;
        settings.vm.drives.push(made(name, DriveContent::Blank, ImageFormat::Qcow2, bytes));
        return Ok((settings, kind));
    }
    // The sleep is part of what the next move is compared with.
    let chip = if settings.vm.has_pcie() { "ICH9-LPC" } else { "PIIX4_PM" };
    settings.vm.extra_args.extend(["-global".to_owned(), format!("{chip}.disable_s3=0")]);
    Ok((settings, kind))
}

/// Where a guest sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Disk,
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, kind) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        let sleeps = in_guest(&journey.guest(), "cat /sys/power/state 2>/dev/null; true").await?;
        let (word, title) = match kind {
            Kind::Memory => ("mem", "the kernel of the guest cannot suspend to RAM"),
            Kind::Disk => ("disk", "the kernel of the guest cannot sleep on a disk: -p image=devices"),
        };
        if !sleeps.split_whitespace().any(|known| known == word) {
            let found = if sleeps.trim().is_empty() { "nothing" } else { sleeps.trim() };
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title).with("/sys/power/state", found)));
        }
    }
    party.barrier("can sleep", SLACK).await?;
    journey.go("there", &spec).await?;
    if journey.is_here() && kind == Kind::Disk {
        on_disk(&journey).await?;
    } else if journey.is_here() {
        let step = party.step("sleep").await?;
        let begun = Instant::now();
        in_guest(&journey.guest(), "(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &").await?;
        until(&journey, "suspended").await?;
        step.done(format!("asleep after {:.1} s", begun.elapsed().as_secs_f64())).await?;

        let step = party.step("wake up").await?;
        journey.monitor("system_wakeup", Value::Null).await?;
        until(&journey, "running").await?;
        journey.guest().agent_ping(ASK).await?;
        step.done("").await?;
    }
    party.barrier("awake again", BY_DISK + ASK * 2 + SLACK).await?;
    journey.go("back", &spec).await?;
    journey.end(None).await
}

/// Has the guest write its memory to its disk, begin anew, and go on from there.
async fn on_disk(journey: &Journey<'_>) -> Result<(), Failure> {
    let step = journey.party.step("sleep on a disk").await?;
    let begun = Instant::now();
    let find = format!("f=$(grep -l '^{SWAP}$' /sys/block/*/serial) || exit 1; f=${{f%/serial}}; d=/dev/${{f##*/}}");
    // What the guest's shell does after the sleep, it does awake again; a boot that found nothing has no such shell.
    let sleep = format!("echo reboot >/sys/power/disk && echo disk >/sys/power/state && echo {WOKE} >/tmp/slept");
    let all = format!("( {find}; mkswap $d && swapon $d || exit 1; (sleep 1; {sleep}) >/tmp/sleep.log 2>&1 & )");
    in_guest(&journey.guest(), &all).await?;
    let until = Instant::now() + BY_DISK;
    let said = loop {
        let look = "cat /tmp/slept /tmp/sleep.log; dmesg | grep -i hibernation | tail -n 4";
        match journey.guest().run(look, ANSWERS).await {
            Ok((_, said)) if said.contains(WOKE) => break said,
            Ok((_, said)) if said.contains("write error") || Instant::now() >= until => {
                let title = "the guest did not sleep on its disk and go on from there";
                return Err(product(Report::new(ErrorCode::GuestStopped, title).with("guest", said)));
            }
            Err(failure) if Instant::now() >= until => return Err(failure),
            // It writes, boots or reads: nobody answers meanwhile.
            Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    journey.party.expect(said.contains("hibernation"), || {
        Report::new(ErrorCode::GuestStopped, "the kernel of the guest knows nothing of having slept")
            .with("guest", &said)
    })?;
    self::until(journey, "running").await?;
    journey.guest().agent_ping(ASK).await?;
    in_guest(&journey.guest(), &format!("( {find}; swapoff $d )")).await?;
    step.done(format!("asleep and awake again in {:.1} s", begun.elapsed().as_secs_f64())).await
}

/// Waits until QEMU is in a state.
async fn until(journey: &Journey<'_>, wanted: &str) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = journey.monitor("query-status", Value::Null).await?;
        if status["status"] == wanted {
            return Ok(());
        }
        if Instant::now() >= until {
            let title = format!("the machine was not {wanted} within {} s", PATIENCE.as_secs());
            return Err(product(Report::new(ErrorCode::GuestStopped, title).with("status", status.to_string())));
        }
        tokio::time::sleep(LOOK).await;
    }
}
