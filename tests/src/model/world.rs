//! The world of the model: hosts, a log that one leader at a time extends, and everything that is under way between them.
//!
//! Messages are lost, repeated, and delivered in any order at any later time; entries are applied on each host whenever
//! it comes to it; clocks drift. What is not modelled is how a log comes to be agreed on: entries appear in one order,
//! and a leader that was deposed appends nothing. That is the simulator's part.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use vt_daemon::{
    control::silence::{Silence, Verdict},
    guard::clock::BootTime,
    settings::{SessionTimes, Settings},
};
use vt_protocol::ids::{Epoch, HostId, RequestId};
use vt_sync::{Applied, Command, Rejected, Request, State, command::RenewSessions};

use super::{
    choices::Choices,
    machine::{Daemon, Holder, Machine},
};
use crate::{
    beginning,
    drift::DriftingClock,
    invariants::{Invariants, Running, Seen, Violation},
    twin::Twin,
};

/// Something under way.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// A proposal to whoever leads.
    Propose { from: HostId, request: Request, to: Caller },
    /// What became of it.
    Answer { to: HostId, id: RequestId, caller: Caller, outcome: Result<Applied, Rejected> },
    /// A session is to be renewed, by the leader.
    Renew { from: HostId, epoch: Epoch, noted: BootTime, number: u32 },
    /// It was, or is over.
    Renewed { to: HostId, epoch: Epoch, noted: BootTime, number: u32, over: bool },
    /// The leader's entry for several renewals.
    Renewals { term: u64, batch: Vec<Renewal> },
    /// The leader's verdict about a silent host; it gives up after a while.
    Verdict { command: Command, until: u64 },
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    Twin,
    /// The holder of a session, with its try.
    Opening(u32),
    Nobody,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    from: HostId,
    epoch: Epoch,
    noted: BootTime,
    number: u32,
}

/// Who leads.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) host: HostId,
    pub(super) term: u64,
    silence: Silence,
    batch: Vec<Renewal>,
    /// While a verdict is being decided nothing else is looked at.
    busy_until: u64,
}

/// How long a leader waits for its verdict to be decided, ms.
const DECIDES: u64 = 2000;

/// The whole.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) machines: Vec<Machine>,
    /// The state after so many entries.
    pub(super) states: Vec<Arc<State>>,
    pub(super) leader: Option<Leader>,
    pub(super) flight: Vec<Message>,
    /// From which host to which nothing comes through.
    pub(super) cuts: BTreeSet<(HostId, HostId)>,
    pub(super) trace: Vec<String>,
    pub(super) times: SessionTimes,
    pub(super) next_id: u128,
    rules: Invariants,
    running: Running,
    terms: u64,
    origin: Instant,
}

impl World {
    /// Hosts with a job: its first case on all of them, its second on the first two.
    pub(super) fn new(hosts: u64, moves: u32, drift: i64, choices: &mut Choices) -> Self {
        let transfer = Duration::from_millis([300, 3000, 20_000][choices.below(3)]);
        let ids: Vec<HostId> = (1..=hosts).map(HostId).collect();
        let mut state = State::default();
        let begin = beginning::cluster(&ids).into_iter().chain(beginning::sessions(&ids));
        let begin = begin.chain([beginning::job(&[&ids, &ids[..2]])]);
        for (id, command) in (1..).zip(begin) {
            let request = Request::with_id(RequestId(id), command);
            state.apply(state.index + 1, &request).expect("the beginning is in order");
        }
        let state = Arc::new(state);
        let times = Settings::default().session;
        let machines = ids.iter().map(|id| {
            let offset = 1_000_000_000 * (1 + choices.below(100_000) as u64);
            let drift = if drift == 0 { 0 } else { choices.below(2 * drift as usize) as i64 - drift };
            let mut twin = Twin::new(*id, times, moves, transfer);
            twin.state = Arc::clone(&state);
            let clock = DriftingClock { offset, drift };
            let epoch = state.hosts[id].session.as_ref().map(|session| session.epoch).unwrap_or_default();
            let holder = Holder::Held { epoch, since: clock.at(0), asked: 0 };
            twin.renewed(clock.at(0), clock.at(0));
            Machine { twin, clock, daemon: Daemon::Up, applied: 0, incarnation: 1, holder }
        });
        Self {
            now: 0,
            machines: machines.collect(),
            states: vec![state],
            leader: None,
            flight: Vec::new(),
            cuts: BTreeSet::new(),
            trace: Vec::new(),
            times,
            next_id: 1 << 100,
            rules: Invariants::default(),
            running: Running::new(),
            terms: 0,
            origin: Instant::now(),
        }
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:9.3} s  {}", self.now as f64 / 1000.0, what());
        self.trace.push(line);
    }

    pub(super) fn machine(&mut self, host: HostId) -> &mut Machine {
        &mut self.machines[host.0 as usize - 1]
    }

    pub(super) fn local(&self, host: HostId) -> BootTime {
        self.machines[host.0 as usize - 1].clock.at(self.now)
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(self.states.last().expect("there is a first one"))
    }

    fn reaches(&self, from: HostId, to: HostId) -> bool {
        from == to || !self.cuts.contains(&(from, to))
    }

    /// Appends an entry and applies it where the leader is.
    fn commit(&mut self, request: &Request) -> Result<Result<Applied, Rejected>, Violation> {
        let before = self.state();
        let mut after = State::clone(&before);
        let outcome = after.apply(before.index + 1, request);
        self.note(|| {
            let how = outcome
                .as_ref()
                .map_or_else(|error| format!("refused: {error}"), |applied| format!("{:?}", applied.answer));
            format!("entry {}: {} → {how}", before.index + 1, brief(&request.command))
        });
        self.states.push(Arc::new(after));
        let after = self.state();
        if let Some(leader) = self.leader.as_ref().map(|leader| leader.host) {
            let count = self.states.len() - 1;
            let machine = self.machine(leader);
            machine.applied = count;
            machine.twin.state = Arc::clone(&after);
        }
        self.rules.see(&Seen::Entry { before: &before, request, outcome: &outcome, after: &after })?;
        Ok(outcome)
    }

    /// A host applies some entries more.
    pub(super) fn apply(&mut self, host: HostId, most: usize) {
        let count = self.states.len() - 1;
        let machine = &mut self.machines[host.0 as usize - 1];
        machine.applied = count.min(machine.applied + most);
        machine.twin.state = Arc::clone(&self.states[machine.applied]);
    }

    /// Who leads and can decide.
    pub(super) fn leading(&self) -> Option<HostId> {
        let host = self.leader.as_ref()?.host;
        (self.machines[host.0 as usize - 1].daemon == Daemon::Up).then_some(host)
    }

    pub(super) fn elect(&mut self, host: HostId) {
        self.terms += 1;
        let term = self.terms;
        // Who led before was heard so long ago that it is suspect as soon as it may be.
        let before = self.leader.as_ref().map(|leader| (leader.host, self.times.suspect));
        let silence = Silence::new(self.times, self.instant(host), before.filter(|(before, _)| *before != host));
        self.leader = Some(Leader { host, term, silence, batch: Vec::new(), busy_until: 0 });
        self.note(|| format!("{} leads term {term}", beginning::name(host)));
    }

    fn instant(&self, host: HostId) -> Instant {
        self.machines[host.0 as usize - 1].clock.instant(self.now, self.origin)
    }

    /// A message arrives.
    pub(super) fn deliver(&mut self, message: Message) -> Result<(), Violation> {
        match message {
            Message::Propose { from, request, to } => {
                let Some(leader) = self.leading() else { return Ok(()) };
                if !self.reaches(from, leader) {
                    return Ok(());
                }
                let outcome = self.commit(&request)?;
                if to != Caller::Nobody && self.reaches(leader, from) {
                    self.flight.push(Message::Answer { to: from, id: request.id, caller: to, outcome });
                }
            }
            Message::Answer { to, id, caller, outcome } => self.answer(to, id, caller, outcome)?,
            Message::Renew { from, epoch, noted, number } => {
                let reached = self.leading().is_some_and(|leader| self.reaches(from, leader));
                if let Some(leader) = self.leader.as_mut().filter(|_| reached) {
                    leader.batch.push(Renewal { from, epoch, noted, number });
                }
            }
            Message::Renewals { term, batch } => self.renew(term, &batch)?,
            Message::Renewed { to, epoch, noted, number, over } => self.renewed(to, epoch, noted, number, over),
            Message::Verdict { command, until } => {
                if self.now <= until && self.leading().is_some() {
                    self.next_id += 1;
                    let _ = self.commit(&Request::with_id(RequestId(self.next_id), command))?;
                    if let Some(leader) = &mut self.leader {
                        leader.busy_until = 0;
                    }
                }
            }
        }
        Ok(())
    }

    fn answer(
        &mut self,
        to: HostId,
        id: RequestId,
        caller: Caller,
        outcome: Result<Applied, Rejected>,
    ) -> Result<(), Violation> {
        if self.machine(to).daemon == Daemon::Down {
            return Ok(());
        }
        if let Ok(applied) = &outcome {
            self.rules.see(&Seen::Acknowledged { id, index: applied.index, answer: &applied.answer })?;
        }
        let now = self.local(to);
        let machine = self.machine(to);
        match (caller, machine.holder) {
            (Caller::Twin, _) => machine.twin.answered(id, outcome),
            (Caller::Opening(number), Holder::Opening { attempt, since, .. }) if number == attempt => {
                if let Ok(applied) = outcome
                    && let Some(epoch) = applied.epoch()
                {
                    machine.twin.session_opened(applied.index);
                    machine.holder = Holder::Held { epoch, since, asked: 0 };
                    machine.twin.renewed(since, now);
                    self.note(|| format!("{} has its session under epoch {epoch}", beginning::name(to)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn renew(&mut self, term: u64, batch: &[Renewal]) -> Result<(), Violation> {
        let Some(leader) = self.leading() else { return Ok(()) };
        let asked = RenewSessions::of(batch.iter().map(|renewal| (renewal.from, renewal.epoch)));
        self.next_id += 1;
        let request = Request::with_id(RequestId(self.next_id), asked.clone());
        let outcome = self.commit(&request)?;
        let refused = match outcome.map(|applied| applied.answer) {
            Ok(vt_sync::Answer::Renewed { refused }) => refused,
            _ => return Ok(()),
        };
        let heard_at = self.instant(leader);
        let Some(leading) = self.leader.as_mut().filter(|leading| leading.term == term) else {
            // Decided in another term: who asked is not told, and the leader of now has not heard it.
            return Ok(());
        };
        let renewed = asked.renewed(&refused);
        for (host, epoch) in &renewed {
            leading.silence.heard(*host, *epoch, heard_at);
        }
        for Renewal { from, epoch, noted, number } in batch.iter().copied() {
            if self.reaches(leader, from) {
                let over = !renewed.contains(&(from, epoch));
                self.flight.push(Message::Renewed { to: from, epoch, noted, number, over });
            }
        }
        Ok(())
    }

    fn renewed(&mut self, to: HostId, epoch: Epoch, noted: BootTime, number: u32, over: bool) {
        let now = self.local(to);
        let name = beginning::name(to);
        let machine = self.machine(to);
        let Holder::Held { epoch: held, asked, .. } = machine.holder else { return };
        if machine.daemon == Daemon::Down || held != epoch || number != asked {
            return;
        }
        if over {
            machine.twin.session_lost();
            self.next_id += 1;
            let id = self.next_id;
            self.machine(to).holder = Holder::Opening { resume: false, id, attempt: 0, since: now };
            return;
        }
        machine.holder = Holder::Held { epoch, since: noted, asked: asked + 1 };
        machine.twin.renewed(noted, now);
        self.note(|| format!("{name} has renewed its session"));
    }

    /// The leader looks: at renewals that wait, at silence, and at what waits for hosts.
    pub(super) fn lead(&mut self) {
        let Some(host) = self.leading() else { return };
        let now = self.instant(host);
        let state = Arc::clone(&self.machine(host).twin.state);
        let true_now = self.now;
        let Some(leader) = self.leader.as_mut().filter(|leader| true_now >= leader.busy_until) else { return };
        if !leader.batch.is_empty() {
            let (term, batch) = (leader.term, std::mem::take(&mut leader.batch));
            self.flight.push(Message::Renewals { term, batch });
            return;
        }
        let (verdicts, _) = leader.silence.decide(vt_daemon::control::keeper::sessions(&state), now);
        if let Some(verdict) = verdicts.first() {
            leader.busy_until = true_now + DECIDES;
            let command = vt_daemon::control::keeper::command(*verdict, &state);
            self.note(|| match verdict {
                Verdict::Suspect(silent, _) => {
                    format!("{} suspects {}", beginning::name(host), beginning::name(*silent))
                }
                Verdict::Expire(silent, _) => {
                    format!("{} gives {} up", beginning::name(host), beginning::name(*silent))
                }
            });
            self.flight.push(Message::Verdict { command, until: true_now + DECIDES });
            return;
        }
        for decision in vt_daemon::control::scheduler::decisions(&state) {
            self.next_id += 1;
            let command = vt_daemon::control::scheduler::command(decision);
            let request = Request::with_id(RequestId(self.next_id), command);
            self.flight.push(Message::Propose { from: host, request, to: Caller::Nobody });
        }
    }

    /// Shows the rules what runs and what parties were told since they looked last.
    pub(super) fn look(&mut self) -> Result<(), Violation> {
        for i in 0..self.machines.len() {
            let host = self.machines[i].twin.me;
            for note in std::mem::take(&mut self.machines[i].twin.notes) {
                self.note(|| format!("{} {note}", beginning::name(host)));
            }
            for told in std::mem::take(&mut self.machines[i].twin.told) {
                let word = if told.released { "released" } else { "broken" };
                self.note(|| format!("the party of {} is told: {} is {word}", beginning::name(host), told.barrier));
                let (attempt, released) = (told.attempt, told.released);
                self.rules.see(&Seen::Told { host, attempt, barrier: &told.barrier, released })?;
            }
        }
        let mut running = Running::new();
        for machine in &self.machines {
            for copy in machine.twin.copies.values().filter(|copy| copy.runs()) {
                running.entry(copy.vm.clone()).or_default().insert(machine.twin.me);
            }
        }
        if running != self.running {
            self.running = running;
            let hosts: Vec<String> = self.running.values().flatten().map(|host| beginning::name(*host)).collect();
            self.note(|| {
                if hosts.is_empty() { "nothing runs".to_owned() } else { format!("it runs on {}", hosts.join(" and ")) }
            });
            self.rules.see(&Seen::Running(&self.running))?;
        }
        Ok(())
    }
}

/// A command for people.
fn brief(command: &Command) -> String {
    let text = format!("{command:?}");
    let text = text.split_once('(').map_or(text.as_str(), |(_, rest)| rest);
    text.chars().take(200).collect()
}
