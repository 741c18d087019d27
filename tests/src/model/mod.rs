//! The model: the real state and the real decisions of many hosts, under messages that are lost, repeated and late, clocks
//! that drift, and daemons that die, freeze or lose their power at any moment. One seed is one walk.
//!
//! `make model` walks for an hour; `make model SEED=17` walks one seed again and tells what happened. A walk that breaks a
//! rule is shortened before it is shown.
//!
//! | file | noun |
//! |---|---|
//! | `world` | the log, its leader, and what is under way |
//! | `machine` | a host: clock, daemon, session |
//! | `membership` | who votes |
//! | [`choices`] | where a walk goes |
//!
//! The decisions come from [`crate::twin`] and the daemon's own `control`; the rules from [`crate::invariants`].

pub mod choices;
mod machine;
mod membership;
mod world;

use std::collections::BTreeMap;

use vt_daemon::guard::GuardState;
use vt_protocol::ids::RequestId;
use vt_sync::{
    Request,
    command::OpenSession,
    state::{BarrierState, CaseState, Phase, SessionStatus},
};

use self::{
    choices::{Choices, Steps, shrink},
    machine::{Daemon, Holder},
    world::{Caller, Message, World},
};
use crate::{beginning, invariants::Violation, twin::copy::transfer};

/// Steps of a walk.
const STEPS: usize = 600;
/// Steps of a walk through memberships.
const MEMBER_STEPS: usize = 60;
/// How often a walk is played again to make it short.
const SHRINKS: usize = 400;
/// Clocks are wrong by so many millionths at most: a tenth, far more than any real one, and less than what the times of
/// a session allow (8 s at the slowest guard are over before 12 s at the fastest leader up to a fifth).
const DRIFT: i64 = 100_000;

/// What walks came across, so that a model without bite is noticed.
pub type Tally = BTreeMap<&'static str, u64>;

/// A walk that broke a rule.
#[derive(Debug)]
pub struct Broken {
    /// Which walk.
    pub seed: u64,
    /// Which rule, and how.
    pub violation: Violation,
    /// What happened, from the beginning, in the shortest walk found.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "walk {} broke a rule: {}", self.seed, self.violation)?;
        write!(f, "the whole walk: cargo run -p vt-tests --bin model -- --reproduce {}", self.seed)
    }
}

/// Adds what another walk came across.
pub fn add(tally: &mut Tally, other: Tally) {
    for (what, many) in other {
        *tally.entry(what).or_default() += many;
    }
}

/// How a walk goes: what happens how often.
struct Manner {
    /// Of a hundred messages, so many are lost.
    lost: u32,
    /// And so many come twice.
    twice: u32,
    /// How long a pause is, ms.
    pauses: &'static [u64],
    /// How often something is broken, beside 1000 other steps.
    faults: u32,
}

/// From calm to wild.
const MANNERS: [Manner; 4] = [
    Manner { lost: 0, twice: 0, pauses: &[1, 5, 20], faults: 0 },
    Manner { lost: 3, twice: 5, pauses: &[5, 20, 100, 400], faults: 4 },
    Manner { lost: 10, twice: 5, pauses: &[20, 100, 400, 1500], faults: 12 },
    Manner { lost: 3, twice: 10, pauses: &[5, 50, 300, 1000, 4000], faults: 30 },
];

/// Walks one seed.
///
/// # Errors
/// It broke a rule.
pub fn walk(seed: u64) -> Result<Tally, Box<Broken>> {
    let mut choices = Choices::of_seed(seed);
    match follow(&mut choices) {
        Ok((tally, _)) => Ok(tally),
        Err((violation, trace)) => {
            let same = |steps: &Steps| {
                follow(&mut Choices::again(steps.clone())).is_err_and(|(again, _)| again.rule == violation.rule)
            };
            let steps = shrink(choices.taken(), SHRINKS, same);
            let (violation, trace) = match follow(&mut Choices::again(steps)) {
                Err(shorter) => shorter,
                Ok(_) => (violation, trace),
            };
            Err(Box::new(Broken { seed, violation, trace }))
        }
    }
}

/// What happens in the walk of a seed, line by line, unshortened.
pub fn tell(seed: u64) -> Vec<String> {
    match follow(&mut Choices::of_seed(seed)) {
        Ok((_, trace)) | Err((_, trace)) => trace,
    }
}

fn follow(choices: &mut Choices) -> Result<(Tally, Vec<String>), (Violation, Vec<String>)> {
    choices.step();
    let manner = &MANNERS[choices.below(MANNERS.len())];
    let hosts = 2 + choices.below(3) as u64;
    let moves = choices.below(4) as u32;
    let drift = if choices.percent(50) { DRIFT } else { 0 };
    let mut world = World::new(hosts, moves, drift, choices);
    let first = world.machines[choices.below(world.machines.len())].twin.me;
    world.elect(first);
    for _ in 0..STEPS {
        if !choices.step() {
            break;
        }
        let stepped = world.step(manner, choices).and_then(|()| world.look());
        if let Err(violation) = stepped {
            return Err((violation, world.trace));
        }
    }
    let sizes = membership::walk(choices, MEMBER_STEPS).map_err(|violation| (violation, Vec::new()))?;
    let mut tally = world.tally();
    *tally.entry("walks that came to five voters").or_default() += u64::from(sizes.contains(&5));
    Ok((tally, world.trace))
}

impl World {
    fn step(&mut self, manner: &Manner, choices: &mut Choices) -> Result<(), Violation> {
        let some = choices.below(self.machines.len());
        match choices.weighted(&[330, 250, 60, 110, 90, 90, 40, manner.faults]) {
            0 => self.deliver_some(manner, choices)?,
            1 => self.turn(some, choices),
            2 => {
                let host = self.machines[some].twin.me;
                if self.machines[some].daemon == Daemon::Up {
                    self.apply(host, 1 + choices.below(20));
                }
            }
            3 => self.hold_session(some),
            4 => match self.leading() {
                Some(_) => self.lead(),
                None if self.machines[some].daemon == Daemon::Up => {
                    let host = self.machines[some].twin.me;
                    self.elect(host);
                }
                None => {}
            },
            5 => self.transfer(choices),
            6 => self.pause(manner.pauses[choices.below(manner.pauses.len())], choices)?,
            _ => self.fault(some, choices),
        }
        Ok(())
    }

    fn deliver_some(&mut self, manner: &Manner, choices: &mut Choices) -> Result<(), Violation> {
        if self.flight.is_empty() {
            return Ok(());
        }
        // Mostly the older ones first, but any may overtake any.
        let at = choices.below(self.flight.len()).min(choices.below(self.flight.len()));
        if choices.percent(manner.lost) {
            self.flight.swap_remove(at);
            return Ok(());
        }
        let message = if choices.percent(manner.twice) { self.flight[at].clone() } else { self.flight.remove(at) };
        self.deliver(message)
    }

    /// A daemon looks at what there is and sends what it wants to ask.
    fn turn(&mut self, some: usize, choices: &mut Choices) {
        let now = self.now;
        let machine = &mut self.machines[some];
        if machine.daemon != Daemon::Up {
            return;
        }
        let host = machine.twin.me;
        if choices.percent(60) {
            self.apply(host, 1 + choices.below(4));
        }
        let machine = &mut self.machines[some];
        machine.twin.turn(machine.clock.at(now));
        let pending = &machine.twin.pending;
        if !pending.is_empty() {
            let (id, command) = pending.iter().nth(choices.below(pending.len())).expect("it is one of them");
            let sent = |message: &Message| matches!(message, Message::Propose { request, .. } if request.id == *id);
            if self.flight.iter().any(sent) && !choices.percent(10) {
                return;
            }
            let request = Request::with_id(*id, command.clone());
            self.flight.push(Message::Propose { from: host, request, to: Caller::Twin });
        }
    }

    /// Opens the session, or renews it, as `control::session` does.
    fn hold_session(&mut self, some: usize) {
        let now = self.now;
        let machine = &mut self.machines[some];
        if machine.daemon != Daemon::Up {
            return;
        }
        let (host, local, incarnation) = (machine.twin.me, machine.clock.at(now), machine.incarnation);
        match &mut machine.holder {
            Holder::Opening { resume, id, attempt, since } => {
                *attempt += 1;
                *since = local;
                let command = OpenSession { host, incarnation, resume: *resume };
                let (id, to) = (RequestId(*id), Caller::Opening(*attempt));
                self.flight.push(Message::Propose { from: host, request: Request::with_id(id, command), to });
            }
            Holder::Held { epoch, asked, .. } => {
                *asked += 1;
                let (epoch, number) = (*epoch, *asked);
                self.flight.push(Message::Renew { from: host, epoch, noted: local, number });
            }
        }
    }

    /// Time passes; guards look at their clocks when they have to, wherever the daemons are.
    fn pause(&mut self, ms: u64, choices: &mut Choices) -> Result<(), Violation> {
        let until = self.now + ms;
        loop {
            let mut due: Option<(u64, usize)> = None;
            for (i, machine) in self.machines.iter().enumerate() {
                for deadline in machine.twin.copies.values().filter_map(|copy| copy.deadline()) {
                    let at = machine.clock.when(deadline).max(self.now);
                    if at <= until && due.is_none_or(|(first, _)| at < first) {
                        due = Some((at, i));
                    }
                }
            }
            let Some((at, i)) = due else { break };
            self.now = at;
            let stop_hangs = choices.percent(10);
            let machine = &mut self.machines[i];
            let local = machine.clock.at(at);
            let mut acted = Vec::new();
            for copy in machine.twin.copies.values_mut() {
                if copy.deadline().is_some_and(|deadline| deadline <= local) {
                    copy.tick(local);
                    if !stop_hangs {
                        copy.stop_returns(local);
                    }
                    acted.push((copy.vm.name.clone(), copy.guard()));
                }
            }
            let name = beginning::name(machine.twin.me);
            for (vm, state) in acted {
                if state != GuardState::Watching {
                    self.note(|| format!("the guard of {vm} on {name}: {state:?}"));
                }
            }
            self.look()?;
        }
        self.now = until;
        Ok(())
    }

    /// Transfers go on, or break.
    fn transfer(&mut self, choices: &mut Choices) {
        let now = self.now;
        let Some(from) =
            self.machines.iter().position(|machine| machine.twin.copies.values().any(|copy| copy.is_sending()))
        else {
            // A `stop` that hung returns after all.
            for machine in &mut self.machines {
                let local = machine.clock.at(now);
                machine.twin.copies.values_mut().for_each(|copy| copy.stop_returns(local));
            }
            return;
        };
        let vm = self.machines[from].twin.copies.values().find(|copy| copy.is_sending()).map(|copy| copy.vm.clone());
        let vm = vm.expect("it was found");
        let to = self.machines.iter().position(|machine| {
            machine.twin.copies.get(&vm).is_some_and(|copy| copy.incoming.is_some() && !copy.ended())
        });
        let (one, other) = (self.machines[from].twin.me, to.map(|to| self.machines[to].twin.me));
        let cut = other.is_none_or(|other| self.cuts.contains(&(one, other)) || self.cuts.contains(&(other, one)));
        let breaks = cut || choices.percent(8);
        let local = self.machines[from].clock.at(now);
        let mut source = self.machines[from].twin.copies.remove(&vm).expect("it was found");
        let destination = to.and_then(|to| self.machines[to].twin.copies.get_mut(&vm));
        let went = transfer(&mut source, local, destination, breaks);
        self.machines[from].twin.copies.insert(vm, source);
        self.note(|| format!("the transfer: {went:?}"));
    }

    fn fault(&mut self, some: usize, choices: &mut Choices) {
        let host = self.machines[some].twin.me;
        let name = beginning::name(host);
        let count = self.machines.len();
        let state = self.machines[some].daemon;
        match (choices.weighted(&[5, 4, 3, 3, 4, 5, 2]), state) {
            (0 | 1, Daemon::Down | Daemon::Frozen) | (5, Daemon::Down | Daemon::Frozen) => {
                self.come_back(some, choices);
            }
            (0, Daemon::Up) => {
                self.machines[some].daemon = Daemon::Down;
                self.note(|| format!("the daemon of {name} is killed"));
            }
            (1, Daemon::Up) => {
                self.machines[some].daemon = Daemon::Frozen;
                self.note(|| format!("the daemon of {name} freezes"));
            }
            (2, _) => {
                self.machines[some].daemon = Daemon::Down;
                self.machines[some].twin.lost_power();
                self.note(|| format!("the power of {name} fails"));
            }
            (3, _) => {
                let other = self.machines[choices.below(count)].twin.me;
                if other != host {
                    self.cuts.insert((host, other));
                    if choices.percent(60) {
                        self.cuts.insert((other, host));
                    }
                    self.note(|| format!("{name} does not reach {}", beginning::name(other)));
                }
            }
            (4, _) => {
                self.cuts.clear();
                self.note(|| "every link is whole".to_owned());
            }
            (5, Daemon::Up) => {
                self.note(|| format!("{name} leads now"));
                self.elect(host);
            }
            _ => {
                let copies = &mut self.machines[some].twin.copies;
                if !copies.is_empty() {
                    let at = choices.below(copies.len());
                    copies.values_mut().nth(at).expect("it is one of them").kill();
                    self.note(|| format!("a QEMU of {name} is killed"));
                }
            }
        }
    }

    fn come_back(&mut self, some: usize, choices: &mut Choices) {
        let name = beginning::name(self.machines[some].twin.me);
        if self.machines[some].daemon == Daemon::Frozen {
            self.machines[some].daemon = Daemon::Up;
            self.note(|| format!("the daemon of {name} goes on"));
            return;
        }
        self.next_id += 1;
        let (id, now) = (self.next_id, self.now);
        // What was applied is read from the last snapshot, and the log behind it comes again.
        let applied = choices.below(self.machines[some].applied + 1);
        let state = self.states[applied].clone();
        let machine = &mut self.machines[some];
        let since = machine.clock.at(now);
        machine.applied = applied;
        machine.incarnation += 1;
        machine.daemon = Daemon::Up;
        machine.holder = Holder::Opening { resume: true, id, attempt: 0, since };
        machine.twin.restarted(state);
        self.note(|| format!("the daemon of {name} is started again"));
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::new();
        let mut add = |what, many: usize| *tally.entry(what).or_default() += many as u64;
        let state = self.state();
        add("steps", STEPS);
        add("entries", self.states.len() - 1);
        add("simulated ms", usize::try_from(self.now).unwrap_or(usize::MAX));
        let attempts = state.attempts.values().chain(state.ended.values());
        for migration in attempts.flat_map(|attempt| &attempt.history) {
            match migration.phase {
                Phase::Moved { .. } => add("moves", 1),
                _ => add("aborts", 1),
            }
        }
        for case in state.jobs[&beginning::JOB].cases() {
            match &case.1.state {
                CaseState::Done { verdict: vt_protocol::verdict::Verdict::Pass, .. } => add("passes", 1),
                CaseState::Done { .. } => add("other verdicts", 1),
                _ => {}
            }
        }
        for pair in self.states.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            for (id, host) in &after.hosts {
                let status =
                    |state: &vt_sync::State| state.hosts.get(id).and_then(|h| h.session.as_ref()).map(|s| s.status);
                if status(before) != status(after) {
                    match host.session.as_ref().map(|session| session.status) {
                        Some(SessionStatus::Suspect) => add("suspects", 1),
                        Some(SessionStatus::Expired) => add("expiries", 1),
                        _ => {}
                    }
                }
            }
            for (id, attempt) in &after.attempts {
                for (key, barrier) in &attempt.barriers {
                    let old = before.attempts.get(id).and_then(|attempt| attempt.barriers.get(key));
                    if old.is_none_or(|old| old.state == BarrierState::Open) {
                        match barrier.state {
                            BarrierState::Released => add("releases", 1),
                            BarrierState::Broken { .. } => add("breaks", 1),
                            BarrierState::Open => {}
                        }
                    }
                }
            }
        }
        tally
    }
}
