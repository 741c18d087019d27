//! What is on disk about a party, so that a daemon that comes back knows what to watch and what to end.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    ids::{AttemptId, Epoch, HostId, Name},
    job::PlannedCase,
    party::Finish,
    scenario::ScenarioText,
};

use crate::{evidence::files::write_whole, qemu::process::ProcessId};

/// A party of this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartyRecord {
    /// Its attempt.
    pub attempt: AttemptId,
    /// The attempt's epoch.
    pub epoch: Epoch,
    /// The log index at which this host saw it: an older state says nothing about its end.
    pub seen: u64,
    /// Its hosts with their names, host1 first.
    pub hosts: Vec<(HostId, Name)>,
    /// Name of the scenario.
    pub scenario: String,
    /// What is to be done.
    pub case: PlannedCase,
    /// How long the case may take, ms.
    pub timeout_ms: u64,
    /// What the party has to show.
    pub secret: String,
    /// When it was begun, ms since 1970 by this host's clock: for the case's time limit.
    pub begun_unix_ms: u64,
    /// Its process; `None` before it was started.
    pub process: Option<ProcessId>,
    /// What it told at its end.
    pub finish: Option<Finish>,
    /// What existed on this host before it.
    pub before: Vec<String>,
    /// What it holds stays after its end until the job is released.
    #[serde(default)]
    pub keep: bool,
    /// The scenario itself, where it is no built-in one.
    #[serde(default)]
    pub file: Option<ScenarioText>,
}

impl PartyRecord {
    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_whole(path, &serde_json::to_vec_pretty(self)?)
    }

    /// All records of a folder. One that cannot be read is said and left out.
    pub fn all(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut all = Vec::new();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json")) {
            match fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|b| serde_json::from_slice::<Self>(&b).map_err(|e| e.to_string()))
            {
                Ok(record) => all.push(record),
                Err(error) => tracing::warn!(path = %path.display(), error, "a party's record cannot be read"),
            }
        }
        all.sort_by_key(|record| record.attempt);
        all
    }
}
