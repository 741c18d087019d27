//! `floppy`: floppy disks that are written, or exchanged, while their guest moves.

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
    drives::{FLOPPY_BYTES, made},
    journey::{ASK, Journey, SLACK, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS},
    trays::{exchange, sum_of},
};
use crate::party::{Party, failure::caused};

/// QEMU's names of the drives, and of the disks in them at first.
const DRIVES: [&str; 2] = ["blk-fd0", "blk-fd1"];
const MEDIA: [&str; 2] = ["fd0", "fd1"];
/// Sectors of a disk that are filled where it is told by its content.
const FILLED: u32 = 64;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "floppy",
    summary: "moves a guest that writes a floppy disk, or whose floppy disks were exchanged",
    about: "The disks are made for the case. PASS by test_type. test_multihost_write: sectors are written one after another during \
            the move, the writer has got on at the destination, and what is on the disk is what it wrote. test_multihost_eject: two \
            disks are filled and exchanged between their drives; the guest finds each in the other drive, before the move and after \
            it, can write it there, and finds that after the move back. A guest whose kernel has no driver is SKIP: `vtctl image \
            build --recipe devices`, -p image=devices. Avocado-VT's test makes a file system, whose cache hides for a while what \
            became of the disk; here sectors are written, and read from the drive.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[("test_type", "test_multihost_write", "test_multihost_write or test_multihost_eject")],
    ],
    aliases: &[ALIASES],
    types: &[
        Called { kind: "floppy", when: &[("test_type", "test_multihost_write")] },
        Called { kind: "floppy", when: &[("test_type", "test_multihost_eject")] },
    ],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

fn read(params: &Params) -> Result<(Settings, bool), ParamError> {
    let eject = match params.text("test_type").map(str::trim).unwrap_or_default() {
        "" | "test_multihost_write" => false,
        "test_multihost_eject" => true,
        _ => return Err(params.error("test_type", "test_multihost_write or test_multihost_eject")),
    };
    // Those of the configuration are files of hosts that are not here.
    let mut settings = Settings::read(params)?;
    settings.vm.drives.retain(|drive| !drive.content.is_floppy());
    for name in ["empty1", "empty2"].into_iter().take(if eject { 2 } else { 1 }) {
        let name: Name = name.parse().map_err(|_| params.error("floppies", "names"))?;
        settings.vm.drives.push(made(name, DriveContent::Floppy(None), ImageFormat::Raw, FLOPPY_BYTES));
    }
    Ok((settings, eject))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, eject) = taken(party.params(), read)?;
    let journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        let (status, _) = journey.guest().run("[ -b /dev/fd0 ]", ASK).await?;
        if status != 0 {
            let title = "the kernel of the guest has no driver for floppy disks";
            let help = "vtctl image build --recipe devices, then -p image=devices";
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title).help(help)));
        }
    }
    party.barrier("has a driver", ASK + SLACK).await?;
    if eject { exchanged(journey).await } else { written(journey).await }
}

async fn written(mut journey: Journey<'_>) -> Result<Option<String>, Failure> {
    let (party, spec) = (journey.party, journey.settings.spec.clone());
    let mut mine = None;
    if journey.is_here() {
        let step = party.step("the guest writes the disk").await?;
        // One sector at a time, on the disk before it counts as written.
        let one = "printf \"%511s\\n\" $n >/tmp/sector; dd if=/tmp/sector of=/dev/fd0 bs=512 seek=$n conv=notrunc,fsync && \
                   cat /tmp/sector >>/tmp/written; n=$((n+1)); sleep 0.1";
        let all = format!("echo $$ >/tmp/writer; : >/tmp/written; n=0; while [ $n -lt 2880 ]; do {one}; done");
        in_guest(&journey.guest(), &format!("(sh -c '{all}' >/dev/null 2>&1 </dev/null &)")).await?;
        let begun =
            "n=0; while ! [ -s /tmp/written ] && [ $n -lt 60 ]; do n=$((n+1)); sleep 1; done; wc -c </tmp/written";
        mine = Some(number(&in_guest(&journey.guest(), begun).await?));
        step.done("").await?;
    }
    let told = party.exchange("being written", &mine, ASK * 2 + SLACK).await?;
    let before: u64 = told.into_iter().find_map(|(_, bytes)| bytes).unwrap_or_default();
    journey.go("while a disk is written", &spec).await?;
    if journey.is_here() {
        let step = party.step("the disk holds what was written").await?;
        let got_on = format!(
            "n=0; while [ $(wc -c </tmp/written) -le {before} ] && [ $n -lt 60 ]; do n=$((n+1)); sleep 1; done"
        );
        // Between two sectors, so that none is half counted.
        let end = "kill -STOP $(cat /tmp/writer) && sleep 2; wc -c </tmp/written";
        let bytes = number(&in_guest(&journey.guest(), &format!("{got_on}; {end}")).await?);
        let sectors = bytes / 512;
        let read = format!("dd if=/dev/fd0 bs=512 count={sectors} 2>/dev/null | md5sum");
        let read = sum_of(&in_guest(&journey.guest(), &format!("echo 3 >/proc/sys/vm/drop_caches; {read}")).await?);
        let kept = sum_of(&in_guest(&journey.guest(), "md5sum </tmp/written").await?);
        if bytes <= before || read != kept {
            let title = "the floppy disk does not hold what the guest wrote during the move";
            let report = Report::new(ErrorCode::DiskDamaged, title).with("sectors", sectors.to_string());
            return Err(product(report.with("written", kept).with("read", read)));
        }
        step.done(format!("{sectors} sectors, {} of them since", (bytes - before) / 512)).await?;
    }
    party.barrier("compared", ASK * 4 + SLACK).await?;
    journey.end(None).await
}

async fn exchanged(mut journey: Journey<'_>) -> Result<Option<String>, Failure> {
    let (party, spec) = (journey.party, journey.settings.spec.clone());
    let mut mine = None;
    if journey.is_here() {
        let step = party.step("disks exchanged").await?;
        fill(&journey, 0).await?;
        fill(&journey, 1).await?;
        let [first, second] = sums(&journey).await?;
        exchange(&journey, DRIVES, MEDIA, false).await?;
        let wanted = [second, first];
        finds(&journey, &wanted).await?;
        step.done(wanted.join(" ")).await?;
        mine = Some(wanted);
    }
    let told = party.exchange("exchanged", &mine, ASK * 6 + SLACK).await?;
    let wanted: [String; 2] = told.into_iter().find_map(|(_, sums)| sums).unwrap_or_default();
    journey.go("with the other disks", &spec).await?;
    let mut mine = None;
    if journey.is_here() {
        finds(&journey, &wanted).await?;
        fill(&journey, 0).await?;
        mine = Some(sums(&journey).await?);
    }
    let told = party.exchange("written there", &mine, ASK * 6 + SLACK).await?;
    let wanted: [String; 2] = told.into_iter().find_map(|(_, sums)| sums).unwrap_or_default();
    journey.go("back", &spec).await?;
    if journey.is_here() {
        finds(&journey, &wanted).await?;
    }
    journey.end(None).await
}

/// Writes noise to the beginning of the disk in a drive.
async fn fill(journey: &Journey<'_>, drive: usize) -> Result<(), Failure> {
    let write = format!("dd if=/dev/urandom of=/dev/fd{drive} bs=512 count={FILLED} conv=notrunc,fsync 2>/dev/null");
    in_guest(&journey.guest(), &write).await.map(drop)
}

/// Digests of the beginnings of both disks, read from their drives.
async fn sums(journey: &Journey<'_>) -> Result<[String; 2], Failure> {
    let mut sums = [String::new(), String::new()];
    for (drive, sum) in sums.iter_mut().enumerate() {
        let read = format!("dd if=/dev/fd{drive} bs=512 count={FILLED} 2>/dev/null | md5sum");
        *sum = sum_of(&in_guest(&journey.guest(), &format!("echo 3 >/proc/sys/vm/drop_caches; {read}")).await?);
    }
    Ok(sums)
}

/// The guest finds these disks in its drives.
async fn finds(journey: &Journey<'_>, wanted: &[String; 2]) -> Result<(), Failure> {
    let found = sums(journey).await?;
    journey.party.expect(found == *wanted, || {
        let title = "the guest does not find the floppy disks in its drives that are there";
        Report::new(ErrorCode::DiskDamaged, title).with("there", wanted.join(" ")).with("found", found.join(" "))
    })
}

/// The number that a line of shell has printed last.
fn number(said: &str) -> u64 {
    said.split_whitespace().filter_map(|word| word.parse().ok()).next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    #[test]
    fn the_disks_are_its_own_whatever_the_configuration_names() {
        let disks = |kind: &str| {
            let mut params = Params::new();
            for (key, value) in [("test_type", kind), ("floppies", "fl"), ("floppy_name", "images/test_floppy.img")] {
                params.set(key, value, Origin { file: "-p".into(), line: 0 });
            }
            read(&params).unwrap().0.vm.drives.into_iter().map(|drive| drive.content).collect::<Vec<_>>()
        };
        assert_eq!(disks("test_multihost_write"), [DriveContent::Floppy(None)]);
        assert_eq!(disks("test_multihost_eject").len(), 2);
        assert_eq!((number("12\n[ 3.4] floppy0: x\n1024\n"), number("nothing")), (1024, 0));
    }
}
