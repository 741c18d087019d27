//! What a scenario written in Rust works with: barriers, exchange, VMs, migrations, guests, steps.
//!
//! All parties of an attempt run the same program. Calls that others take part in (barriers, migrations) are numbered
//! here, so every party must make the same ones in the same order; a party that is neither side of a migration calls
//! it as well and gets its answer at once.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    params::Params,
    party::{
        Answer, Ask, Barrier, FILE_MAX, Failure, Finish, Guest as GuestCall, GuestAnswer, Hello, Migrated, Move, Plane,
        Request, StartVm, Step as StepCall, VmStarted, Welcome,
    },
    probe,
    verdict::{Blame, Cause, Outcome},
    vm::MigrationSpec,
};

use super::link::{Link, our_fault};

/// Calls that the daemon answers at once.
const PROMPT: Duration = Duration::from_secs(30);

/// A party, as its scenario sees it.
#[derive(Debug)]
pub struct Party {
    link: Link,
    welcome: Welcome,
    until: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    barriers: BTreeMap<String, u32>,
    moves: BTreeMap<Name, u32>,
    metrics: BTreeMap<String, Value>,
}

impl Party {
    /// Connects to the daemon at `socket`.
    ///
    /// # Errors
    /// The daemon refused the party, or none answered within a minute.
    pub async fn connect(socket: &Path, hello: Hello) -> Result<Self, Failure> {
        let (link, welcome) = Link::connect(socket, hello, Duration::from_secs(60)).await?;
        let until = Instant::now() + Duration::from_millis(welcome.remaining_ms);
        Ok(Self { link, welcome, until, counts: Mutex::default() })
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be done.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The parameters of the case.
    pub fn params(&self) -> &Params {
        &self.welcome.params
    }

    /// The hosts, host1 first.
    pub fn hosts(&self) -> &[Name] {
        &self.welcome.hosts
    }

    /// This host.
    pub fn me(&self) -> &Name {
        // The daemon's `place` is an index into its own list; a wrong one falls back to the first.
        let place = self.welcome.place as usize;
        self.welcome.hosts.get(place).unwrap_or(&self.welcome.hosts[0])
    }

    /// How long the case may still take.
    pub fn remaining(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits until every party has arrived.
    ///
    /// # Errors
    /// The barrier broke (a consequence), or the call could not be made.
    pub async fn barrier(&self, tag: &str, deadline: Duration) -> Result<(), Failure> {
        self.meet(tag, Vec::new(), Value::Null, deadline).await.map(drop)
    }

    /// Waits until these parties, of which this is one, have arrived. The others do not call it.
    ///
    /// # Errors
    /// As [`Party::barrier`].
    pub async fn barrier_of(&self, tag: &str, parties: Vec<Name>, deadline: Duration) -> Result<(), Failure> {
        self.meet(tag, parties, Value::Null, deadline).await.map(drop)
    }

    /// Waits until every party has arrived, and returns what each gave, in the order of hosts.
    ///
    /// # Errors
    /// As [`Party::barrier`], or another party gave something that is no `T`.
    pub async fn exchange<T: Serialize + DeserializeOwned>(
        &self,
        tag: &str,
        value: &T,
        deadline: Duration,
    ) -> Result<Vec<(Name, T)>, Failure> {
        let wrong = |error: serde_json::Error| {
            let report = Report::new(ErrorCode::Internal, format!("what was exchanged at {tag} cannot be used"));
            our_fault(report.caused_by(&error))
        };
        let payloads = self.meet(tag, Vec::new(), serde_json::to_value(value).map_err(wrong)?, deadline).await?;
        payloads.into_iter().map(|(host, value)| Ok((host, serde_json::from_value(value).map_err(wrong)?))).collect()
    }

    async fn meet(
        &self,
        tag: &str,
        parties: Vec<Name>,
        payload: Value,
        deadline: Duration,
    ) -> Result<Vec<(Name, Value)>, Failure> {
        let generation = {
            let mut counts = self.counts();
            let count = counts.barriers.entry(tag.to_owned()).or_default();
            *count += 1;
            *count
        };
        let deadline_ms = millis(deadline);
        let call = Barrier { tag: tag.to_owned(), generation, parties, deadline_ms, payload };
        match self.link.call(Request::Barrier(call), deadline).await? {
            Answer::Released { payloads } => Ok(payloads),
            other => Err(unexpected("barrier", &other)),
        }
    }

    /// A VM of the attempt.
    pub fn vm(&self, name: Name) -> Vm<'_> {
        Vm { party: self, name }
    }

    /// The guest of a VM. It can be asked while this host owns the VM.
    pub fn guest(&self, vm: &Name) -> Guest<'_> {
        Guest { party: self, vm: vm.clone() }
    }

    /// Drops what comes in to this host on these planes, and on no others. Nothing of it outlives the attempt.
    ///
    /// # Errors
    /// The rules could not be set.
    pub async fn cut(&self, planes: &[Plane]) -> Result<(), Failure> {
        self.link.call(Request::Cut { planes: planes.to_vec() }, PROMPT).await.map(drop)
    }

    /// Makes the next [`Party::migrate`] of this VM ready, so that it begins at once. Every party calls it.
    ///
    /// # Errors
    /// Source and destination do not fit, or the destination could not be prepared.
    pub async fn prepare_migration(
        &self,
        vm: &Name,
        from: &Name,
        to: &Name,
        spec: &MigrationSpec,
    ) -> Result<(), Failure> {
        if self.me() != from && self.me() != to {
            return Ok(());
        }
        let number = self.counts().moves.get(vm).copied().unwrap_or(0) + 1;
        let call = Move { vm: vm.clone(), number, from: from.clone(), to: to.clone(), spec: spec.clone() };
        self.link.call(Request::PrepareMigration(call), Duration::from_secs(120)).await.map(drop)
    }

    /// Counts a movement that was refused before it began. Every party calls it in place of [`Party::migrate`].
    pub fn skip_migration(&self, vm: &Name) {
        *self.counts().moves.entry(vm.clone()).or_default() += 1;
    }

    /// Moves a VM. Every party calls it, so that all count alike; who is neither side gets `None` at once.
    ///
    /// # Errors
    /// The VM did not move; where it is a consequence of what happened at the other side, it is told as one.
    pub async fn migrate(
        &self,
        vm: &Name,
        from: &Name,
        to: &Name,
        spec: &MigrationSpec,
    ) -> Result<Option<Migrated>, Failure> {
        let number = {
            let mut counts = self.counts();
            let count = counts.moves.entry(vm.clone()).or_default();
            *count += 1;
            *count
        };
        if self.me() != from && self.me() != to {
            return Ok(None);
        }
        let call = Move { vm: vm.clone(), number, from: from.clone(), to: to.clone(), spec: spec.clone() };
        // Beyond the transfer itself: preparing, the decision, and the resume.
        let deadline = Duration::from_millis(spec.timeout_ms).saturating_add(Duration::from_secs(180));
        match self.link.call(Request::Migrate(call), deadline).await? {
            Answer::Migrated(migrated) => Ok(Some(*migrated)),
            other => Err(unexpected("migrate", &other)),
        }
    }

    /// Begins a step; it is told when it ends well.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn step(&self, name: &str) -> Result<Step<'_>, Failure> {
        self.link.call(Request::Step(StepCall::Begin { name: name.to_owned() }), PROMPT).await?;
        Ok(Step { party: self, name: name.to_owned() })
    }

    /// Adds a remark to the log of the attempt.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn log(&self, text: impl Into<String>) -> Result<(), Failure> {
        self.link.call(Request::Log { warn: false, text: text.into() }, PROMPT).await.map(drop)
    }

    /// Adds a warning to the log of the attempt.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn warn(&self, text: impl Into<String>) -> Result<(), Failure> {
        self.link.call(Request::Log { warn: true, text: text.into() }, PROMPT).await.map(drop)
    }

    /// Blames the product under test where `holds` is not true.
    ///
    /// # Errors
    /// `holds` is false.
    pub fn expect(&self, holds: bool, report: impl FnOnce() -> Report) -> Result<(), Failure> {
        if holds { Ok(()) } else { Err(Failure::Caused(Cause { blame: Blame::Product, report: report() })) }
    }

    /// Keeps a value in the evidence, as `checks/NAME.json`.
    ///
    /// # Errors
    /// The daemon does not answer, or the value is too large.
    pub async fn keep(&self, name: Name, value: &impl Serialize) -> Result<(), Failure> {
        let value = serde_json::to_value(value).map_err(|error| {
            our_fault(Report::new(ErrorCode::Internal, format!("{name} has no JSON form")).caused_by(&error))
        })?;
        self.link.call(Request::Keep { name, value }, PROMPT).await.map(drop)
    }

    /// Keeps a figure for the report; the last one of a name wins.
    pub fn metric(&self, name: &str, value: impl Into<Value>) {
        self.counts().metrics.insert(name.to_owned(), value.into());
    }

    /// Tells the outcome. The program exits after it.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn finish(&self, outcome: Outcome) -> Result<(), Failure> {
        let metrics = std::mem::take(&mut self.counts().metrics);
        self.link.call(Request::Finish(Finish { outcome, metrics }), Duration::from_secs(60)).await.map(drop)
    }
}

/// A VM of the attempt.
#[derive(Debug)]
pub struct Vm<'a> {
    party: &'a Party,
    name: Name,
}

impl Vm<'_> {
    /// Starts it on this host and waits until its guest is up. The name in `vm` is replaced by this VM's.
    ///
    /// # Errors
    /// It does not run.
    pub async fn start(&self, mut vm: StartVm) -> Result<VmStarted, Failure> {
        vm.vm = self.name.clone();
        let deadline = Duration::from_millis(vm.boot_timeout_ms).saturating_add(Duration::from_secs(60));
        match self.party.link.call(Request::StartVm(vm), deadline).await? {
            Answer::Vm(started) => Ok(*started),
            other => Err(unexpected("start_vm", &other)),
        }
    }

    /// Says that its devices were changed: the destination of its next move begins with these words at the end of QEMU's
    /// command line, in place of those it was started with.
    ///
    /// # Errors
    /// The VM is not on this host.
    pub async fn reshape(&self, extra_args: Vec<String>) -> Result<(), Failure> {
        self.party.link.call(Request::Reshape { vm: self.name.clone(), extra_args }, PROMPT).await.map(drop)
    }

    /// Has the hypervisor do something: a QMP command and its arguments, an object or `Null`.
    ///
    /// # Errors
    /// The VM is not on this host, the command is not one that a scenario may give, or QEMU refuses it.
    pub async fn monitor(&self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let call = Request::Monitor { vm: self.name.clone(), command: command.to_owned(), arguments };
        match self.party.link.call(call, PROMPT).await? {
            Answer::Monitor(value) => Ok(value),
            other => Err(unexpected("monitor", &other)),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// This host does not own it.
    pub async fn stop(&self) -> Result<(), Failure> {
        self.party.link.call(Request::StopVm { vm: self.name.clone() }, Duration::from_secs(60)).await.map(drop)
    }
}

/// The guest of a VM.
#[derive(Debug)]
pub struct Guest<'a> {
    party: &'a Party,
    vm: Name,
}

impl Guest<'_> {
    async fn ask(&self, ask: Ask, timeout: Duration) -> Result<GuestAnswer, Failure> {
        let call = GuestCall { vm: self.vm.clone(), ask, timeout_ms: millis(timeout) };
        match self.party.link.call(Request::Guest(call), timeout).await? {
            Answer::Guest(answer) => Ok(answer),
            other => Err(unexpected("guest", &other)),
        }
    }

    /// Logs in on the serial console.
    ///
    /// # Errors
    /// No login within the time.
    pub async fn login(&self, timeout: Duration) -> Result<(), Failure> {
        self.ask(Ask::Login, timeout).await.map(drop)
    }

    /// Runs a line of shell on the serial console: exit status and output.
    ///
    /// # Errors
    /// No answer within the time.
    pub async fn run(&self, command: &str, timeout: Duration) -> Result<(i32, String), Failure> {
        match self.ask(Ask::Console { command: command.to_owned() }, timeout).await? {
            GuestAnswer::Console { status, output } => Ok((status, output)),
            other => Err(odd("console", other)),
        }
    }

    /// Runs a line of shell by ssh from this host, in the one session that began with the first one, while the VM was here:
    /// exit status and output.
    ///
    /// # Errors
    /// No answer within the time, or the session has broken off.
    pub async fn shell(&self, command: &str, timeout: Duration) -> Result<(i32, String), Failure> {
        match self.ask(Ask::Shell { command: command.to_owned() }, timeout).await? {
            GuestAnswer::Console { status, output } => Ok((status, output)),
            other => Err(odd("shell", other)),
        }
    }

    /// Asks the probe; `T` is the type named at the request.
    ///
    /// # Errors
    /// No answer within the time, or one of another shape.
    pub async fn probe<T: DeserializeOwned>(&self, request: probe::Request, timeout: Duration) -> Result<T, Failure> {
        match self.ask(Ask::Probe(request), timeout).await? {
            GuestAnswer::Probe(value) => serde_json::from_value(value).map_err(|error| {
                let report = Report::new(ErrorCode::WireVersion, "the probe's answer has another shape");
                our_fault(report.caused_by(&error))
            }),
            other => Err(odd("probe", other)),
        }
    }

    /// Pings the guest agent.
    ///
    /// # Errors
    /// No answer within the time.
    pub async fn agent_ping(&self, timeout: Duration) -> Result<(), Failure> {
        self.ask(Ask::AgentPing, timeout).await.map(drop)
    }

    /// Has the guest agent run a line of shell: exit status, and what it printed to its first and then to its second stream.
    ///
    /// # Errors
    /// No answer within the time.
    pub async fn run_by_agent(&self, command: &str, timeout: Duration) -> Result<(i32, String), Failure> {
        match self.ask(Ask::Agent { command: command.to_owned() }, timeout).await? {
            GuestAnswer::Console { status, output } => Ok((status, output)),
            other => Err(odd("agent", other)),
        }
    }

    /// Writes a file in the guest, in pieces where it is large.
    ///
    /// # Errors
    /// The guest agent cannot write it, or does not answer within the time for one piece.
    pub async fn put(&self, path: &str, bytes: &[u8], timeout: Duration) -> Result<(), Failure> {
        let pieces = bytes.chunks(FILE_MAX).chain(bytes.is_empty().then_some(&[][..]));
        for (offset, piece) in (0..).step_by(FILE_MAX).zip(pieces) {
            let base64 = STANDARD.encode(piece);
            self.ask(Ask::Put { path: path.to_owned(), base64, offset }, timeout).await?;
        }
        Ok(())
    }

    /// Reads a file of the guest, of at most [`FILE_MAX`] bytes.
    ///
    /// # Errors
    /// The guest agent cannot read it, it is longer, or there is no answer within the time.
    pub async fn get(&self, path: &str, timeout: Duration) -> Result<Vec<u8>, Failure> {
        match self.ask(Ask::Get { path: path.to_owned() }, timeout).await? {
            GuestAnswer::File { base64 } => STANDARD.decode(base64).map_err(|error| {
                our_fault(Report::new(ErrorCode::WireVersion, "the daemon sent no base64").caused_by(&error))
            }),
            other => Err(odd("get", other)),
        }
    }

    /// Round trip of the guest's TCP echo from this host, microseconds.
    ///
    /// # Errors
    /// No answer within the time.
    pub async fn tcp_echo(&self, port: u16, timeout: Duration) -> Result<u64, Failure> {
        match self.ask(Ask::TcpEcho { port }, timeout).await? {
            GuestAnswer::Echo { micros } => Ok(micros),
            other => Err(odd("tcp_echo", other)),
        }
    }

    /// The greeting of the guest's ssh server.
    ///
    /// # Errors
    /// No answer within the time.
    pub async fn ssh_greeting(&self, timeout: Duration) -> Result<String, Failure> {
        match self.ask(Ask::Ssh, timeout).await? {
            GuestAnswer::Ssh { greeting } => Ok(greeting),
            other => Err(odd("ssh", other)),
        }
    }
}

/// A step that has begun.
#[derive(Debug)]
#[must_use = "a step that is dropped is never told to have ended"]
pub struct Step<'a> {
    party: &'a Party,
    name: String,
}

impl Step<'_> {
    /// It ended well; `note` is what is worth saying of it.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn done(self, note: impl Into<String>) -> Result<(), Failure> {
        let call = StepCall::End { name: self.name, note: note.into() };
        self.party.link.call(Request::Step(call), PROMPT).await.map(drop)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unexpected(call: &str, answer: &Answer) -> Failure {
    let kind = serde_json::to_string(answer).unwrap_or_default();
    let report = Report::new(ErrorCode::WireVersion, format!("the daemon answered {call} with something else"));
    our_fault(report.with("answer", kind))
}

fn odd(call: &str, answer: GuestAnswer) -> Failure {
    unexpected(call, &Answer::Guest(answer))
}
