//! Barriers: where parties meet and exchange data. A barrier is released or broken once, whichever comes first in the
//! log, and never both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, HostId},
    verdict::{Blame, Cause},
};

use super::{Attempt, Decision, Entry, PartyState, State, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{Arrive, BreakBarrier},
    mutation::Mutation,
};

/// Which barrier of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BarrierKey {
    /// Its name in the scenario.
    pub tag: String,
    /// How often a party has called this tag, from 1.
    pub generation: u32,
}

impl fmt::Display for BarrierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.tag, self.generation)
    }
}

/// A meeting point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// Who has to arrive.
    pub wanted: BTreeSet<HostId>,
    /// Who arrived, with what they gave.
    pub arrived: BTreeMap<HostId, Arc<Vec<u8>>>,
    /// How it stands.
    pub state: BarrierState,
}

/// How a barrier stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarrierState {
    /// Somebody is missing.
    Open,
    /// Everybody arrived.
    Released,
    /// It cannot be passed any more.
    Broken {
        /// Who had not arrived.
        missing: Vec<HostId>,
        /// Why, for people.
        why: String,
    },
}

impl Barrier {
    /// Who has not arrived.
    pub fn missing(&self) -> Vec<HostId> {
        self.wanted.iter().filter(|host| !self.arrived.contains_key(host)).copied().collect()
    }
}

impl Attempt {
    /// A barrier, while it is on record.
    pub fn barrier(&self, tag: &str, generation: u32) -> Option<&Arc<Barrier>> {
        self.barriers.get(&BarrierKey { tag: tag.to_owned(), generation })
    }

    fn payload_bytes(&self) -> usize {
        self.barriers.values().flat_map(|barrier| barrier.arrived.values()).map(|payload| payload.len()).sum()
    }

    /// Who has to arrive where a call names `parties`: all of them, if it names none.
    fn wanted(&self, parties: &[HostId], host: HostId) -> Result<BTreeSet<HostId>, Rejected> {
        let wanted: BTreeSet<HostId> = if parties.is_empty() { &self.hosts } else { parties }.iter().copied().collect();
        if let Some(stranger) = wanted.iter().find(|host| !self.parties.contains_key(host)) {
            return reject(ErrorCode::BadParameter, format!("{stranger} is no party of {}", self.id));
        }
        if !wanted.contains(&host) {
            return reject(ErrorCode::BadParameter, "a party cannot arrive at a barrier that does not want it");
        }
        Ok(wanted)
    }

    /// Why no further barrier can be passed by `wanted`, where that is so.
    fn hopeless(&self, state: &State, wanted: &BTreeSet<HostId>) -> Option<String> {
        if self.cancelled {
            return Some("the job was cancelled".to_owned());
        }
        let gone = wanted.iter().find(|host| self.parties.get(host) != Some(&PartyState::Running))?;
        Some(format!("the party of {} has ended", state.host_name(*gone)))
    }

    /// Forgets barriers of this tag that everybody has left behind: all who pass the released one have passed those.
    fn forget_passed(&mut self, key: &BarrierKey, wanted: &BTreeSet<HostId>) {
        let first = BarrierKey { tag: key.tag.clone(), generation: 0 };
        let behind = self.barriers.range(first..key.clone());
        let gone: Vec<_> = behind
            .filter(|(_, old)| old.state != BarrierState::Open && old.wanted.is_subset(wanted))
            .map(|(old, _)| old.clone())
            .collect();
        for old in gone {
            self.barriers.remove(&old);
            let passed = self.passed.entry(old.tag).or_default();
            *passed = old.generation.max(*passed);
        }
    }
}

impl State {
    pub(super) fn arrive(&mut self, entry: &mut Entry, c: &Arrive) -> Decision {
        within("bytes of a payload", c.payload.len(), bounds::PAYLOAD_BYTES)?;
        let attempt = self.running_party(c.attempt, c.epoch, c.host)?;
        let wanted = attempt.wanted(&c.parties, c.host)?;
        let mut barrier = match self.find_barrier(attempt, &c.barrier, &wanted)? {
            Some(barrier) => barrier,
            None => Barrier { wanted, arrived: BTreeMap::new(), state: BarrierState::Open },
        };
        if let Some(before) = barrier.arrived.get(&c.host) {
            if **before != c.payload {
                let text = format!("the party arrived at {} before, with another payload", c.barrier);
                return reject(ErrorCode::RequestConflict, text);
            }
            refuse_broken(&c.barrier, &barrier.state)?;
            return Ok(Answer::Barrier(barrier.state));
        }
        refuse_broken(&c.barrier, &barrier.state)?;
        within(
            "bytes of all payloads of the attempt",
            attempt.payload_bytes() + c.payload.len(),
            bounds::PAYLOAD_BYTES_PER_ATTEMPT,
        )?;
        let hopeless = attempt.hopeless(self, &barrier.wanted);
        barrier.arrived.insert(c.host, Arc::new(c.payload.clone()));
        let missing = barrier.missing();
        let enough = missing.is_empty() || (missing.len() == 1 && Mutation::BarrierAtNMinusOne.is_on());
        if enough {
            barrier.state = BarrierState::Released;
        } else if let Some(why) = hopeless {
            barrier.state = BarrierState::Broken { missing, why };
        }
        Ok(Answer::Barrier(self.put_barrier(entry, c.attempt, &c.barrier, barrier)))
    }

    pub(super) fn break_barrier(&mut self, entry: &mut Entry, c: &BreakBarrier) -> Decision {
        let attempt = self.running_party(c.attempt, c.epoch, c.host)?;
        let wanted = attempt.wanted(&c.parties, c.host)?;
        let mut barrier = match self.find_barrier(attempt, &c.barrier, &wanted)? {
            Some(barrier) => barrier,
            None => Barrier { wanted, arrived: BTreeMap::new(), state: BarrierState::Open },
        };
        if barrier.state != BarrierState::Open {
            return Ok(Answer::Barrier(barrier.state));
        }
        let missing = barrier.missing();
        let names: Vec<_> = missing.iter().map(|host| self.host_name(*host)).collect();
        let why = format!("the deadline of {} passed; missing: {}", self.host_name(c.host), names.join(", "));
        let report =
            Report::new(ErrorCode::BarrierTimeout, format!("barrier {} was not reached by all in time", c.barrier))
                .with("missing", names.join(", "))
                .with("deadline of", self.host_name(c.host));
        barrier.state = BarrierState::Broken { missing, why };
        if let Some(attempt) = self.attempts.get_mut(&c.attempt) {
            Arc::make_mut(attempt).add_cause(Cause { blame: Blame::Infrastructure, report });
        }
        Ok(Answer::Barrier(self.put_barrier(entry, c.attempt, &c.barrier, barrier)))
    }

    /// The barrier on record, after checking that it may be called so.
    fn find_barrier(
        &self,
        attempt: &Attempt,
        key: &BarrierKey,
        wanted: &BTreeSet<HostId>,
    ) -> Result<Option<Barrier>, Rejected> {
        within("bytes of a tag", key.tag.len(), bounds::TEXT_BYTES)?;
        if key.generation == 0 {
            return reject(ErrorCode::BadParameter, "generations count from 1");
        }
        if let Some(barrier) = attempt.barriers.get(key) {
            if barrier.wanted != *wanted {
                return reject(ErrorCode::RequestConflict, format!("others want other parties at {key}"));
            }
            return Ok(Some(Barrier::clone(barrier)));
        }
        if attempt.passed.get(&key.tag).is_some_and(|passed| key.generation <= *passed) {
            return reject(ErrorCode::CaseClosed, format!("all parties have left {key} behind"));
        }
        within("barriers of an attempt", attempt.barriers.len() + 1, bounds::BARRIERS_PER_ATTEMPT)?;
        if !attempt.passed.contains_key(&key.tag) {
            within("tags of an attempt", attempt.passed.len() + 1, bounds::BARRIERS_PER_ATTEMPT)?;
        }
        Ok(None)
    }

    fn put_barrier(&mut self, entry: &mut Entry, id: AttemptId, key: &BarrierKey, barrier: Barrier) -> BarrierState {
        let state = barrier.state.clone();
        if let Some(attempt) = self.attempts.get_mut(&id) {
            let attempt = Arc::make_mut(attempt);
            if state == BarrierState::Released {
                attempt.forget_passed(key, &barrier.wanted);
            }
            attempt.barriers.insert(key.clone(), Arc::new(barrier));
        }
        entry.tell(Effect::Barrier(id, key.clone()));
        state
    }

    /// Breaks open barriers that still need this host.
    pub(super) fn break_barriers_missing(&mut self, entry: &mut Entry, id: AttemptId, host: HostId, why: &str) {
        self.break_where(entry, id, why, |barrier| barrier.missing().contains(&host));
    }

    /// Breaks open barriers of which this host is a party, with the cause if any was broken.
    pub(super) fn break_barriers_of(
        &mut self,
        entry: &mut Entry,
        id: AttemptId,
        host: HostId,
        why: &str,
        cause: Option<Cause>,
    ) {
        let broken = self.break_where(entry, id, why, |barrier| barrier.wanted.contains(&host));
        if broken > 0
            && let (Some(cause), Some(attempt)) = (cause, self.attempts.get_mut(&id))
        {
            Arc::make_mut(attempt).add_cause(cause);
        }
    }

    /// Breaks every open barrier of an attempt.
    pub(super) fn break_all_barriers(&mut self, entry: &mut Entry, id: AttemptId, why: &str) {
        self.break_where(entry, id, why, |_| true);
    }

    fn break_where(&mut self, entry: &mut Entry, id: AttemptId, why: &str, which: impl Fn(&Barrier) -> bool) -> usize {
        let Some(attempt) = self.attempts.get_mut(&id) else { return 0 };
        let hit = |barrier: &Barrier| barrier.state == BarrierState::Open && which(barrier);
        if !attempt.barriers.values().any(|barrier| hit(barrier)) {
            return 0;
        }
        let mut broken = 0;
        for (key, barrier) in &mut Arc::make_mut(attempt).barriers {
            if hit(barrier) {
                let barrier = Arc::make_mut(barrier);
                barrier.state = BarrierState::Broken { missing: barrier.missing(), why: why.to_owned() };
                entry.tell(Effect::Barrier(id, key.clone()));
                broken += 1;
            }
        }
        broken
    }
}

fn refuse_broken(key: &BarrierKey, state: &BarrierState) -> Result<(), Rejected> {
    match state {
        BarrierState::Broken { why, .. } => reject(ErrorCode::BarrierBroken, format!("barrier {key} is broken: {why}")),
        _ => Ok(()),
    }
}
