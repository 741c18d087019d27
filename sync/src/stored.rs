//! Forms on disk. Each has a version byte in front; a later layout names this one and reads it.
//!
//! Every record on disk is sealed: a checksum over its key and body stands before it, so that a record that was damaged,
//! or turned up in another's place, is noticed and never read.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vt_protocol::codec::{self, CodecError, Versioned};

use crate::{
    raft::types::{Entry, LogId, SnapshotMeta, Vote},
    state::State,
};

/// Longest encoded record other than a state.
pub(crate) const RECORD_BYTES: usize = 4 << 20;
/// Longest encoded state.
pub(crate) const STATE_BYTES: usize = 512 << 20;

macro_rules! stored {
    ($($(#[$doc:meta])* $name:ident($inner:ty) = $version:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            pub(crate) struct $name(pub(crate) $inner);

            impl Versioned for $name {
                const VERSION: u8 = $version;
            }
        )*
    };
}

stored! {
    /// A log entry.
    StoredEntry(Entry) = 1;
    /// The vote of this host.
    StoredVote(Vote) = 1;
    /// A place in the log: purged, committed.
    StoredLogId(Option<LogId>) = 1;
    /// The host the store belongs to.
    StoredHost(u64) = 1;
    /// The replicated state, in a snapshot.
    StoredState(State) = 1;
}

/// What a snapshot on disk is: its place in the log, its length and its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
    pub(crate) digest: [u8; 32],
}

impl Versioned for StoredSnapshot {
    const VERSION: u8 = 1;
}

const SEAL_BYTES: usize = 8;

fn checksum(key: &[u8], body: &[u8]) -> [u8; SEAL_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(body);
    let mut seal = [0; SEAL_BYTES];
    hasher.finalize_xof().fill(&mut seal);
    seal
}

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("its checksum does not fit")]
    Checksum,
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Encodes and seals a record under its key.
pub(crate) fn seal<T: Versioned>(key: &[u8], value: &T) -> Result<Vec<u8>, CodecError> {
    let body = codec::encode(value, RECORD_BYTES)?;
    let mut record = checksum(key, &body).to_vec();
    record.extend_from_slice(&body);
    Ok(record)
}

/// Opens a sealed record.
pub(crate) fn unseal<T: Versioned + DeserializeOwned>(key: &[u8], record: &[u8]) -> Result<T, RecordError> {
    let (seal, body) = record.split_at_checked(SEAL_BYTES).ok_or(RecordError::Checksum)?;
    if checksum(key, body) != seal {
        return Err(RecordError::Checksum);
    }
    Ok(codec::decode(body, RECORD_BYTES)?)
}
