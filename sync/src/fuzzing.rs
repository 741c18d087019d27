//! What fuzz targets read of the stored forms that nobody else may see: built with them alone (`--cfg fuzzing`).

use vt_protocol::codec::{self, Versioned};

pub use crate::raft::journal_fuzzing::{Damage, File, Piece};
use crate::{
    Request,
    state::State,
    stored::{
        RECORD_BYTES, Record, STATE_BYTES, StoredHost, StoredLogId, StoredRecord, StoredSegments, StoredSnapshot,
        StoredState, StoredVote, seal, unseal,
    },
};

/// Reads bytes as a record of the journal; gives what was proposed with it.
///
/// # Panics
/// What was read does not read the same when it is written again.
pub fn record(bytes: &[u8]) -> Option<Request> {
    let record = read::<StoredRecord>(bytes, RECORD_BYTES)?.0;
    let Record::Entry(entry) = record else { return None };
    match entry.payload {
        openraft::EntryPayload::Normal(request) => Some(request),
        _ => None,
    }
}

/// Reads bytes as the state of a snapshot.
///
/// # Panics
/// What was read does not read the same when it is written again.
pub fn state(bytes: &[u8]) -> Option<State> {
    Some(read::<StoredState>(bytes, STATE_BYTES)?.0)
}

/// Reads bytes as each of the small records beside them, sealed as they would be.
///
/// # Panics
/// What was read does not read the same when it is written again.
pub fn small(bytes: &[u8]) {
    sealed::<StoredHost>(bytes);
    sealed::<StoredVote>(bytes);
    sealed::<StoredLogId>(bytes);
    sealed::<StoredSegments>(bytes);
    sealed::<StoredSnapshot>(bytes);
}

fn sealed<T: Versioned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Some(value) = read::<T>(bytes, RECORD_BYTES) else { return };
    let record = seal(b"key", &value).expect("what was read can be written");
    assert_eq!(unseal::<T>(b"key", &record).expect("what was written can be read"), value);
    assert!(unseal::<T>(b"other", &record).is_err());
}

fn read<T: Versioned + PartialEq + std::fmt::Debug>(bytes: &[u8], cap: usize) -> Option<T> {
    let value = codec::decode::<T>(bytes, cap).ok()?;
    let written = codec::encode(&value, cap).expect("what was read can be written");
    assert_eq!(codec::decode::<T>(&written, cap).expect("what was written can be read"), value);
    Some(value)
}
