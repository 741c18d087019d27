//! A LUN of an iSCSI server: room for one disk, which is there already and has a length. QEMU reaches it by its own driver,
//! and so do we, by QEMU's tools: nothing is mounted or attached.
//!
//! **What protects a disk here.** The claim of a VM names the LUN, and the log gives it to one VM at a time. Between the two
//! hosts of a move it is the owner's record and the guard, as with Gluster: QEMU's driver takes no locks, the server looks at
//! nobody, and a machine that was frozen as a whole is not kept off.
//!
//! What a host that is cut off has sent is on its way longer than its VM lives: the kernel sends it again for minutes, for a
//! program that has ended too, and the server would write it to a LUN that is another VM's by then. So the kernel is told to
//! give it up sooner ([`gives_up_after`]).
//!
//! What may not happen here: a write to a LUN without such a claim. So a trial only reads.

use std::{path::Path, time::Duration};

use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    pool::IscsiPlace,
};

use super::{in_time, no_driver};
use crate::images::{
    inspect::{self, QEMU_IMG},
    tool::{Said, Tool},
};

/// How long a server may take to answer.
const ANSWERS: Duration = Duration::from_secs(25);
/// How long a write may take: less than a claim outlives its host, so that none comes when the LUN is another's.
const WRITES: Duration = Duration::from_secs(6);
/// How long what was written may be on its way, where the tool that wrote it has ended.
const IN_FLIGHT: Duration = Duration::from_secs(2);
/// QEMU's tool that does single reads.
const QEMU_IO: Tool = Tool { name: "qemu-io", ..QEMU_IMG };

/// A variable that has a program's connections to iSCSI servers broken by the kernel, with all that they have not delivered,
/// where the server acknowledges nothing for so long. The program connects again, and asks for the same again, if it lives.
pub(crate) fn gives_up_after(in_flight: Duration) -> (&'static str, String) {
    ("LIBISCSI_TCP_USER_TIMEOUT", in_flight.as_millis().to_string())
}

/// Its length, bytes.
///
/// # Errors
/// The server does not answer, has no such LUN, or QEMU has no driver for it.
pub(crate) async fn length(place: &IscsiPlace) -> Result<u64, Report> {
    let uri = place.to_string();
    in_time((place.server.as_str(), place), ANSWERS, async {
        let said = QEMU_IMG.run(&["info", "--output=json", "-f", "raw", &uri], None).await?;
        inspect::size_in(&said).ok_or_else(|| refused(place, &said))
    })
    .await
}

/// Writes a new overlay to its beginning; `most`: what that may grow to, bytes.
///
/// # Errors
/// The LUN is too short, or does not take it.
pub(super) async fn put(place: &IscsiPlace, overlay: &Path, most: u64) -> Result<(), Report> {
    let length = length(place).await?;
    if length < most {
        let title = format!("the LUN has {} MiB, and a disk of this image may need {}", length >> 20, most >> 20);
        return Err(Report::new(ErrorCode::DiskFull, title).with("pool", place.to_string()));
    }
    let raw = ImageFormat::Raw.name();
    let (from, to) = (overlay.display().to_string(), place.to_string());
    // Written through, for another host opens it next.
    let words = ["convert", "-n", "-t", "writeback", "-f", raw, "-O", raw, &from, &to];
    in_time((place.server.as_str(), place), WRITES, async {
        let said = QEMU_IMG.run_with(Some(gives_up_after(IN_FLIGHT)), &words, None).await?;
        if said.code == Some(0) { Ok(()) } else { Err(refused(place, &said)) }
    })
    .await
}

/// Tries it from this host, without a write.
///
/// # Errors
/// It cannot be read.
pub(super) async fn run_trial(place: &IscsiPlace) -> Result<Vec<String>, Report> {
    let uri = place.to_string();
    in_time((place.server.as_str(), place), ANSWERS, async {
        let length = length(place).await?;
        let said = QEMU_IO.run(&["-r", "-f", "raw", "-c", "read 0 64k", &uri], None).await?;
        if said.code != Some(0) {
            return Err(refused(place, &said));
        }
        Ok(vec![
            format!("a LUN of {} MiB, read through QEMU's own driver", length >> 20),
            "one VM at a time has it, by the log; nothing was written, for it may be a VM's just now".to_owned(),
            "no locks of QEMU's, and the server refuses no writer: the owner's record and the guard protect the disk here, \
             and a machine that was frozen as a whole is not kept off"
                .to_owned(),
        ])
    })
    .await
}

fn refused(place: &IscsiPlace, said: &Said) -> Report {
    no_driver(place, "QEMU of this host cannot use the LUN", &said.words())
}
