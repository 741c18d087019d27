//! `vtd guard`: the process. One thread, one `poll`, nothing that waits for anything else.
//!
//! What may not happen here: waiting for the daemon, for QEMU or for a disk before the VM has been paused or killed.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        mman::{MlockAllFlags, mlockall},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    LOCK_FILE, SOCKET, STATE_FILE,
    clock::BootTime,
    message::{GuardState, LINE_MAX, Order, What, Word},
    monitor::{Heard, Lines, Monitor, is_absence},
    policy::{Action, Event, Policy, Times},
};
use crate::qemu::{
    command_line::GUARD_QMP_SOCKET,
    process::{open_pidfd, stat},
    record::write_whole,
};

/// How often a lost monitor is tried again, and a kill that failed is repeated.
const RETRY: Duration = Duration::from_millis(200);
/// Daemons connected at a time: one, and one that takes over from it. More are turned away.
const DAEMONS_MAX: usize = 4;
/// Exit code when there is a guard already.
pub const EXIT_TAKEN: i32 = 3;

/// Its words, as the daemon gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The VM's run folder.
    pub run_dir: PathBuf,
    /// QEMU's process id.
    pub pid: u32,
    /// When QEMU was started, in ticks since boot.
    pub start_ticks: u64,
    /// When the acknowledged renewal was sent from which the deadlines count at first.
    pub renewed_at: BootTime,
    /// When to act.
    pub times: Times,
}

impl Words {
    /// As words of a command line.
    pub fn to_args(&self) -> Vec<String> {
        let ms = |time: Duration| time.as_millis().to_string();
        let pairs = [
            ("--run-dir", self.run_dir.to_string_lossy().into_owned()),
            ("--pid", self.pid.to_string()),
            ("--start-ticks", self.start_ticks.to_string()),
            ("--renewed-at-ns", self.renewed_at.ns().to_string()),
            ("--pause-ms", ms(self.times.pause)),
            ("--kill-ms", ms(self.times.kill)),
            ("--abandon-ms", ms(self.times.abandon)),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// From words of a command line; what is missing or wrong is named.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut found = std::collections::BTreeMap::new();
        let mut words = words.into_iter();
        while let Some(name) = words.next() {
            let name = name.to_string_lossy().into_owned();
            let value = words.next().ok_or_else(|| format!("{name} has no value"))?;
            found.insert(name, value);
        }
        let mut take = |name: &str| found.remove(name).ok_or_else(|| format!("{name} is missing"));
        let run_dir = PathBuf::from(take("--run-dir")?);
        let mut number = |name: &str| -> Result<u64, String> {
            let value = take(name)?;
            value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("{name} {value:?} is no number"))
        };
        let words = Self {
            run_dir,
            pid: u32::try_from(number("--pid")?).map_err(|_| "--pid is too large".to_owned())?,
            start_ticks: number("--start-ticks")?,
            renewed_at: BootTime::from_ns(number("--renewed-at-ns")?),
            times: Times {
                pause: Duration::from_millis(number("--pause-ms")?),
                kill: Duration::from_millis(number("--kill-ms")?),
                abandon: Duration::from_millis(number("--abandon-ms")?),
            },
        };
        match found.into_keys().next() {
            Some(name) => Err(format!("{name} is not known")),
            None => Ok(words),
        }
    }
}

/// Guards until the VM ends or the daemon releases it. Returns the exit code.
pub fn run(words: impl IntoIterator<Item = OsString>) -> i32 {
    let words = match Words::parse(words) {
        Ok(words) => words,
        Err(error) => {
            eprintln!("vtd guard: {error}");
            return 2;
        }
    };
    match guard(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vtd guard: {}: {error}", words.run_dir.display());
            1
        }
    }
}

fn guard(words: &Words) -> io::Result<i32> {
    harden();
    let lock = fs::OpenOptions::new().create(true).append(true).open(words.run_dir.join(LOCK_FILE))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        eprintln!("vtd guard: there is a guard already");
        return Ok(EXIT_TAKEN);
    };
    let vm = match open_pidfd(words.pid) {
        Ok(vm) if stat(words.pid).is_some_and(|stat| stat.start_ticks == words.start_ticks && !stat.dead) => vm,
        _ => {
            say("the VM has ended already");
            return Ok(0);
        }
    };
    // One left by a guard that was killed; the lock says that it lives no more.
    let socket = words.run_dir.join(SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
        .map_err(io::Error::from)?;
    let policy = match Memory::read(&words.run_dir, words.pid) {
        Some(memory) => Policy::resume_paused(words.times, words.renewed_at, memory.ran),
        None => Policy::new(words.times, words.renewed_at),
    };
    say(&format!("guarding process {}: {:?}, {:?}", words.pid, policy.state(), words.times));
    let monitor = Monitor::new(&words.run_dir.join(GUARD_QMP_SOCKET));
    let mut program = Program {
        policy,
        vm,
        pid: words.pid,
        monitor,
        listener,
        timer,
        daemons: Vec::new(),
        told: None,
        stop_owed: false,
        kill_owed: false,
        released: false,
        remembered: None,
        run_dir: words.run_dir.clone(),
    };
    program.run()?;
    let _ = fs::remove_file(&socket);
    Ok(0)
}

/// Makes it hard to stop the guard by accident. Each part may be refused to it; it then guards as well as it can.
fn harden() {
    let _ = nix::unistd::setsid();
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        say(&format!("memory is not locked: {error}"));
    }
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = rustix::process::setpriority_process(None, -10);
}

fn say(what: &str) {
    eprintln!("{} vtd guard: {what}", BootTime::now().ns() / 1_000_000);
}

/// What the next guard must know if this one is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// The VM this is about.
    pid: u32,
    /// Whether it ran before it was paused.
    ran: bool,
}

impl Memory {
    fn read(run_dir: &Path, pid: u32) -> Option<Self> {
        let memory: Self = serde_json::from_slice(&fs::read(run_dir.join(STATE_FILE)).ok()?).ok()?;
        (memory.pid == pid).then_some(memory)
    }
}

struct Daemon {
    stream: UnixStream,
    lines: Lines,
    /// Orders that QEMU has not answered yet, by the number of the answer.
    waiting: Vec<(u64, u64)>,
}

struct Program {
    policy: Policy,
    vm: OwnedFd,
    pid: u32,
    monitor: Monitor,
    listener: UnixListener,
    timer: TimerFd,
    daemons: Vec<Daemon>,
    told: Option<(GuardState, bool)>,
    /// A `stop` that could not be sent yet.
    stop_owed: bool,
    /// A kill that failed.
    kill_owed: bool,
    released: bool,
    remembered: Option<Memory>,
    run_dir: PathBuf,
}

impl Program {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let now = BootTime::now();
            self.act(Event::Tick, now);
            if self.stop_owed {
                self.stop();
            }
            if self.kill_owed {
                self.kill();
            }
            if let Err(error) = self.monitor.connect()
                && !is_absence(&error)
            {
                say(&format!("monitor: {error}"));
            }
            self.tell_changes();
            self.remember();
            self.set_timer(now)?;
            let Ready { ended, joined, monitor, daemons } = self.wait()?;
            if ended {
                say("the VM has ended");
                return Ok(());
            }
            if joined {
                self.admit();
            }
            // Orders first: an extension that waits here must count before the time is looked at.
            for at in daemons.into_iter().rev() {
                self.hear_daemon(at);
            }
            if self.released {
                say("released");
                return Ok(());
            }
            if monitor {
                self.hear_monitor();
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![input(self.vm.as_fd()), input(self.listener.as_fd()), input(self.timer.as_fd())];
        fds.extend(self.daemons.iter().map(|daemon| input(daemon.stream.as_fd())));
        fds.extend(self.monitor.fd().map(input));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[2] {
            let _ = self.timer.wait();
        }
        let daemons = 3..3 + self.daemons.len();
        Ok(Ready {
            ended: ready[0],
            joined: ready[1],
            monitor: ready.get(daemons.end).copied().unwrap_or(false),
            daemons: daemons.clone().filter(|at| ready[*at]).map(|at| at - daemons.start).collect(),
        })
    }

    fn set_timer(&self, now: BootTime) -> io::Result<()> {
        let retry = self.stop_owed || self.kill_owed || self.monitor.fd().is_none();
        let retry = retry.then(|| now + RETRY);
        match self.policy.deadline().into_iter().chain(retry).min() {
            None => self.timer.unset()?,
            // Zero would mean "never".
            Some(at) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.ns().max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?,
        }
        Ok(())
    }

    /// Does what the policy wants; returns why it refuses.
    fn act(&mut self, event: Event, now: BootTime) -> Option<&'static str> {
        match self.policy.on(event, now)? {
            Action::Stop => self.stop(),
            Action::Kill => self.kill(),
            Action::Continue => {
                self.stop_owed = false;
                if let Err(error) = self.monitor.cont() {
                    say(&format!("cannot let the VM run: {error}"));
                    return Some("the monitor cannot be reached to let the VM run");
                }
                say("permitted: the VM runs");
            }
            Action::Refuse(why) => return Some(why),
        }
        None
    }

    fn stop(&mut self) {
        let first = !self.stop_owed;
        let sent = self.monitor.stop();
        self.stop_owed = sent.is_err();
        if first {
            let late = BootTime::now().since(self.policy.renewed_at());
            say(&format!("not extended for {} ms: stop ({sent:?})", late.as_millis()));
        }
    }

    fn kill(&mut self) {
        let first = !self.kill_owed;
        let killed = pidfd_send_signal(&self.vm, Signal::KILL);
        self.kill_owed = !matches!(killed, Ok(()) | Err(rustix::io::Errno::SRCH));
        self.stop_owed = false;
        if first {
            let late = BootTime::now().since(self.policy.renewed_at());
            say(&format!("not extended for {} ms: killed ({killed:?})", late.as_millis()));
        }
    }

    fn hear_monitor(&mut self) {
        for heard in self.monitor.read() {
            let event = match heard {
                Heard::Ready => continue,
                Heard::Lost => {
                    // A `stop` whose answer is lost is asked again.
                    self.stop_owed |= self.policy.state() == GuardState::Pausing;
                    self.answer(|_| true, Some("the connection to the monitor ended"));
                    continue;
                }
                Heard::Answered(id, answer) => {
                    self.answer(|asked| asked == id, answer.err().as_deref());
                    continue;
                }
                Heard::WasRunning(ran) => Event::WasRunning(ran),
                Heard::Stopped => {
                    say("the VM stands");
                    Event::Stopped
                }
                Heard::Resumed => Event::Resumed,
            };
            self.act(event, BootTime::now());
        }
    }

    fn admit(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.daemons.len() < DAEMONS_MAX && stream.set_nonblocking(true).is_ok() {
                self.daemons.push(Daemon { stream, lines: Lines::new(LINE_MAX), waiting: Vec::new() });
                let word = self.word(None, None);
                tell(self.daemons.last_mut(), &word);
            }
        }
    }

    fn hear_daemon(&mut self, at: usize) {
        let Some(daemon) = self.daemons.get_mut(at) else { return };
        let alive = daemon.lines.read_from(&mut daemon.stream);
        let mut orders = Vec::new();
        while let Some(line) = daemon.lines.next() {
            match serde_json::from_slice::<Order>(&line) {
                Ok(order) => orders.push(order),
                Err(error) => say(&format!("not an order: {error}")),
            }
        }
        for order in orders {
            let event = match order.what {
                What::Extend(renewed_at) => Event::Extended(renewed_at),
                What::Permit => Event::Permitted,
                What::Release => {
                    self.released = true;
                    Event::Tick
                }
                What::Break => {
                    self.pass_on(at, order.seq, "migrate-pause", json!({}));
                    continue;
                }
                What::Listen(uri) => {
                    self.pass_on(at, order.seq, "migrate-recover", json!({ "uri": uri }));
                    continue;
                }
            };
            let refused = self.act(event, BootTime::now());
            let word = self.word(Some(order.seq), refused);
            tell(self.daemons.get_mut(at), &word);
        }
        if !alive {
            self.daemons.remove(at);
        }
    }

    /// Has QEMU do what a daemon asks for that QEMU does not answer; the answer is told when it comes.
    fn pass_on(&mut self, at: usize, seq: u64, command: &str, arguments: Value) {
        let asked = self.monitor.out_of_band(command, arguments);
        say(&format!("{command} for the daemon ({asked:?})"));
        match (asked, self.daemons.get_mut(at)) {
            (Ok(id), Some(daemon)) => daemon.waiting.push((id, seq)),
            (Ok(_), None) => {}
            (Err(error), _) => {
                let word = self.word(Some(seq), Some(&error.to_string()));
                tell(self.daemons.get_mut(at), &word);
            }
        }
    }

    /// Answers the orders that waited for these answers of QEMU.
    fn answer(&mut self, which: impl Fn(u64) -> bool, refused: Option<&str>) {
        for at in 0..self.daemons.len() {
            let Some(daemon) = self.daemons.get_mut(at) else { continue };
            let answered: Vec<_> = daemon.waiting.extract_if(.., |(id, _)| which(*id)).collect();
            for (_, seq) in answered {
                let word = self.word(Some(seq), refused);
                tell(self.daemons.get_mut(at), &word);
            }
        }
    }

    fn word(&self, seq: Option<u64>, refused: Option<&str>) -> Word {
        Word {
            seq,
            state: self.policy.state(),
            monitor: self.monitor.ready(),
            renewed_at: self.policy.renewed_at(),
            refused: refused.map(str::to_owned),
        }
    }

    fn tell_changes(&mut self) {
        let now = (self.policy.state(), self.monitor.ready());
        if self.told != Some(now) {
            self.told = Some(now);
            let word = self.word(None, None);
            for daemon in &mut self.daemons {
                tell(Some(daemon), &word);
            }
        }
    }

    /// After the deed: a disk that hangs must not keep the VM running.
    fn remember(&mut self) {
        let memory = self.policy.paused().map(|ran| Memory { pid: self.pid, ran });
        if memory == self.remembered {
            return;
        }
        let file = self.run_dir.join(STATE_FILE);
        let done = match memory {
            Some(memory) => serde_json::to_vec(&memory).map_err(io::Error::from).and_then(|b| write_whole(&file, &b)),
            None => fs::remove_file(&file),
        };
        if let Err(error) = done {
            say(&format!("cannot remember {memory:?}: {error}"));
        }
        self.remembered = memory;
    }
}

struct Ready {
    ended: bool,
    joined: bool,
    monitor: bool,
    daemons: Vec<usize>,
}

/// One that does not read is dropped when its connection ends; its words are lost until then.
fn tell(daemon: Option<&mut Daemon>, word: &Word) {
    use std::io::Write;
    if let (Some(daemon), Ok(mut line)) = (daemon, serde_json::to_vec(word)) {
        line.push(b'\n');
        let _ = daemon.stream.write_all(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_wrong_ones_are_named() {
        let words = Words {
            run_dir: "/run/vm x".into(),
            pid: 7,
            start_ticks: 8,
            renewed_at: BootTime::from_ns(9),
            times: Times::default(),
        };
        let args: Vec<OsString> = words.to_args().into_iter().map(OsString::from).collect();
        assert_eq!(Words::parse(args.clone()), Ok(words));
        let mut more = args.clone();
        more.extend(["--colour".into(), "red".into()]);
        assert_eq!(Words::parse(more), Err("--colour is not known".into()));
        assert!(Words::parse(args[2..].to_vec()).unwrap_err().contains("--run-dir is missing"));
        assert!(Words::parse(args[..args.len() - 1].to_vec()).unwrap_err().contains("has no value"));
        let mut wrong = args;
        wrong[3] = "x".into();
        assert!(Words::parse(wrong).unwrap_err().contains("is no number"));
    }
}
