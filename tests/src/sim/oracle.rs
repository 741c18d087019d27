//! What a run must never show, and what it must show in the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vt_protocol::{
    codec,
    ids::{Digest, HostId},
};
use vt_sync::{State, state::BarrierState};

#[derive(Debug, Default)]
struct Seen {
    /// Who led which term.
    leaders: BTreeMap<u64, HostId>,
    /// The state after an entry, and on which host it was seen first.
    states: BTreeMap<u64, (Digest, HostId)>,
    /// The last state of each host.
    latest: BTreeMap<HostId, Arc<State>>,
    /// The entry after which a barrier was first seen released.
    released: BTreeMap<String, u64>,
    /// The last value that was acknowledged to each client.
    acknowledged: BTreeMap<String, u64>,
    violations: Vec<String>,
}

/// Sees everything. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Oracle(Arc<Mutex<Seen>>);

fn value(state: &State, key: &str) -> u64 {
    state.settings.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
}

impl Oracle {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host believes that it leads a term.
    pub fn leads(&self, host: HostId, term: u64) {
        let mut seen = self.seen();
        let first = *seen.leaders.entry(term).or_insert(host);
        if first != host {
            seen.violations.push(format!("{first} and {host} both led term {term}"));
        }
    }

    /// A host has this state.
    pub fn state(&self, host: HostId, state: &Arc<State>) {
        let bytes = codec::encode_as(0, &**state, usize::MAX).expect("a state can be encoded");
        let digest = Digest::of(&bytes);
        let mut seen = self.seen();
        let (first, by) = *seen.states.entry(state.index).or_insert((digest, host));
        if first != digest {
            seen.violations.push(format!("{by} and {host} have different states after entry {}", state.index));
        }
        for attempt in state.attempts.values() {
            for (key, barrier) in &attempt.barriers {
                let name = format!("{} {key}", attempt.id);
                let complete = barrier.wanted.iter().all(|host| barrier.arrived.contains_key(host));
                let before = seen.released.get(&name).copied();
                match barrier.state {
                    BarrierState::Released if !complete => {
                        seen.violations.push(format!("{name} was released before all arrived"));
                    }
                    BarrierState::Released => {
                        let first = before.unwrap_or(state.index).min(state.index);
                        seen.released.insert(name, first);
                    }
                    BarrierState::Broken { .. } => seen.violations.push(format!("{name} was broken")),
                    BarrierState::Open if before.is_some_and(|released| released <= state.index) => {
                        seen.violations.push(format!("{name} was released and is open again"));
                    }
                    BarrierState::Open => {}
                }
            }
        }
        seen.latest.insert(host, Arc::clone(state));
    }

    /// The epoch of the attempt that runs, once a host knows of it.
    pub fn attempt(&self) -> Option<u64> {
        let seen = self.seen();
        seen.latest.values().find_map(|state| state.attempts.values().next().map(|attempt| attempt.epoch.0))
    }

    /// Who led last.
    pub fn leader(&self) -> Option<HostId> {
        self.seen().leaders.values().next_back().copied()
    }

    /// Whether the latest state of every host has every barrier released.
    pub fn released(&self, hosts: &[HostId]) -> bool {
        let seen = self.seen();
        let released = |state: &State| {
            let mut barriers = state.attempts.values().flat_map(|attempt| attempt.barriers.values()).peekable();
            barriers.peek().is_some() && barriers.all(|barrier| barrier.state == BarrierState::Released)
        };
        hosts.iter().all(|host| seen.latest.get(host).is_some_and(|state| released(state)))
    }

    /// A client was told that its value is set.
    pub fn acknowledged(&self, key: &str, value: u64) {
        self.seen().acknowledged.insert(key.to_owned(), value);
    }

    /// The last value of `key` that its client was told of.
    pub fn last_acknowledged(&self, key: &str) -> u64 {
        self.seen().acknowledged.get(key).copied().unwrap_or(0)
    }

    /// A client read, and got this although at least `least` had been acknowledged before.
    pub fn read(&self, key: &str, got: u64, least: u64) {
        if got < least {
            self.seen().violations.push(format!("a read of {key} gave {got} after {least} was acknowledged"));
        }
    }

    /// Something that must not happen.
    pub fn violation(&self, what: String) {
        self.seen().violations.push(what);
    }

    /// Whether every host has every acknowledged value.
    pub fn complete(&self, hosts: &[HostId]) -> bool {
        let seen = self.seen();
        hosts.iter().all(|host| {
            let Some(state) = seen.latest.get(host) else { return false };
            seen.acknowledged.iter().all(|(key, least)| value(state, key) >= *least)
        })
    }

    /// How many entries were seen applied.
    pub fn entries(&self) -> u64 {
        self.seen().states.keys().next_back().copied().unwrap_or(0)
    }

    /// The first violation.
    pub fn verdict(&self) -> Option<String> {
        self.seen().violations.first().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_histories_are_noticed() {
        let oracle = Oracle::default();
        oracle.leads(HostId(1), 3);
        oracle.leads(HostId(1), 3);
        assert_eq!(oracle.verdict(), None);
        oracle.leads(HostId(2), 3);
        assert!(oracle.verdict().unwrap().contains("both led term 3"));

        let oracle = Oracle::default();
        let mut state = State { index: 7, ..State::default() };
        oracle.state(HostId(1), &Arc::new(state.clone()));
        oracle.state(HostId(2), &Arc::new(state.clone()));
        assert_eq!(oracle.verdict(), None);
        state.settings = Arc::new(BTreeMap::from([("a".to_owned(), "1".to_owned())]));
        oracle.state(HostId(3), &Arc::new(state));
        assert!(oracle.verdict().unwrap().contains("different states after entry 7"));

        let oracle = Oracle::default();
        oracle.read("a", 4, 4);
        assert_eq!(oracle.verdict(), None);
        oracle.read("a", 3, 4);
        assert!(oracle.verdict().is_some());
        oracle.acknowledged("a", 1);
        assert!(!oracle.complete(&[HostId(1)]));
    }

    #[test]
    fn a_barrier_released_early_broken_or_opened_again_is_noticed() {
        use vt_sync::state::{Attempt, Barrier, BarrierKey};
        let id = vt_protocol::ids::AttemptId { case: super::super::host::CASE, number: 1 };
        let state = |index, barrier: &Barrier| {
            let key = BarrierKey { tag: "go".to_owned(), generation: 1 };
            let attempt = Attempt {
                id,
                epoch: vt_protocol::ids::Epoch(1),
                hosts: vec![HostId(1)],
                parties: BTreeMap::new(),
                endings: Vec::new(),
                cancelled: false,
                barriers: BTreeMap::from([(key, Arc::new(barrier.clone()))]),
                passed: BTreeMap::new(),
                moves: BTreeMap::new(),
                history: Vec::new(),
                verdict: None,
                metrics: BTreeMap::new(),
            };
            Arc::new(State { index, attempts: BTreeMap::from([(id, Arc::new(attempt))]), ..State::default() })
        };
        let mut barrier =
            Barrier { wanted: [HostId(1)].into(), arrived: BTreeMap::new(), state: BarrierState::Released };
        let oracle = Oracle::default();
        oracle.state(HostId(1), &state(1, &barrier));
        assert!(oracle.verdict().unwrap().contains("before all arrived"));

        barrier.arrived.insert(HostId(1), Arc::default());
        let oracle = Oracle::default();
        oracle.state(HostId(1), &state(1, &barrier));
        assert_eq!(oracle.verdict(), None);
        assert!(oracle.released(&[HostId(1)]) && !oracle.released(&[HostId(1), HostId(2)]));
        barrier.state = BarrierState::Open;
        oracle.state(HostId(1), &state(2, &barrier));
        assert!(oracle.verdict().unwrap().contains("open again"));

        barrier.state = BarrierState::Broken { missing: Vec::new(), why: "x".to_owned() };
        let oracle = Oracle::default();
        oracle.state(HostId(1), &state(1, &barrier));
        assert!(oracle.verdict().unwrap().contains("was broken"));
    }
}
