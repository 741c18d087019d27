//! openraft's own suite over our store.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;
use vt_protocol::ids::HostId;

use super::{
    disk::{Disk, Place},
    log::Log,
    machine::Machine,
    types::TypeConfig,
};

struct OnDisk;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().expect("a temporary directory");
        let place = Place::Directory { path: dir.path(), create: true };
        let disk = Arc::new(Disk::open(place, HostId(1)).expect("a new store"));
        let machine = Machine::open(Arc::clone(&disk)).expect("an empty state");
        Ok((dir, Log::new(disk), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_is_green() {
    Suite::test_all(OnDisk).await.unwrap();
}
