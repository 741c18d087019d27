//! openraft's state machine over [`State`].
//!
//! The state lives in memory and is published as a whole after each batch of entries, before anybody is answered, so that
//! who proposed something reads it. On disk are snapshots; what follows the last one is applied again after a restart.

use std::{io, sync::Arc};

use futures_util::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use vt_protocol::codec;

use super::{
    disk::{Disk, StoreError},
    told::{Listeners, Teller},
    types::{LogId, Membership, Response, Snapshot, SnapshotData, SnapshotMeta, TypeConfig},
};
use crate::{
    state::State,
    stored::{STATE_BYTES, StoredState},
};

/// The state with its place in the log.
pub(crate) struct Machine {
    disk: Arc<Disk>,
    state: State,
    applied: Option<LogId>,
    membership: Membership,
    published: Teller<Arc<State>>,
}

impl Machine {
    /// The state of the last snapshot on disk.
    pub(crate) fn open(disk: Arc<Disk>) -> Result<Self, StoreError> {
        let (meta, state) = stored_state(&disk)?;
        let published = Teller::new(Arc::new(state.clone()));
        Ok(Self { disk, state, applied: meta.last_log_id, membership: meta.last_membership, published })
    }

    /// The state, told at every change.
    pub(super) fn listeners(&self) -> Listeners<Arc<State>> {
        self.published.listeners()
    }

    fn publish(&self) {
        self.published.tell(Arc::new(self.state.clone()));
    }
}

/// The state of the snapshot on disk, and its place in the log.
pub(crate) fn stored_state(disk: &Disk) -> Result<(SnapshotMeta, State), StoreError> {
    let Some((meta, bytes)) = disk.snapshot()? else { return Ok((SnapshotMeta::default(), State::default())) };
    let state = decode(&bytes).map_err(|error| StoreError::Damaged(format!("the snapshot: {error}")))?;
    Ok((meta, state))
}

fn decode(bytes: &[u8]) -> Result<State, codec::CodecError> {
    codec::decode::<StoredState>(bytes, STATE_BYTES).map(|stored| stored.0)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.applied = Some(entry.log_id);
            let response = match entry.payload {
                EntryPayload::Normal(request) => Some(self.state.apply(entry.log_id.index, &request)),
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    self.state.index = entry.log_id.index;
                    None
                }
                EntryPayload::Blank => {
                    self.state.index = entry.log_id.index;
                    None
                }
            };
            if let Some(responder) = responder {
                answers.push((responder, Response(response)));
            }
        }
        self.publish();
        for (responder, response) in answers {
            responder.send(response);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Builder { disk: Arc::clone(&self.disk), state: Some(self.state.clone()), meta }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let state = decode(&snapshot).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let stored = meta.clone();
        self.disk.write(move |write| write.set_snapshot(stored, &snapshot)).await?;
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.disk.snapshot()?.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes a snapshot of the state as it was when the builder was made.
pub(crate) struct Builder {
    disk: Arc<Disk>,
    state: Option<State>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let state = self.state.take().ok_or_else(|| io::Error::other("a builder builds one snapshot"))?;
        let meta = self.meta.clone();
        let snapshot = self
            .disk
            .write(move |write| {
                let bytes = codec::encode(&StoredState(state), STATE_BYTES)
                    .map_err(|error| StoreError::Io(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
                write.set_snapshot(meta, &bytes)?;
                Ok(Arc::new(bytes))
            })
            .await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}
