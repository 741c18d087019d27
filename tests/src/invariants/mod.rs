//! What must hold whatever dies, one rule a file. The model and the simulator show them everything that happens; a rule
//! that is broken says so in one sentence.
//!
//! | file | rule | from |
//! |---|---|---|
//! | [`one_owner`] | at most one copy of a VM runs, and only where the log says | design 7 |
//! | [`both_votes`] | an owner changes only by Move, and Move needs both votes | design 7 |
//! | [`stale_epoch`] | who shows a fencing number that is over changes nothing | design 2, 7 |
//! | [`barrier_complete`] | a barrier is released once at most, and never before all have arrived | design 6.5 |
//! | [`barrier_alike`] | released or broken: everyone is told the same | design 6.5 |
//! | [`one_verdict`] | a case has one terminal verdict | design 6.6 |
//! | [`voters`] | one, three or five voters; never two | design 4 |
//! | [`acknowledged`] | what was acknowledged is in the log, once, and stays there | design 4 |
//!
//! What may not happen here: a look at how the system decides. A rule knows entries, what runs, and what callers were
//! told, so that it cannot share a mistake with the code it judges.

pub mod acknowledged;
pub mod barrier_alike;
pub mod barrier_complete;
pub mod both_votes;
pub mod one_owner;
pub mod one_verdict;
pub mod stale_epoch;
pub mod voters;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use vt_protocol::ids::{AttemptId, HostId, RequestId, VmId};
use vt_sync::{Answer, Applied, Rejected, Request, State, state::BarrierKey};

/// The hosts on which a VM's CPUs run, by VM; a VM that runs nowhere may be left out.
pub type Running = BTreeMap<VmId, BTreeSet<HostId>>;

/// Something that happened.
#[derive(Debug)]
pub enum Seen<'a> {
    /// An entry of the log took effect; each is seen once, in order.
    Entry {
        /// The state before it.
        before: &'a State,
        /// What was asked.
        request: &'a Request,
        /// What it gave.
        outcome: &'a Result<Applied, Rejected>,
        /// The state after it.
        after: &'a State,
    },
    /// Something began or ceased to run.
    Running(&'a Running),
    /// A party was told how a barrier ended.
    Told {
        /// Whose party.
        host: HostId,
        /// Of which attempt.
        attempt: AttemptId,
        /// Which barrier.
        barrier: &'a BarrierKey,
        /// Released, or broken.
        released: bool,
    },
    /// A caller was told that its request took effect.
    Acknowledged {
        /// Which request.
        id: RequestId,
        /// At which entry.
        index: u64,
        /// With which answer.
        answer: &'a Answer,
    },
    /// Who votes, as a committed change of membership has it.
    Voters(&'a BTreeSet<HostId>),
}

/// A rule.
pub trait Invariant: fmt::Debug + Send {
    /// The rule in a few words.
    fn rule(&self) -> &'static str;

    /// Takes something in.
    ///
    /// # Errors
    /// It breaks the rule, and how.
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String>;
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: &'static str,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// All rules.
#[derive(Debug)]
pub struct Invariants(Vec<Box<dyn Invariant>>);

impl Default for Invariants {
    fn default() -> Self {
        Self(vec![
            Box::<one_owner::OneOwner>::default(),
            Box::new(both_votes::BothVotes),
            Box::new(stale_epoch::StaleEpoch),
            Box::new(barrier_complete::BarrierComplete),
            Box::<barrier_alike::BarrierAlike>::default(),
            Box::new(one_verdict::OneVerdict),
            Box::new(voters::Voters),
            Box::<acknowledged::Acknowledged>::default(),
        ])
    }
}

impl Invariants {
    /// Shows something to every rule.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn see(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        for invariant in &mut self.0 {
            invariant.see(seen).map_err(|what| Violation { rule: invariant.rule(), what })?;
        }
        Ok(())
    }
}

/// Whether two states are equal but for the memory of requests and their place in the log.
fn same_but_for_memory(one: &State, other: &State) -> bool {
    State { requests: one.requests.clone(), index: one.index, ..other.clone() } == *one
}

#[cfg(test)]
mod tests {
    //! Histories for the tests of the rules, good ones made by the state itself and bad ones made by hand.

    use std::sync::Arc;

    use vt_protocol::{
        ids::{Epoch, MigrationId},
        verdict::Verdict,
    };
    use vt_sync::{
        Command,
        command::{
            Arrive, BeginMigration, CancelJob, ClaimVm, MigrationPrepared, StartAttempt, VoteDestLoaded,
            VoteSourceCompleted,
        },
        state::{Barrier, BarrierState, CaseState, JobState},
    };

    use super::*;
    use crate::beginning;

    pub(super) fn host(id: u64) -> HostId {
        HostId(id)
    }

    pub(super) fn epoch(index: u64) -> Epoch {
        Epoch(index)
    }

    pub(super) fn attempt() -> AttemptId {
        AttemptId { case: beginning::case(1), number: 1 }
    }

    pub(super) fn vm() -> VmId {
        VmId { attempt: attempt(), name: "vm1".parse().unwrap() }
    }

    pub(super) fn key(tag: &str) -> BarrierKey {
        BarrierKey { tag: tag.into(), generation: 1 }
    }

    fn apply(state: &mut State, command: impl Into<Command>) {
        let request = Request::new(command);
        state.apply(state.index + 1, &request).unwrap();
    }

    /// Two hosts in an attempt.
    fn running() -> State {
        let hosts = [host(1), host(2)];
        let mut state = State::default();
        let begin = beginning::cluster(&hosts).into_iter().chain(beginning::sessions(&hosts));
        begin.chain([beginning::job(&[&hosts])]).for_each(|command| apply(&mut state, command));
        apply(&mut state, StartAttempt { case: beginning::case(1), number: 1, hosts: hosts.into() });
        state
    }

    /// A VM owned by that host.
    pub(super) fn owned_by(id: u64) -> State {
        let mut state = running();
        let epoch = state.attempts[&attempt()].epoch;
        let image = "guest".parse().unwrap();
        apply(
            &mut state,
            ClaimVm { vm: vm(), host: host(id), epoch, image, spec: None, also: Vec::new(), alone: Vec::new() },
        );
        state
    }

    /// A VM of host 1 on its way to host 2, with those votes cast.
    pub(super) fn moving(source: bool, destination: bool) -> State {
        let mut state = owned_by(1);
        let (migration, epoch) = (MigrationId { vm: vm(), number: 1 }, state.vms[&vm()].epoch);
        apply(&mut state, BeginMigration { migration: migration.clone(), from: host(1), epoch, to: host(2) });
        let address = "tcp:10.0.0.2:49152".to_owned();
        apply(&mut state, MigrationPrepared { migration: migration.clone(), host: host(2), address, detail: vec![] });
        if source {
            apply(&mut state, VoteSourceCompleted { migration: migration.clone(), host: host(1) });
        }
        if destination {
            apply(&mut state, VoteDestLoaded { migration, host: host(2) });
        }
        state
    }

    /// A barrier of hosts 1 and 2 with those arrivals and that state.
    pub(super) fn meeting(arrived: &[u64], is: BarrierState) -> State {
        let mut state = running();
        let epoch = state.attempts[&attempt()].epoch;
        apply(
            &mut state,
            Arrive { attempt: attempt(), epoch, host: host(1), barrier: key("go"), parties: vec![], payload: vec![] },
        );
        let record = Arc::make_mut(state.attempts.get_mut(&attempt()).unwrap());
        let barrier: &mut Barrier = Arc::make_mut(record.barriers.get_mut(&key("go")).unwrap());
        barrier.arrived = arrived.iter().map(|id| (host(*id), Arc::default())).collect();
        barrier.state = is;
        state
    }

    /// The only case has that verdict, and nobody's party passed.
    pub(super) fn judged(verdict: Verdict) -> State {
        let mut state = running();
        apply(&mut state, CancelJob { job: beginning::JOB, by: "me".into() });
        let mut ended = Arc::unwrap_or_clone(state.attempts.remove(&attempt()).unwrap());
        ended.verdict = Some(verdict);
        state.ended.insert(attempt(), Arc::new(ended));
        let job = Arc::make_mut(state.jobs.get_mut(&beginning::JOB).unwrap());
        Arc::make_mut(&mut job.cases[0]).state = CaseState::Done { verdict, cause: None };
        job.state = JobState::Done;
        state
    }

    /// Shows a rule an entry that led from one state to the other, whatever was asked.
    pub(super) fn entry(rule: &mut impl Invariant, before: &State, after: &State) -> Result<(), String> {
        asked(rule, before, &Request::new(CancelJob { job: beginning::JOB, by: "me".into() }), after)
    }

    /// The same, of that request.
    pub(super) fn asked(
        rule: &mut impl Invariant,
        before: &State,
        request: &Request,
        after: &State,
    ) -> Result<(), String> {
        let outcome = Ok(Applied { index: after.index, answer: Answer::Done, effects: vec![] });
        rule.see(&Seen::Entry { before, request, outcome: &outcome, after })
    }
}
