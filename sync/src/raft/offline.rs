//! The store of a replica that does not run, made to begin anew: its host is the only voter of the next generation.
//!
//! Everything the log holds is applied, also entries whose commit this host never heard of: they may have been
//! acknowledged elsewhere. The outcome is one snapshot, written in one transaction: the store is as before or as after.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use openraft::{
    BasicNode, EntryPayload, Membership as RaftMembership, impls::leader_id_std::LeaderId, vote::RaftLeaderId,
};
use vt_protocol::{
    codec,
    error::Report,
    ids::{Digest, HostId, Name},
};

use super::{
    disk::{Disk, Place, StoreError},
    machine::stored_state,
    types::{LogId, Membership, SnapshotMeta, Vote},
};
use crate::{
    answer::Rejected,
    state::{State, Survivor},
    stored::{STATE_BYTES, StoredState},
};

/// Bytes of entries that are read at once.
const READ_BYTES: usize = 4 << 20;

/// What a store was made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anew {
    /// The generation that begins.
    pub generation: u64,
    /// The last entry that was kept.
    pub last: u64,
    /// Entries among them whose commit this host had not heard of.
    pub unheard: u64,
    /// Hosts that are left behind.
    pub left: Vec<Name>,
}

/// Why a store was not rewritten. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnewError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state in it cannot begin anew.
    #[error(transparent)]
    State(#[from] Rejected),
}

impl From<&AnewError> for Report {
    fn from(error: &AnewError) -> Self {
        match error {
            AnewError::Store(error) => error.into(),
            AnewError::State(rejected) => Report::new(rejected.code, rejected.text.clone()),
        }
    }
}

/// Makes the store in `directory` that of a cluster of `host` alone, reached at `address`, whose authority has a
/// certificate of digest `ca`. No replica may run on it.
///
/// # Errors
/// The store is missing, in use or damaged, or the host is not in the cluster.
pub async fn recover(directory: &Path, host: HostId, address: &str, ca: Digest) -> Result<Anew, AnewError> {
    let disk = open(directory, host, false).await?;
    let (mut state, last) = read(&disk)?;
    let heard = disk.get_committed().map_or(0, |id| id.index);
    let index = last.map_or(0, |id| id.index);
    let left = state.begin_anew(index + 1, &Survivor::Known(host), ca)?;
    let generation = write(&disk, host, address, state).await?;
    Ok(Anew { generation, last: index, unheard: index.saturating_sub(heard), left })
}

/// Puts a saved state into a new store in `directory`, as that of a cluster of the `survivor` alone.
///
/// # Errors
/// The directory holds a store of another host, or the state cannot take the host.
pub async fn restore(
    directory: &Path,
    mut state: State,
    survivor: crate::command::NewHost,
    ca: Digest,
) -> Result<Anew, AnewError> {
    let host = survivor.id;
    let address = survivor.addresses.first().map(ToString::to_string).unwrap_or_default();
    let last = state.index;
    let left = state.begin_anew(last + 1, &Survivor::New(survivor), ca)?;
    let disk = open(directory, host, true).await?;
    let generation = write(&disk, host, &address, state).await?;
    Ok(Anew { generation, last, unheard: 0, left })
}

async fn open(directory: &Path, host: HostId, create: bool) -> Result<Arc<Disk>, StoreError> {
    let path = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || Disk::open(Place::Directory { path: &path, create }, host)).await;
    opened.map_err(|error| StoreError::Io(std::io::Error::other(error)))?.map(Arc::new)
}

/// The state after every entry there is, and the place of the last one.
fn read(disk: &Disk) -> Result<(State, Option<LogId>), StoreError> {
    let (meta, mut state) = stored_state(disk)?;
    let Some(last) = disk.last()? else { return Ok((state, meta.last_log_id)) };
    let mut next = meta.last_log_id.map_or(0, |id| id.index + 1);
    while next <= last.index {
        let entries = disk.entries(next..=last.index, READ_BYTES)?;
        if entries.first().is_none_or(|entry| entry.log_id.index != next) {
            return Err(StoreError::Damaged(format!("entry {next} is missing")));
        }
        for entry in entries {
            next = entry.log_id.index + 1;
            match entry.payload {
                // What it answers was told, or never will be.
                EntryPayload::Normal(request) => drop(state.apply(entry.log_id.index, &request)),
                EntryPayload::Membership(_) | EntryPayload::Blank => state.index = entry.log_id.index,
            }
        }
    }
    Ok((state, Some(last)))
}

/// Replaces log and snapshot by the state, in a term of its own. Gives the state's generation.
async fn write(disk: &Arc<Disk>, host: HostId, address: &str, state: State) -> Result<u64, StoreError> {
    let term = disk.vote()?.map_or(0, |vote| vote.leader_id.term) + 1;
    let leader_id = LeaderId { term, voted_for: host.raft() };
    let id = LogId::new(leader_id.to_committed(), state.index);
    let node = BTreeMap::from([(host.raft(), BasicNode::new(address))]);
    let membership = RaftMembership::new(vec![BTreeSet::from([host.raft()])], node)
        .map_err(|error| StoreError::Damaged(error.to_string()))?;
    let meta = SnapshotMeta { last_log_id: Some(id), last_membership: Membership::new(Some(id), membership) };
    let generation = state.cluster.as_ref().map_or(0, |cluster| cluster.generation);
    let bytes = codec::encode(&StoredState(state), STATE_BYTES)
        .map_err(|error| StoreError::Io(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
    // A saved state may be older than the log of a host that takes it; whatever else there is, the snapshot is behind it.
    disk.truncate(id.index).await.map_err(StoreError::Io)?;
    let written = disk.write(move |write| {
        write.set_vote(Vote { leader_id, committed: false })?;
        write.set_purged(id)?;
        write.set_snapshot(meta, &bytes)
    });
    written.await.map_err(StoreError::Io)?;
    Ok(generation)
}
