//! What a run must never show, and what it must show in the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vt_protocol::{
    codec,
    ids::{Digest, HostId},
};
use vt_sync::State;

#[derive(Debug, Default)]
struct Seen {
    /// Who led which term.
    leaders: BTreeMap<u64, HostId>,
    /// The state after an entry, and on which host it was seen first.
    states: BTreeMap<u64, (Digest, HostId)>,
    /// The last state of each host.
    latest: BTreeMap<HostId, Arc<State>>,
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
        seen.latest.insert(host, Arc::clone(state));
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
}
