//! A VM of this host: started, spoken to, found again after a restart of the daemon, and given back.
//!
//! ```text
//! start:    folders → record → taps, group → QEMU (CPUs stopped) → monitor answers → record with its process
//! teardown: quit, else SIGKILL → group → taps → run folder; evidence stays
//! ```
//!
//! A [`Vm`] that is dropped leaves its QEMU running: it outlives the daemon. A start that fails or is given up half way
//! leaves nothing. QEMU always starts with its CPUs stopped; nothing here lets them run but [`Qmp::cont`], whose caller
//! knows that this host owns the VM and that its guard watches.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::VmId,
    vm::VmSpec,
};

use super::{
    cable::Cable,
    command_line::{
        AGENT_SOCKET, Boot, CONSOLE_SOCKET, Disk, Extra, GUARD_QMP_SOCKET, PROBE_SOCKET, QMP_SOCKET, Resolved,
    },
    launch,
    process::{Exit, Launch, Process, last_lines, resolve_program},
    qmp::{Qmp, QmpError, Transcript},
    record::VmRecord,
    remains,
    site::Site,
    tap::TapError,
};
use crate::{
    cgroup::Cgroups,
    pools::{
        export::{self, ExportError},
        iscsi,
    },
};

/// QEMU's stderr, in the evidence folder.
pub const STDERR_FILE: &str = "qemu.stderr";
/// QEMU's command line, one word a line.
pub const COMMAND_FILE: &str = "qemu.command";
/// The QMP transcript.
pub const TRANSCRIPT_FILE: &str = "qmp.jsonl";
/// The serial log.
pub const SERIAL_FILE: &str = "serial.log";
/// RAM, where it is kept in a file of the run folder.
pub const MEMORY_FILE: &str = "ram";
/// Longest path of a Unix socket: the kernel takes 107 bytes, the rest is kept as a reserve.
pub const SOCKET_PATH_MAX: usize = 100;
/// How long QEMU may take to open its monitor.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// What to start.
#[derive(Debug, Clone)]
pub struct VmSetup {
    /// The VM.
    pub spec: VmSpec,
    /// What was decided about it for all hosts.
    pub resolved: Resolved,
    /// QEMU, as a path or a name in `PATH`.
    pub qemu: String,
    /// What to boot.
    pub boot: Option<Boot>,
    /// `vda`.
    pub disk: Option<Disk>,
    /// Disks beside it, and CDs.
    pub drives: Vec<Extra>,
    /// What its network cards are plugged into, in order; a tap where it says nothing.
    pub cables: Vec<Cable>,
    /// The bridge that taps are on.
    pub bridge: Option<String>,
    /// The interface that macvtaps are on.
    pub uplink: Option<String>,
    /// Keep RAM in [`MEMORY_FILE`] instead of a memfd.
    pub memory_in_file: bool,
    /// Wait for a migration.
    pub incoming: bool,
}

/// Where a VM lives on this host.
#[derive(Debug, Clone)]
pub struct VmPlaces {
    /// Its run folder, made by the start and removed by the teardown. Short: sockets are in it.
    pub run_dir: PathBuf,
    /// Folder of its evidence, made if need be; stays.
    pub evidence: PathBuf,
    /// The vtd binary; `/proc/self/exe` in the daemon.
    pub vtd: PathBuf,
    /// Where control groups are made, if they can be.
    pub cgroups: Option<Cgroups>,
    /// How long what its QEMU sent to the server of a disk may be on its way.
    pub in_flight: Duration,
}

/// A way into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The serial console.
    Console,
    /// QEMU's guest agent.
    Agent,
    /// Our probe.
    Probe,
}

/// Why a VM did not start or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No such QEMU.
    #[error("QEMU is not there or cannot be run: {0}")]
    Missing(String),
    /// QEMU ended.
    #[error("QEMU of {vm} ended by itself ({exit}): {stderr}")]
    Died {
        /// Which VM.
        vm: VmId,
        /// How.
        exit: Exit,
        /// Its last words.
        stderr: String,
        /// The file with its command line.
        command: PathBuf,
    },
    /// QEMU did not open its monitor.
    #[error("QEMU of {vm} runs, but its monitor does not answer within {} s", START_TIMEOUT.as_secs())]
    Silent {
        /// Which VM.
        vm: VmId,
        /// What the last try said.
        #[source]
        source: Option<Box<QmpError>>,
    },
    /// Its socket paths would be too long for the kernel.
    #[error("run folder {0} is too long: a socket in it would be longer than {SOCKET_PATH_MAX} bytes")]
    PathTooLong(PathBuf),
    /// A VM is there already.
    #[error("run folder {0} is in use")]
    InUse(PathBuf),
    /// No tap.
    #[error("network of the VM")]
    Tap(#[from] TapError),
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Its disk in a pool.
    #[error(transparent)]
    Disk(#[from] ExportError),
    /// Files and processes.
    #[error("{what} {path}")]
    Io {
        /// Verb phrase.
        what: &'static str,
        /// What was touched.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl VmError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// The error as a user meets it.
    pub fn report(&self) -> Report {
        match self {
            Self::Missing(qemu) => {
                Report::new(ErrorCode::QemuMissing, format!("QEMU is not there or cannot be run: {qemu}"))
                    .with("binary", qemu.clone())
                    .help("apt-get install qemu-system-x86")
                    .help("set qemu.binary in the daemon's settings")
            }
            Self::Died { vm, exit, stderr, command } => {
                Report::new(ErrorCode::QemuDied, format!("QEMU of {vm} ended by itself ({exit})"))
                    .with("stderr", if stderr.is_empty() { "(nothing)".to_owned() } else { stderr.clone() })
                    .with("command line", command.display().to_string())
            }
            Self::Silent { .. } => Report::new(ErrorCode::QmpFailed, self.to_string()).caused_by(self).retryable(),
            Self::Tap(error) => error.report(),
            Self::Qmp(error) => error.report(),
            Self::Disk(error) => error.report(),
            Self::PathTooLong(_) | Self::InUse(_) => Report::new(ErrorCode::Internal, self.to_string()).caused_by(self),
            Self::Io { source, .. } => {
                let code =
                    if source.kind() == io::ErrorKind::StorageFull { ErrorCode::DiskFull } else { ErrorCode::Internal };
                Report::new(code, self.to_string()).caused_by(self)
            }
        }
    }
}

/// The process of a VM, whether or not its monitor is connected. Cheap to clone; dropping it leaves QEMU running.
#[derive(Debug, Clone)]
pub struct VmProcess {
    record: VmRecord,
    run_dir: PathBuf,
    process: Process,
}

/// A running VM. Cheap to clone; dropping it leaves QEMU running.
#[derive(Debug, Clone)]
pub struct Vm {
    at: VmProcess,
    qmp: Qmp,
    transcript: Transcript,
}

/// What is found in a run folder.
#[derive(Debug)]
pub enum Found {
    /// A running VM, its monitor connected.
    Running(Box<Vm>),
    /// Things of a VM that has ended; [`remains::clear`] removes them.
    Ended,
    /// Nothing.
    Nothing,
}

/// How a VM ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// How its process ended.
    pub exit: Exit,
    /// The last lines of its stderr.
    pub stderr: String,
    /// What could not be removed, in words; empty as it should be.
    pub left: Vec<String>,
}

impl Vm {
    /// Starts a VM with its CPUs stopped and connects its monitor. When this fails or is dropped, nothing is left but
    /// evidence.
    pub async fn start(setup: VmSetup, places: VmPlaces) -> Result<Self, VmError> {
        let id = setup.spec.id.clone();
        let qemu = resolve_program(&setup.qemu).ok_or_else(|| VmError::Missing(setup.qemu.clone()))?;
        let mut site = Site::make(&setup, &places)?;
        let words = site.command_line(&setup).words();
        let VmPlaces { evidence, vtd, in_flight, .. } = places;
        let command = evidence.join(COMMAND_FILE);
        let lines = std::iter::once(qemu.to_string_lossy().into_owned()).chain(words.iter().cloned());
        let text: String = lines.map(|line| line + "\n").collect();
        fs::write(&command, text).map_err(VmError::io("write", &command))?;

        if let Some(served) = setup.disk.as_ref().and_then(|disk| disk.served.as_ref()) {
            export::start(&vtd, &site.run_dir, &evidence, site.cgroup.clone(), served).await?;
        }
        let stderr = evidence.join(STDERR_FILE);
        let launch = Launch {
            vtd,
            program: qemu,
            args: words,
            output: stderr,
            cgroup: site.cgroup.take(),
            expendable: true,
            macvtaps: site.macvtaps(&setup),
            environment: vec![iscsi::gives_up_after(in_flight)],
        };
        let process = Process::spawn(&launch).map_err(VmError::io("start QEMU in", &site.run_dir))?;
        site.record.process = Some(process.id().clone());
        site.write()?;
        let transcript_file = evidence.join(TRANSCRIPT_FILE);
        let transcript = Transcript::append(&transcript_file).await.map_err(VmError::io("write", &transcript_file))?;
        let monitor = site.run_dir.join(QMP_SOCKET);
        let qmp = tokio::select! {
            biased;
            exit = process.ended() => {
                let stderr = last_lines(&evidence.join(STDERR_FILE), 20);
                let said = |prefix| stderr.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
                let error = match exit {
                    Exit::Code(launch::EXIT_NOT_RUN) => said(launch::NOT_RUN).map(VmError::Missing),
                    Exit::Code(launch::EXIT_NOT_OPENED) => {
                        said(launch::NOT_OPENED).map(|why| VmError::Tap(TapError::NotOpened(why)))
                    }
                    _ => None,
                };
                return Err(error.unwrap_or(VmError::Died { vm: id, exit, stderr, command }));
            }
            qmp = first_connection(&monitor, &transcript) => {
                qmp.map_err(|source| VmError::Silent { vm: id, source })?
            }
        };
        let (record, run_dir) = site.keep();
        Ok(Self { at: VmProcess { record, run_dir, process }, qmp, transcript })
    }

    /// Finds the VM of a run folder again and connects its monitor.
    pub async fn find(run_dir: &Path) -> Result<Found, VmError> {
        if !run_dir.exists() {
            return Ok(Found::Nothing);
        }
        let Some(found) = VmProcess::find(run_dir)? else { return Ok(Found::Ended) };
        Ok(found.connect().await?.map_or(Found::Ended, |vm| Found::Running(Box::new(vm))))
    }

    /// Its process.
    pub fn at(&self) -> &VmProcess {
        &self.at
    }

    /// Which VM.
    pub fn id(&self) -> &VmId {
        self.at.id()
    }

    /// What is on disk about it.
    pub fn record(&self) -> &VmRecord {
        &self.at.record
    }

    /// Its run folder.
    pub fn run_dir(&self) -> &Path {
        &self.at.run_dir
    }

    /// The folder of its evidence.
    pub fn evidence(&self) -> &Path {
        &self.at.record.evidence
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.at.process.pid()
    }

    /// QEMU's version, as its monitor greets with it: `10.0.2`.
    pub fn version(&self) -> String {
        let (major, minor, micro) = self.qmp.greeting().version;
        format!("{major}.{minor}.{micro}")
    }

    /// QEMU's process.
    pub fn process(&self) -> &Process {
        &self.at.process
    }

    /// Its monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The monitor's transcript.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// The socket of a channel into the guest. QEMU serves one connection at a time on each.
    pub fn socket(&self, channel: Channel) -> PathBuf {
        self.run_dir().join(match channel {
            Channel::Console => CONSOLE_SOCKET,
            Channel::Agent => AGENT_SOCKET,
            Channel::Probe => PROBE_SOCKET,
        })
    }

    /// The monitor's socket that is kept for the guard.
    pub fn guard_monitor(&self) -> PathBuf {
        self.run_dir().join(GUARD_QMP_SOCKET)
    }

    /// Waits for QEMU's end and says how it ended, with its last words.
    pub async fn died(&self) -> VmError {
        self.at.died().await
    }

    /// Ends QEMU (politely, then not) and gives back everything but the evidence.
    pub async fn teardown(self) -> Ending {
        if self.process().exit().is_none() && self.qmp.is_open() {
            let quit = timeout(QUIT_TIMEOUT, async {
                let _ = self.qmp.quit().await;
                self.process().ended().await
            });
            if quit.await.is_err() {
                tracing::warn!(vm = %self.id(), "QEMU does not quit: it is killed");
            }
        }
        self.clear().await
    }

    /// Kills QEMU at once and gives back everything but the evidence.
    pub async fn kill(self) -> Ending {
        self.clear().await
    }

    async fn clear(self) -> Ending {
        let ended = self.at.end().await;
        self.qmp.close();
        self.transcript.flush().await;
        self.at.clear(ended).await
    }
}

impl VmProcess {
    /// Finds the process of the VM of a run folder again; `None`: it has ended.
    pub fn find(run_dir: &Path) -> Result<Option<Self>, VmError> {
        let record = VmRecord::read(run_dir).map_err(VmError::io("read record in", run_dir))?;
        let Some(mut record) = record else { return Ok(None) };
        // Without one the daemon ended between start and record.
        let Some(id) = record.process.clone().or_else(|| remains::qemu_of(run_dir)) else { return Ok(None) };
        let Some(process) = Process::attach(&id).map_err(VmError::io("find QEMU of", run_dir))? else {
            return Ok(None);
        };
        if record.process.is_none() {
            record.process = Some(id);
            record.write(run_dir).map_err(VmError::io("write record in", run_dir))?;
        }
        Ok(Some(Self { record, run_dir: run_dir.to_owned(), process }))
    }

    /// Connects its monitor; `None`: it has ended.
    pub async fn connect(self) -> Result<Option<Vm>, VmError> {
        let transcript_file = self.record.evidence.join(TRANSCRIPT_FILE);
        let transcript = Transcript::append(&transcript_file).await.map_err(VmError::io("write", &transcript_file))?;
        let monitor = self.run_dir.join(QMP_SOCKET);
        let qmp = tokio::select! {
            biased;
            _ = self.process.ended() => return Ok(None),
            qmp = first_connection(&monitor, &transcript) => {
                qmp.map_err(|source| VmError::Silent { vm: self.id().clone(), source })?
            }
        };
        Ok(Some(Vm { at: self, qmp, transcript }))
    }

    /// Which VM.
    pub fn id(&self) -> &VmId {
        &self.record.spec.id
    }

    /// What is on disk about it.
    pub fn record(&self) -> &VmRecord {
        &self.record
    }

    /// Its run folder.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// QEMU's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits for QEMU's end and says how it ended, with its last words.
    pub async fn died(&self) -> VmError {
        let exit = self.process.ended().await;
        VmError::Died {
            vm: self.id().clone(),
            exit,
            stderr: last_lines(&self.record.evidence.join(STDERR_FILE), 20),
            command: self.record.evidence.join(COMMAND_FILE),
        }
    }

    /// Kills QEMU; says how it ended, and what could not be done.
    async fn end(&self) -> (Exit, Vec<String>) {
        let pid = self.process.pid();
        match self.process.kill_and_wait(KILL_TIMEOUT).await {
            Ok(Some(exit)) => (exit, Vec::new()),
            Ok(None) => (Exit::Unknown, vec![format!("process {pid} does not end after SIGKILL")]),
            Err(error) => (Exit::Unknown, vec![format!("process {pid}: {error}")]),
        }
    }

    /// Gives back everything but the evidence.
    async fn clear(self, (exit, mut left): (Exit, Vec<String>)) -> Ending {
        let run_dir = self.run_dir.clone();
        let cleared = tokio::task::spawn_blocking(move || remains::clear(&run_dir)).await;
        left.extend(cleared.unwrap_or_else(|error| vec![format!("clearing up: {error}")]));
        Ending { exit, stderr: last_lines(&self.record.evidence.join(STDERR_FILE), 20), left }
    }
}

/// QEMU opens its sockets a moment after its start; until then connecting is refused.
async fn first_connection(socket: &Path, transcript: &Transcript) -> Result<Qmp, Option<Box<QmpError>>> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut last = None;
    while Instant::now() < deadline {
        match Qmp::connect(socket, transcript.clone()).await {
            Ok(qmp) => return Ok(qmp),
            Err(error) => last = Some(Box::new(error)),
        }
        sleep(Duration::from_millis(3)).await;
    }
    Err(last)
}
