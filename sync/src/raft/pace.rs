//! The beat of a replica: openraft's own ticker runs only while an election may be near.
//!
//! That ticker fires five times a heartbeat on every host, which is half of what an idle daemon does. A leader needs one
//! beat, and a follower that has just heard its leader needs none. What may not happen here: a follower that has not
//! heard its leader for two heartbeats without the ticker, which alone stands for election.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::Raft;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use vt_protocol::ids::HostId;

use super::{
    machine::Machine,
    status::{Leadership, ReplicaRole},
    types::TypeConfig,
};

/// Which leader was heard last, and when. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Option<(HostId, Instant)>>>);

impl Heard {
    /// That leader was heard.
    pub(super) fn now(&self, leader: HostId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((leader, Instant::now()));
    }

    /// Who was heard last, and how long ago; `None`: nobody ever was.
    pub(super) fn last(&self) -> Option<(HostId, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|(leader, heard)| (leader, heard.elapsed()))
    }

    /// For how long it was not; `None`: it never was.
    pub(super) fn silent(&self) -> Option<Duration> {
        self.last().map(|(_, ago)| ago)
    }
}

/// What a replica does about time until it is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// It leads: it lets itself be heard.
    Beat,
    /// Its leader was heard: nothing, for so long.
    Calm(Duration),
    /// The ticker runs: it stands for election when its time has come.
    Watch,
}

impl Pace {
    fn of(role: ReplicaRole, leader_known: bool, silent: Option<Duration>, heartbeat: Duration) -> Self {
        match (role, silent) {
            (ReplicaRole::Leader, _) => Self::Beat,
            (ReplicaRole::Follower | ReplicaRole::Learner, Some(silent)) if leader_known => {
                match (2 * heartbeat).checked_sub(silent) {
                    Some(left) if !left.is_zero() => Self::Calm(left),
                    _ => Self::Watch,
                }
            }
            _ => Self::Watch,
        }
    }
}

/// Keeps the pace until the replica stops.
pub(super) async fn keep(
    raft: Raft<TypeConfig, Machine>,
    mut leadership: watch::Receiver<Leadership>,
    heard: Heard,
    heartbeat: Duration,
) {
    loop {
        let (role, known) = {
            let now = leadership.borrow_and_update();
            (now.role, now.leader.is_some())
        };
        let pace = Pace::of(role, known, heard.silent(), heartbeat);
        raft.runtime_config().tick(pace == Pace::Watch);
        let wake = match pace {
            Pace::Beat if raft.trigger().heartbeat().await.is_err() => return,
            Pace::Beat | Pace::Watch => heartbeat,
            Pace::Calm(left) => left,
        };
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() { return },
            () = sleep_until(Instant::now() + wake) => {}
        }
        if leadership.borrow().role == ReplicaRole::Stopped {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticker_rests_only_while_the_leader_is_heard() {
        use ReplicaRole::{Candidate, Follower, Leader, Learner, Stopped};
        let ms = Duration::from_millis;
        for (role, known, silent, expected) in [
            (Leader, true, None, Pace::Beat),
            (Leader, true, Some(ms(9000)), Pace::Beat),
            (Follower, true, Some(ms(0)), Pace::Calm(ms(800))),
            (Follower, true, Some(ms(799)), Pace::Calm(ms(1))),
            (Follower, true, Some(ms(800)), Pace::Watch),
            (Follower, true, Some(ms(9000)), Pace::Watch),
            (Follower, true, None, Pace::Watch),
            (Follower, false, Some(ms(0)), Pace::Watch),
            (Learner, true, Some(ms(300)), Pace::Calm(ms(500))),
            (Candidate, true, Some(ms(0)), Pace::Watch),
            (Stopped, true, Some(ms(0)), Pace::Watch),
        ] {
            assert_eq!(Pace::of(role, known, silent, ms(400)), expected, "{role:?} {known} {silent:?}");
        }
    }
}
