//! The audit trail as it is asked for and shown: who did what to what, from where, when, and what came of it.
//!
//! Every host keeps its own part; the host that is asked puts them together.

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// Most entries of one answer.
pub const ENTRIES_MAX: u32 = 5_000;
/// Longest text of one field of an entry, in characters. Longer ones are cut: some come from strangers.
pub const TEXT_MAX: usize = 300;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditQuery {
    /// Entries from here on, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The newest this many, at most [`ENTRIES_MAX`].
    pub limit: u32,
    /// Only who was refused.
    pub denied: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// Who asked may not: no certificate, a wrong one, a role that is too low, bytes that are no request.
    Denied,
    /// It was allowed, and did not happen.
    Failed,
}

impl Outcome {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Denied => "denied",
            Outcome::Failed => "failed",
        }
    }
}

/// One line of the trail. Its texts may hold anything: show them escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, milliseconds since 1970 by the clock of `host`.
    pub at_unix_ms: u64,
    /// The host that was asked.
    pub host: Name,
    /// `uid 1000 (alice)`, `client alice (runner)`, `host host2`, or what else is known.
    pub who: String,
    /// `local`, or an address.
    pub from: String,
    /// What was wanted, as vtctl calls it; `connect SERVICE` for a connection.
    pub verb: String,
    /// Of what.
    pub object: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The result's id, or the reason.
    pub detail: String,
    /// Refusals before this one that were too many to be written down.
    pub unwritten: u64,
}

/// The trail of all hosts that answered, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditTrail {
    /// Entries.
    pub entries: Vec<AuditEntry>,
    /// Hosts that did not answer, and why: what they saw is missing.
    pub missing: Vec<(String, String)>,
}
