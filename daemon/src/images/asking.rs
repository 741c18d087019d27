//! What of an image that is on its way is asked of whom: of hosts that have it whole, and of hosts that are taking it too.
//!
//! A host that has it whole is asked for what nobody else has yet, so that it sends most blocks once, however many hosts
//! take it. What may not happen here: a segment that nobody asks for, nor has brought.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::sleep;
use vt_protocol::{
    bulk::BulkRequest,
    catalogue::PlacementState,
    error::{ErrorCode, Report},
    ids::HostId,
};

use super::{
    pull::{Line, Segment, Source, Work},
    swarm::Blocks,
};

/// Hosts that are taking it as well and are asked at the same time.
const PEERS: usize = 8;
/// How often one of those is asked what it has.
const ASKS: Duration = Duration::from_millis(100);

/// What has not come yet.
pub(super) struct Wanted {
    pub(super) queue: VecDeque<Segment>,
    /// Segments that are being asked for.
    pub(super) asked: usize,
}

/// A segment that is being asked for. What of it did not come goes back when this is dropped.
pub(super) struct Asked<'a> {
    work: &'a Work,
    pub(super) segment: Segment,
    /// Blocks of it that are on disk.
    pub(super) written: usize,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut wanted = self.work.wanted();
        wanted.asked -= 1;
        let left = self.segment.blocks.split_off(self.written);
        if !left.is_empty() {
            wanted.queue.push_front(Segment { file: self.segment.file, blocks: left });
        }
        self.work.changed.notify_waiters();
    }
}

impl Work {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        // Nothing panics while it holds the lock.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elsewhere(&self) -> MutexGuard<'_, HashMap<HostId, Blocks>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted().queue.is_empty()
    }

    /// Takes the segment at the place that `choose` names.
    fn ask_for(
        &self,
        wanted: &mut Wanted,
        choose: impl FnOnce(&VecDeque<Segment>) -> Option<usize>,
    ) -> Option<Asked<'_>> {
        let segment = choose(&wanted.queue).and_then(|at| wanted.queue.remove(at))?;
        wanted.asked += 1;
        Some(Asked { work: self, segment, written: 0 })
    }

    /// What is to be asked of a host that has all: first what no host that takes it as well has yet. Waits while there is
    /// nothing but what others are asked for; `None` once all has come.
    pub(super) async fn next_of_whole(&self) -> Option<Asked<'_>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let elsewhere = self.elsewhere();
                let mut wanted = self.wanted();
                let nobody = |segment: &Segment| !elsewhere.values().any(|blocks| segment.is_in(blocks));
                let choose = |queue: &VecDeque<Segment>| {
                    queue.iter().position(nobody).or_else(|| (!queue.is_empty()).then_some(0))
                };
                if let Some(asked) = self.ask_for(&mut wanted, choose) {
                    return Some(asked);
                }
                if wanted.asked == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// What is to be asked of a host that takes it as well.
    fn next_of_peer(&self, host: HostId) -> Option<Asked<'_>> {
        let elsewhere = self.elsewhere();
        let blocks = elsewhere.get(&host)?;
        self.ask_for(&mut self.wanted(), |queue| queue.iter().position(|segment| segment.is_in(blocks)))
    }

    /// Takes what hosts have that take the image as well, for as long as it is polled.
    pub(super) async fn share(self: &Arc<Self>) -> Infallible {
        let (mut rounds, mut busy, mut false_ones) = (FuturesUnordered::new(), HashSet::new(), HashSet::new());
        loop {
            let peers = (self.pull.also)().into_iter();
            let mut known = peers.filter(|(peer, _)| self.pull.sources.iter().all(|source| source.host != peer.host));
            while busy.len() < PEERS
                && let Some((peer, state)) = known.next()
            {
                if !false_ones.contains(&peer.host) && busy.insert(peer.host) {
                    rounds.push(self.round(peer, state));
                }
            }
            tokio::select! {
                Some((host, taken)) = rounds.next(), if !rounds.is_empty() => {
                    busy.remove(&host);
                    if taken.is_err_and(|report| report.code == ErrorCode::ImageDamaged) {
                        false_ones.insert(host);
                    }
                }
                () = sleep(ASKS) => {}
            }
        }
    }

    /// Asks a host what it has, and takes of that what is wanted.
    async fn round(self: &Arc<Self>, peer: Source, state: PlacementState) -> (HostId, Result<(), Report>) {
        let host = peer.host;
        let taken = async {
            let mut line = Line::to(&peer, true);
            let blocks = match state {
                PlacementState::Present => Blocks::all(&self.manifest),
                _ => self.what_it_has(&mut line).await?,
            };
            self.elsewhere().insert(host, blocks);
            let mut other = Line::to(&peer, true);
            let took = join_all([&mut line, &mut other].map(|line| self.take_from(host, line))).await;
            let took = took.into_iter().collect::<Result<Vec<bool>, Report>>()?;
            if !took.contains(&true) {
                sleep(ASKS).await;
            }
            Ok(())
        };
        let taken = taken.await;
        if taken.is_err() {
            self.elsewhere().remove(&host);
            sleep(ASKS).await;
        }
        (host, taken)
    }

    /// Takes from a host what it has of what is wanted; whether there was anything.
    async fn take_from(self: &Arc<Self>, host: HostId, line: &mut Line<'_>) -> Result<bool, Report> {
        let mut any = false;
        while let Some(mut asked) = self.next_of_peer(host) {
            self.fetch(line, &asked.segment, &mut asked.written).await?;
            any = true;
        }
        Ok(any)
    }

    async fn what_it_has(&self, line: &mut Line<'_>) -> Result<Blocks, Report> {
        let fetched = line.fetch(&self.pull.dialer, &BulkRequest::Have(self.pull.root)).await;
        let bytes = fetched.map_err(|error| error.report())?;
        Blocks::of_bytes(&self.manifest, &bytes).ok_or_else(|| {
            Report::new(ErrorCode::ImageDamaged, format!("{} speaks of another image", line.source.name))
        })
    }
}

impl Segment {
    fn is_in(&self, blocks: &Blocks) -> bool {
        self.blocks.iter().all(|block| blocks.has(self.file, *block))
    }
}
