//! The cluster's state in a file of its own, for the day when no host is left.
//!
//! It holds what the hosts agreed on, and no key: neither a host's nor the authority's. A digest of the whole stands in
//! front, so that a file that was cut or changed is noticed before anything is made of it.

use serde::{Deserialize, Serialize};
use vt_protocol::{
    codec::{self, CodecError, Versioned},
    error::{ErrorCode, Report},
    ids::Name,
};

use crate::{state::State, stored::STATE_BYTES};

const MAGIC: &[u8] = b"vtmesh snapshot\n";
const DIGEST_BYTES: usize = 32;
/// Longest file that is read.
pub const SAVED_BYTES: usize = STATE_BYTES + (1 << 20);

/// A saved state, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// When it was taken, seconds since 1970, by the clock of the host it was taken on.
    pub taken_unix_s: u64,
    /// The host it was taken on.
    pub taken_on: Name,
    /// The build of its daemon.
    pub build: String,
    /// What the cluster had agreed on, as far as that host had applied it.
    pub state: State,
}

impl Versioned for Saved {
    const VERSION: u8 = 1;
}

/// Why a file is no saved state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// It is something else.
    #[error("the file is not a snapshot of a cluster")]
    Other,
    /// It was cut or changed.
    #[error("the snapshot is damaged: it does not have its digest")]
    Damaged,
    /// It is whole and cannot be read.
    #[error("the snapshot cannot be read")]
    Codec(#[from] CodecError),
}

impl From<&SavedError> for Report {
    fn from(error: &SavedError) -> Self {
        Report::new(ErrorCode::SnapshotUnusable, error.to_string()).caused_by(error)
    }
}

impl Saved {
    /// The bytes of the file.
    ///
    /// # Errors
    /// The state is larger than a state may be.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let body = codec::encode(self, SAVED_BYTES)?;
        Ok([MAGIC, blake3::hash(&body).as_bytes(), &body].concat())
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// It is no snapshot, or not whole, or of a later build.
    pub fn decode(bytes: &[u8]) -> Result<Self, SavedError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(SavedError::Other)?;
        let (digest, body) = rest.split_at_checked(DIGEST_BYTES).ok_or(SavedError::Damaged)?;
        if blake3::hash(body).as_bytes() != digest {
            return Err(SavedError::Damaged);
        }
        Ok(codec::decode(body, SAVED_BYTES)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_comes_back_and_a_changed_file_does_not() {
        let saved = Saved {
            taken_unix_s: 7,
            taken_on: "host1".parse().unwrap(),
            build: "0.1.0".into(),
            state: State { index: 9, ..State::default() },
        };
        let bytes = saved.encode().unwrap();
        assert_eq!(Saved::decode(&bytes).unwrap(), saved);
        for at in MAGIC.len()..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Saved::decode(&bad), Err(SavedError::Damaged), "byte {at}");
            assert_eq!(Saved::decode(&bytes[..at]), Err(SavedError::Damaged), "cut at {at}");
        }
        assert_eq!(Saved::decode(b"#!/bin/sh\n"), Err(SavedError::Other));
        assert_eq!(Saved::decode(&[]), Err(SavedError::Other));
    }
}
