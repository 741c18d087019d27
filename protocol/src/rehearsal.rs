//! What a debug build pretends, so that tests can show what is rare: a clock that is wrong, a build of another age.
//!
//! A release build reads nothing of it: what it says of its clock and its protocol is true.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::version::{SPOKEN, VersionRange};

/// Seconds since 1970 by this machine's clock; in a debug build as many ahead as `VTMESH_REHEARSE_CLOCK_S` says.
pub fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ahead = pretended("VTMESH_REHEARSE_CLOCK_S").and_then(|text| text.parse().ok()).unwrap_or(0);
    now.saturating_add_signed(ahead)
}

/// The protocol versions this build speaks; in a debug build those of `VTMESH_REHEARSE_WIRE`, such as `1-2`.
pub fn spoken() -> VersionRange {
    let range = pretended("VTMESH_REHEARSE_WIRE").and_then(|text| {
        let (oldest, newest) = text.split_once('-')?;
        Some(VersionRange { oldest: oldest.parse().ok()?, newest: newest.parse().ok()? })
    });
    range.unwrap_or(SPOKEN)
}

fn pretended(name: &str) -> Option<String> {
    if cfg!(debug_assertions) { std::env::var(name).ok() } else { None }
}
