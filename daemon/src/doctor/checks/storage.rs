//! Directories and disks.

use std::time::Duration;

use vt_protocol::image::BUILTIN;

use super::{
    super::{
        repair::Repair,
        seen::{Folder, Seen, Use},
    },
    Said,
};

/// Less than this, and the log, an overlay disk or an image soon does not fit.
const SPACE_LITTLE: u64 = 1 << 30;
/// Less than this, and it does not now.
const SPACE_NONE: u64 = 64 << 20;
/// Every decision waits for such a write on most voters; a heartbeat is 400 ms.
const FSYNC_SLOW: Duration = Duration::from_millis(250);
/// A leader that stalls for longer may be replaced: the lower end of `election_ms` is 900.
const FSYNC_STALLS: Duration = Duration::from_millis(600);
/// Write access for anybody.
const ANYBODY: u32 = 0o002;
const STICKY: u32 = 0o1000;

fn named(folder: &Folder) -> String {
    format!("{} {}", folder.purpose.as_str(), folder.path.display())
}

/// All that is bad as one finding, or what is good.
fn together(bad: Vec<String>, good: impl Into<String>, make: fn(String) -> Said) -> Said {
    if bad.is_empty() { Said::ok(good) } else { make(bad.join("; ")) }
}

pub(super) fn there(seen: &Seen) -> Option<Said> {
    let missing: Vec<&Folder> = seen.folders.iter().filter(|folder| folder.mode.is_none()).collect();
    let said = together(
        missing.iter().map(|folder| format!("{} is not there", named(folder))).collect(),
        "all are there",
        // Shared ones are mounted; a host's own come with its first image and VM.
        if seen.fit.shared { Said::fail } else { Said::warn },
    );
    // Only the daemon makes its own: with the rights that a key needs.
    let made = missing.iter().filter(|folder| folder.purpose != Use::Data);
    Some(made.fold(said, |said, folder| said.repair(Repair::Make { path: folder.path.clone() })))
}

pub(super) fn permissions(seen: &Seen) -> Option<Said> {
    let (mut bad, mut repairs) = (Vec::new(), Vec::new());
    for folder in &seen.folders {
        let Some(mode) = folder.mode else { continue };
        let (wrong, wanted) = match folder.purpose {
            Use::Data => (mode & 0o077 != 0, mode & !0o077),
            Use::Images | Use::Disks => (mode & ANYBODY != 0 && mode & STICKY == 0, mode & !ANYBODY),
        };
        if wrong {
            let who = if folder.purpose == Use::Data { "others can look into" } else { "anybody can replace files of" };
            bad.push(format!("{who} {} (mode {mode:04o})", named(folder)));
            repairs.push(Repair::Mode { path: folder.path.clone(), mode: wanted });
        }
    }
    let said = together(bad, "nobody else can write", Said::fail);
    Some(repairs.into_iter().fold(said, Said::repair))
}

pub(super) fn trials(seen: &Seen) -> Option<Said> {
    let tried: Vec<_> = seen.folders.iter().filter_map(|folder| Some((folder, folder.trial.as_ref()?))).collect();
    if tried.is_empty() {
        return None;
    }
    let bad = tried.iter().filter_map(|(folder, trial)| {
        let why = trial.as_ref().err()?;
        Some(format!("{}: {why}", named(folder)))
    });
    let good: Vec<String> = tried
        .iter()
        .filter_map(|(folder, trial)| Some(format!("{}: {}", folder.purpose.as_str(), trial.as_ref().ok()?.join(", "))))
        .collect();
    Some(together(bad.collect(), good.join("; "), |found| {
        Said::fail(found).fix("findmnt -T DIRECTORY   (whether it is read-only), then vtctl storage check default")
    }))
}

pub(super) fn space(seen: &Seen) -> Option<Said> {
    let known: Vec<_> = seen.folders.iter().filter_map(|folder| Some((folder, folder.free?))).collect();
    let least = known.iter().map(|(_, free)| *free).min()?;
    let lines = |most: u64| {
        let little = known.iter().filter(move |(_, free)| *free < most);
        little.map(|(folder, free)| format!("{}: {} MiB are free", named(folder), free >> 20)).collect::<Vec<_>>()
    };
    let fix = |said: Said| {
        said.fix("vtctl image gc, and vtctl image delete what is not used")
            .fix("keep_days and keep_mib under [evidence] in the settings")
    };
    Some(match least {
        0..SPACE_NONE => fix(Said::fail(lines(SPACE_LITTLE).join("; "))),
        SPACE_NONE..SPACE_LITTLE => fix(Said::warn(lines(SPACE_LITTLE).join("; "))),
        _ => Said::ok(format!("at least {} MiB are free", least >> 20)),
    })
}

pub(super) fn fsync(seen: &Seen) -> Option<Said> {
    let took = seen.fsync?.median;
    let found = format!("a write of 4 KiB is safe after {} ms (median of some)", took.as_millis());
    Some(match took > FSYNC_SLOW {
        true => Said::warn(found)
            .fix("move the data directory to an SSD: data under [paths]; every decision waits for such a write"),
        false => Said::ok(found),
    })
}

pub(super) fn slowest_writes(seen: &Seen) -> Option<Said> {
    let p99 = seen.fsync?.p99;
    let found = format!("99 of 100 writes are safe after {} ms", p99.as_millis());
    Some(match p99 > FSYNC_STALLS {
        true => Said::warn(format!("{found}: one that takes so long delays every decision, and may cost the lead"))
            .fix("iostat -x 1   (what else keeps the disk busy); data under [paths] on a disk of its own"),
        false => Said::ok(found),
    })
}

pub(super) fn shared_blocks(seen: &Seen) -> Option<Said> {
    let (folder, shares) = seen.folders.iter().find_map(|folder| Some((folder, folder.shares_blocks?)))?;
    Some(match shares {
        true => Said::ok(format!("copies in {} share them", folder.path.display())),
        false => Said::note(format!("a copy in {} takes as much room as what it is made of", folder.path.display()))
            .fix("a file system that shares them: mkfs.xfs -m reflink=1, or Btrfs, mounted there"),
    })
}

pub(super) fn image(seen: &Seen) -> Option<Said> {
    Some(match seen.builtin_image {
        true => Said::ok(format!("{BUILTIN} is in the pool")),
        false => {
            Said::note(format!("{BUILTIN}, which scenarios boot where they are told no other, is not in the pool"))
                .fix("vtctl image build, then vtctl image import")
        }
    })
}

pub(super) fn pools(seen: &Seen) -> Option<Said> {
    let pools = &seen.member.as_ref()?.pools;
    if pools.is_empty() {
        return None;
    }
    let bad = pools.iter().filter_map(|(name, trial)| Some((name, trial.as_ref().err()?)));
    let said = together(
        bad.clone().map(|(name, why)| format!("{name}: {why}")).collect(),
        format!("{} of them do what images and disks need", pools.len()),
        Said::fail,
    );
    Some(bad.fold(said, |said, (name, _)| said.fix(format!("vtctl storage check {name}   (from every host)"))))
}
