//! The file behind an export: read and written over whatever connection there is, kept until it is safe, and taken over.
//!
//! A server that stands still is waited for. One whose connection breaks is connected to again, and what it had only held in
//! memory is written once more if it is not the same boot any more. Longer than [`PATIENCE`] nobody waits: that is an
//! error, told once and for good.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};

use nfs3_client::nfs3_types::nfs3::nfsstat3;
use tokio::{
    sync::{RwLock, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use vt_protocol::{ids::Epoch, pool::NfsPlace};

use super::{
    super::{
        nfs::{Handle, NfsError, ROOT, Share, TAKEN, Verifier, Written},
        user_of,
    },
    Word,
};

/// How long a server may be away.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// How long it may be away before that is told.
const TELLS: Duration = Duration::from_secs(3);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(300);
/// How long one try may take.
const CONNECTS: Duration = Duration::from_secs(10);
/// How often a take-over is tried that something came between.
const TAKES: u32 = 200;
/// Most bytes that are kept for a server which has them in memory only.
const HELD_MAX: usize = 32 << 20;

/// Connections at once. A server works on a connection's calls one after another, as far as its client is concerned.
const LANES: usize = 4;

/// A connection, and the file on it.
type Open = (Share, Handle);

/// A file of a server.
///
/// Several requests are answered at the same time, each over a connection of its own. Whoever changes under whom or what is
/// written waits for them and keeps others out meanwhile: a take-over, and writing again what a server has lost.
pub(super) struct Backing {
    place: NfsPlace,
    name: String,
    /// Under which epoch it is written; `None`: not at all. Requests read it for as long as they last.
    epoch: RwLock<Option<Epoch>>,
    lanes: Semaphore,
    /// Connections under that epoch that nobody uses just now.
    idle: RefCell<Vec<Open>>,
    /// What the server calls it, once it was looked up: also after the server was started anew.
    handle: RefCell<Option<Handle>>,
    held: RefCell<Held>,
    /// Since when the server has kept somebody waiting, if that was told.
    waits: Cell<Option<Instant>>,
}

/// What the server has in memory, oldest first.
#[derive(Default)]
struct Held {
    writes: VecDeque<HeldWrite>,
    bytes: usize,
    /// Number of the next one.
    next: u64,
}

struct HeldWrite {
    number: u64,
    offset: u64,
    bytes: Vec<u8>,
    verifier: Verifier,
}

impl Held {
    fn push(&mut self, offset: u64, bytes: Vec<u8>, verifier: Verifier) {
        self.bytes += bytes.len();
        self.writes.push_back(HeldWrite { number: self.next, offset, bytes, verifier });
        self.next += 1;
    }

    /// Whether all before that one are held by the same boot.
    fn are_of(&self, boot: Verifier, before: u64) -> bool {
        self.writes.iter().take_while(|write| write.number < before).all(|write| write.verifier == boot)
    }

    /// Forgets all before that one, which are safe.
    fn forget(&mut self, before: u64) {
        while let Some(write) = self.writes.pop_front_if(|write| write.number < before) {
            self.bytes -= write.bytes.len();
        }
    }
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Nfs(NfsError),
    #[error("the server has not answered for {} s", PATIENCE.as_secs())]
    Away,
    #[error("another host has taken the disk over")]
    NotOwner,
}

impl From<NfsError> for Trouble {
    fn from(error: NfsError) -> Self {
        match error.status() {
            Some(nfsstat3::NFS3ERR_ACCES | nfsstat3::NFS3ERR_PERM) if error.is_of_data() => Self::NotOwner,
            _ => Self::Nfs(error),
        }
    }
}

impl Backing {
    /// Nothing is connected yet.
    pub(super) fn new(place: NfsPlace, name: String) -> Self {
        Self {
            place,
            name,
            epoch: RwLock::new(None),
            lanes: Semaphore::new(LANES),
            idle: RefCell::default(),
            handle: RefCell::default(),
            held: RefCell::default(),
            waits: Cell::new(None),
        }
    }

    /// The file's length.
    pub(super) async fn length(&self, tell: &impl Fn(Word)) -> Result<u64, Trouble> {
        let epoch = self.epoch.read().await;
        self.patiently(*epoch, tell, async |share, file| share.facts(file).await.map(|facts| facts.length)).await
    }

    /// Takes the file over: from now on it is written under that epoch, and nobody else's writes are taken by the server.
    pub(super) async fn take(&self, epoch: Epoch, tell: &impl Fn(Word)) -> Result<(), Trouble> {
        let mut now = self.epoch.write().await;
        if *now == Some(epoch) {
            return Ok(());
        }
        // An epoch below is one of the past, whoever asks.
        if *now > Some(epoch) {
            return Err(Trouble::NotOwner);
        }
        // As the export's root, which alone may give a file away.
        *now = None;
        self.idle.take();
        let owner = user_of(epoch);
        let taken = self.patiently(None, tell, async |share, file| take_over(share, file, owner).await).await;
        self.idle.take();
        taken?;
        *now = Some(epoch);
        Ok(())
    }

    pub(super) async fn read(&self, offset: u64, length: u32, tell: &impl Fn(Word)) -> Result<Vec<u8>, Trouble> {
        let epoch = self.epoch.read().await;
        let mut into = vec![0; length as usize];
        self.patiently(*epoch, tell, async |share, file| share.read(file, offset, &mut into).await).await?;
        Ok(into)
    }

    pub(super) async fn write(
        &self,
        offset: u64,
        bytes: Vec<u8>,
        safe: bool,
        tell: &impl Fn(Word),
    ) -> Result<(), Trouble> {
        let epoch = self.epoch.read().await;
        if epoch.is_none() {
            return Err(Trouble::NotOwner);
        }
        let write = async |share: &mut Share, file: &Handle| share.write(file, offset, &bytes, safe).await;
        if let Written::Held(verifier) = self.patiently(*epoch, tell, write).await? {
            self.held.borrow_mut().push(offset, bytes, verifier);
        }
        drop(epoch);
        let much = self.held.borrow().bytes > HELD_MAX;
        if much { self.flush(tell).await } else { Ok(()) }
    }

    /// All that was written before is on the server's disk.
    pub(super) async fn flush(&self, tell: &impl Fn(Word)) -> Result<(), Trouble> {
        let epoch = self.epoch.read().await;
        let before = self.held.borrow().next;
        if self.held.borrow().writes.is_empty() {
            return Ok(());
        }
        let boot = self.patiently(*epoch, tell, async |share, file| share.commit(file).await).await?;
        if self.held.borrow().are_of(boot, before) {
            self.held.borrow_mut().forget(before);
            return Ok(());
        }
        drop(epoch);
        self.write_again(tell).await
    }

    /// Writes what may be lost, for it was held by a boot that is over: in the order in which it was written first, with
    /// nothing in between.
    async fn write_again(&self, tell: &impl Fn(Word)) -> Result<(), Trouble> {
        let epoch = self.epoch.write().await;
        // Not forgotten before all of it is safe: where this fails, the next flush does it.
        let held = std::mem::take(&mut *self.held.borrow_mut());
        let again = async {
            for again in &held.writes {
                let write =
                    async |share: &mut Share, file: &Handle| share.write(file, again.offset, &again.bytes, true).await;
                self.patiently(*epoch, tell, write).await?;
            }
            Ok(())
        };
        let done = again.await;
        *self.held.borrow_mut() = match done {
            Ok(()) => Held { next: held.next, ..Held::default() },
            Err(_) => held,
        };
        done
    }

    /// Does something over a connection there is, or over a new one, and tells when the server keeps it waiting.
    async fn patiently<T>(
        &self,
        epoch: Option<Epoch>,
        tell: &impl Fn(Word),
        mut what: impl AsyncFnMut(&mut Share, &Handle) -> Result<T, NfsError>,
    ) -> Result<T, Trouble> {
        let _lane = self.lanes.acquire().await.map_err(|_| Trouble::Away)?;
        let begun = Instant::now();
        let until = begun + PATIENCE;
        let work = async {
            loop {
                let idle = self.idle.borrow_mut().pop();
                let mut open = match idle {
                    Some(open) => open,
                    None => {
                        let known = self.handle.borrow().clone();
                        match timeout(CONNECTS, open(&self.place, &self.name, known, epoch)).await {
                            Ok(Ok(open)) => {
                                *self.handle.borrow_mut() = Some(open.1.clone());
                                open
                            }
                            Ok(Err(error)) if !error.is_of_connection() => return Err(Trouble::from(error)),
                            _ => {
                                sleep(AGAIN).await;
                                continue;
                            }
                        }
                    }
                };
                match what(&mut open.0, &open.1).await {
                    Err(error) if error.is_of_connection() => {}
                    done => {
                        self.idle.borrow_mut().push(open);
                        return done.map_err(Trouble::from);
                    }
                }
            }
        };
        tokio::pin!(work);
        let mut told = false;
        loop {
            let next = if told { until } else { begun + TELLS };
            tokio::select! {
                done = &mut work => {
                    if let Some(since) = self.waits.take() {
                        tell(Word::Answers { ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) });
                    }
                    return done;
                }
                () = sleep_until(next), if !told => {
                    told = true;
                    // Once for all that wait.
                    if self.waits.replace(Some(self.waits.get().unwrap_or(begun))).is_none() {
                        tell(Word::Waits);
                    }
                }
                () = sleep_until(until) => return Err(Trouble::Away),
            }
        }
    }
}

/// Gives the file to `owner`, unless a later epoch has it. What is decided on what was seen holds only while that is so: a
/// host that was frozen in between and wakes up too late is told so by the server.
async fn take_over(share: &mut Share, file: &Handle, owner: u32) -> Result<(), NfsError> {
    for _ in 0..TAKES {
        let seen = share.facts(file).await?;
        if seen.owner == owner {
            return Ok(());
        }
        if seen.owner > owner {
            return Err(NfsError::Refused { what: TAKEN, status: nfsstat3::NFS3ERR_PERM });
        }
        match share.give(file, owner, &seen).await {
            Err(error) if error.status() == Some(nfsstat3::NFS3ERR_NOT_SYNC) => sleep(AGAIN / 10).await,
            done => return done,
        }
    }
    Err(NfsError::Strange("the disk is written to all the time while it is taken over"))
}

/// Connects under the epoch's user number; before it was taken over, as one that only reads.
async fn open(place: &NfsPlace, name: &str, known: Option<Handle>, epoch: Option<Epoch>) -> Result<Open, NfsError> {
    let mut share = Share::open(place, epoch.map_or(ROOT, user_of)).await?;
    let file = match known {
        Some(file) => file,
        // The first time is before a take-over, as root: the folder need not be open to others.
        None => share.find(name).await?.ok_or(NfsError::Strange("the disk is not there"))?,
    };
    Ok((share, file))
}
