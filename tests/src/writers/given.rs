//! An image that goes to another writer by the decisions of real daemons, while the host of the first is cut off and its guest
//! writes: with its guest, in a move ([`by_move`]), or, where one disk is for all, to another guest ([`by_claim`]).
//!
//! What the guests' own logs of their disks say is in the verdict of their cases; the watcher looks at the image.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use vt_protocol::{chance, ids::AttemptId};
use vt_sync::mutation::Mutation;

use super::{
    Margin, Trouble,
    image::{ImageWatcher, Late, Writer, until},
};
use crate::faults::{
    cell::{Cell, Fault, Length, PHASES, Part, Phase},
    ground::{Cast, Ground},
    job::Job,
    play::{Found, play_and_tell},
};

/// Until a guest is up and writes.
const BOOTS: Duration = Duration::from_secs(180);
/// Until the disk of a host that is cut off is another one's.
const GIVEN: Duration = Duration::from_secs(120);
/// Until a case that goes to and fro has ended.
const ENDS: Duration = Duration::from_secs(300);
/// So long after it was cut off a host has sent again what was on its way, each time twice as long after the time before: also
/// what a program sent that has ended.
const SENT_AGAIN: Duration = Duration::from_secs(28);
/// What a LUN that is another VM's is refused with.
const HELD: &str = "has the disk of pool";

/// Kinds of pools, as they are named: at servers, and folders that hosts share or have each.
pub const KINDS: [&str; 5] = ["nfs", "gluster", "iscsi", "shared", "separate"];

/// What a move has shown.
#[derive(Debug)]
pub struct Moved {
    /// The cell that was played.
    pub found: Found,
    /// What came too late, by the watcher of the image.
    pub late: Vec<Late>,
}

impl Moved {
    /// Whether there was one writer at a time, and everything else was as promised.
    pub fn is_green(&self) -> bool {
        self.found.green() && self.late.is_empty()
    }
}

/// What an image that was given to another guest has shown.
#[derive(Debug)]
pub struct Given {
    /// Records of the first guest that were seen, and of the second.
    pub records: (u64, u64),
    /// How long after the trouble began the image was the second's.
    pub after: Duration,
    /// What came too late, by the watcher of the image.
    pub late: Vec<Late>,
    /// The verdict of the second guest's case, which reads its records back after each of its moves.
    pub verdict: String,
}

impl Given {
    /// Whether there was one writer at a time.
    pub fn is_green(&self) -> bool {
        self.late.is_empty() && self.verdict == "pass" && self.records.0 > 0 && self.records.1 > 0
    }
}

/// A lab whose guests have their disks in a pool of that kind. Without its margin: as `trouble` can show it.
///
/// # Errors
/// There is no such kind, or the lab cannot be watched.
///
/// # Panics
/// The lab cannot be made.
pub fn ground(kind: &str, trouble: Trouble, margin: Margin) -> anyhow::Result<Ground> {
    let out = margin == Margin::TakenOut;
    let ground = match (kind, trouble) {
        // What is on its way is sent again for as long as the kernel has patience.
        ("iscsi", Trouble::CutOff) if out => Ground::with_variable("LIBISCSI_TCP_USER_TIMEOUT", "0")?,
        ("iscsi", _) if out => Ground::new(None, Some(Mutation::MarginZero.name()))?,
        ("separate", _) => Ground::separate(out.then_some(Mutation::RunsTwice.name()))?,
        _ => Ground::new(None, out.then_some(Mutation::RunsTwice.name()))?,
    };
    match kind {
        "separate" => {
            let tiny = "/var/lib/vtmesh/images/tiny";
            ground.lab().vtctl(&["image", "import", tiny, "--host", "host1"]).expect(0);
            Ok(ground)
        }
        "shared" => Ok(ground),
        _ => ground.with_pool(kind),
    }
}

/// The host that has a guest is cut off for longer than its session lasts, somewhere in a move of it.
///
/// # Errors
/// The image cannot be watched.
pub fn by_move(ground: &mut Ground, seed: u64, phase: Phase) -> anyhow::Result<Moved> {
    let cell = Cell { fault: Fault::CutHost(Part::Source), phase };
    // A seed of the table of faults, of those that cut it off for so long.
    let seed = (seed * 1000..).find(|seed| cell.length(*seed) == Length::Long).context("a seed")?;
    let watcher = ImageWatcher::start(ground.disk_places())?;
    let found = play_and_tell(ground, cell, seed, &mut |job| watcher.know(writer(job)));
    Ok(Moved { found, late: watcher.late() })
}

/// The phases of a move in which the host of the first is cut off, seed by seed.
pub fn phase(seed: u64) -> Phase {
    let before_postcopy = PHASES.into_iter().filter(|phase| !phase.is_postcopy() && *phase >= Phase::Transferring);
    let phases: Vec<Phase> = before_postcopy.collect();
    phases[(seed % phases.len() as u64) as usize]
}

fn writer(job: &Job) -> Writer {
    let attempt: AttemptId = job.attempt.parse().expect("made of a job's id");
    Writer::of(&attempt)
}

/// The host of a guest is cut off while it writes; its disk, which is there once for all, goes to another guest as soon as the
/// log gives it away, and what becomes of the first one's writes is watched until they would have been sent again.
///
/// # Errors
/// Something did not run as it should.
///
/// # Panics
/// The lab does not answer.
pub fn by_claim(ground: &Ground, seed: u64, trouble: Trouble) -> anyhow::Result<Given> {
    chance::seed(Some(seed));
    let draw = |below: u64| chance::number() % below;
    // Not host1, which answers for the lab. Whoever leads.
    let [source, destination] = if seed.is_multiple_of(2) { ["host2", "host3"] } else { ["host3", "host2"] };
    let first_cast = cast(source, destination);
    let watcher = ImageWatcher::start(ground.disk_places())?;
    let pool = ground.pool_param().context("no pool")?;

    // It stays at its source, for its destination does not come.
    ground.hold(destination, "barrier-before")?;
    let first = Job::submit(ground, &first_cast, &["-p", &pool])?;
    let (one, enough) = (writer(&first), 1 + draw(100));
    watcher.know(one);
    until("records of the first guest", BOOTS, || Ok(watcher.count(one) >= enough))?;
    let begun = Instant::now();
    match trouble {
        Trouble::Unaware => ground.leave_alone_with_its_disk(source)?,
        Trouble::CutOff => drop(ground.lab().vtctl(&["lab", "partition", source]).expect(0)),
        Trouble::Frozen => bail!("nothing keeps a machine off that was frozen as a whole"),
    }
    ground.let_go()?;

    let second = claims(ground, &cast("host1", destination), &pool)?;
    let (two, after) = (writer(&second), begun.elapsed());
    watcher.give(two);
    watcher.know(two);
    until("records of the second guest", BOOTS, || Ok(watcher.count(two) > 0))?;
    match trouble {
        Trouble::Unaware => ground.let_be_heard(source)?,
        _ => drop(ground.lab().vtctl(&["lab", "heal"]).expect(0)),
    }
    until("what was on its way", SENT_AGAIN * 2, || Ok(begun.elapsed() > SENT_AGAIN))?;
    let shown = second.ends(ground, ENDS)?;
    let verdict = shown["cases"][0]["verdict"].as_str().unwrap_or("none").to_owned();
    let given = Given { records: (watcher.count(one), watcher.count(two)), after, late: watcher.late(), verdict };
    first.ends(ground, ENDS)?;
    ground.lab().wait_for_live(crate::faults::ground::HOSTS as usize);
    Ok(given)
}

fn cast(source: &str, destination: &str) -> Cast {
    Cast { source: source.to_owned(), destination: destination.to_owned(), leader: "host1".to_owned() }
}

/// Asks for the disk until a guest of those hosts has it.
fn claims(ground: &Ground, cast: &Cast, pool: &str) -> anyhow::Result<Job> {
    let begun = Instant::now();
    loop {
        // It goes to and fro for longer than what is on its way is waited for.
        let job = Job::submit_until_taken(ground, cast, &["-p", pool, "-p", "migrate_count=5"], GIVEN)?;
        let mut refused = None;
        until("the disk to be given away", GIVEN, || {
            let writers = ground.lab().json(&["image", "writers"]);
            let vms = writers["writers"].as_array().into_iter().flatten().filter_map(|writer| writer["vm"].as_str());
            if vms.into_iter().any(|vm| vm.starts_with(&job.attempt)) {
                return Ok(true);
            }
            let shown = ground.lab().json(&["job", "show", &job.id]);
            refused = (shown["state"] == "done").then(|| shown["cases"][0]["cause"].to_string());
            Ok(refused.is_some())
        })?;
        match refused {
            None => return Ok(job),
            Some(why) => {
                ensure!(why.contains(HELD), "{why}");
                ensure!(begun.elapsed() < GIVEN, "still refused after {} s: {why}", GIVEN.as_secs());
            }
        }
    }
}
