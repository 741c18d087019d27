//! Who did what on this host: every request that changes something, and everyone who was refused.
//!
//! Two journals, so that a flood of refusals pushes out refusals only. Both are bounded on disk; refusals are bounded in
//! time as well, and what was too much is counted. A journal that cannot be written is told to the log of the daemon and
//! stops nothing. Nothing secret is written: requests say themselves what they are about.

mod journal;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use vt_protocol::{
    audit::{AuditEntry, AuditQuery, ENTRIES_MAX, Outcome, TEXT_MAX},
    identity::subject::role_name,
    ids::Name,
};

use self::journal::Journal;
use crate::mesh::Caller;

/// Files of each journal, the one that is written to included, and how large each gets.
const ACTION_FILES: usize = 8;
const REFUSAL_FILES: usize = 4;
const FILE_BYTES: u64 = 1 << 20;
/// Refusals written down in one second.
const REFUSALS_PER_S: u64 = 20;

/// Who asked, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    who: Who,
    from: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    /// A user of this machine: the name is looked up when it is written.
    User(u32),
    Named(String),
}

impl Actor {
    /// The caller of a request.
    pub fn caller(caller: &Caller) -> Self {
        match caller {
            Caller::Local { uid, .. } => Self { who: Who::User(*uid), from: "local".to_owned() },
            Caller::Remote { name, role, address } => {
                Self::named(format!("client {name} ({})", role_name(*role)), address.to_string())
            }
        }
    }

    /// Somebody else: what is known of him.
    pub fn named(who: impl Into<String>, from: impl Into<String>) -> Self {
        Self { who: Who::Named(who.into()), from: from.into() }
    }

    fn who(&self) -> String {
        match &self.who {
            Who::Named(who) => who.clone(),
            Who::User(uid) => match user_name(*uid) {
                Some(name) => format!("uid {uid} ({name})"),
                None => format!("uid {uid}"),
            },
        }
    }
}

/// The name of a user of this host, where it has one.
pub fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// What was wanted, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// As vtctl calls it.
    pub verb: String,
    /// Of what.
    pub object: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The result's id, or the reason.
    pub detail: String,
}

/// An entry as it is stored: one JSON object a line, in which whatever a name holds is escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    at_unix_ms: u64,
    who: String,
    from: String,
    verb: String,
    object: String,
    outcome: Outcome,
    detail: String,
    #[serde(default)]
    unwritten: u64,
}

/// The audit trail of this host.
#[derive(Debug)]
pub struct Audit {
    actions: Mutex<Journal>,
    refusals: Mutex<Journal>,
    rate: Mutex<Rate>,
}

impl Audit {
    /// The trail in `dir`, which is made at the first entry.
    pub fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            actions: Mutex::new(Journal::new(dir, "actions", ACTION_FILES, FILE_BYTES)),
            refusals: Mutex::new(Journal::new(dir, "refusals", REFUSAL_FILES, FILE_BYTES)),
            rate: Mutex::default(),
        })
    }

    /// Writes down what was done, or was allowed and did not happen.
    pub async fn action(self: &Arc<Self>, actor: Actor, deed: Deed) {
        self.write(actor, deed, 0, true).await;
    }

    /// Writes down that somebody was refused. Over [`REFUSALS_PER_S`] it is only counted.
    pub async fn refusal(self: &Arc<Self>, actor: Actor, verb: &str, object: &str, reason: &str) {
        let second = now_ms() / 1000;
        let Some(unwritten) = self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(second) else { return };
        // Nor does a flood fill the log of the daemon.
        tracing::info!(who = ?actor.who, from = actor.from, verb, object, reason, unwritten, "refused");
        let deed = Deed {
            verb: verb.to_owned(),
            object: object.to_owned(),
            outcome: Outcome::Denied,
            detail: reason.to_owned(),
        };
        self.write(actor, deed, unwritten, false).await;
    }

    async fn write(self: &Arc<Self>, actor: Actor, deed: Deed, unwritten: u64, action: bool) {
        let audit = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let line = Line {
                at_unix_ms: now_ms(),
                who: cut(&actor.who()),
                from: cut(&actor.from),
                verb: cut(&deed.verb),
                object: cut(&deed.object),
                outcome: deed.outcome,
                detail: cut(&deed.detail),
                unwritten,
            };
            let text = serde_json::to_string(&line)?;
            let journal = if action { &audit.actions } else { &audit.refusals };
            journal.lock().unwrap_or_else(PoisonError::into_inner).append(&text, action)
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the audit trail cannot be written"),
            Err(error) => tracing::error!(%error, "the audit trail was not written"),
        }
    }

    /// This host's part of the trail, oldest first. It waits for the disk.
    pub fn read(&self, query: AuditQuery, host: &Name) -> Vec<AuditEntry> {
        let limit = query.limit.min(ENTRIES_MAX) as usize;
        let actions = (!query.denied).then_some(&self.actions);
        let mut all: Vec<AuditEntry> = actions
            .into_iter()
            .chain([&self.refusals])
            .flat_map(|journal| {
                // Only the names are needed under the lock: what is read meanwhile may be rotated, not changed.
                let files = journal.lock().unwrap_or_else(PoisonError::into_inner).files();
                journal::read::<Line>(&files, limit, |line| line.at_unix_ms >= query.since_unix_ms)
            })
            .map(|line| AuditEntry {
                at_unix_ms: line.at_unix_ms,
                host: host.clone(),
                who: line.who,
                from: line.from,
                verb: line.verb,
                object: line.object,
                outcome: line.outcome,
                detail: line.detail,
                unwritten: line.unwritten,
            })
            .collect();
        newest(&mut all, limit);
        all
    }
}

/// Sorts by time and keeps the newest `limit`.
pub fn newest(entries: &mut Vec<AuditEntry>, limit: usize) {
    entries.sort_by_key(|entry| entry.at_unix_ms);
    let over = entries.len().saturating_sub(limit);
    entries.drain(..over);
}

/// How many refusals were written in the current second, and how many were not since the last that was.
#[derive(Debug, Default)]
struct Rate {
    second: u64,
    written: u64,
    unwritten: u64,
}

impl Rate {
    /// Whether one more may be written; gives the number of those that were not.
    fn take(&mut self, second: u64) -> Option<u64> {
        if self.second != second {
            (self.second, self.written) = (second, 0);
        }
        if self.written >= REFUSALS_PER_S {
            self.unwritten += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

fn cut(text: &str) -> String {
    if text.chars().nth(TEXT_MAX).is_none() {
        return text.to_owned();
    }
    text.chars().take(TEXT_MAX - 1).chain(['…']).collect()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn all() -> AuditQuery {
        AuditQuery { since_unix_ms: 0, limit: ENTRIES_MAX, denied: false }
    }

    fn deed(object: &str) -> Deed {
        Deed { verb: "run".into(), object: object.into(), outcome: Outcome::Done, detail: String::new() }
    }

    #[tokio::test]
    async fn who_did_what_comes_back_escaped_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(&dir.path().join("audit"));
        let local = Actor::caller(&Caller::Local { uid: 0, pid: None });
        audit.action(local, deed("x\n{\"who\":\"root\"}\x1b[2J\u{202e}")).await;
        audit.refusal(Actor::named("y".repeat(5000), "10.0.0.9:1"), "connect raft", "", "no certificate").await;
        let host: Name = "host1".parse().unwrap();
        let found = audit.read(all(), &host);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].who.as_str(), found[0].from.as_str()), ("uid 0 (root)", "local"));
        assert_eq!(found[0].object, "x\n{\"who\":\"root\"}\x1b[2J\u{202e}");
        assert_eq!(found[1].who.chars().count(), TEXT_MAX);
        let text = fs::read_to_string(dir.path().join("audit/actions.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 1, "a name makes no line of its own: {text}");
        assert!(!text.contains('\x1b'));
        let denied = audit.read(AuditQuery { denied: true, ..all() }, &host);
        assert!(denied.len() == 1 && denied[0].outcome == Outcome::Denied, "{denied:?}");
        let later = AuditQuery { since_unix_ms: u64::MAX, ..all() };
        assert!(audit.read(later, &host).is_empty());
        assert_eq!(audit.read(AuditQuery { limit: 1, ..all() }, &host)[0].verb, "connect raft", "the newest is kept");
    }

    #[tokio::test]
    async fn a_flood_of_refusals_is_counted_and_pushes_out_no_action() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path());
        audit.action(Actor::named("alice", "local"), deed("the first")).await;
        for _ in 0..2000 {
            audit.refusal(Actor::named("stranger", "10.0.0.9:1"), "connect", "", "no certificate").await;
        }
        // A later second lets one through again, and it tells of the others.
        let seconds = audit.rate.lock().unwrap().second;
        let unwritten = audit.rate.lock().unwrap().take(seconds + 100).unwrap();
        let found = audit.read(all(), &"host1".parse().unwrap());
        let refused: Vec<_> = found.iter().filter(|entry| entry.outcome == Outcome::Denied).collect();
        let told: u64 = refused.iter().map(|entry| entry.unwritten).sum();
        assert_eq!(refused.len() as u64 + told + unwritten, 2000, "none is lost count of");
        assert!(refused.len() < 2000);
        assert_eq!(found.iter().filter(|entry| entry.object == "the first").count(), 1);
    }
}
