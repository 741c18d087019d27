//! Evidence: what every attempt leaves on this host, and how the bundle of a job is put together.
//!
//! One directory an attempt, below `<data>/attempts`: `params.json`, `events.jsonl`, one folder a VM (command line,
//! stderr, serial log, one QMP transcript per incarnation), `migrations/` (samples as CSV, results as JSON), `checks/`,
//! `party-stderr.log`, `inventory-before.json` and `-after.json`. Files are only ever added; other hosts read them
//! through [`EvidenceStore::list`] and [`EvidenceStore::read`].
//!
//! What may not happen here: a decision about a case, or a file outside the directory.

pub mod bound;
pub mod files;
pub mod log;
pub mod samples;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use serde::Serialize;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Name},
    job::AttemptEvent,
};

pub use self::log::{EventLog, unix_ms};

/// The evidence of one attempt on this host.
#[derive(Debug)]
pub struct Evidence {
    /// Which attempt.
    pub attempt: AttemptId,
    dir: PathBuf,
    /// What happened.
    pub events: EventLog,
}

impl Evidence {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder below it, made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Writes a value as JSON for people, whole or not at all. A failure is said, and does not end the case.
    pub fn json(&self, path: &str, value: &impl Serialize) {
        let write = || -> io::Result<()> {
            let full = files::below(&self.dir, path).ok_or(io::ErrorKind::InvalidInput)?;
            if let Some(parent) = full.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut text = serde_json::to_vec_pretty(value)?;
            text.push(b'\n');
            files::write_whole(&full, &text)
        };
        if let Err(error) = write() {
            self.events.warn(format!("evidence {path} was not written: {error}"));
        }
    }
}

/// The evidence of all attempts on this host.
#[derive(Debug)]
pub struct EvidenceStore {
    root: PathBuf,
    host: Name,
    /// Attempts somebody holds; the last holder closes the file.
    open: Mutex<BTreeMap<AttemptId, Weak<Evidence>>>,
}

impl EvidenceStore {
    /// The store below `data`, for the host of that name.
    pub fn new(data: &Path, host: Name) -> Self {
        Self { root: data.join("attempts"), host, open: Mutex::new(BTreeMap::new()) }
    }

    fn dir(&self, attempt: AttemptId) -> PathBuf {
        self.root.join(attempt.to_string())
    }

    /// The evidence of an attempt, made where there is none.
    ///
    /// # Errors
    /// The directory or the log cannot be made.
    pub fn open(&self, attempt: AttemptId) -> io::Result<Arc<Evidence>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(evidence) = open.get(&attempt).and_then(Weak::upgrade) {
            return Ok(evidence);
        }
        let dir = self.dir(attempt);
        fs::create_dir_all(&dir)?;
        let events = EventLog::open(&dir.join("events.jsonl"), self.host.clone())?;
        let evidence = Arc::new(Evidence { attempt, dir, events });
        open.retain(|_, held| held.strong_count() > 0);
        open.insert(attempt, Arc::downgrade(&evidence));
        Ok(evidence)
    }

    /// Whether this host has any.
    pub fn has(&self, attempt: AttemptId) -> bool {
        self.dir(attempt).is_dir()
    }

    /// Events after `after`; waits up to `wait` for the first one. Empty where this host has no evidence.
    pub async fn events_after(&self, attempt: AttemptId, after: u64, wait: Duration) -> Vec<AttemptEvent> {
        if !self.has(attempt) {
            return Vec::new();
        }
        match self.open(attempt) {
            Ok(evidence) => evidence.events.events_after(after, wait.min(Duration::from_secs(5))).await,
            Err(error) => {
                tracing::warn!(%attempt, %error, "events cannot be read");
                Vec::new()
            }
        }
    }

    /// Files of an attempt: relative paths and sizes.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self, attempt: AttemptId) -> Result<Vec<(String, u64)>, Report> {
        files::list(&self.dir(attempt)).map_err(|error| unusable(attempt, "", &error))
    }

    /// A piece of such a file, at most [`files::PIECE_MAX`]; empty at its end.
    ///
    /// # Errors
    /// It is no file of this attempt, or cannot be read.
    pub fn read(&self, attempt: AttemptId, path: &str, offset: u64, length: u32) -> Result<Vec<u8>, Report> {
        files::read(&self.dir(attempt), path, offset, length).map_err(|error| unusable(attempt, path, &error))
    }
}

fn unusable(attempt: AttemptId, path: &str, error: &io::Error) -> Report {
    Report::new(ErrorCode::ResultsMissing, "evidence cannot be read")
        .with("attempt", attempt.to_string())
        .with("file", path)
        .with("system", error.to_string())
}

#[cfg(test)]
mod tests {
    use vt_protocol::ids::{CaseId, JobId};

    use super::*;

    #[tokio::test]
    async fn evidence_is_kept_over_a_restart_and_read_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = AttemptId { case: CaseId { job: JobId(77), index: 1 }, number: 1 };
        let host: Name = "host1".parse().unwrap();
        {
            let store = EvidenceStore::new(dir.path(), host.clone());
            assert!(!store.has(attempt));
            assert!(store.events_after(attempt, 0, Duration::ZERO).await.is_empty());
            assert!(!store.has(attempt), "looking makes nothing");
            let evidence = store.open(attempt).unwrap();
            evidence.events.say("before");
            evidence.json("checks/vm1.json", &serde_json::json!({"ok": true}));
            assert!(Arc::ptr_eq(&evidence, &store.open(attempt).unwrap()), "one writer of one file");
        }
        let store = EvidenceStore::new(dir.path(), host);
        store.open(attempt).unwrap().events.say("after");
        assert_eq!(store.events_after(attempt, 0, Duration::ZERO).await.len(), 2);
        let names: Vec<_> = store.list(attempt).unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(names, ["checks/vm1.json", "events.jsonl"]);
        assert!(store.read(attempt, "checks/vm1.json", 0, 100).unwrap().starts_with(b"{"));
        assert_eq!(store.read(attempt, "../x", 0, 1).unwrap_err().code, ErrorCode::ResultsMissing);
    }
}
