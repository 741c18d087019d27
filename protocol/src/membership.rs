//! What vtctl asks to change a cluster's hosts: cordons, labels, votes, and how a host goes.
//!
//! Each request carries an id, so that one whose answer was lost can be asked again of another host.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    admin::HostRole,
    ids::{Name, RequestId},
};

/// Changes one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// Repeating it with the same id makes one change.
    pub request: RequestId,
    /// Which host.
    pub host: Name,
    /// What is changed.
    pub what: Change,
}

/// What is changed about a host. Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// No new case begins on it.
    Cordon,
    /// Cases may begin on it again.
    Uncordon,
    /// As `Cordon`; and where it leads, another host takes over. What runs there goes on.
    Drain,
    /// Labels with their new values; `None` clears one. What is not named stays.
    Label(BTreeMap<String, Option<String>>),
    /// The part in decisions it is wished to have.
    Role(HostRole),
    /// It leaves the cluster for good: its key and id stay refused.
    Remove,
    /// As `Remove`; this host takes over its part in decisions, and those labels that it has no value of its own for.
    Replace {
        /// The host that comes in its place; already in the cluster.
        by: Name,
    },
    /// A person holds it: only cases of that person begin on it, until then. What runs there goes on.
    Reserve {
        /// Who.
        by: String,
        /// What for.
        reason: String,
        /// For how long, seconds, at most 30 days.
        for_s: u32,
    },
    /// The hold is over.
    Release,
}

/// A person's hold on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Who.
    pub by: String,
    /// What for.
    pub reason: String,
    /// When it ends, seconds since 1970 by the leader's clock.
    pub until_unix_s: u64,
}

impl Change {
    /// As vtctl calls it.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Cordon => "host cordon",
            Self::Uncordon => "host uncordon",
            Self::Drain => "host drain",
            Self::Label(_) => "host label",
            Self::Role(HostRole::Learner) => "host demote",
            Self::Role(HostRole::Voter | HostRole::Witness) => "host promote",
            Self::Remove => "host remove",
            Self::Replace { .. } => "host replace",
            Self::Reserve { .. } => "host reserve",
            Self::Release => "host release",
        }
    }

    /// What it names besides the host, behind a space.
    pub fn object(&self) -> String {
        match self {
            Self::Label(labels) => {
                let shown = labels.iter().map(|(key, value)| match value {
                    Some(value) => format!(" {key}={value}"),
                    None => format!(" {key}-"),
                });
                shown.collect()
            }
            Self::Replace { by } => format!(" by {by}"),
            Self::Reserve { by, reason, for_s } => format!(" for {by}, {for_s} s: {reason}"),
            _ => String::new(),
        }
    }
}

/// Has the asked daemon's host go on alone, after most voters were lost: the next generation of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recover {
    /// Without it nothing is done, and what would be lost is told.
    pub yes: bool,
}

/// Makes a cluster of this unclaimed daemon from a saved snapshot: the next generation of the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The snapshot, an absolute path on the daemon's machine.
    pub file: PathBuf,
    /// This host's name; `None`: its host name.
    pub host: Option<Name>,
    /// Where other hosts reach this one; `None`: from the settings.
    pub advertise: Option<SocketAddr>,
    /// Without it nothing is done, and what would be lost is told.
    pub yes: bool,
}

/// Takes the asked daemon's own host out of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// Repeating it with the same id is doing it once.
    pub request: RequestId,
    /// The cluster is not asked: for a host that was removed, or whose cluster is gone.
    pub forget: bool,
}
