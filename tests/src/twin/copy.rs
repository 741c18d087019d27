//! A QEMU as it matters here: whether its CPUs run, how far a transfer is, and the guard that watches it. The guard is the
//! real one's mind; only its hands are modelled.
//!
//! What QEMU does by itself is done here by itself: a source that fails before it completes lets its guest run again, a
//! destination whose stream breaks before everything is loaded ends, a completed source stands still until it is told.

use std::collections::VecDeque;

use vt_daemon::{
    guard::{
        GuardState,
        clock::BootTime,
        policy::{Action, Event, Policy, Times},
    },
    qemu::qmp::MigrationStatus,
};
use vt_protocol::ids::{Epoch, MigrationId, VmId};

/// What QEMU's CPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cpus {
    Run,
    Stand,
    /// The process is gone.
    Ended,
}

/// How far a transfer is at this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// None, or one that is over and left no trace.
    None,
    /// Memory goes over; whether the guest ran when the CPUs were stopped for the last part.
    Sending { switched: Option<bool> },
    /// All is sent: it cannot be taken back here.
    Completed,
    /// It failed or was cancelled.
    Failed,
    /// It comes in.
    Listening,
    /// All that came in is loaded.
    Loaded,
}

/// What became of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Went {
    /// It broke.
    Broke,
    /// The source stands still for the last part.
    SwitchedOver,
    /// The destination has loaded everything.
    Loaded,
    /// The source knows that it has completed.
    Completed,
}

/// Takes a transfer one stage further, or has it break. A source may break after everything was loaded: only a decision
/// that both have voted for tells the two ends the same.
pub fn transfer(source: &mut Copy, at_source: BootTime, destination: Option<&mut Copy>, breaks: bool) -> Went {
    match destination {
        Some(destination) if !breaks && !destination.ended() => {
            if !source.has_switched() {
                source.switch_over();
                Went::SwitchedOver
            } else if destination.is_listening() {
                destination.load();
                Went::Loaded
            } else {
                source.complete();
                Went::Completed
            }
        }
        destination => {
            source.fail(MigrationStatus::Failed, at_source);
            if let Some(destination) = destination.filter(|destination| destination.is_listening()) {
                destination.kill();
            }
            Went::Broke
        }
    }
}

/// One QEMU with its guard.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Of which VM.
    pub vm: VmId,
    /// The owner's epoch as its daemon knows it.
    pub epoch: Epoch,
    /// The movement it comes in by, until it was let run.
    pub incoming: Option<MigrationId>,
    cpus: Cpus,
    stage: Stage,
    news: VecDeque<MigrationStatus>,
    guard: Policy,
    /// The guard's `stop` was sent and has not returned.
    stopping: bool,
}

impl Copy {
    /// A QEMU that was started with its CPUs stopped, and its guard, which knows of that renewal.
    pub fn new(vm: VmId, epoch: Epoch, times: Times, renewed_at: BootTime) -> Self {
        let guard = Policy::new(times, renewed_at);
        Self {
            vm,
            epoch,
            incoming: None,
            cpus: Cpus::Stand,
            stage: Stage::None,
            news: VecDeque::new(),
            guard,
            stopping: false,
        }
    }

    /// The same, which listens for a transfer.
    pub fn listening(id: MigrationId, times: Times, renewed_at: BootTime) -> Self {
        let copy = Self::new(id.vm.clone(), Epoch::default(), times, renewed_at);
        Self { incoming: Some(id), stage: Stage::Listening, ..copy }
    }

    /// Whether its CPUs run.
    pub fn runs(&self) -> bool {
        self.cpus == Cpus::Run
    }

    /// Whether its process is gone.
    pub fn ended(&self) -> bool {
        self.cpus == Cpus::Ended
    }

    /// What the guard is doing.
    pub fn guard(&self) -> GuardState {
        self.guard.state()
    }

    /// When the guard will look at the time next.
    pub fn deadline(&self) -> Option<BootTime> {
        if self.ended() { None } else { self.guard.deadline() }
    }

    /// `cont`. QEMU refuses while something comes in.
    fn cont(&mut self, now: BootTime) -> bool {
        if self.ended() || self.stage == Stage::Listening || matches!(self.stage, Stage::Sending { switched: Some(_) })
        {
            return false;
        }
        self.resume(now);
        true
    }

    /// What a daemon does to let it run: a guard that has paused it is asked first.
    pub fn let_run(&mut self, now: BootTime) {
        if self.guard() == GuardState::Paused {
            self.permit(now);
        }
        if !self.runs() && self.guard() == GuardState::Watching {
            self.cont(now);
        }
    }

    fn resume(&mut self, now: BootTime) {
        self.cpus = Cpus::Run;
        self.guard_event(Event::Resumed, now);
    }

    /// The process ends.
    pub fn kill(&mut self) {
        self.cpus = Cpus::Ended;
        self.stopping = false;
    }

    fn guard_event(&mut self, event: Event, now: BootTime) {
        if self.ended() {
            return;
        }
        match self.guard.on(event, now) {
            None | Some(Action::Refuse(_)) => {}
            Some(Action::Kill) => self.kill(),
            Some(Action::Continue) => {
                self.cont(now);
            }
            Some(Action::Stop) => {
                self.stopping = true;
                let ran = Event::WasRunning(self.runs());
                self.guard_event(ran, now);
            }
        }
    }

    /// The guard looks at the time.
    pub fn tick(&mut self, now: BootTime) {
        self.guard_event(Event::Tick, now);
    }

    /// Whether a `stop` of the guard is under way.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The guard's `stop` returns.
    pub fn stop_returns(&mut self, now: BootTime) {
        if std::mem::take(&mut self.stopping) {
            if self.runs() {
                self.cpus = Cpus::Stand;
            }
            self.guard_event(Event::Stopped, now);
        }
    }

    /// The daemon tells the guard of a renewal that was sent at `at`.
    pub fn extend(&mut self, at: BootTime, now: BootTime) {
        self.guard_event(Event::Extended(at), now);
    }

    /// The daemon tells the guard that the VM may go on.
    pub fn permit(&mut self, now: BootTime) {
        self.guard_event(Event::Permitted, now);
    }

    /// `migrate`: whether the transfer began.
    pub fn begin_transfer(&mut self) -> bool {
        let idle = !self.ended() && matches!(self.stage, Stage::None | Stage::Failed | Stage::Completed);
        if idle {
            self.stage = Stage::Sending { switched: None };
            self.news.clear();
        }
        idle
    }

    /// Whether memory goes over, up to the end of the last part.
    pub fn is_sending(&self) -> bool {
        !self.ended() && matches!(self.stage, Stage::Sending { .. })
    }

    /// Whether the CPUs were stopped for the last part.
    pub fn has_switched(&self) -> bool {
        matches!(self.stage, Stage::Sending { switched: Some(_) })
    }

    /// The CPUs are stopped for the last part.
    pub fn switch_over(&mut self) {
        if self.stage == (Stage::Sending { switched: None }) {
            self.stage = Stage::Sending { switched: Some(self.runs()) };
            if self.runs() {
                self.cpus = Cpus::Stand;
            }
        }
    }

    /// All is sent and acknowledged.
    pub fn complete(&mut self) {
        if self.has_switched() && !self.ended() {
            self.stage = Stage::Completed;
            self.news.push_back(MigrationStatus::Completed);
        }
    }

    /// The transfer breaks or is cancelled: a guest that ran goes on by itself.
    pub fn fail(&mut self, status: MigrationStatus, now: BootTime) {
        let Stage::Sending { switched } = self.stage else { return };
        if self.ended() {
            return;
        }
        self.stage = Stage::Failed;
        self.news.push_back(status);
        if switched == Some(true) {
            self.resume(now);
        }
    }

    /// Whether it waits for a transfer to come in.
    pub fn is_listening(&self) -> bool {
        !self.ended() && self.stage == Stage::Listening
    }

    /// All that came in is loaded.
    pub fn load(&mut self) {
        if self.is_listening() {
            self.stage = Stage::Loaded;
            self.news.push_back(MigrationStatus::Completed);
        }
    }

    /// What QEMU said of its transfer and nobody has heard yet.
    pub fn next_news(&mut self) -> Option<MigrationStatus> {
        self.news.pop_front()
    }

    /// What `query-migrate` says.
    pub fn status(&self) -> Option<MigrationStatus> {
        match self.stage {
            Stage::None | Stage::Listening => None,
            Stage::Sending { .. } => Some(MigrationStatus::Active),
            Stage::Completed | Stage::Loaded => Some(MigrationStatus::Completed),
            Stage::Failed => Some(MigrationStatus::Failed),
        }
    }

    /// A daemon that starts asks for the state of things, not for what it has missed.
    pub fn forget_news(&mut self) {
        self.news.clear();
    }

    /// The transfer is over for good: the next one may begin.
    pub fn settle(&mut self) {
        self.stage = Stage::None;
        self.incoming = None;
        self.news.clear();
    }
}
