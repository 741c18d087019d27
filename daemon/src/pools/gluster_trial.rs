//! Whether a volume of Gluster can do what disks of VMs need of it, tried on this host and through QEMU's own driver, and what
//! protects a disk there. What another host wrote is read here.

use std::time::Duration;

use vt_protocol::{
    error::{ErrorCode, Report},
    pool::GlusterPlace,
};

use super::{
    gluster::{FREE, HEAD, PUT, REMOVE, errand},
    in_time, no_driver,
    opened::{OTHERWISE, Opened},
};
use crate::images::trial::{is_like, room, trial_name};

/// How long a server may take for all of it.
const ANSWERS: Duration = Duration::from_secs(25);
/// Length of the file that is written.
const LENGTH: usize = 64 << 10;

/// Tries a volume. `written`: name and text of a file that another host left there.
///
/// # Errors
/// Something does not work that disks need; the report names it.
pub(super) async fn run(place: &GlusterPlace, written: Option<&(String, String)>) -> Result<Vec<String>, Report> {
    in_time((place.server.as_str(), place), ANSWERS, async {
        let mut told = Vec::new();
        if let Some((name, text)) = written {
            // Whatever another host says, it is the name of a trial.
            let found = if is_like(name) { errand(place, HEAD, &[name], &[]).await? } else { String::new() };
            if found != *text {
                let title = "it reads something else than another host has written";
                return Err(Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string()));
            }
            told.push("reads what another host wrote".to_owned());
        }
        let name = trial_name();
        errand(place, PUT, &[&name], &[0; LENGTH]).await?;
        let tried = through_qemu(place, &name).await;
        let removed = errand(place, REMOVE, &[&name], &[]).await;
        told.extend(tried?);
        removed?;
        let free = errand(place, FREE, &[], &[]).await?;
        told.push(match free.trim().parse() {
            Ok(free) => room(free),
            Err(_) => "how much is free is not told".to_owned(),
        });
        Ok(told)
    })
    .await
}

/// Writes a file that other hosts are to read; returns its name and text. Removed by [`forget`].
pub(super) async fn leave(place: &GlusterPlace) -> Result<(String, String), Report> {
    in_time((place.server.as_str(), place), ANSWERS, async {
        let (name, text) = (trial_name(), format!("{:032x}", rand::random::<u128>()));
        errand(place, PUT, &[&name], text.as_bytes()).await?;
        Ok((name, text))
    })
    .await
}

/// Removes what [`leave`] wrote.
pub(super) async fn forget(place: &GlusterPlace, name: &str) {
    if let Err(report) = errand(place, REMOVE, &[name], &[]).await {
        tracing::warn!(name, %report, "the trial of a pool has left a file there");
    }
}

fn driver(place: &GlusterPlace, said: &str) -> Report {
    no_driver(place, "QEMU of this host cannot use the volume", said)
}

/// Two of QEMU's tools have one file open, as source and destination of a move do.
async fn through_qemu(place: &GlusterPlace, name: &str) -> Result<Vec<String>, Report> {
    let trouble = |said: String| driver(place, &said);
    let uri = format!("{place}/{name}");
    let open = || Opened::open(&uri);
    let mut first = open().await.map_err(trouble)?;
    first.does(&["write -P 1 0 64k", "flush", "read -P 1 0 64k"]).await.map_err(trouble)?;
    let mut told = vec!["creates, writes, syncs and reads back through QEMU's own driver".to_owned()];
    let mut second = match open().await {
        Ok(second) => second,
        Err(said) if said.contains("lock") => {
            told.push("a second writer is refused: QEMU's own locks protect disks here".to_owned());
            return Ok(told);
        }
        Err(said) => return Err(trouble(said)),
    };
    for command in ["write -P 2 0 64k", "flush"] {
        second.tell(command).await.map_err(trouble)?;
    }
    let late = first.tell("read -P 2 0 64k").await.map_err(trouble)?;
    if late.contains(OTHERWISE) {
        return Err(driver(place, "what one host writes another one reads too late, from a cache of its own")
            .help("gluster volume set VOLUME group virt   (at the server)"));
    }
    told.push("what one host writes another one reads at once".to_owned());
    told.push(
        "no locks of QEMU's, and the server refuses no writer: the owner's record and the guard protect disks here, \
         and a machine that was frozen as a whole is not kept off"
            .to_owned(),
    );
    Ok(told)
}
