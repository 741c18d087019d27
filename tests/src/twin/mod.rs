//! The twin of a daemon: what a host decides about its party and its VMs, with everything around it left to whoever runs
//! it. The model calls it in any order; the simulator calls it from a program on a simulated host.
//!
//! The decisions are the daemon's own: the two sides of a movement (`migrate::source`, `migrate::destination`), the guard
//! (`guard::policy`), and whether a paused VM may go on. The twin holds what the daemon's loops hold around them: what
//! was asked under which id, what was answered, what is applied here.
//!
//! | file | noun |
//! |---|---|
//! | `party` | the scenario and its barriers |
//! | `moves` | both sides of a movement |
//! | [`copy`] | a QEMU and its guard |
//!
//! What may not happen here: a look at anything but this host's own applied state, its own clock, and answers.

pub mod copy;
mod moves;
mod party;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use vt_daemon::{
    guard::{GuardState, clock::BootTime, policy::Times},
    settings::SessionTimes,
};
use vt_protocol::ids::{AttemptId, HostId, MigrationId, RequestId, VmId};
use vt_sync::{Applied, Command, Rejected, State, state::BarrierKey};

use self::{
    copy::Copy,
    moves::{Incoming, Outgoing},
    party::Party,
};

/// A party was told how a barrier ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Of which attempt.
    pub attempt: AttemptId,
    /// Which.
    pub barrier: BarrierKey,
    /// Released, or broken.
    pub released: bool,
}

/// A daemon's mind about its party and its VMs.
#[derive(Debug)]
pub struct Twin {
    /// This host.
    pub me: HostId,
    /// The log as far as it is applied here.
    pub state: Arc<State>,
    /// What was asked and is not answered, by id; it may be sent any number of times.
    pub pending: BTreeMap<RequestId, Command>,
    /// What it did since somebody looked, for people.
    pub notes: Vec<String>,
    /// What its party was told since somebody looked.
    pub told: Vec<Told>,
    /// Its QEMUs.
    pub copies: BTreeMap<VmId, Copy>,
    answers: BTreeMap<RequestId, Result<Applied, Rejected>>,
    times: SessionTimes,
    moves: u32,
    transfer: Duration,
    held: Option<BootTime>,
    /// The entry that opened the session.
    opened: u64,
    /// A daemon was started and has not looked for its QEMUs yet.
    found: bool,
    party: Option<Party>,
    /// The attempt that is served, or was last.
    serves: Option<AttemptId>,
    outgoing: Option<Outgoing>,
    incoming: BTreeMap<MigrationId, Incoming>,
}

impl Twin {
    /// A host that has nothing yet. Its scenarios move their VM `moves` times, each within `transfer`.
    pub fn new(me: HostId, times: SessionTimes, moves: u32, transfer: Duration) -> Self {
        Self {
            me,
            state: Arc::default(),
            pending: BTreeMap::new(),
            notes: Vec::new(),
            told: Vec::new(),
            copies: BTreeMap::new(),
            answers: BTreeMap::new(),
            times,
            moves,
            transfer,
            held: None,
            opened: 0,
            found: false,
            party: None,
            serves: None,
            outgoing: None,
            incoming: BTreeMap::new(),
        }
    }

    /// Looks at what is applied and answered, and goes one step further with each thing under way.
    ///
    /// Only with a session, and only once what is applied here is at least as new as the entry that opened it: what a
    /// daemon reads before that may be long over.
    pub fn turn(&mut self, now: BootTime) {
        if self.held.is_none() || self.state.index < self.opened {
            return;
        }
        if std::mem::take(&mut self.found) {
            self.take_up();
        }
        self.receive(now);
        self.step_party(now);
    }

    /// A request was answered.
    pub fn answered(&mut self, id: RequestId, outcome: Result<Applied, Rejected>) {
        if self.pending.remove(&id).is_some() {
            self.answers.insert(id, outcome);
        }
    }

    /// The session was opened, or resumed, by that entry.
    pub fn session_opened(&mut self, index: u64) {
        self.opened = index;
    }

    /// The session counts from that moment: every guard is told, and what a guard has paused goes on where it may.
    pub fn renewed(&mut self, since: BootTime, now: BootTime) {
        self.held = Some(since);
        // What was known before the session was opened may be long over.
        let is_current = self.state.index >= self.opened;
        for copy in self.copies.values_mut() {
            copy.extend(since, now);
            let may = self.state.vms.get(&copy.vm).is_some_and(|record| record.may_go_on(self.me, copy.epoch));
            if may && is_current && copy.guard() == GuardState::Paused {
                self.notes.push(format!("{} was paused by its guard and goes on", copy.vm.name));
                copy.permit(now);
            }
        }
    }

    /// The session is over: what hangs from it is given up.
    pub fn session_lost(&mut self) {
        self.note("has lost its session".to_owned());
        self.held = None;
        self.copies.clear();
        (self.party, self.outgoing) = (None, None);
        self.incoming.clear();
        self.forget_requests();
    }

    /// The daemon dies and another one is started; parties, QEMUs and guards live on. What is applied may be less than
    /// before.
    pub fn restarted(&mut self, state: Arc<State>) {
        self.state = state;
        self.held = None;
        self.outgoing = None;
        self.incoming.clear();
        self.forget_requests();
        self.found = true;
    }

    /// The power was off: everything is gone but what is on disk.
    pub fn lost_power(&mut self) {
        self.copies.clear();
        self.party_is_gone();
    }

    /// Whether nothing is under way here.
    pub fn is_idle(&self) -> bool {
        self.party.is_none() && self.copies.is_empty() && self.incoming.is_empty()
    }

    fn guard_times(&self) -> Times {
        let SessionTimes { pause, kill, expire, .. } = self.times;
        Times { pause, kill, abandon: expire }
    }

    fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    fn forget_requests(&mut self) {
        self.pending.clear();
        self.answers.clear();
    }

    fn end_copy(&mut self, vm: &VmId) {
        self.copies.remove(vm);
    }

    fn end_copies(&mut self, attempt: AttemptId) {
        self.copies.retain(|vm, _| vm.attempt != attempt);
        self.incoming.retain(|id, _| id.vm.attempt != attempt);
        self.outgoing = None;
    }

    /// The outcome of a request, once it is known and applied here; asks where it was not asked yet.
    fn ask(&mut self, what: &str, which: &str, command: impl Into<Command>) -> Option<Result<Applied, Rejected>> {
        let applied = self.state.index;
        self.ask_at_once(what, which, command).filter(|outcome| match outcome {
            Ok(outcome) => outcome.index <= applied,
            Err(_) => true,
        })
    }

    /// The same, without waiting until it is applied here.
    fn ask_at_once(
        &mut self,
        what: &str,
        which: &str,
        command: impl Into<Command>,
    ) -> Option<Result<Applied, Rejected>> {
        let command = command.into();
        let attempt = self.serves.map(|attempt| attempt.to_string()).unwrap_or_default();
        let id = RequestId::derived(&[attempt.as_bytes(), &self.me.0.to_le_bytes(), what.as_bytes(), which.as_bytes()]);
        if let Some(outcome) = self.answers.get(&id) {
            return Some(outcome.clone());
        }
        self.pending.entry(id).or_insert(command);
        None
    }
}
