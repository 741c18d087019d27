//! How many VMs leave this host at once: in all, and to each other host. What is too many waits for its turn.
//!
//! A lane is taken when everything is prepared and the transfer is to begin, and given back when the VM has left or
//! stays. Only the source counts, so that two hosts that send to each other never wait for each other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vt_protocol::ids::HostId;

/// The lanes of a host.
#[derive(Debug)]
pub struct Lanes {
    host: Arc<Semaphore>,
    each: usize,
    links: Mutex<BTreeMap<HostId, Arc<Semaphore>>>,
}

/// One transfer's lane; given back when it is dropped.
#[derive(Debug)]
pub struct Lane {
    _link: OwnedSemaphorePermit,
    _host: OwnedSemaphorePermit,
}

impl Lanes {
    /// At most `all` at once, and `each` to one other host.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { host: Arc::new(Semaphore::new(all)), each, links: Mutex::default() })
    }

    /// A lane to a host, in the order of asking; waits for one.
    pub async fn enter(&self, to: HostId) -> Lane {
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry(to).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
        };
        // The link first: what waits for a busy link takes no place from the others.
        let never = "these semaphores are never closed";
        let link = link.acquire_owned().await.expect(never);
        let host = Arc::clone(&self.host).acquire_owned().await.expect(never);
        Lane { _link: link, _host: host }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_busy_link_waits_alone_and_a_full_host_lets_nobody_leave() {
        let lanes = Lanes::new(2, 1);
        let first = lanes.enter(HostId(1)).await;
        assert!(lanes.enter(HostId(1)).now_or_never().is_none(), "one to each host");
        let second = lanes.enter(HostId(2)).now_or_never().expect("another link is free");
        assert!(lanes.enter(HostId(3)).now_or_never().is_none(), "two in all");
        drop(first);
        let third = lanes.enter(HostId(3)).now_or_never().expect("one has left");
        assert!(lanes.enter(HostId(1)).now_or_never().is_none());
        drop((second, third));
        assert!(lanes.enter(HostId(1)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_waits_goes_in_the_order_of_asking() {
        let lanes = Lanes::new(1, 1);
        let mut held = Some(lanes.enter(HostId(1)).await);
        let (told, mut came) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (lanes, told) = (lanes.clone(), told.clone());
            tokio::spawn(async move {
                let lane = lanes.enter(HostId(1)).await;
                told.send(number).unwrap();
                drop(lane);
            });
            // It asks before the next one does.
            tokio::task::yield_now().await;
        }
        held.take();
        for number in 0..5 {
            assert_eq!(came.recv().await, Some(number));
        }
    }
}
