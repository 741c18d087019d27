//! Drives with media that come out: what QEMU says of them, and their media exchanged, by QEMU's own names.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    party::Failure,
};

use super::journey::{Journey, product};
use crate::party::our_fault;

/// How long a drive may take to do what the guest wants.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Has QEMU do something with a drive's tray, or with what is in it.
pub(super) async fn tray(journey: &Journey<'_>, command: &str, drive: &str) -> Result<(), Failure> {
    journey.monitor(command, json!({ "id": drive })).await.map(drop)
}

/// Puts the medium of each of two drives into the other one, and has the next destination begin so. `trays`: they have some,
/// which are open.
pub(super) async fn exchange(
    journey: &Journey<'_>,
    drives: [&str; 2],
    media: [&str; 2],
    trays: bool,
) -> Result<(), Failure> {
    for drive in drives {
        tray(journey, "blockdev-remove-medium", drive).await?;
    }
    let mut words = Vec::new();
    for (drive, medium) in drives.into_iter().zip(media.into_iter().rev()) {
        journey.monitor("blockdev-insert-medium", json!({"id": drive, "node-name": medium})).await?;
        if trays {
            tray(journey, "blockdev-close-tray", drive).await?;
        }
        words.extend(["-set".to_owned(), format!("device.{drive}.drive={medium}")]);
    }
    journey.party.vm(journey.vm.clone()).reshape(words).await
}

/// Waits until QEMU says that of a drive.
pub(super) async fn until(journey: &Journey<'_>, drive: &str, key: &str, wanted: bool) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while says(journey, drive, key).await? != wanted {
        if Instant::now() >= until {
            let title = format!("{key} of drive {drive} did not become {wanted} within {} s", PATIENCE.as_secs());
            return Err(product(Report::new(ErrorCode::GuestStopped, title)));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// What QEMU says of a drive: `locked`, `tray_open`.
pub(super) async fn says(journey: &Journey<'_>, drive: &str, key: &str) -> Result<bool, Failure> {
    let blocks = journey.monitor("query-block", Value::Null).await?;
    let is_it = |block: &&Value| block["qdev"].as_str().is_some_and(|path| path.ends_with(drive));
    let Some(block) = blocks.as_array().into_iter().flatten().find(is_it) else {
        let report = Report::new(ErrorCode::Internal, format!("QEMU has no drive {drive}"));
        return Err(our_fault(report.with("query-block", blocks.to_string())));
    };
    // QEMU leaves out a tray that is shut.
    Ok(block[key].as_bool().unwrap_or(false))
}

/// The digest that a guest has printed; its kernel may have said something on the same console.
pub(super) fn sum_of(said: &str) -> String {
    let is_sum = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    said.split_whitespace().find(is_sum).unwrap_or("unreadable").to_owned()
}
