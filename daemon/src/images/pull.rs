//! A copy of an image from hosts that have it: block by block, each compared with the manifest before it is written.
//!
//! The half copy on disk is its own record. It is read again before anything is asked for, so that a copy goes on where
//! it was after any crash, and a block that the crash has lost is fetched again. Blocks of zeros, blocks that an older
//! version or a damaged copy here still has, and blocks that are there twice do not move. Hosts that take an image at the
//! same time begin at different places of it and give each other what they have. What may not happen here: a folder with
//! the image's name in which a block is not right.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fs::{self, File},
    io, iter,
    net::SocketAddr,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use futures_util::future::join_all;
use rand::seq::SliceRandom as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use vt_protocol::{
    bulk::{BulkDialer, BulkError, BulkRequest, Expected, Link, STALL},
    catalogue::PlacementState,
    error::{ErrorCode, Report},
    identity::PublicKey,
    ids::{Digest, HostId, Name},
    manifest::{self, MANIFEST_MAX, Manifest},
    peer::Pulling,
};

use super::{
    asking::Wanted,
    blocks::{self, Hasher},
    seeds::Seeds,
    store::{self, Store, trouble},
    swarm::{Blocks, Joined, Swarm},
    written::Written,
};

/// Fewest and most blocks of one question: they may be in as many pieces, and a question is short.
const SEGMENT: (usize, usize) = (8, 1024);
/// An image is asked for in about as many questions, so that hosts that take it together soon have something to give.
const QUESTIONS: usize = 512;
/// Bytes that are read before they are compared and written.
const BATCH: usize = 512 << 10;
/// Hosts that are asked at the same time.
const SOURCES: usize = 4;
/// Connections to one that is asked alone: while one waits for an answer, or for the disk, the other brings something.
const LINKS: usize = 2;
/// A host whose connection broke is asked this often again, with a pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// How long a host may take to begin to answer.
const BEGINS: Duration = Duration::from_secs(20);

/// A host that has the image.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) host: HostId,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) key: PublicKey,
}

/// What is to be copied, and how.
#[derive(Clone)]
pub(crate) struct Pull {
    pub(crate) dialer: BulkDialer,
    pub(crate) store: Store,
    pub(crate) image: Name,
    pub(crate) root: Digest,
    pub(crate) sources: Vec<Source>,
    /// Other hosts that are taking it, or have it by now, and which of the two.
    pub(crate) also: Arc<dyn Fn() -> Vec<(Source, PlacementState)> + Send + Sync>,
    /// Where in the image it begins, as a place among so many.
    pub(crate) begin: (usize, usize),
    pub(crate) swarm: Swarm,
    /// Most bytes a second; 0: no bound.
    pub(crate) rate: u64,
    pub(crate) progress: watch::Sender<Pulling>,
}

/// Blocks of one file that are wanted from another host, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) file: usize,
    pub(super) blocks: Vec<u32>,
}

/// Where a block belongs: place of the file in the manifest, number of the block.
type Place = (usize, u32);

/// What all workers of one copy share.
pub(super) struct Work {
    pub(super) pull: Pull,
    pub(super) manifest: Arc<Manifest>,
    files: Vec<Written>,
    pub(super) wanted: Mutex<Wanted>,
    /// Something was put back, or an answer has come.
    pub(super) changed: Notify,
    /// What has come, for hosts that take it as well.
    joined: Joined,
    /// What those have, as they said last.
    pub(super) elsewhere: Mutex<HashMap<HostId, Blocks>>,
    /// Other places of blocks that are there more than once.
    copies: HashMap<Place, Vec<Place>>,
    /// When the next byte may be taken.
    pace: Mutex<Instant>,
}

/// A host that is asked, and the connection to it, where there is one on which nothing is left to be read.
pub(super) struct Line<'a> {
    pub(super) source: &'a Source,
    /// It takes the image as well.
    shared: bool,
    link: Option<Link>,
}

impl<'a> Line<'a> {
    /// To a host that has the image; `shared`: that takes it as well.
    pub(super) fn to(source: &'a Source, shared: bool) -> Self {
        Self { source, shared, link: None }
    }

    /// Takes the connection, or makes one. Who has read everything from it puts it back.
    async fn take(&mut self, dialer: &BulkDialer) -> Result<Link, BulkError> {
        match self.link.take() {
            Some(link) => Ok(link),
            None => {
                let expected = Expected { host: self.source.host, key: self.source.key.clone() };
                dialer.link(self.source.address, Some(&expected), Instant::now() + BEGINS).await
            }
        }
    }

    /// Fetches something small.
    pub(super) async fn fetch(&mut self, dialer: &BulkDialer, want: &BulkRequest) -> Result<Vec<u8>, BulkError> {
        let (mut link, mut bytes) = (self.take(dialer).await?, Vec::new());
        link.fetch(want, MANIFEST_MAX as u64, &mut bytes, Instant::now() + BEGINS).await?;
        self.link = Some(link);
        Ok(bytes)
    }
}

/// Why a source is not asked any more.
struct Stopped {
    source: String,
    why: Report,
}

impl Pull {
    /// Copies the image and gives it its name.
    ///
    /// # Errors
    /// No source has it whole, or the pool cannot take it. What came stays for the next time.
    pub(crate) async fn run(self) -> Result<(), Report> {
        let (bytes, manifest) = self.manifest().await?;
        self.progress.send_modify(|now| now.total = manifest.bytes());
        let part = self.store.part(&self.image, self.root);
        let work = super::blocking({
            let (pull, part) = (self.clone(), part.clone());
            move || Work::survey(pull, manifest, &part)
        })
        .await
        .map_err(|error| trouble("a copy of the image cannot be begun", &part, &error))?;
        let work = Arc::new(work);
        let mut sources = self.sources.clone();
        while !work.is_empty() {
            let links = if sources.len() == 1 { LINKS } else { 1 };
            let lines = sources.iter().take(SOURCES).flat_map(|source| iter::repeat_n(source, links));
            let whole = join_all(lines.map(|source| work.drain(source)));
            let asked = tokio::select! {
                asked = whole => asked,
                never = work.share() => match never {},
            };
            let stopped: Vec<Stopped> = asked.into_iter().filter_map(Result::err).collect();
            sources.retain(|source| stopped.iter().all(|stopped| stopped.source != source.name));
            match stopped.into_iter().next() {
                // Our own disk: no other source helps.
                Some(Stopped { why, .. }) if why.code == ErrorCode::DiskFull => return Err(why),
                Some(Stopped { why, .. }) if sources.is_empty() => return Err(why),
                _ => {}
            }
        }
        let finished = super::blocking({
            let (store, image, part) = (self.store.clone(), self.image.clone(), part.clone());
            move || finish(&work, &store, &image, &part, &bytes)
        });
        finished.await.map_err(|error| trouble("the copy of the image cannot be finished", &part, &error))
    }

    /// The manifest, from the first source that has it.
    async fn manifest(&self) -> Result<(Vec<u8>, Manifest), Report> {
        let mut why = Report::new(ErrorCode::NoSource, format!("no host has a whole copy of image {}", self.image));
        for source in &self.sources {
            match Line::to(source, false).fetch(&self.dialer, &BulkRequest::Manifest(self.root)).await {
                Ok(bytes) => match Manifest::decode(&bytes, self.root) {
                    Ok(manifest) => return Ok((bytes, manifest)),
                    Err(error) => why = why.with(&source.name, error.to_string()),
                },
                Err(error) => why = why.with(&source.name, error.report().title),
            }
        }
        Err(why.help(format!("vtctl image verify {}", self.image)))
    }
}

impl Work {
    /// Reads what is here already, and finds out what has to come.
    fn survey(pull: Pull, manifest: Manifest, part: &Path) -> io::Result<Self> {
        fs::create_dir_all(part)?;
        let seeds = Seeds::of(&pull.store.folder(&pull.image), &manifest);
        let manifest = Arc::new(manifest);
        let joined = pull.swarm.join(pull.root, &manifest, part);
        let (mut files, mut queue) = (Vec::new(), VecDeque::new());
        let (mut first, mut copies) = (HashMap::<Digest, Place>::new(), HashMap::<Place, Vec<Place>>::new());
        let progress = pull.progress.clone();
        for (number, wanted) in manifest.files.iter().enumerate() {
            let path = part.join(&wanted.name);
            let file =
                File::options().read(true).write(true).create(true).truncate(false).mode(wanted.mode).open(&path)?;
            file.set_permissions(fs::Permissions::from_mode(wanted.mode & 0o777))?;
            if file.metadata()?.len() == 0 {
                seeds.share(number, &file)?;
            }
            file.set_len(wanted.length)?;
            let hasher = Hasher::new(wanted.block());
            let mut missing = Vec::new();
            let unwatched = AtomicU64::new(0);
            blocks::read(&file, wanted.length, &unwatched, |index, bytes, digest, _| {
                let goal = wanted.digests[index as usize];
                let mut here = digest == goal;
                if !here && let Some(place) = wanted.place(index) {
                    here = match hasher.hole(bytes.len()) {
                        (zeros, zero) if zero == goal => file.write_all_at(zeros, place.0).is_ok(),
                        _ => seeds.give(number, place, goal, &file)?,
                    };
                }
                if here {
                    joined.coming.blocks().add(number, index);
                    count(&progress, |now| now.done += bytes.len() as u64);
                    return Ok(());
                }
                match first.entry(goal) {
                    Entry::Occupied(known) => copies.entry(*known.get()).or_default().push((number, index)),
                    Entry::Vacant(new) => {
                        new.insert((number, index));
                        missing.push(index);
                    }
                }
                Ok(())
            })?;
            queue.extend(segments(number, &missing));
            files.push(Written::new(file));
        }
        let (place, of) = pull.begin;
        let share = queue.len() / of;
        queue.rotate_left(queue.len() * place / of);
        // In an order of our own after our share: hosts that ask each other for different blocks can give both on.
        queue.make_contiguous()[share..].shuffle(&mut rand::rng());
        let (pace, elsewhere) = (Mutex::new(Instant::now()), Mutex::default());
        let wanted = Mutex::new(Wanted { queue, asked: 0 });
        Ok(Self { pull, manifest, files, wanted, changed: Notify::new(), joined, elsewhere, copies, pace })
    }

    /// Takes from one source until nothing is wanted any more.
    async fn drain(self: &Arc<Self>, source: &Source) -> Result<(), Stopped> {
        let (mut line, mut tries) = (Line::to(source, false), 0);
        loop {
            let Some(mut asked) = self.next_of_whole().await else { return Ok(()) };
            let Err(error) = self.fetch(&mut line, &asked.segment, &mut asked.written).await else {
                tries = 0;
                continue;
            };
            if asked.written > 0 {
                tries = 0;
            }
            drop(asked);
            tries += 1;
            if !error.retryable || tries >= TRIES {
                return Err(Stopped { source: source.name.clone(), why: error.with("source", &source.name) });
            }
            sleep(PAUSE).await;
        }
    }

    /// Fetches the blocks of one segment; `written` counts those that are in their places.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        line: &mut Line<'_>,
        segment: &Segment,
        written: &mut usize,
    ) -> Result<(), Report> {
        let file = &self.manifest.files[segment.file];
        let runs = runs(&segment.blocks);
        let wrong = |title: String| Report::new(ErrorCode::ImageDamaged, title);
        let length = manifest::bytes_of(file.length, &runs);
        let length = length.ok_or_else(|| wrong("blocks beyond the end are wanted".to_owned()))?;
        let place = u16::try_from(segment.file).unwrap_or(u16::MAX);
        let want = BulkRequest::Blocks { root: self.pull.root, file: place, runs };
        let mut link = line.take(&self.pull.dialer).await.map_err(|error| error.report())?;
        let asked = link.ask(&want, length, Instant::now() + BEGINS).await;
        let (follows, stream) = asked.map_err(|error| error.report())?;
        if follows != length {
            return Err(wrong(format!("{} sends {follows} bytes instead of {length}", line.source.name)));
        }
        // Two buffers: one is filled while the other is compared and written.
        let (mut spare, mut pending): (Vec<u8>, Option<(Writing, usize)>) = (Vec::new(), None);
        let mut failure = None;
        for batch in segment.blocks.chunks((BATCH / file.block() as usize).max(1)) {
            let mut bytes = std::mem::take(&mut spare);
            let lengths = batch.iter().filter_map(|index| file.place(*index)).map(|(_, length)| length as usize);
            bytes.resize(lengths.sum(), 0);
            let read = self.read(&mut bytes, stream, length).await;
            // What came before is in its place before more is.
            if let Some((before, count)) = pending.take() {
                spare = settled(before).await?;
                *written += count;
            }
            if let Err(error) = read {
                failure = Some(error.report());
                break;
            }
            if line.shared {
                count(&self.pull.progress, |now| now.shared += bytes.len() as u64);
            }
            let (work, at, blocks, source) = (Arc::clone(self), segment.file, batch.to_vec(), line.source.name.clone());
            let writing = tokio::task::spawn_blocking(move || work.write(at, &blocks, &bytes, &source).map(|()| bytes));
            pending = Some((writing, batch.len()));
        }
        if let Some((before, count)) = pending.take() {
            settled(before).await?;
            *written += count;
        }
        match failure {
            Some(failure) => Err(failure),
            None => {
                line.link = Some(link);
                Ok(())
            }
        }
    }

    async fn read(
        &self,
        bytes: &mut [u8],
        stream: &mut (impl AsyncRead + Unpin),
        length: u64,
    ) -> Result<(), BulkError> {
        self.wait_for_room(bytes.len()).await;
        match timeout(STALL, stream.read_exact(bytes)).await {
            Ok(Ok(_)) => {
                count(&self.pull.progress, |now| now.moved += bytes.len() as u64);
                Ok(())
            }
            Ok(Err(source)) => Err(BulkError::Broken { done: 0, length, source }),
            Err(_) => Err(BulkError::Stalled { done: 0, length }),
        }
    }

    /// Keeps all workers together below the bound.
    async fn wait_for_room(&self, bytes: usize) {
        if self.pull.rate == 0 {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.pull.rate as f64);
        let at = {
            let mut next = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            *next = at + takes;
            at
        };
        sleep_until(at).await;
    }

    /// Compares blocks with their digests and writes them to all their places. Where one is wrong none of them is written.
    fn write(&self, at: usize, blocks: &[u32], bytes: &[u8], source: &str) -> Result<(), Report> {
        let file = &self.manifest.files[at];
        let failed =
            |error: io::Error| trouble("a block of the image cannot be written", &self.pull.store.path, &error);
        let mut rest = bytes;
        let mut again = Vec::new();
        for index in blocks {
            let Some((_, length)) = file.place(*index) else { continue };
            let (block, after) = rest.split_at(length as usize);
            rest = after;
            if Digest::of(block) != file.digests[*index as usize] {
                let title = format!("block {index} of {} from {source} does not have its digest", file.name);
                return Err(Report::new(ErrorCode::ImageDamaged, title)
                    .with("image", self.pull.image.to_string())
                    .help(format!("vtctl image verify {}", self.pull.image)));
            }
            again.extend(self.copies.get(&(at, *index)).into_iter().flatten().map(|place| (*place, block)));
        }
        let mut rest = bytes;
        for run in runs(blocks) {
            let Some((begin, length)) = manifest::span(file.length, run) else { continue };
            let (together, after) = rest.split_at(length as usize);
            rest = after;
            self.files[at].write_all_at(together, begin).map_err(failed)?;
        }
        let mut all = bytes.len();
        for ((other, index), block) in &again {
            if let Some((begin, _)) = self.manifest.files[*other].place(*index) {
                self.files[*other].write_all_at(block, begin).map_err(failed)?;
                all += block.len();
            }
        }
        let mut here = self.joined.coming.blocks();
        blocks.iter().for_each(|index| here.add(at, *index));
        again.iter().for_each(|((other, index), _)| here.add(*other, *index));
        count(&self.pull.progress, |now| now.done += all as u64);
        Ok(())
    }
}

/// Blocks that are being compared and written; at its end their buffer is free again.
type Writing = JoinHandle<Result<Vec<u8>, Report>>;

async fn settled(writing: Writing) -> Result<Vec<u8>, Report> {
    match writing.await {
        Ok(written) => written,
        Err(error) => Err(Report::new(ErrorCode::Internal, "a block was not written").caused_by(&error)),
    }
}

/// Counts what moves. Who waits for the end of a copy is not woken by that.
fn count(progress: &watch::Sender<Pulling>, add: impl FnOnce(&mut Pulling)) {
    progress.send_if_modified(|now| {
        add(now);
        false
    });
}

/// Everything to disk, the manifest beside it, and the image's name upon it.
fn finish(work: &Work, store: &Store, image: &Name, part: &Path, manifest: &[u8]) -> io::Result<()> {
    work.files.iter().try_for_each(Written::finish)?;
    let record = store::record_in(part).map_err(|error| io::Error::other(error.to_string()))?;
    if record.name != image.as_str() {
        return Err(io::Error::other(format!("what came is image {}", record.name)));
    }
    let file = part.join(manifest::FILE);
    fs::write(&file, manifest)?;
    File::open(&file)?.sync_all()?;
    store.put_in_place(part, image)
}

/// Missing blocks of a file, as much at a time as one question asks for.
fn segments(file: usize, missing: &[u32]) -> Vec<Segment> {
    let (least, most) = SEGMENT;
    missing
        .chunks((missing.len() / QUESTIONS).clamp(least, most))
        .map(|blocks| Segment { file, blocks: blocks.to_vec() })
        .collect()
}

/// Blocks in order as runs: first, and how many.
fn runs(blocks: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *block => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_order_are_few_runs() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0, 1, 2, 7, 9, 10]), [(0, 3), (7, 1), (9, 2)]);
        for (blocks, questions) in [(0, 0), (10, 2), (2500, 313), (1 << 18, 512)] {
            let missing: Vec<u32> = (0..blocks).collect();
            let segments = segments(1, &missing);
            assert_eq!(segments.len(), questions);
            assert_eq!(segments.iter().map(|segment| segment.blocks.len()).sum::<usize>(), blocks as usize);
        }
    }
}
