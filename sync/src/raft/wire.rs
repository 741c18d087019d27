//! What replicas say to each other: one request and one reply enum behind a version byte.
//!
//! Snapshots go in parts, so that no message is larger than a frame takes; the receiver says which byte it wants next.

use std::{collections::BTreeMap, sync::Mutex, sync::PoisonError};

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use vt_protocol::{
    codec::{self, CodecError},
    ids::HostId,
};

use super::types::{SnapshotMeta, TypeConfig, Vote};
use crate::stored::STATE_BYTES;

/// Longest message between replicas, in bytes.
pub const MESSAGE_BYTES: usize = 8 << 20;
/// Bytes of one part of a snapshot.
pub(crate) const PART_BYTES: usize = 512 << 10;

/// Asked of another replica. Append only: the encoding counts variants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    Snapshot(Part),
}

/// A part of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    /// Digest of the whole.
    pub(crate) digest: [u8; 32],
    /// Length of the whole.
    pub(crate) total: u64,
    /// Where this part begins.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Said in answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    /// The snapshot is not complete: send from here.
    SnapshotNext(u64),
    Snapshot(SnapshotResponse<TypeConfig>),
    /// The replica cannot answer, and why.
    Refused(String),
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode_wire(message, MESSAGE_BYTES)
}

pub(crate) fn decode<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Result<T, CodecError> {
    codec::decode_wire(bytes, MESSAGE_BYTES)
}

impl Ask {
    /// The host in whose name it is asked.
    pub(crate) fn speaker(&self) -> u64 {
        match self {
            Self::Append(ask) => ask.vote.leader_id.voted_for,
            Self::Vote(ask) | Self::PreVote(ask) => ask.vote.leader_id.voted_for,
            Self::TransferLeader(ask) => ask.from_leader().leader_id.voted_for,
            Self::Snapshot(part) => part.vote.leader_id.voted_for,
        }
    }
}

/// Snapshots that are arriving: one for each sender at most, and of few senders.
#[derive(Default)]
pub(crate) struct Arriving(Mutex<BTreeMap<HostId, Half>>);

/// What has come of one snapshot.
struct Half {
    /// Digest and length of the whole.
    whole: ([u8; 32], u64),
    bytes: Vec<u8>,
}

/// More leaders than this do not send snapshots at the same time.
const SENDERS: usize = 4;

impl Arriving {
    /// Takes a part. Gives the whole when it is complete, else the byte that is wanted next.
    pub(crate) fn take(&self, from: HostId, part: &Part) -> Result<Result<Vec<u8>, u64>, String> {
        if part.total > STATE_BYTES as u64 {
            return Err(format!("a snapshot of {} bytes is more than {STATE_BYTES}", part.total));
        }
        let mut arriving = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !arriving.contains_key(&from) && arriving.len() >= SENDERS {
            arriving.pop_first();
        }
        let whole = (part.digest, part.total);
        let half = arriving.entry(from).or_insert_with(|| Half { whole, bytes: Vec::new() });
        if half.whole != whole {
            *half = Half { whole, bytes: Vec::new() };
        }
        let bytes = &mut half.bytes;
        if part.offset == bytes.len() as u64 && part.offset + part.bytes.len() as u64 <= part.total {
            bytes.extend_from_slice(&part.bytes);
        }
        let have = bytes.len() as u64;
        if have < part.total {
            return Ok(Err(have));
        }
        let bytes = arriving.remove(&from).map(|half| half.bytes).unwrap_or_default();
        if *blake3::hash(&bytes).as_bytes() != part.digest {
            return Err("the snapshot does not have its digest".to_owned());
        }
        Ok(Ok(bytes))
    }
}
