//! Memory of requests: applying one twice is applying it once.
//!
//! The memory is cut into shared pieces, so that remembering one more request copies one piece at most, however many
//! readers hold an older state.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::ErrorCode,
    ids::{Digest, RequestId},
};

use crate::{
    answer::{Answer, Applied, Rejected},
    bounds,
    command::Command,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Remembered {
    content: Digest,
    index: u64,
    outcome: Result<Answer, Rejected>,
}

/// Outcomes of the latest requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Oldest piece first; requests are added to the last one.
    pieces: VecDeque<Arc<BTreeMap<RequestId, Remembered>>>,
}

impl Requests {
    pub(super) fn content(command: &Command) -> Digest {
        let bytes = vt_protocol::codec::encode_as(0, command, usize::MAX)
            .expect("a command holds no type that the codec cannot write");
        Digest::of(&bytes)
    }

    /// How many requests are remembered.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The requests that took effect, or were refused, after an entry, by the entry of each.
    pub fn after(&self, index: u64) -> BTreeMap<u64, RequestId> {
        let newer = self.pieces.iter().rev().map_while(|piece| {
            let newer = piece.iter().filter(|(_, it)| it.index > index).map(|(id, it)| (it.index, *id));
            let newer: Vec<_> = newer.collect();
            (!newer.is_empty()).then_some(newer)
        });
        newer.flatten().collect()
    }

    pub(super) fn recall(&self, id: RequestId, content: Digest) -> Option<Result<Applied, Rejected>> {
        let found = self.pieces.iter().rev().find_map(|piece| piece.get(&id))?;
        if found.content != content {
            let text = format!("{id:?} came before with other content, at entry {}", found.index);
            return Some(Err(Rejected::new(ErrorCode::RequestConflict, text)));
        }
        let applied = |answer| Applied { index: found.index, answer, effects: Vec::new() };
        Some(found.outcome.clone().map(applied))
    }

    pub(super) fn remember(&mut self, id: RequestId, content: Digest, index: u64, outcome: Result<Answer, Rejected>) {
        if self.pieces.back().is_none_or(|piece| piece.len() >= bounds::REQUESTS_PER_SEGMENT) {
            self.pieces.push_back(Arc::default());
            if self.pieces.len() > bounds::REQUESTS / bounds::REQUESTS_PER_SEGMENT {
                self.pieces.pop_front();
            }
        }
        let piece = self.pieces.back_mut().expect("a piece was pushed above where there was none");
        Arc::make_mut(piece).insert(id, Remembered { content, index, outcome });
    }
}
