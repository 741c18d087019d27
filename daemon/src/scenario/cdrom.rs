//! `cdrom`: CD drives that are locked, opened and read while their guest moves.

use std::time::Duration;

use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::Failure,
    vm::DriveContent,
};

use super::{
    Called, Scenario,
    drives::made,
    journey::{ASK, Journey, SLACK, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
    trays::{PATIENCE, exchange, says, sum_of, tray, until},
};
use crate::party::Party;

const MIB: u64 = 1 << 20;
/// At least as long a CD is read that is read during a move.
const READS: Duration = Duration::from_secs(20);
/// QEMU's names of the drives, and of what is in them at first.
const DRIVES: [&str; 2] = ["blk-cd0", "blk-cd1"];
const MEDIA: [&str; 2] = ["cd0", "cd1"];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "cdrom",
    summary: "moves a guest whose CD drive is locked, whose CDs are changed, or that reads one meanwhile",
    about: "The CDs are made for the case, of noise. PASS by test_type. test_multihost_locking: a drive that the guest has locked is \
            locked at the destination as well (QEMU says so, and does not open it when asked), the guest unlocks it there, and it \
            is unlocked and opens after the move back. test_multihost_ejecting: the guest opens both drives, their CDs are \
            exchanged, and it finds the other ones in them, before the move, after it, after a reset there, and after the move back. \
            test_multihost_copy: a CD is read to its end during the move, and what was read is what is on it. Avocado-VT's test \
            writes ISO files where both hosts see them and leaves the drive to programs in the guest; here the CDs go with the VM, \
            and the kernel's own switches lock and open the drive.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[
            (
                "test_type",
                "test_multihost_locking",
                "test_multihost_locking, test_multihost_ejecting or test_multihost_copy",
            ),
            ("cdrom_size", "10", "length of a CD, MiB"),
            ("copy_timeout", "480", "seconds that reading a CD to its end may take"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[
        Called { kind: "cdrom", when: &[("test_type", "test_multihost_locking")] },
        Called { kind: "cdrom", when: &[("test_type", "test_multihost_ejecting")] },
        Called { kind: "cdrom", when: &[("test_type", "test_multihost_copy")] },
    ],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Locking,
    Ejecting,
    Copy,
}

struct Wanted {
    settings: Settings,
    kind: Kind,
    mib: u64,
    patience: Duration,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let kind = match params.text("test_type").map(str::trim).unwrap_or_default() {
        "" | "test_multihost_locking" => Kind::Locking,
        "test_multihost_ejecting" => Kind::Ejecting,
        "test_multihost_copy" => Kind::Copy,
        _ => {
            let want = "test_multihost_locking, test_multihost_ejecting or test_multihost_copy";
            return Err(params.error("test_type", want));
        }
    };
    let mib = params.number("cdrom_size", 1..=4096)?.unwrap_or(10);
    let patience = Duration::from_secs(params.number("copy_timeout", 1..=86_400)?.unwrap_or(480));
    let mut settings = Settings::read(params)?;
    // Those of the configuration are files of hosts that are not here.
    settings.vm.drives.retain(|drive| !drive.content.is_cd());
    let cds = if kind == Kind::Ejecting { 2 } else { 1 };
    for name in ["noise1", "noise2"].into_iter().take(cds) {
        let name: Name = name.parse().map_err(|_| params.error("cdroms", "names"))?;
        settings.vm.drives.push(made(name, DriveContent::Noise, ImageFormat::Raw, mib * MIB));
    }
    Ok(Wanted { settings, kind, mib, patience })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, kind, mib, patience } = taken(party.params(), read)?;
    let journey = Journey::begin(party, settings).await?;
    match kind {
        Kind::Locking => locking(journey).await,
        Kind::Ejecting => ejecting(journey).await,
        Kind::Copy => copy(journey, mib, patience).await,
    }
}

async fn locking(mut journey: Journey<'_>) -> Result<Option<String>, Failure> {
    let (party, spec) = (journey.party, journey.settings.spec.clone());
    if journey.is_here() {
        let step = party.step("the guest locks the drive").await?;
        // The kernel locks a drive that is open.
        let hold =
            "(sh -c 'exec 9</dev/sr0; echo $$ >/tmp/holds; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &)";
        in_guest(&journey.guest(), &format!("echo 1 >/proc/sys/dev/cdrom/lock; {hold}")).await?;
        until(&journey, DRIVES[0], "locked", true).await?;
        stays_shut(&journey).await?;
        step.done("").await?;
    }
    party.barrier("locked", PATIENCE + SLACK).await?;
    journey.go("locked", &spec).await?;
    if journey.is_here() {
        let step = party.step("locked still, and unlocked").await?;
        until(&journey, DRIVES[0], "locked", true).await?;
        stays_shut(&journey).await?;
        in_guest(&journey.guest(), "kill $(cat /tmp/holds)").await?;
        until(&journey, DRIVES[0], "locked", false).await?;
        step.done("").await?;
    }
    party.barrier("unlocked", PATIENCE * 2 + SLACK).await?;
    journey.go("unlocked", &spec).await?;
    if journey.is_here() {
        let step = party.step("unlocked still, and opened").await?;
        until(&journey, DRIVES[0], "locked", false).await?;
        tray(&journey, "blockdev-open-tray", DRIVES[0]).await?;
        until(&journey, DRIVES[0], "tray_open", true).await?;
        tray(&journey, "blockdev-close-tray", DRIVES[0]).await?;
        step.done("").await?;
    }
    journey.end(None).await
}

async fn ejecting(mut journey: Journey<'_>) -> Result<Option<String>, Failure> {
    let (party, spec) = (journey.party, journey.settings.spec.clone());
    let mut mine = None;
    if journey.is_here() {
        let before = sums(&journey).await?;
        let step = party.step("CDs exchanged").await?;
        // The kernel opens a drive that nobody has open any more, where that is asked for.
        let open =
            "echo 1 >/proc/sys/dev/cdrom/autoeject; for d in /dev/sr0 /dev/sr1; do dd if=$d of=/dev/null count=1; done";
        in_guest(&journey.guest(), &format!("( {open}; echo 0 >/proc/sys/dev/cdrom/autoeject ) 2>&1")).await?;
        for drive in DRIVES {
            until(&journey, drive, "tray_open", true).await?;
        }
        exchange(&journey, DRIVES, MEDIA, true).await?;
        let wanted: Vec<String> = before.iter().rev().cloned().collect();
        finds(&journey, &wanted).await?;
        step.done(wanted.join(" ")).await?;
        mine = Some(wanted);
    }
    let told = party.exchange("exchanged", &mine, ASK * 3 + SLACK).await?;
    let wanted: Vec<String> = told.into_iter().find_map(|(_, sums)| sums).unwrap_or_default();
    journey.go("with the other CDs", &spec).await?;
    if journey.is_here() {
        finds(&journey, &wanted).await?;
        journey.reset().await?;
        finds(&journey, &wanted).await?;
    }
    party.barrier("reset", journey.settings.vm.login_timeout * 2 + SLACK).await?;
    journey.go("back", &spec).await?;
    if journey.is_here() {
        finds(&journey, &wanted).await?;
    }
    journey.end(None).await
}

async fn copy(mut journey: Journey<'_>, mib: u64, patience: Duration) -> Result<Option<String>, Failure> {
    let (party, spec) = (journey.party, journey.settings.spec.clone());
    let mut mine = None;
    if journey.is_here() {
        let sum = sums(&journey).await?.remove(0);
        // Slowly, so that it goes on when the guest has moved, and from the CD, not from memory.
        let pause = (READS.as_secs_f64() / mib as f64).clamp(0.05, 5.0);
        let piece = format!("dd if=/dev/sr0 bs=1M skip=$n count=1 2>/dev/null; n=$((n+1)); sleep {pause:.2}");
        let read = format!("n=0; while [ $n -lt {mib} ]; do {piece}; done | md5sum >/tmp/sum; mv /tmp/sum /tmp/copied");
        in_guest(&journey.guest(), &format!("(sh -c '{read}' >/dev/null 2>&1 </dev/null &)")).await?;
        mine = Some(sum);
    }
    let told = party.exchange("being read", &mine, ASK * 2 + SLACK).await?;
    let wanted: String = told.into_iter().find_map(|(_, sum)| sum).unwrap_or_default();
    journey.go("while a CD is read", &spec).await?;
    if journey.is_here() {
        let step = party.step("read to its end").await?;
        let ticks = patience.as_secs();
        let wait = format!("n=0; while ! [ -e /tmp/copied ] && [ $n -lt {ticks} ]; do n=$((n+1)); sleep 1; done");
        let (status, said) = journey.guest().run(&format!("{wait}; cat /tmp/copied"), patience + ASK).await?;
        if status != 0 || !said.contains(&wanted) {
            let title = "what was read from the CD during the move is not what is on it";
            return Err(product(Report::new(ErrorCode::DiskDamaged, title).with("on it", wanted).with("read", said)));
        }
        step.done(wanted).await?;
    }
    party.barrier("read", patience + ASK + SLACK).await?;
    journey.end(None).await
}

/// A digest of each CD, read to its end from its drive.
async fn sums(journey: &Journey<'_>) -> Result<Vec<String>, Failure> {
    let cds = journey.settings.vm.drives.iter().filter(|drive| drive.content.is_cd()).count();
    let mut all = Vec::new();
    for number in 0..cds {
        let read = format!("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/sr{number} bs=1M 2>/dev/null | md5sum");
        all.push(sum_of(&in_guest(&journey.guest(), &read).await?));
    }
    Ok(all)
}

/// The guest finds these CDs in its drives.
async fn finds(journey: &Journey<'_>, wanted: &[String]) -> Result<(), Failure> {
    let found = sums(journey).await?;
    journey.party.expect(found == wanted, || {
        let report =
            Report::new(ErrorCode::DiskDamaged, "the guest does not find the CDs in its drives that are there");
        report.with("there", wanted.join(" ")).with("found", found.join(" "))
    })
}

/// A drive that is locked does not open because somebody asks: QEMU passes that on to the guest, and opens others at once.
async fn stays_shut(journey: &Journey<'_>) -> Result<(), Failure> {
    tray(journey, "blockdev-open-tray", DRIVES[0]).await?;
    if says(journey, DRIVES[0], "tray_open").await? {
        return Err(product(Report::new(ErrorCode::GuestStopped, "QEMU opened a drive that the guest has locked")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    #[test]
    fn the_cds_are_its_own_whatever_the_configuration_names() {
        let cds = |kind: &str| {
            let mut params = Params::new();
            for (key, value) in
                [("test_type", kind), ("cdroms", "cd1"), ("cdrom_cd1", "/mnt/orig.iso"), ("cdrom_size", "100")]
            {
                params.set(key, value, Origin { file: "-p".into(), line: 0 });
            }
            let Wanted { settings, .. } = read(&params).unwrap();
            settings.vm.drives.iter().map(|drive| (drive.content.clone(), drive.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(cds("test_multihost_copy"), [(DriveContent::Noise, 100 << 20)]);
        assert_eq!(cds("test_multihost_ejecting").len(), 2);
    }
}
