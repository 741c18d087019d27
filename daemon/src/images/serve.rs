//! What this host gives to others of its images: manifests, and blocks as they lie on disk. Who takes them compares them.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use tokio::io::AsyncWriteExt;
use vt_protocol::{
    ids::Digest,
    manifest::{self, FileBlocks, MANIFEST_MAX, Manifest},
};
use vt_sync::State;

use super::Pools;
use crate::mesh::bulk::Content;

/// Bytes that are read ahead of the network.
const AHEAD: usize = 256 << 10;

/// The manifest with that root; none where this host does not have the image.
pub(crate) async fn manifest(pools: &Pools, state: &Arc<State>, root: Digest) -> io::Result<Option<Content>> {
    let Some(folder) = folder(pools, state, root) else { return Ok(None) };
    let bytes = match tokio::fs::read(folder.join(manifest::FILE)).await {
        Ok(bytes) if bytes.len() <= MANIFEST_MAX && Digest::of(&bytes) == root => bytes,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some((bytes.len() as u64, Box::new(io::Cursor::new(bytes)))))
}

/// Blocks of a file of the image with that root; none where this host does not have them.
pub(crate) async fn blocks(
    pools: &Pools,
    state: &Arc<State>,
    root: Digest,
    file: u16,
    runs: Vec<(u32, u32)>,
) -> io::Result<Option<Content>> {
    let coming = pools.swarm.coming(root).and_then(|coming| coming.open(file, &runs));
    let opened = match (coming, folder(pools, state, root)) {
        (Some(opened), _) => Some(opened),
        (None, Some(folder)) => super::blocking(move || open(folder, root, file)).await?,
        (None, None) => None,
    };
    let Some((file, wanted)) = opened else { return Ok(None) };
    let Some(length) = wanted.bytes_of(&runs) else { return Ok(None) };
    let (mut writer, reader) = tokio::io::duplex(AHEAD);
    tokio::spawn(async move {
        let file = Arc::new(file);
        for (first, count) in runs {
            let places = (first..first.saturating_add(count)).map_while(|index| wanted.place(index));
            let (mut begin, mut left) =
                places.fold((u64::MAX, 0), |(begin, sum), (at, length)| (begin.min(at), sum + u64::from(length)));
            while left > 0 {
                let take = usize::try_from(left).unwrap_or(AHEAD).min(AHEAD);
                let file = Arc::clone(&file);
                let read = super::blocking(move || {
                    let mut bytes = vec![0; take];
                    file.read_exact_at(&mut bytes, begin).map(|()| bytes)
                });
                // Who reads sees the end too early, and asks again or elsewhere.
                let Ok(bytes) = read.await else { return };
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
                (begin, left) = (begin + take as u64, left - take as u64);
            }
        }
    });
    Ok(Some((length, Box::new(reader))))
}

/// Which blocks of the image with that root have come; none where it is not on its way here.
pub(crate) fn have(pools: &Pools, root: Digest) -> Option<Content> {
    let bytes = pools.swarm.coming(root)?.blocks().bytes();
    Some((bytes.len() as u64, Box::new(io::Cursor::new(bytes))))
}

fn open(folder: PathBuf, root: Digest, file: u16) -> io::Result<Option<(File, FileBlocks)>> {
    let bytes = std::fs::read(folder.join(manifest::FILE))?;
    let Ok(mut manifest) = Manifest::decode(&bytes, root) else { return Ok(None) };
    if usize::from(file) >= manifest.files.len() {
        return Ok(None);
    }
    let wanted = manifest.files.swap_remove(usize::from(file));
    Ok(Some((File::open(folder.join(&wanted.name))?, wanted)))
}

/// The folder of the image with that root, by the catalogue.
fn folder(pools: &Pools, state: &State, root: Digest) -> Option<PathBuf> {
    let image = state.images.values().find(|image| image.content.root == root)?;
    Some(pools.store(state, &image.pool)?.folder(&image.name))
}
