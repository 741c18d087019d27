//! A pool of a Ceph: an image of RBD for each disk. QEMU reaches it by its own driver; what is ours to do there is Ceph's own
//! tool's.
//!
//! **What protects a disk here.** Who writes an image has its exclusive lock. A host that becomes the owner of a VM breaks the
//! lock that it finds, before the guest runs ([`take`]), and Ceph blocklists its holder for that: from then on the servers refuse
//! whatever the host before it still sends, also from a machine that was frozen as a whole, for as long as Ceph keeps it on
//! its list (an hour, by default). A holder that answers would give the lock away by itself and could have it back; one that is
//! blocklisted cannot.
//!
//! What may not happen here: a secret in a word of a command. Where Ceph wants one, its own files on the host have it.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, sleep};
use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    pool::RbdPlace,
};

use super::{
    in_time, no_driver,
    opened::{FAILED, Opened},
};
use crate::images::{
    inspect::QEMU_IMG,
    tool::{Said, Tool},
    trial::{is_like, trial_name},
};

/// How long a server may take to answer.
const ANSWERS: Duration = Duration::from_secs(25);
/// How long until an image is removed: who was killed is taken to watch it for half a minute.
const REMOVES: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);
const RBD: Tool =
    Tool { name: "rbd", package: "ceph-common", missing: ErrorCode::StorageFailed, patience: Duration::from_secs(60) };
/// What it ends with where there is no such image, and where somebody has it open.
const ABSENT: i32 = 2;
const BUSY: i32 = 16;
/// Length of the image of a trial, MiB.
const TRIAL_MIB: u64 = 4;

/// A lock of an image.
#[derive(Debug, Deserialize)]
struct Lock {
    id: String,
    locker: String,
}

/// An image, as QEMU's driver has it.
pub(super) fn uri(place: &RbdPlace, file: &str) -> String {
    // A colon ends a value there.
    let monitor = place.monitor().replace(':', "\\:");
    let who = match &place.user {
        Some(user) => format!("id={user}"),
        None => "auth_client_required=none".to_owned(),
    };
    format!("rbd:{}/{file}:mon_host={monitor}:{who}", place.pool)
}

async fn rbd(place: &RbdPlace, words: &[&str]) -> Result<Said, Report> {
    let monitor = place.monitor();
    let who = match &place.user {
        Some(user) => ["--id", user],
        None => ["--auth_client_required", "none"],
    };
    let all = [&["-m", monitor.as_str()][..], &who, &["-p", &place.pool], words].concat();
    RBD.run(&all, None).await
}

/// The same; it has to work.
async fn done(place: &RbdPlace, words: &[&str]) -> Result<Said, Report> {
    let said = rbd(place, words).await?;
    if said.code == Some(0) {
        return Ok(said);
    }
    let title = format!("pool {} of the Ceph at {} cannot be used", place.pool, place.server);
    Err(Report::new(ErrorCode::StorageFailed, title)
        .with("pool", place.to_string())
        .with("said", super::opened::quote(&said.err))
        .help("ceph -s   (where Ceph is administered)"))
}

/// Makes an image of so many bytes that begins with a new overlay. One left from before is replaced.
pub(super) async fn put(place: &RbdPlace, file: &str, overlay: &Path, bytes: u64) -> Result<(), Report> {
    remove(place, file).await?;
    in_time((place.server.as_str(), place), ANSWERS, async {
        make(place, file, bytes.div_ceil(1 << 20)).await?;
        let raw = ImageFormat::Raw.name();
        let (from, to) = (overlay.display().to_string(), uri(place, file));
        let said = QEMU_IMG.run(&["convert", "-n", "-t", "writeback", "-f", raw, "-O", raw, &from, &to], None).await?;
        if said.code == Some(0) { Ok(()) } else { Err(refused(place, &said.words())) }
    })
    .await
}

/// An empty image, which only the holder of its lock may write.
async fn make(place: &RbdPlace, file: &str, mib: u64) -> Result<(), Report> {
    let size = format!("{mib}M");
    done(place, &["create", "--size", &size, "--image-feature", "layering,exclusive-lock", file]).await.map(drop)
}

/// Removes an image, if it is there.
pub(super) async fn remove(place: &RbdPlace, file: &str) -> Result<(), Report> {
    let until = Instant::now() + REMOVES;
    loop {
        let words = ["rm", "--no-progress", file];
        let said = in_time((place.server.as_str(), place), ANSWERS, rbd(place, &words)).await?;
        match said.code {
            Some(0 | ABSENT) => return Ok(()),
            // Nobody writes what is to go: who has its lock has ended, or should have.
            Some(BUSY) if Instant::now() < until => {
                take(place, file).await?;
                sleep(AGAIN).await;
            }
            _ => return done(place, &words).await.map(drop),
        }
    }
}

/// All names.
pub(super) async fn names(place: &RbdPlace) -> Result<Vec<String>, Report> {
    let said = in_time((place.server.as_str(), place), ANSWERS, done(place, &["ls"])).await?;
    Ok(String::from_utf8_lossy(&said.out).lines().map(str::to_owned).collect())
}

/// Takes an image away from whoever has its lock, whose writes are refused from the answer on.
///
/// # Errors
/// The server does not answer, or does not do it.
pub(crate) async fn take(place: &RbdPlace, file: &str) -> Result<(), Report> {
    in_time((place.server.as_str(), place), ANSWERS, async {
        let said = done(place, &["lock", "ls", "--format", "json", file]).await?;
        let locks: Vec<Lock> = serde_json::from_slice(&said.out).map_err(|error| {
            let title = format!("what Ceph says of the locks of {file} is not understood");
            Report::new(ErrorCode::StorageFailed, title).caused_by(&error)
        })?;
        for Lock { id, locker } in locks {
            // One that was given away meanwhile was given to nobody who writes: the guest does not run yet.
            match rbd(place, &["lock", "rm", file, &id, &locker]).await?.code {
                Some(0 | ABSENT) => {}
                _ => drop(done(place, &["lock", "rm", file, &id, &locker]).await?),
            }
        }
        Ok(())
    })
    .await
}

fn refused(place: &RbdPlace, said: &str) -> Report {
    no_driver(place, "QEMU of this host cannot use the pool of Ceph", said)
}

/// Writes an image that other hosts are to read; returns its name and what it is filled with. Removed by [`forget`].
pub(super) async fn leave(place: &RbdPlace) -> Result<(String, String), Report> {
    let (name, fill) = (trial_name(), 1 + rand::random::<u8>() % 255);
    in_time((place.server.as_str(), place), ANSWERS, async {
        make(place, &name, TRIAL_MIB).await?;
        let written =
            async { Opened::open(&uri(place, &name)).await?.does(&[&format!("write -P {fill} 0 64k"), "flush"]).await };
        written.await.map_err(|said| refused(place, &said))?;
        Ok((name.clone(), fill.to_string()))
    })
    .await
}

/// Removes what [`leave`] wrote.
pub(super) async fn forget(place: &RbdPlace, name: &str) {
    let removed = async {
        take(place, name).await?;
        remove(place, name).await
    };
    if let Err(report) = removed.await {
        tracing::warn!(name, %report, "the trial of a pool has left an image there");
    }
}

/// Tries it from this host. `written`: name and filling of an image that another host left there.
///
/// # Errors
/// Something does not work that disks need; the report names it.
pub(super) async fn run_trial(place: &RbdPlace, written: Option<&(String, String)>) -> Result<Vec<String>, Report> {
    let mut told = Vec::new();
    if let Some((name, fill)) = written {
        let other = || {
            let title = "it reads something else than another host has written";
            Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string())
        };
        // Whatever another host says, it is the name of a trial, and a number.
        let fill: u8 = fill.parse().ok().filter(|_| is_like(name)).ok_or_else(other)?;
        let reads = async { Opened::open(&uri(place, name)).await?.does(&[&format!("read -P {fill} 0 64k")]).await };
        let read = in_time((place.server.as_str(), place), ANSWERS, async { Ok(reads.await) }).await?;
        read.map_err(|said| other().with("said", said))?;
        told.push("reads what another host wrote".to_owned());
    }
    let name = trial_name();
    let tried = in_time((place.server.as_str(), place), ANSWERS, async {
        make(place, &name, TRIAL_MIB).await?;
        through_qemu(place, &name).await
    });
    let tried = tried.await;
    forget(place, &name).await;
    told.extend(tried?);
    Ok(told)
}

/// Two of QEMU's tools have one image open, as source and destination of a move do, and the second takes it over.
async fn through_qemu(place: &RbdPlace, name: &str) -> Result<Vec<String>, Report> {
    let trouble = |said: String| refused(place, &said);
    let uri = uri(place, name);
    let mut first = Opened::open(&uri).await.map_err(trouble)?;
    first.does(&["write -P 1 0 64k", "flush", "read -P 1 0 64k"]).await.map_err(trouble)?;
    let mut second = Opened::open(&uri).await.map_err(trouble)?;
    take(place, name).await?;
    second.does(&["read -P 1 0 64k", "write -P 2 0 64k", "flush"]).await.map_err(trouble)?;
    let late = first.tell("write -P 3 0 64k").await.unwrap_or_else(|_| FAILED.to_owned());
    if !late.contains(FAILED) {
        let title = "the servers take a write from one whose lock was broken: nothing keeps a second writer off";
        return Err(Report::new(ErrorCode::StorageFailed, title)
            .with("pool", place.to_string())
            .help("rbd_blocklist_on_break_lock = true   (in ceph.conf of the hosts)"));
    }
    second.does(&["read -P 2 0 64k"]).await.map_err(trouble)?;
    Ok(vec![
        "creates, writes, syncs and reads back through QEMU's own driver".to_owned(),
        "what one host writes another one reads at once".to_owned(),
        "a writer whose lock was broken is refused by the servers: Ceph's exclusive lock and blocklist protect disks here, \
         also from a machine that was frozen as a whole"
            .to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_of_an_address_ends_no_word_of_the_driver() {
        let place = RbdPlace::parse("rbd://10.0.0.6:6789/disks").unwrap();
        assert_eq!(uri(&place, "a.qcow2"), "rbd:disks/a.qcow2:mon_host=10.0.0.6\\:6789:auth_client_required=none");
        let place = RbdPlace::parse("rbd://[fd00::6]/disks?user=lab").unwrap();
        assert_eq!(uri(&place, "a.qcow2"), "rbd:disks/a.qcow2:mon_host=[fd00\\:\\:6]:id=lab");
    }
}
