//! One host's part in an attempt: a small scenario that meets the others, runs a VM and moves it to and fro.

use std::time::Duration;

use vt_daemon::guard::clock::BootTime;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Epoch, HostId, MigrationId, VmId},
    verdict::{Blame, Cause, Consequence, Outcome},
};
use vt_sync::{
    Answer,
    command::{Arrive, BreakBarrier, ClaimVm, PartyEnded},
    state::{Attempt, BarrierKey, BarrierState, Phase},
};

use super::{Told, Twin, copy::Copy};

/// How long a party's process takes to end once it knows how; what it holds is given back after that.
const EXITS: Duration = Duration::from_millis(300);
/// How long a party waits at a barrier, on its own clock.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the scenario does next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Meet(BarrierKey),
    Start,
    /// The movement of that number; even ones lead back.
    Move(u32),
    End,
}

/// How far a step is.
#[derive(Debug)]
pub(super) enum Progress {
    Waits,
    Done,
    Failed(Outcome),
}

impl Progress {
    pub(super) fn failed(code: ErrorCode, text: &str) -> Self {
        Self::Failed(Outcome::Caused(Cause { blame: Blame::Infrastructure, report: Report::new(code, text) }))
    }

    pub(super) fn followed(text: &str) -> Self {
        Self::Failed(Outcome::Followed(Consequence::PeerGone(text.to_owned())))
    }
}

/// A party: its process outlives the daemon, so its place in the scenario does too.
#[derive(Debug)]
pub(super) struct Party {
    pub(super) attempt: AttemptId,
    epoch: Epoch,
    hosts: Vec<HostId>,
    steps: Vec<Step>,
    at: usize,
    /// When the party gives up the barrier it waits at.
    until: Option<BootTime>,
    /// How it ended, once it has.
    ended: Option<Outcome>,
    /// When its process is gone.
    exits: Option<BootTime>,
}

impl Party {
    fn new(attempt: &Attempt, me: HostId, moves: u32) -> Self {
        let key = |tag: &str, generation| BarrierKey { tag: tag.to_owned(), generation };
        let moves = if attempt.hosts.len() > 1 { moves } else { 0 };
        let mut steps = vec![Step::Meet(key("start", 1))];
        if attempt.hosts.first() == Some(&me) {
            steps.push(Step::Start);
        }
        steps.push(Step::Meet(key("ready", 1)));
        for number in 1..=moves {
            if attempt.hosts.iter().take(2).any(|host| *host == me) {
                steps.push(Step::Move(number));
            }
            steps.push(Step::Meet(key("moved", number)));
        }
        steps.push(Step::End);
        let (hosts, epoch) = (attempt.hosts.clone(), attempt.epoch);
        Self { attempt: attempt.id, epoch, hosts, steps, at: 0, until: None, ended: None, exits: None }
    }

    fn vm(&self) -> VmId {
        VmId { attempt: self.attempt, name: "vm1".parse().expect("it is a name") }
    }
}

impl Twin {
    /// Whether this host's party runs in that attempt, as far as its state goes.
    pub(super) fn takes_part(&self, attempt: AttemptId) -> bool {
        self.party.as_ref().is_some_and(|party| party.attempt == attempt && party.ended.is_none())
    }

    /// Takes the party one step further.
    pub(super) fn step_party(&mut self, now: BootTime) {
        if self.party.is_none() {
            let Some(attempt) = self.state.busy_with(self.me).filter(|attempt| !attempt.cancelled) else { return };
            let party = Party::new(attempt, self.me, self.moves);
            self.note(format!("begins its part in {}", party.attempt));
            self.serves = Some(party.attempt);
            self.party = Some(party);
        }
        let Some(mut party) = self.party.take() else { return };
        let open = self.state.attempts.get(&party.attempt).filter(|a| a.epoch == party.epoch);
        let open = open.is_some_and(|attempt| attempt.runs_on(self.me) && !attempt.cancelled);
        // A state that has not seen the attempt yet cannot say that it is over.
        if !open && self.state.index >= party.epoch.0 && party.ended.is_none() {
            party.ended = Some(Outcome::Followed(Consequence::Closed));
        }
        if party.ended.is_none() {
            match self.step(&mut party, now) {
                Progress::Waits => {}
                Progress::Done => {
                    party.at += 1;
                    party.until = None;
                }
                Progress::Failed(outcome) => party.ended = Some(outcome),
            }
        }
        if let Some(outcome) = party.ended.clone()
            && now >= *party.exits.get_or_insert(now + EXITS)
        {
            // Everything is given back before the end is told.
            self.end_copies(party.attempt);
            let id = party.attempt;
            let wanted = self.state.attempts.get(&id).is_some_and(|a| a.epoch == party.epoch && a.runs_on(self.me));
            let ended =
                PartyEnded { attempt: id, epoch: party.epoch, host: self.me, outcome, metrics: Default::default() };
            if (!wanted && self.state.index >= party.epoch.0) || self.ask("ended", &id.to_string(), ended).is_some() {
                self.note(format!("has ended its part in {id}"));
                self.forget_requests();
                return;
            }
        }
        self.party = Some(party);
    }

    fn step(&mut self, party: &mut Party, now: BootTime) -> Progress {
        let vm = party.vm();
        // While it moves away, the source's own decisions find out.
        let moves = self.outgoing.is_some() || self.incoming.keys().any(|id| id.vm == vm);
        if self.copies.get(&vm).is_some_and(Copy::ended) && !moves {
            return Progress::failed(ErrorCode::VmLost, "QEMU ended while it should have run");
        }
        match party.steps[party.at].clone() {
            Step::Meet(key) => self.meet(party, &key, now),
            Step::Start => self.start(party, now),
            Step::Move(number) => {
                let (one, other) = (party.hosts[0], party.hosts[1]);
                let (from, to) = if number % 2 == 1 { (one, other) } else { (other, one) };
                let id = MigrationId { vm, number };
                if from == self.me { self.send(&id, to, now) } else { self.await_arrival(&id, from, party) }
            }
            Step::End => Progress::Failed(Outcome::Passed { remark: None }),
        }
    }

    /// The destination's party waits until the VM runs here.
    fn await_arrival(&self, id: &MigrationId, from: HostId, party: &Party) -> Progress {
        let Some(record) = self.state.migration(id) else {
            let runs = self.state.attempts.get(&party.attempt).is_some_and(|attempt| attempt.runs_on(from));
            return if runs { Progress::Waits } else { Progress::followed("the source has ended") };
        };
        match &record.phase {
            Phase::Aborted { why } => Progress::followed(&why.title),
            Phase::Moved { .. } if self.incoming.get(id).is_none_or(|incoming| incoming.runs) => {
                if self.copies.contains_key(&id.vm) {
                    Progress::Done
                } else {
                    Progress::failed(ErrorCode::VmLost, "the VM moved here and is not here")
                }
            }
            _ => Progress::Waits,
        }
    }

    fn start(&mut self, party: &Party, now: BootTime) -> Progress {
        let vm = party.vm();
        if self.copies.contains_key(&vm) {
            return Progress::Done;
        }
        let image = "guest".parse().expect("it is a name");
        let claim = ClaimVm {
            vm: vm.clone(),
            host: self.me,
            epoch: party.epoch,
            image,
            spec: None,
            also: Vec::new(),
            alone: Vec::new(),
        };
        let applied = match self.ask("claim", vm.name.as_str(), claim) {
            None => return Progress::Waits,
            Some(Err(_)) => return Progress::failed(ErrorCode::NotOwner, "the VM could not be claimed"),
            Some(Ok(applied)) => applied,
        };
        let epoch = applied.epoch().unwrap_or_default();
        let owned = self.state.vms.get(&vm).is_some_and(|record| record.may_go_on(self.me, epoch));
        if !owned {
            return Progress::failed(ErrorCode::NotOwner, "the VM was claimed and given up before");
        }
        let Some(renewed_at) = self.held else { return Progress::Waits };
        let mut copy = Copy::new(vm.clone(), epoch, self.guard_times(), renewed_at);
        // Its guard first: one that is too late already kills.
        copy.tick(now);
        copy.let_run(now);
        self.note(format!("starts {}", vm.name));
        self.copies.insert(vm, copy);
        Progress::Done
    }

    fn meet(&mut self, party: &mut Party, key: &BarrierKey, now: BootTime) -> Progress {
        let which = key.to_string();
        let until = *party.until.get_or_insert(now + PATIENCE);
        let (attempt, epoch, host, parties) = (party.attempt, party.epoch, self.me, Vec::new());
        let payload = self.me.0.to_le_bytes().to_vec();
        let arrive = Arrive { attempt, epoch, host, barrier: key.clone(), parties: parties.clone(), payload };
        match self.ask("arrive", &which, arrive) {
            None => return Progress::Waits,
            Some(Err(_)) => return Progress::Failed(Outcome::Followed(Consequence::BarrierBroken(which))),
            Some(Ok(_)) => {}
        }
        let record = self.state.attempts.get(&attempt).and_then(|a| a.barriers.get(key));
        let mut settled = record.map(|barrier| barrier.state.clone()).filter(|state| *state != BarrierState::Open);
        if settled.is_none() && now >= until {
            let give_up = BreakBarrier { attempt, epoch, host, barrier: key.clone(), parties };
            settled = match self.ask("break", &which, give_up) {
                None => return Progress::Waits,
                Some(Ok(applied)) => match applied.answer {
                    Answer::Barrier(state) => Some(state),
                    _ => None,
                },
                Some(Err(_)) => return Progress::Failed(Outcome::Followed(Consequence::BarrierBroken(which))),
            };
        }
        let Some(settled) = settled else { return Progress::Waits };
        let released = settled == BarrierState::Released;
        self.told.push(Told { attempt, barrier: key.clone(), released });
        if released { Progress::Done } else { Progress::Failed(Outcome::Followed(Consequence::BarrierBroken(which))) }
    }

    /// The machine was off: the party's process is gone.
    pub(super) fn party_is_gone(&mut self) {
        if let Some(party) = &mut self.party
            && party.ended.is_none()
        {
            let report = Report::new(ErrorCode::PartyCrashed, "the party ended without a result");
            party.ended = Some(Outcome::Caused(Cause { blame: Blame::Infrastructure, report }));
        }
    }
}
