//! What a guard does, as a pure function: state × now × event → actions.
//!
//! ```text
//!              deadline: stop             stop returned
//!  Watching ───────────────────▶ Pausing ──────────────▶ Paused
//!     ▲                            │  ▲                   │ │ │
//!     │                            │  └── somebody let it ┘ │ │
//!     │                  kill time │      run: stop again    │ │ abandon time
//!     │                            ▼                         │ ▼
//!     │                          Killed ◀────────────────────┼─┘
//!     └──────────────────────────────────────────────────────┘ permit, while extended
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{clock::BootTime, message::GuardState};

/// When a guard acts, counted from when the last acknowledged renewal was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The VM is paused.
    pub pause: Duration,
    /// The VM is killed if `stop` has not returned.
    pub kill: Duration,
    /// A VM that stands paused is killed if nobody has extended it. Not before `kill`.
    pub abandon: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let kill = Duration::from_secs(8);
        Self { pause: Duration::from_secs(6), kill, abandon: kill }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A renewal that was sent at this moment was acknowledged.
    Extended(BootTime),
    /// The daemon found the epoch unchanged.
    Permitted,
    /// Before the `stop`, the VM ran or not.
    WasRunning(bool),
    /// The latest `stop` returned.
    Stopped,
    /// QEMU says that CPUs run again.
    Resumed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask whether it runs, then pause it.
    Stop,
    /// Let it run.
    Continue,
    /// SIGKILL.
    Kill,
    /// Say no to the daemon.
    Refuse(&'static str),
}

/// A guard's mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    pause: Duration,
    kill: Duration,
    abandon: Duration,
    renewed_at: BootTime,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Watching,
    Pausing { ran: Option<bool> },
    Paused { ran: bool },
    Killed,
}

impl Policy {
    /// Begins to watch a VM whose session was renewed at `renewed_at`.
    pub fn new(times: Times, renewed_at: BootTime) -> Self {
        let kill = times.kill.max(times.pause);
        Self { pause: times.pause, kill, abandon: times.abandon.max(kill), renewed_at, state: State::Watching }
    }

    /// Goes on where a guard before it was: the VM stands paused, and `ran` before.
    pub fn resume_paused(times: Times, renewed_at: BootTime, ran: bool) -> Self {
        Self { state: State::Paused { ran }, ..Self::new(times, renewed_at) }
    }

    /// Its state, as the daemon is told.
    pub fn state(&self) -> GuardState {
        match self.state {
            State::Watching => GuardState::Watching,
            State::Pausing { .. } => GuardState::Pausing,
            State::Paused { .. } => GuardState::Paused,
            State::Killed => GuardState::Killed,
        }
    }

    /// Whether the VM stands because of the guard, and if so, whether it ran before.
    pub fn paused(&self) -> Option<bool> {
        match self.state {
            State::Pausing { ran } => Some(ran.unwrap_or(false)),
            State::Paused { ran } => Some(ran),
            State::Watching | State::Killed => None,
        }
    }

    /// From when the deadlines count.
    pub fn renewed_at(&self) -> BootTime {
        self.renewed_at
    }

    /// When a [`Event::Tick`] will matter next.
    pub fn deadline(&self) -> Option<BootTime> {
        match self.state {
            State::Watching => Some(self.renewed_at + self.pause),
            State::Pausing { .. } => Some(self.renewed_at + self.kill),
            State::Paused { .. } => Some(self.renewed_at + self.abandon),
            State::Killed => None,
        }
    }

    /// Takes an event in.
    pub fn on(&mut self, event: Event, now: BootTime) -> Option<Action> {
        match (event, self.state) {
            (Event::Extended(at), _) => {
                // A renewal cannot have been sent later than now; an older one than the last is old news.
                self.renewed_at = self.renewed_at.max(at.min(now));
            }
            (Event::WasRunning(ran), State::Pausing { ran: None }) => self.state = State::Pausing { ran: Some(ran) },
            (Event::Stopped, State::Pausing { ran }) => self.state = State::Paused { ran: ran.unwrap_or(false) },
            (Event::Resumed, State::Paused { ran }) => {
                self.state = State::Pausing { ran: Some(ran) };
                return self.overdue(now).or(Some(Action::Stop));
            }
            (Event::Permitted, state) => {
                if let Some(kill) = self.overdue(now) {
                    return Some(kill);
                }
                return match state {
                    State::Watching => None,
                    State::Paused { .. } if now >= self.renewed_at + self.pause => {
                        Some(Action::Refuse("the session is not renewed"))
                    }
                    State::Paused { ran } => {
                        self.state = State::Watching;
                        ran.then_some(Action::Continue)
                    }
                    State::Pausing { .. } => Some(Action::Refuse("the VM is just being paused; ask again")),
                    State::Killed => Some(Action::Refuse("the VM was killed")),
                };
            }
            _ => {}
        }
        self.overdue(now)
    }

    /// What is due by time alone.
    fn overdue(&mut self, now: BootTime) -> Option<Action> {
        if now < self.deadline()? {
            return None;
        }
        let late = now >= self.renewed_at + self.kill;
        match self.state {
            // A guard that wakes up too late does not ask any more.
            State::Watching if !late => {
                self.state = State::Pausing { ran: None };
                Some(Action::Stop)
            }
            _ => {
                self.state = State::Killed;
                Some(Action::Kill)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn s(seconds: u64) -> BootTime {
        BootTime::from_ns(seconds * 1_000_000_000)
    }

    fn times() -> Times {
        Times { pause: Duration::from_secs(6), kill: Duration::from_secs(8), abandon: Duration::from_secs(12) }
    }

    #[test]
    fn the_table() {
        use Action::{Continue, Kill, Refuse, Stop};
        use Event::{Extended, Permitted, Resumed, Stopped, Tick, WasRunning};
        let refused = |words| Some(Refuse(words));
        // Each row: what it shows, then (time, event, action, state after).
        type Row = (u64, Event, Option<Action>, GuardState);
        let table: &[(&str, &[Row])] = &[
            (
                "nobody extends: paused, then killed",
                &[
                    (5, Tick, None, GuardState::Watching),
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (6, WasRunning(true), None, GuardState::Pausing),
                    (7, Stopped, None, GuardState::Paused),
                    (11, Tick, None, GuardState::Paused),
                    (12, Tick, Some(Kill), GuardState::Killed),
                    (13, Extended(s(13)), None, GuardState::Killed),
                    (13, Permitted, refused("the VM was killed"), GuardState::Killed),
                ],
            ),
            (
                "stop does not return: killed",
                &[
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (7, Tick, None, GuardState::Pausing),
                    (8, Tick, Some(Kill), GuardState::Killed),
                ],
            ),
            (
                "extended in time: nothing happens, and old news changes nothing",
                &[
                    (5, Extended(s(4)), None, GuardState::Watching),
                    (6, Extended(s(1)), None, GuardState::Watching),
                    (9, Tick, None, GuardState::Watching),
                    (10, Tick, Some(Stop), GuardState::Pausing),
                ],
            ),
            (
                "an extension that was sent too long ago does not help",
                &[(7, Extended(s(1)), Some(Stop), GuardState::Pausing)],
            ),
            (
                "an extension from the future counts as now",
                &[(1, Extended(s(1000)), None, GuardState::Watching), (7, Tick, Some(Stop), GuardState::Pausing)],
            ),
            (
                "extended while paused: stays paused until permitted, then goes on",
                &[
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (6, WasRunning(true), None, GuardState::Pausing),
                    (6, Stopped, None, GuardState::Paused),
                    (7, Permitted, refused("the session is not renewed"), GuardState::Paused),
                    (8, Extended(s(8)), None, GuardState::Paused),
                    (13, Tick, None, GuardState::Paused),
                    (13, Permitted, Some(Continue), GuardState::Watching),
                    (13, Resumed, None, GuardState::Watching),
                    (14, Tick, Some(Stop), GuardState::Pausing),
                ],
            ),
            (
                "one that stood before is not started by a permit",
                &[
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (6, WasRunning(false), None, GuardState::Pausing),
                    (6, Stopped, None, GuardState::Paused),
                    (7, Extended(s(7)), None, GuardState::Paused),
                    (7, Permitted, None, GuardState::Watching),
                ],
            ),
            (
                "somebody lets it run: stopped again, and killed if it does not stop",
                &[
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (6, Stopped, None, GuardState::Paused),
                    (7, Resumed, Some(Stop), GuardState::Pausing),
                    (7, Stopped, None, GuardState::Paused),
                    (9, Resumed, Some(Kill), GuardState::Killed),
                ],
            ),
            ("woken too late: killed at once", &[(9, Tick, Some(Kill), GuardState::Killed)]),
            (
                "extended while stop is under way: it still pauses, and waits for the permit",
                &[
                    (6, Tick, Some(Stop), GuardState::Pausing),
                    (7, Extended(s(7)), None, GuardState::Pausing),
                    (7, Permitted, refused("the VM is just being paused; ask again"), GuardState::Pausing),
                    (9, Stopped, None, GuardState::Paused),
                ],
            ),
            ("a permit while nothing is wrong changes nothing", &[(1, Permitted, None, GuardState::Watching)]),
        ];
        for (shows, rows) in table {
            let mut policy = Policy::new(times(), s(0));
            for (now, event, action, state) in *rows {
                assert_eq!(policy.on(*event, s(*now)), *action, "{shows}: {event:?} at {now} s");
                assert_eq!(policy.state(), *state, "{shows}: after {event:?} at {now} s");
            }
        }
    }

    #[test]
    fn one_that_takes_the_place_of_another_keeps_the_vm_paused() {
        let mut policy = Policy::resume_paused(times(), s(0), true);
        assert_eq!(policy.on(Event::Extended(s(3)), s(3)), None);
        assert_eq!(policy.state(), GuardState::Paused);
        assert_eq!(policy.on(Event::Resumed, s(3)), Some(Action::Stop));
    }

    /// Follows a guard through every order of events for some seconds and reports the first broken promise.
    fn explore(step: fn(&mut Policy, Event, BootTime) -> Option<Action>) -> Result<usize, String> {
        // Beside the policy: what a model VM does, how long it has run unrenewed, whether a permit is fresh.
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        struct World {
            policy: Policy,
            now: u64,
            running: bool,
            alive: bool,
            renewed_at: u64,
            stop_sent: bool,
        }
        let start = World {
            policy: Policy::new(times(), s(0)),
            now: 0,
            running: true,
            alive: true,
            renewed_at: 0,
            stop_sent: false,
        };
        let mut seen = HashSet::from([start]);
        let mut open = vec![start];
        while let Some(world) = open.pop() {
            if world.now >= 22 || !world.alive {
                continue;
            }
            for choice in 0..6 {
                let mut next = world;
                let event = match choice {
                    0 => {
                        next.now += 1;
                        Event::Tick
                    }
                    1 => {
                        next.renewed_at = next.now;
                        Event::Extended(s(next.now))
                    }
                    2 => Event::Permitted,
                    3 if next.stop_sent => {
                        next.stop_sent = false;
                        next.running = false;
                        Event::Stopped
                    }
                    4 if next.stop_sent => Event::WasRunning(next.running),
                    5 if !next.running => {
                        next.running = true;
                        Event::Resumed
                    }
                    _ => continue,
                };
                let age = next.now - next.renewed_at;
                match step(&mut next.policy, event, s(next.now)) {
                    Some(Action::Stop) => next.stop_sent = true,
                    Some(Action::Kill) => {
                        if age < 8 {
                            return Err(format!("killed {age} s after a renewal"));
                        }
                        next.alive = false;
                    }
                    Some(Action::Continue) => {
                        if event != Event::Permitted || age >= 6 {
                            return Err(format!("let run by {event:?} {age} s after a renewal"));
                        }
                        next.running = true;
                    }
                    Some(Action::Refuse(_)) | None => {}
                }
                if next.alive && next.running && age >= 8 {
                    return Err(format!("runs {age} s after the last renewal"));
                }
                if next.alive && next.running && age >= 6 && !next.stop_sent {
                    return Err(format!("runs {age} s after the last renewal and nobody asked it to stop"));
                }
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        Ok(seen.len())
    }

    #[test]
    fn in_every_order_of_events_no_vm_runs_past_its_kill_time() {
        let worlds = explore(Policy::on).unwrap();
        assert!(worlds > 1000, "only {worlds} worlds were seen");
    }

    #[test]
    fn the_exploration_catches_broken_guards() {
        let never_kills: fn(&mut Policy, Event, BootTime) -> Option<Action> =
            |policy, event, now| policy.on(event, now).filter(|action| *action != Action::Kill);
        let trusts_anybody: fn(&mut Policy, Event, BootTime) -> Option<Action> =
            |policy, event, now| if event == Event::Resumed { None } else { policy.on(event, now) };
        let extension_is_permit: fn(&mut Policy, Event, BootTime) -> Option<Action> = |policy, event, now| {
            let action = policy.on(event, now);
            match (event, policy.state()) {
                (Event::Extended(_), GuardState::Paused) => Some(Action::Continue),
                _ => action,
            }
        };
        let sleeps: fn(&mut Policy, Event, BootTime) -> Option<Action> =
            |policy, event, now| if event == Event::Tick { None } else { policy.on(event, now) };
        for (broken, why) in [
            (never_kills, "never kills"),
            (trusts_anybody, "trusts anybody"),
            (extension_is_permit, "takes an extension for a permit"),
            (sleeps, "does not look at the time"),
        ] {
            assert!(explore(broken).is_err(), "a guard that {why} is not caught");
        }
    }
}
