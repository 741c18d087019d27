//! The file behind an export: read and written over whatever connection there is, kept until it is safe, and taken over.
//!
//! A server that stands still is waited for. One whose connection breaks is connected to again, and what it had only held in
//! memory is written once more if it is not the same boot any more. Longer than [`PATIENCE`] nobody waits: that is an
//! error, told once and for good.

use std::{collections::VecDeque, time::Duration};

use nfs3_client::nfs3_types::nfs3::nfsstat3;
use tokio::time::{Instant, sleep, sleep_until, timeout};
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

/// A file of a server.
pub(super) struct Backing {
    place: NfsPlace,
    name: String,
    /// Under which epoch it is written; `None`: not at all.
    epoch: Option<Epoch>,
    open: Option<(Share, Handle)>,
    /// What the server calls it, once it was looked up: also after the server was started anew.
    handle: Option<Handle>,
    /// What the server has in memory, oldest first.
    held: VecDeque<Held>,
    held_bytes: usize,
}

struct Held {
    offset: u64,
    bytes: Vec<u8>,
    verifier: Verifier,
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
        Self { place, name, epoch: None, open: None, handle: None, held: VecDeque::new(), held_bytes: 0 }
    }

    /// The file's length.
    pub(super) async fn length(&mut self, tell: &impl Fn(Word)) -> Result<u64, Trouble> {
        self.patiently(tell, async |share, file| share.facts(file).await.map(|facts| facts.length)).await
    }

    /// Takes the file over: from now on it is written under that epoch, and nobody else's writes are taken by the server.
    pub(super) async fn take(&mut self, epoch: Epoch, tell: &impl Fn(Word)) -> Result<(), Trouble> {
        if self.epoch == Some(epoch) {
            return Ok(());
        }
        // An epoch below is one of the past, whoever asks.
        if self.epoch > Some(epoch) {
            return Err(Trouble::NotOwner);
        }
        // As the export's root, which alone may give a file away.
        self.epoch = None;
        self.open = None;
        let owner = user_of(epoch);
        self.patiently(tell, async |share, file| take_over(share, file, owner).await).await?;
        self.epoch = Some(epoch);
        self.open = None;
        Ok(())
    }

    pub(super) async fn read(&mut self, offset: u64, length: u32, tell: &impl Fn(Word)) -> Result<Vec<u8>, Trouble> {
        let mut into = vec![0; length as usize];
        self.patiently(tell, async |share, file| share.read(file, offset, &mut into).await).await?;
        Ok(into)
    }

    pub(super) async fn write(
        &mut self,
        offset: u64,
        bytes: Vec<u8>,
        safe: bool,
        tell: &impl Fn(Word),
    ) -> Result<(), Trouble> {
        if self.epoch.is_none() {
            return Err(Trouble::NotOwner);
        }
        let written = self.patiently(tell, async |share, file| share.write(file, offset, &bytes, safe).await).await?;
        if let Written::Held(verifier) = written {
            self.held_bytes += bytes.len();
            self.held.push_back(Held { offset, bytes, verifier });
        }
        if self.held_bytes > HELD_MAX {
            self.flush(tell).await?;
        }
        Ok(())
    }

    /// All that was written is on the server's disk.
    pub(super) async fn flush(&mut self, tell: &impl Fn(Word)) -> Result<(), Trouble> {
        if self.held.is_empty() {
            return Ok(());
        }
        let boot = self.patiently(tell, async |share, file| share.commit(file).await).await?;
        // Held by a boot that is over: it may be lost. In the order in which it was written first.
        if self.held.iter().any(|held| held.verifier != boot) {
            let held = std::mem::take(&mut self.held);
            for again in &held {
                let write =
                    async |share: &mut Share, file: &Handle| share.write(file, again.offset, &again.bytes, true).await;
                self.patiently(tell, write).await?;
            }
        }
        self.held.clear();
        self.held_bytes = 0;
        Ok(())
    }

    /// Does something over the connection there is, or over a new one, and tells when the server keeps it waiting.
    async fn patiently<T>(
        &mut self,
        tell: &impl Fn(Word),
        mut what: impl AsyncFnMut(&mut Share, &Handle) -> Result<T, NfsError>,
    ) -> Result<T, Trouble> {
        let begun = Instant::now();
        let until = begun + PATIENCE;
        let mut told = false;
        let work = async {
            loop {
                let open = match &mut self.open {
                    Some(open) => open,
                    none => match timeout(CONNECTS, open(&self.place, &self.name, &self.handle, self.epoch)).await {
                        Ok(Ok(open)) => {
                            self.handle = Some(open.1.clone());
                            none.insert(open)
                        }
                        Ok(Err(error)) if !error.is_of_connection() => return Err(Trouble::from(error)),
                        _ => {
                            sleep(AGAIN).await;
                            continue;
                        }
                    },
                };
                match what(&mut open.0, &open.1).await {
                    Err(error) if error.is_of_connection() => self.open = None,
                    done => return done.map_err(Trouble::from),
                }
            }
        };
        tokio::pin!(work);
        loop {
            let next = if told { until } else { begun + TELLS };
            tokio::select! {
                done = &mut work => {
                    if told {
                        tell(Word::Answers { ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX) });
                    }
                    return done;
                }
                () = sleep_until(next), if !told => {
                    told = true;
                    tell(Word::Waits);
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
async fn open(
    place: &NfsPlace,
    name: &str,
    known: &Option<Handle>,
    epoch: Option<Epoch>,
) -> Result<(Share, Handle), NfsError> {
    let mut share = Share::open(place, epoch.map_or(ROOT, user_of)).await?;
    let file = match known {
        Some(file) => file.clone(),
        // The first time is before a take-over, as root: the folder need not be open to others.
        None => share.find(name).await?.ok_or(NfsError::Strange("the disk is not there"))?,
    };
    Ok((share, file))
}
