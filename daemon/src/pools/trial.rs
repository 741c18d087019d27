//! Whether a server can do what disks of VMs need of it, tried on this host: create, write, sync, read back, and above
//! all refuse a writer that is over. What another host wrote is read here.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Epoch,
    pool::NfsPlace,
};

use super::{
    in_time,
    nfs::{Handle, NfsError, ROOT, Share, Written},
    user_of,
};
use crate::images::trial::{is_like, room, trial_name};

/// How long a server may take for all of it.
const ANSWERS: Duration = Duration::from_secs(20);
/// Clocks that differ by less are told alike.
const SECONDS: u64 = 2;
/// Two writers, the second of which has taken over.
const BEFORE: Epoch = Epoch(1);
const AFTER: Epoch = Epoch(2);

/// Tries an export. `written`: name and text of a file that another host left there.
///
/// # Errors
/// Something does not work that disks need; the report names it.
pub(crate) async fn run(place: &NfsPlace, written: Option<&(String, String)>) -> Result<Vec<String>, Report> {
    in_time((place.server.as_str(), place), ANSWERS, async {
        let mut share = Share::open(place, ROOT).await.map_err(|error| error.report(place))?;
        let mut told = Vec::new();
        if let Some((name, text)) = written {
            reads(&mut share, place, name, text).await?;
            told.push("reads what another host wrote".to_owned());
        }
        let name = trial_name();
        if place.read_only {
            told.push(refuses_writes(&mut share, &name).await.map_err(|error| error.report(place))?);
            return Ok(told);
        }
        let made = share.create(&name, user_of(BEFORE)).await;
        let file = made.map_err(|error| {
            error
                .report(place)
                .help("export it with no_root_squash: disks are given to the user number of their writer")
        })?;
        let tried = tries(&mut share, place, &file).await;
        let removed = share.remove(&name).await;
        told.extend(tried?);
        removed.map_err(|error| error.report(place))?;
        let free = share.free().await.map_err(|error| error.report(place))?;
        told.push(room(free));
        Ok(told)
    })
    .await
}

/// Writes a file that other hosts are to read; returns its name and text. Removed by [`forget`].
pub(crate) async fn leave(place: &NfsPlace) -> Result<(String, String), Report> {
    in_time((place.server.as_str(), place), ANSWERS, async {
        let (name, text) = (trial_name(), format!("{:032x}", rand::random::<u128>()));
        let left = async {
            let mut share = Share::open(place, ROOT).await?;
            let file = share.create(&name, ROOT).await?;
            share.write(&file, 0, text.as_bytes(), true).await
        };
        left.await.map_err(|error| error.report(place))?;
        Ok((name, text))
    })
    .await
}

/// Removes what [`leave`] wrote.
pub(crate) async fn forget(place: &NfsPlace, name: &str) {
    let gone = async { Share::open(place, ROOT).await?.remove(name).await };
    if let Ok(Err(error)) = timeout(ANSWERS, gone).await {
        tracing::warn!(name, %error, "the trial of a pool has left a file there");
    }
}

async fn reads(share: &mut Share, place: &NfsPlace, name: &str, text: &str) -> Result<(), Report> {
    let not_seen = |title: &str| Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string());
    // Whatever another host says, it is the name of a trial.
    let found = if is_like(name) { share.find(name).await.map_err(|error| error.report(place))? } else { None };
    let file = found.ok_or_else(|| not_seen("what another host has written there is not seen here"))?;
    let mut bytes = vec![0; text.len()];
    share.read(&file, 0, &mut bytes).await.map_err(|error| error.report(place))?;
    if bytes == text.as_bytes() {
        Ok(())
    } else {
        Err(not_seen("it reads something else than another host has written"))
    }
}

/// An export that is read-only at the server refuses to make a file.
async fn refuses_writes(share: &mut Share, name: &str) -> Result<String, NfsError> {
    let names = share.names().await?.len();
    Ok(match share.create(name, ROOT).await {
        Err(NfsError::Refused { .. }) => format!("lists {names} names; the server refuses writes, as it should"),
        Err(error) => return Err(error),
        Ok(_) => {
            share.remove(name).await?;
            format!("lists {names} names; the server would take writes: only this cluster does not make any")
        }
    })
}

/// What is tried with a file that the first writer owns.
async fn tries(root: &mut Share, place: &NfsPlace, file: &Handle) -> Result<Vec<String>, Report> {
    let trouble = |error: NfsError| error.report(place);
    let mut told = Vec::new();
    let mut before = Share::open(place, user_of(BEFORE)).await.map_err(trouble)?;
    let mut after = Share::open(place, user_of(AFTER)).await.map_err(trouble)?;
    let text: Vec<u8> = (0..=255).cycle().take(3 * 4096).collect();
    let written = before.write(file, 0, &text, false).await.map_err(trouble)?;
    let synced = before.commit(file).await.map_err(trouble)?;
    if !matches!(written, Written::Held(boot) if boot != synced) {
        told.push("creates, writes and syncs".to_owned());
    } else {
        return Err(Report::new(
            ErrorCode::StorageFailed,
            "the server has lost what it was given, or was started anew",
        )
        .with("pool", place.to_string())
        .retryable());
    }
    let mut back = vec![0; text.len()];
    root.read(file, 0, &mut back).await.map_err(trouble)?;
    if back != text {
        let report = Report::new(ErrorCode::StorageFailed, "a file reads back as something else");
        return Err(report.with("pool", place.to_string()));
    }
    told.push("reads back; no cache of this host is between a guest and the server (as with cache=none)".to_owned());
    let seen = root.facts(file).await.map_err(trouble)?;
    fenced(&mut after, place, file).await?;
    root.give(file, user_of(AFTER), &seen).await.map_err(trouble)?;
    after.write(file, 0, b"!", true).await.map_err(trouble)?;
    fenced(&mut before, place, file).await?;
    told.push(
        "no locks of QEMU's: our own export protects disks, and the server refuses the writes of an epoch that is over"
            .to_owned(),
    );
    // What was seen before is not so any more: a host that was frozen meanwhile takes nothing back.
    if root.give(file, user_of(BEFORE), &seen).await.is_ok() {
        return Err(Report::new(
            ErrorCode::StorageFailed,
            "the server does not keep a late host from taking a disk back",
        )
        .with("pool", place.to_string())
        .with("because", "it does not look at the guard of SETATTR"));
    }
    told.push("a take-over that comes too late is refused".to_owned());
    told.push(clock(seen.written_unix));
    Ok(told)
}

/// A writer whose epoch is not the file's is refused.
async fn fenced(share: &mut Share, place: &NfsPlace, file: &Handle) -> Result<(), Report> {
    match share.write(file, 0, b"?", true).await {
        Err(error) if error.is_of_data() => Ok(()),
        Err(error) => Err(error.report(place)),
        Ok(_) => {
            let title = "the server takes writes of a host that may not write: nothing protects disks here";
            let report = Report::new(ErrorCode::StorageFailed, title).with("pool", place.to_string());
            Err(report.help("export it with no_root_squash and without all_squash"))
        }
    }
}

/// How the server's clock stands to this host's. Nothing depends on it but the dates of files.
fn clock(server: u32) -> String {
    let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match (u64::from(server), here) {
        (server, here) if server.abs_diff(here) <= SECONDS => "the server's clock agrees with this host's".to_owned(),
        (server, here) if server > here => format!("the server's clock is {} s ahead of this host's", server - here),
        (server, here) => format!("the server's clock is {} s behind this host's", here - server),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_told_by_how_far_it_is_off() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as u32;
        assert!(clock(now).contains("agrees"));
        assert!(clock(now - 3600).contains("behind") && clock(now + 3600).contains("ahead"));
    }
}
