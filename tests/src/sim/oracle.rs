//! Sees everything: replays the log beside the hosts, compares every host's state with it, shows the invariants what
//! happens, and keeps the trace by which two runs of a seed are compared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vt_protocol::ids::{HostId, RequestId, VmId};
use vt_sync::{
    Applied, Request, State,
    state::{BarrierState, CaseState},
};

use super::machine::Now;
use crate::{
    beginning,
    invariants::{Invariants, Running, Seen},
    twin::Twin,
};

/// Entries for which a host that is behind can still be compared.
const KEPT: usize = 4000;

#[derive(Debug, Default)]
struct Inner {
    now: Now,
    /// Who led which term.
    leaders: BTreeMap<u64, HostId>,
    /// What was asked for, by id: an entry names only the id.
    asked: BTreeMap<RequestId, Request>,
    /// The log, applied here; the state after each of its last entries.
    states: VecDeque<Arc<State>>,
    /// The last state of each host.
    latest: BTreeMap<HostId, Arc<State>>,
    rules: Invariants,
    running: Running,
    /// Told to callers, and not yet seen in the log.
    promised: Vec<(RequestId, Applied)>,
    /// The last value that was acknowledged to each client.
    values: BTreeMap<String, u64>,
    violations: Vec<String>,
    trace: Vec<String>,
}

/// Sees everything. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Oracle(Arc<Mutex<Inner>>);

fn value(state: &State, key: &str) -> u64 {
    state.settings.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
}

impl Inner {
    fn note(&mut self, what: impl AsRef<str>) {
        self.trace.push(format!("{:9.3} s  {}", self.now.ms() as f64 / 1000.0, what.as_ref()));
    }

    fn violation(&mut self, what: String) {
        self.note(format!("VIOLATION: {what}"));
        self.violations.push(what);
    }

    fn show(&mut self, seen: &Seen<'_>) {
        if let Err(violation) = self.rules.see(seen) {
            self.violation(violation.to_string());
        }
    }

    /// Applies entries up to that state's, as its memory of requests names them.
    fn follow(&mut self, state: &State) {
        let mut last = self.states.back().map(Arc::clone).unwrap_or_default();
        if state.index <= last.index {
            return;
        }
        let requests = state.requests.after(last.index);
        for index in last.index + 1..=state.index {
            let mut next = State::clone(&last);
            match requests.get(&index).map(|id| self.asked.get(id).cloned().ok_or(*id)) {
                // A change of members, a new leader's first entry, or a repetition, which changes nothing.
                None => next.index = index,
                Some(Err(id)) => return self.violation(format!("entry {index} is {id:?}, which nobody asked for")),
                Some(Ok(request)) => {
                    let outcome = next.apply(index, &request);
                    let how = match &outcome {
                        Ok(applied) => format!("{:?}", applied.answer),
                        Err(rejected) => format!("refused: {rejected}"),
                    };
                    self.note(format!("entry {index}: {:?} → {how}", request.command));
                    self.show(&Seen::Entry { before: &last, request: &request, outcome: &outcome, after: &next });
                }
            }
            last = Arc::new(next);
            self.states.push_back(Arc::clone(&last));
        }
        while self.states.len() > KEPT {
            self.states.pop_front();
        }
        let reached = last.index;
        let (seen, waits) = std::mem::take(&mut self.promised).into_iter().partition(|(_, told)| told.index <= reached);
        self.promised = waits;
        let seen: Vec<(RequestId, Applied)> = seen;
        for (id, told) in seen {
            self.show(&Seen::Acknowledged { id, index: told.index, answer: &told.answer });
        }
    }

    fn at(&self, index: u64) -> Option<&Arc<State>> {
        let first = self.states.front()?.index;
        self.states.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }
}

impl Oracle {
    pub(super) fn new(now: Now) -> Self {
        Self(Arc::new(Mutex::new(Inner { now, ..Inner::default() })))
    }

    fn seen(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that no rule is about.
    pub fn note(&self, what: String) {
        self.seen().note(what);
    }

    /// A host believes that it leads a term.
    pub fn leads(&self, host: HostId, term: u64) {
        let mut seen = self.seen();
        let first = *seen.leaders.entry(term).or_insert(host);
        seen.note(format!("{} leads term {term}", beginning::name(host)));
        if first != host {
            seen.violation(format!("{first} and {host} both led term {term}"));
        }
    }

    /// Somebody asks for this.
    pub fn asked(&self, request: &Request) {
        self.seen().asked.entry(request.id).or_insert_with(|| request.clone());
    }

    /// Somebody was told that its request took effect.
    pub fn acknowledged(&self, id: RequestId, told: &Applied) {
        let mut seen = self.seen();
        let reached = seen.states.back().map_or(0, |state| state.index);
        if told.index <= reached {
            seen.show(&Seen::Acknowledged { id, index: told.index, answer: &told.answer });
        } else {
            seen.promised.push((id, told.clone()));
        }
    }

    /// A host has this state: it is the log's.
    pub fn state(&self, host: HostId, state: &Arc<State>) {
        let mut seen = self.seen();
        if seen.latest.get(&host).is_some_and(|known| Arc::ptr_eq(known, state)) {
            return;
        }
        seen.follow(state);
        if state.index > 0 && seen.at(state.index).is_some_and(|log| **log != **state) {
            seen.violation(format!("{host} has another state than the log after entry {}", state.index));
        }
        seen.latest.insert(host, Arc::clone(state));
    }

    /// Takes what a host's daemon did and what its party was told.
    pub(super) fn of_twin(&self, twin: &mut Twin) {
        let mut seen = self.seen();
        let name = beginning::name(twin.me);
        for note in twin.notes.drain(..) {
            seen.note(format!("{name} {note}"));
        }
        for told in twin.told.drain(..) {
            let word = if told.released { "released" } else { "broken" };
            seen.note(format!("the party of {name} is told: {} {} is {word}", told.attempt, told.barrier));
            let (attempt, barrier, released) = (told.attempt, &told.barrier, told.released);
            seen.show(&Seen::Told { host: twin.me, attempt, barrier, released });
        }
    }

    /// This runs now.
    pub(super) fn runs(&self, running: BTreeSet<(VmId, HostId)>) {
        let mut seen = self.seen();
        let mut by_vm = Running::new();
        for (vm, host) in running {
            by_vm.entry(vm).or_default().insert(host);
        }
        if by_vm != seen.running {
            let text: Vec<String> = by_vm.iter().map(|(vm, hosts)| format!("{vm} on {hosts:?}")).collect();
            seen.note(format!("runs: {}", if text.is_empty() { "nothing".to_owned() } else { text.join(", ") }));
            seen.running.clone_from(&by_vm);
            seen.show(&Seen::Running(&by_vm));
        }
    }

    /// These vote.
    pub(super) fn voters(&self, voters: &BTreeSet<HostId>) {
        self.seen().show(&Seen::Voters(voters));
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

    /// Whether every case has its verdict, and nothing runs any more.
    pub fn judged(&self) -> bool {
        let seen = self.seen();
        let Some(job) = seen.states.back().and_then(|state| state.jobs.get(&beginning::JOB)) else { return false };
        seen.running.is_empty() && job.cases().all(|(_, case)| matches!(case.state, CaseState::Done { .. }))
    }

    /// Verdicts of the cases, for people.
    pub fn verdicts(&self) -> Vec<String> {
        let seen = self.seen();
        let Some(job) = seen.states.back().and_then(|state| state.jobs.get(&beginning::JOB)) else { return Vec::new() };
        job.cases().map(|(id, case)| format!("{id}: {:?}", case.verdict())).collect()
    }

    /// A client was told that its value is set.
    pub fn value_set(&self, key: &str, value: u64) {
        self.seen().values.insert(key.to_owned(), value);
    }

    /// The last value of `key` that its client was told of.
    pub fn last_value(&self, key: &str) -> u64 {
        self.seen().values.get(key).copied().unwrap_or(0)
    }

    /// A client read, and got this although at least `least` had been acknowledged before.
    pub fn read(&self, key: &str, got: u64, least: u64) {
        if got < least {
            self.seen().violation(format!("a read of {key} gave {got} after {least} was acknowledged"));
        }
    }

    /// Something that must not happen.
    pub fn violation(&self, what: String) {
        self.seen().violation(what);
    }

    /// Whether every host has every acknowledged value, and no promise is open.
    pub fn complete(&self, hosts: &[HostId]) -> bool {
        let seen = self.seen();
        let has_all = |host| {
            let Some(state) = seen.latest.get(host) else { return false };
            seen.values.iter().all(|(key, least)| value(state, key) >= *least)
        };
        seen.promised.is_empty() && hosts.iter().all(has_all)
    }

    /// How many entries were seen.
    pub fn entries(&self) -> u64 {
        self.seen().states.back().map_or(0, |state| state.index)
    }

    /// The first violation.
    pub fn verdict(&self) -> Option<String> {
        self.seen().violations.first().cloned()
    }

    /// What happened, line by line.
    pub fn trace(&self) -> Vec<String> {
        self.seen().trace.clone()
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
        assert!(oracle.verdict().unwrap().contains("another state than the log after entry 7"));

        let oracle = Oracle::default();
        oracle.read("a", 4, 4);
        assert_eq!(oracle.verdict(), None);
        oracle.read("a", 3, 4);
        assert!(oracle.verdict().is_some());
        oracle.value_set("a", 1);
        assert!(!oracle.complete(&[HostId(1)]));
    }

    #[test]
    fn an_entry_that_nobody_asked_for_and_a_promise_that_the_log_breaks_are_noticed() {
        let request = Request::new(beginning::cluster(&[HostId(1)]).remove(0));
        let mut state = State::default();
        let applied = state.apply(1, &request).unwrap();
        let oracle = Oracle::default();
        oracle.state(HostId(1), &Arc::new(state.clone()));
        assert!(oracle.verdict().unwrap().contains("nobody asked for"));

        let oracle = Oracle::default();
        oracle.asked(&request);
        oracle.acknowledged(RequestId(9), &applied);
        assert!(!oracle.complete(&[]), "a promise is open");
        oracle.state(HostId(1), &Arc::new(state));
        assert!(oracle.verdict().unwrap().contains("not in the log"));
    }
}
