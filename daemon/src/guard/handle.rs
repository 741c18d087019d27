//! The daemon's side of a guard: starts it, tells it of renewals, starts it again when it was killed.
//!
//! A [`GuardHandle`] that is dropped leaves the guard alone, like the VM it guards: both outlive the daemon, and without
//! extensions the guard does its work. A daemon that comes back connects to the guard it finds.

use std::{collections::HashMap, io, path::PathBuf, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::{Framed, LinesCodec};
use vt_protocol::error::{ErrorCode, Report};

use super::{
    LOG_FILE, SOCKET, WORD,
    clock::BootTime,
    message::{GuardState, LINE_MAX, Order, What, Word},
    policy::Times,
    program::Words,
};
use crate::{
    cgroup::Cgroups,
    qemu::{
        VmProcess,
        process::{Launch, Process, last_lines},
        remains::guard_cgroup_name,
    },
};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a guard may take to say its last word and go, once its VM has ended.
const LAST_WORD: Duration = Duration::from_secs(2);
const REQUESTS_MAX: usize = 16;

/// What a guard is started with.
#[derive(Debug, Clone)]
pub struct GuardSetup {
    /// The vtd binary; `/proc/self/exe` in the daemon.
    pub vtd: PathBuf,
    /// When it acts.
    pub times: Times,
    /// Where control groups are made, if they can be.
    pub cgroups: Option<Cgroups>,
}

/// What went wrong with a guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It did not start, or does not answer.
    #[error("the guard of the VM does not answer: {0}")]
    Absent(String),
    /// It does not do what was asked.
    #[error("the guard refuses: {0}")]
    Refused(String),
    /// The VM has ended.
    #[error("the VM has ended")]
    VmEnded,
}

impl GuardError {
    /// The error as a user meets it.
    pub fn report(&self) -> Report {
        let code = match self {
            Self::Absent(_) => ErrorCode::Internal,
            Self::Refused(_) => ErrorCode::VmFenced,
            Self::VmEnded => ErrorCode::VmLost,
        };
        Report::new(code, self.to_string())
    }
}

/// A guard, as its daemon sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuardHandle {
    renewals: watch::Sender<BootTime>,
    requests: mpsc::Sender<Request>,
    seen: watch::Receiver<Seen>,
}

/// What was last heard of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    state: GuardState,
    monitor: bool,
    /// Whether the last that was said of the VM is that it is being paused, or was paused or killed.
    acted: bool,
    /// Counts the guards that were started or found.
    guards: u32,
}

#[derive(Debug)]
struct Request {
    what: What,
    answer: oneshot::Sender<Result<(), GuardError>>,
}

impl GuardHandle {
    /// Connects to the guard of `vm`, or starts one; returns when it watches (or has already acted) and reaches the
    /// monitor. `renewed_at`: when the last acknowledged renewal of the session was sent.
    pub async fn start(vm: &VmProcess, setup: GuardSetup, renewed_at: BootTime) -> Result<Self, GuardError> {
        let (renewals, renewed) = watch::channel(renewed_at);
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let nothing = Seen { state: GuardState::Absent, monitor: false, acted: false, guards: 0 };
        let (tell, mut seen) = watch::channel(nothing);
        let log = vm.record().evidence.join(LOG_FILE);
        let post = Post {
            setup,
            run_dir: vm.run_dir().to_owned(),
            log: log.clone(),
            vm: vm.process().clone(),
            renewed,
            asked,
            tell,
        };
        tokio::spawn(post.keep());
        let ready = timeout(START_TIMEOUT, seen.wait_for(|seen| seen.state != GuardState::Absent && seen.monitor));
        match ready.await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(GuardError::VmEnded),
            Err(_) => return Err(GuardError::Absent(last_lines(&log, 5))),
        }
        Ok(Self { renewals, requests, seen })
    }

    /// The session was renewed: the acknowledged renewal was *sent* at `renewed_at`. The deadlines count from there. An
    /// older one than the last changes nothing.
    pub fn extend(&self, renewed_at: BootTime) {
        self.renewals.send_if_modified(|last| {
            let newer = renewed_at > *last;
            *last = renewed_at.max(*last);
            newer
        });
    }

    /// Lets a VM that the guard has paused go on. Only after the VM's epoch was read and found unchanged, and after
    /// [`GuardHandle::extend`] with the renewal this rests on.
    pub async fn permit(&self) -> Result<(), GuardError> {
        self.ask(What::Permit).await
    }

    /// Ends the guard and leaves the VM as it is. For a VM that is about to be ended.
    pub async fn release(&self) -> Result<(), GuardError> {
        self.ask(What::Release).await
    }

    /// Has QEMU see the connection of its post-copy as broken, for a daemon that it does not answer.
    pub async fn break_off(&self) -> Result<(), GuardError> {
        self.ask(What::Break).await
    }

    /// Has QEMU listen at `uri` for the connection of its post-copy, which is broken; for a daemon that it does not answer.
    pub async fn listen(&self, uri: &str) -> Result<(), GuardError> {
        self.ask(What::Listen(uri.to_owned())).await
    }

    /// What the guard is doing, as it changes. The channel closes when the VM has ended or the guard was released.
    pub fn states(&self) -> watch::Receiver<GuardState> {
        let mut seen = self.seen.clone();
        let (tell, states) = watch::channel(seen.borrow().state);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = seen.changed() => if changed.is_err() { return },
                    () = tell.closed() => return,
                }
                let state = seen.borrow_and_update().state;
                tell.send_if_modified(|last| std::mem::replace(last, state) != state);
            }
        });
        states
    }

    /// What the guard is doing.
    pub fn state(&self) -> GuardState {
        self.seen.borrow().state
    }

    /// Whether the guard has ended its VM, which has ended: one that had paused it is the one that ended it. Waits for the
    /// guard's last word, which comes before it goes.
    pub async fn has_fenced(&self) -> bool {
        let mut seen = self.seen.clone();
        // The channel closes when nothing more can come.
        let _ = timeout(2 * LAST_WORD, seen.wait_for(|_| false)).await;
        seen.borrow().acted
    }

    /// How many guards this handle has started or found: more than one means that one was killed.
    pub fn guards(&self) -> u32 {
        self.seen.borrow().guards
    }

    async fn ask(&self, what: What) -> Result<(), GuardError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests.send(Request { what, answer }).await.map_err(|_| GuardError::VmEnded)?;
            answered.await.map_err(|_| GuardError::Absent("it ended".to_owned()))?
        };
        let silent = |_| GuardError::Absent(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()));
        timeout(ANSWER_TIMEOUT, asked).await.map_err(silent)?
    }
}

/// The task that keeps a guard at its post.
struct Post {
    setup: GuardSetup,
    run_dir: PathBuf,
    log: PathBuf,
    vm: Process,
    renewed: watch::Receiver<BootTime>,
    asked: mpsc::Receiver<Request>,
    tell: watch::Sender<Seen>,
}

type Wire = Framed<UnixStream, LinesCodec>;

/// Why a connection to a guard is over.
enum Over {
    /// The guard is gone, the VM is not.
    Lost(String),
    /// Nothing is left to do.
    Done,
}

impl Post {
    async fn keep(mut self) {
        let vm = self.vm.clone();
        let mut failures = 0u32;
        loop {
            let reached = tokio::select! {
                reached = self.reach() => reached,
                _ = vm.ended() => return,
            };
            let over = match reached {
                Ok(wire) => {
                    failures = 0;
                    self.tell.send_modify(|seen| seen.guards += 1);
                    // What it says last tells why the VM has ended.
                    let listened = async {
                        vm.ended().await;
                        sleep(LAST_WORD).await;
                    };
                    tokio::select! {
                        over = self.serve(wire) => over,
                        () = listened => return,
                    }
                }
                Err(error) => Over::Lost(error.to_string()),
            };
            let Over::Lost(why) = over else { return };
            failures = failures.saturating_add(1);
            tokio::select! {
                () = sleep((Duration::from_millis(10) * failures.min(100)).min(BACKOFF_MAX)) => {}
                _ = vm.ended() => return,
            }
            tracing::warn!(run_dir = %self.run_dir.display(), why, failures, "guard is gone: it is started again");
            self.tell.send_modify(|seen| (seen.state, seen.monitor) = (GuardState::Absent, false));
        }
    }

    /// A connection to the guard that is there, else to a new one.
    async fn reach(&self) -> io::Result<Wire> {
        let socket = self.run_dir.join(SOCKET);
        let framed = |stream| Framed::new(stream, LinesCodec::new_with_max_length(LINE_MAX));
        if let Ok(stream) = UnixStream::connect(&socket).await {
            return Ok(framed(stream));
        }
        let id = self.vm.id();
        let words = Words {
            run_dir: self.run_dir.clone(),
            pid: id.pid,
            start_ticks: id.start_ticks,
            renewed_at: *self.renewed.borrow(),
            times: self.setup.times,
        };
        let name = guard_cgroup_name(&self.run_dir);
        let cgroup = self.setup.cgroups.as_ref().and_then(|groups| groups.create(&name).ok());
        let args = std::iter::once(WORD.to_owned()).chain(words.to_args()).collect();
        let vtd = self.setup.vtd.clone();
        // It keeps a second copy of the guest from running: spared like the daemon.
        let launch = Launch {
            vtd: vtd.clone(),
            program: vtd,
            args,
            output: self.log.clone(),
            cgroup,
            expendable: false,
            macvtaps: Vec::new(),
            environment: Vec::new(),
        };
        let guard = Process::spawn(&launch)?;
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(framed(stream)),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(exit) = guard.exit() {
                return Err(io::Error::other(format!("it ended at once ({exit}): {}", last_lines(&self.log, 3))));
            }
            sleep(Duration::from_millis(3)).await;
        }
    }

    async fn serve(&mut self, mut wire: Wire) -> Over {
        let mut waiting: HashMap<u64, Request> = HashMap::new();
        let mut seq = 0u64;
        // A guard that was there before may not know the latest.
        self.renewed.mark_changed();
        loop {
            tokio::select! {
                line = wire.next() => {
                    let word = match line {
                        None => return Over::Lost("connection ended".to_owned()),
                        Some(Err(error)) => return Over::Lost(error.to_string()),
                        Some(Ok(line)) => match serde_json::from_str::<Word>(&line) {
                            Ok(word) => word,
                            Err(error) => return Over::Lost(format!("not a guard: {error}")),
                        },
                    };
                    self.tell.send_if_modified(|seen| {
                        let before = *seen;
                        (seen.state, seen.monitor) = (word.state, word.monitor);
                        seen.acted = word.state != GuardState::Watching;
                        before != *seen
                    });
                    let Some(request) = word.seq.and_then(|seq| waiting.remove(&seq)) else { continue };
                    let released = request.what == What::Release;
                    let result = word.refused.map_or(Ok(()), |why| Err(GuardError::Refused(why)));
                    // Who asked may have given up.
                    let _ = request.answer.send(result);
                    if released {
                        return Over::Done;
                    }
                }
                changed = self.renewed.changed() => {
                    // Every handle was dropped: the guard goes on without us.
                    if changed.is_err() {
                        return Over::Done;
                    }
                    let renewed_at = *self.renewed.borrow_and_update();
                    seq += 1;
                    if let Err(error) = send(&mut wire, seq, What::Extend(renewed_at)).await {
                        return Over::Lost(error);
                    }
                }
                request = self.asked.recv(), if waiting.len() < REQUESTS_MAX => {
                    let Some(request) = request else { return Over::Done };
                    // What a permit rests on goes first.
                    let renewed_at = *self.renewed.borrow_and_update();
                    for what in [What::Extend(renewed_at), request.what.clone()] {
                        seq += 1;
                        if let Err(error) = send(&mut wire, seq, what).await {
                            return Over::Lost(error);
                        }
                    }
                    waiting.insert(seq, request);
                }
            }
        }
    }
}

async fn send(wire: &mut Wire, seq: u64, what: What) -> Result<(), String> {
    let line = serde_json::to_string(&Order { seq, what }).map_err(|error| error.to_string())?;
    wire.send(line).await.map_err(|error| error.to_string())
}
