//! What this host gives to others of its images: manifests, and blocks as they lie on disk. Who takes them compares them.

use std::{
    collections::VecDeque,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::stream::poll_fn;
use tokio::{io::AsyncBufRead, sync::mpsc};
use tokio_util::io::StreamReader;
use vt_protocol::{
    ids::Digest,
    manifest::{self, MANIFEST_MAX, Manifest},
};
use vt_sync::State;

use super::Pools;
use crate::mesh::bulk::Content;

/// Bytes that are read at once; as many again wait for the network, and as many are on their way into it.
const AHEAD: usize = 128 << 10;
/// Images of which it is known what files they have.
const KNOWN: usize = 16;

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
        (None, Some(folder)) => {
            let known = pools.known.clone();
            super::blocking(move || known.open(&folder, root, file)).await?
        }
        (None, None) => None,
    };
    let Some((file, length)) = opened else { return Ok(None) };
    let Some(bytes) = manifest::bytes_of(length, &runs) else { return Ok(None) };
    Ok(Some((bytes, Box::new(read_ahead(file, length, runs)))))
}

/// Runs of blocks of a file, read ahead of who takes them.
fn read_ahead(file: File, length: u64, runs: Vec<(u32, u32)>) -> impl AsyncBufRead + Send + Unpin {
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for run in runs {
            let Some((mut begin, mut left)) = manifest::span(length, run) else { return };
            while left > 0 {
                let take = usize::try_from(left).unwrap_or(AHEAD).min(AHEAD);
                let mut bytes = vec![0; take];
                let read = file.read_exact_at(&mut bytes, begin).map(|()| Bytes::from(bytes));
                let failed = read.is_err();
                // Who takes them is gone; or the end comes too early, and is asked for again or elsewhere.
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
                (begin, left) = (begin + take as u64, left - take as u64);
            }
        }
    });
    StreamReader::new(poll_fn(move |context| receiver.poll_recv(context)))
}

/// Which blocks of the image with that root have come; none where it is not on its way here.
pub(crate) fn have(pools: &Pools, root: Digest) -> Option<Content> {
    let bytes = pools.swarm.coming(root)?.blocks().bytes();
    Some((bytes.len() as u64, Box::new(io::Cursor::new(bytes))))
}

/// What files images have, so that a manifest is not read for every question.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<VecDeque<Files>>>);

/// The files of an image whose manifest is still the one that was read.
#[derive(Debug, Clone)]
struct Files {
    root: Digest,
    manifest: Stamp,
    /// Name and length of each, in the manifest's order.
    files: Arc<[(String, u64)]>,
}

/// Tells one file from another, also where it was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self { place: (meta.dev(), meta.ino()), changed: (meta.ctime(), meta.ctime_nsec()) }
    }
}

impl Known {
    /// Opens a file of an image; none where the folder has another version.
    fn open(&self, folder: &Path, root: Digest, file: u16) -> io::Result<Option<(File, u64)>> {
        let path = folder.join(manifest::FILE);
        let stamp = Stamp::of(&fs::metadata(&path)?);
        let found = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().find(|known| (known.root, known.manifest) == (root, stamp)).map(|known| Arc::clone(&known.files))
        };
        let files = match found {
            Some(files) => files,
            None => {
                let Ok(manifest) = Manifest::decode(&fs::read(&path)?, root) else { return Ok(None) };
                let files: Arc<[_]> = manifest.files.into_iter().map(|file| (file.name, file.length)).collect();
                let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.retain(|known| known.root != root);
                all.truncate(KNOWN - 1);
                all.push_front(Files { root, manifest: stamp, files: Arc::clone(&files) });
                files
            }
        };
        let Some((name, length)) = files.get(usize::from(file)) else { return Ok(None) };
        Ok(Some((File::open(folder.join(name))?, *length)))
    }
}

/// The folder of the image with that root, by the catalogue.
fn folder(pools: &Pools, state: &State, root: Digest) -> Option<PathBuf> {
    let image = state.images.values().find(|image| image.content.root == root)?;
    Some(pools.store(state, &image.pool)?.folder(&image.name))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use vt_protocol::manifest::{BLOCK_MIN, FileBlocks};

    use super::*;

    #[tokio::test]
    async fn runs_are_given_in_order_and_a_file_that_ends_early_ends_them() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5 * BLOCK_MIN).map(|at| (at >> 8) as u8).collect();
        fs::write(dir.path().join("disk"), &bytes).unwrap();
        let open = || File::open(dir.path().join("disk")).unwrap();
        let mut given = Vec::new();
        read_ahead(open(), bytes.len() as u64, vec![(3, 2), (0, 1)]).read_to_end(&mut given).await.unwrap();
        let block = BLOCK_MIN as usize;
        assert!(given == [&bytes[3 * block..], &bytes[..block]].concat());
        let cut = read_ahead(open(), 9 * u64::from(BLOCK_MIN), vec![(4, 3)]).read_to_end(&mut given).await;
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_was_known_of_a_manifest_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let digests = vec![Digest::of(name.as_bytes())];
            let file = FileBlocks { name: name.into(), mode: 0o644, length: name.len() as u64, digests };
            let (bytes, root) = Manifest { files: vec![file] }.encode().unwrap();
            fs::write(dir.path().join(name), name).unwrap();
            fs::write(dir.path().join(".new"), bytes).unwrap();
            fs::rename(dir.path().join(".new"), dir.path().join(manifest::FILE)).unwrap();
            root
        };
        let (known, root) = (Known::default(), put("one"));
        for _ in 0..2 {
            assert_eq!(known.open(dir.path(), root, 0).unwrap().unwrap().1, 3);
        }
        assert!(known.open(dir.path(), root, 1).unwrap().is_none());
        let next = put("another");
        assert!(known.open(dir.path(), root, 0).unwrap().is_none(), "the folder has another version now");
        assert_eq!(known.open(dir.path(), next, 0).unwrap().unwrap().1, 7);
    }
}
