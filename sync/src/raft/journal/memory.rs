//! A file in memory and entries to put into it, for tests and fuzz targets.

use std::{io, sync::Arc};

use openraft::{EntryPayload, impls::leader_id_std::LeaderId, vote::RaftLeaderId};
use redb::{StorageBackend, backends::InMemoryBackend};
use vt_protocol::ids::RequestId;

use super::super::types::{Entry, LogId};
use crate::command::{Request, SetSetting};

/// A file that several journals open one after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<InMemoryBackend>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// An entry with a value of that many bytes.
pub(super) fn entry(index: u64, bytes: usize) -> Entry {
    let set = SetSetting { key: format!("k{index}"), value: Some("v".repeat(bytes)) };
    let log_id = LogId::new(LeaderId { term: 1, voted_for: 1 }.to_committed(), index);
    Entry { log_id, payload: EntryPayload::Normal(Request::with_id(RequestId(index.into()), set)) }
}
