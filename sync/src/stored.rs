//! Forms on disk. Each has a version byte in front; a later layout names this one and reads it.
//!
//! Every record of the store is sealed: a checksum over its key and body stands before it, so that a record that was
//! damaged, or turned up in another's place, is noticed and never read. Records of the journal lie in sealed sectors.

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
    /// A record of the journal.
    StoredRecord(Record) = 1;
    /// The vote of this host.
    StoredVote(Vote) = 1;
    /// A place in the log: purged.
    StoredLogId(Option<LogId>) = 1;
    /// How many segments the journal has.
    StoredSegments(u64) = 1;
    /// The host the store belongs to.
    StoredHost(u64) = 1;
    /// The replicated state, in a snapshot.
    StoredState(State) = 1;
}

/// What the journal says of the log, one after the other. Append only: the encoding counts variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one at a time on its way to or from the disk; nearly all are entries")]
pub(crate) enum Record {
    /// An entry, behind the last one.
    Entry(Entry),
    /// Entries from this index on are gone.
    Truncated(u64),
    /// The log is committed up to here.
    Committed(LogId),
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

pub(crate) fn checksum(key: &[u8], body: &[u8]) -> [u8; SEAL_BYTES] {
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

#[cfg(test)]
mod tests {
    //! Golden bytes: what was written is read by every later build. Where a layout has to change, its version goes up
    //! and `decode_older` reads these bytes; before the first release the bytes here are replaced instead.

    use std::collections::{BTreeMap, BTreeSet};

    use openraft::{
        BasicNode, EntryPayload, Membership as RaftMembership, impls::leader_id_std::LeaderId, vote::RaftLeaderId,
    };
    use vt_protocol::ids::RequestId;

    use super::*;
    use crate::command::{Request, SetSetting};

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, voted_for: 1 }.to_committed(), index)
    }

    fn golden<T: Versioned + PartialEq + std::fmt::Debug>(value: &T, hex: &str) {
        let bytes = codec::encode(value, RECORD_BYTES).unwrap();
        let found: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, hex, "{value:?}");
        assert_eq!(&codec::decode::<T>(&bytes, RECORD_BYTES).unwrap(), value);
    }

    fn entry(payload: EntryPayload<Request, u64, BasicNode>) -> StoredRecord {
        StoredRecord(Record::Entry(Entry { log_id: log_id(3, 7), payload }))
    }

    #[test]
    fn records_are_golden() {
        golden(&StoredHost(300), "01ac02");
        golden(&StoredLogId(Some(log_id(3, 7))), GOLDEN[0]);
        golden(&StoredVote(Vote { leader_id: LeaderId { term: 3, voted_for: 9 }, committed: true }), GOLDEN[1]);
        golden(&entry(EntryPayload::Blank), GOLDEN[2]);
        let set = SetSetting { key: "k".into(), value: Some("v".into()) };
        golden(&entry(EntryPayload::Normal(Request::with_id(RequestId(5), set))), GOLDEN[3]);
        let nodes = BTreeMap::from([(1, BasicNode::new("a")), (2, BasicNode::new("b"))]);
        let membership = RaftMembership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        golden(&entry(EntryPayload::Membership(membership.clone())), GOLDEN[4]);
        let last_membership = crate::raft::types::Membership::new(Some(log_id(1, 2)), membership);
        let meta = SnapshotMeta { last_log_id: Some(log_id(3, 7)), last_membership };
        golden(&StoredSnapshot { meta, bytes: 5, digest: [1; 32] }, GOLDEN[5]);
        golden(&StoredState(State::default()), GOLDEN[6]);
        golden(&StoredSegments(300), "01ac02");
        golden(&StoredRecord(Record::Truncated(300)), "0101ac02");
        golden(&StoredRecord(Record::Committed(log_id(3, 7))), "01020307");
    }

    const GOLDEN: [&str; 7] = [
        "01010307",
        "0103010901",
        "0100030700",
        "01000307010509016b010176",
        "010003070201010102010161020162",
        "010103070101020101010201016102016200050101010101010101010101010101010101010101010101010101010101010101",
        "0100000000000000000000000000000000",
    ];

    #[test]
    fn a_record_that_was_changed_or_stands_in_anothers_place_is_refused() {
        let record = seal(b"a", &StoredHost(300)).unwrap();
        assert_eq!(unseal::<StoredHost>(b"a", &record).unwrap(), StoredHost(300));
        assert_eq!(unseal::<StoredHost>(b"b", &record), Err(RecordError::Checksum));
        assert_eq!(unseal::<StoredHost>(b"a", &record[..7]), Err(RecordError::Checksum));
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert_eq!(unseal::<StoredHost>(b"a", &bad), Err(RecordError::Checksum), "byte {at}");
        }
        let future = codec::encode_as(9, &300_u64, 64).unwrap();
        let mut record = checksum(b"a", &future).to_vec();
        record.extend_from_slice(&future);
        assert!(matches!(
            unseal::<StoredHost>(b"a", &record),
            Err(RecordError::Codec(CodecError::UnknownVersion { found: 9, newest: 1 }))
        ));
    }
}
