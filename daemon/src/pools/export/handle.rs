//! The daemon's side of an export: started with its VM, told to take the disk over, listened to. Nothing is remembered: a
//! daemon that comes back finds the socket in the VM's run folder.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::{Framed, LinesCodec};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Epoch,
    pool::NfsPlace,
};

use super::{Ask, CONTROL_SOCKET, DISK_SOCKET, ExportWords, LINE_MAX, LOG_FILE, Word, backing::PATIENCE};
use crate::{
    cgroup::Cgroup,
    qemu::process::{Launch, Process, last_lines},
};

/// How long a server may take until a disk can be used.
const STARTS: Duration = Duration::from_secs(60);
const LOOKS: Duration = Duration::from_millis(5);

/// A disk of a pool, as a VM's start needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The pool.
    pub(crate) place: NfsPlace,
    /// The file in it.
    pub(crate) file: String,
    /// The epoch under which it is taken over at once; `None`: later, by [`take`].
    pub(crate) epoch: Option<Epoch>,
}

/// An export that does not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be started.
    #[error("the export of the disk cannot be started")]
    NotStarted(#[source] io::Error),
    /// The disk cannot be used.
    #[error("the disk in the pool cannot be used: {0}")]
    NotReady(String),
    /// It does not answer.
    #[error("the export of the disk does not answer: {0}")]
    Silent(String),
    /// It does not take the disk over.
    #[error("the disk is not taken over: {0}")]
    NotTaken(String),
}

impl ExportError {
    /// As a user is told.
    pub(crate) fn report(&self) -> Report {
        Report::new(ErrorCode::StorageFailed, self.to_string()).caused_by(self).help("vtctl storage check POOL")
    }
}

/// Starts the export of a VM's disk and waits until QEMU can connect to it.
pub(crate) async fn start(
    vtd: &Path,
    run_dir: &Path,
    evidence: &Path,
    cgroup: Option<Cgroup>,
    served: &Served,
) -> Result<(), ExportError> {
    let log = evidence.join(LOG_FILE);
    let launch = Launch {
        vtd: vtd.to_owned(),
        program: vtd.to_owned(),
        args: ExportWords::to_args(run_dir, &served.place, &served.file, served.epoch),
        output: log.clone(),
        cgroup,
        expendable: true,
        macvtaps: Vec::new(),
        environment: Vec::new(),
    };
    let process = Process::spawn(&launch).map_err(ExportError::NotStarted)?;
    let socket = run_dir.join(DISK_SOCKET);
    let until = Instant::now() + STARTS;
    loop {
        if socket.exists() {
            return Ok(());
        }
        if process.exit().is_some() {
            return Err(ExportError::NotReady(last_lines(&log, 1)));
        }
        if Instant::now() >= until {
            let _ = process.kill();
            return Err(ExportError::NotReady(format!("its server does not answer within {} s", STARTS.as_secs())));
        }
        sleep(LOOKS).await;
    }
}

type Wire = Framed<UnixStream, LinesCodec>;

async fn connect(run_dir: &Path) -> Result<Wire, ExportError> {
    let stream = UnixStream::connect(run_dir.join(CONTROL_SOCKET)).await;
    let stream = stream.map_err(|error| ExportError::Silent(error.to_string()))?;
    Ok(Framed::new(stream, LinesCodec::new_with_max_length(LINE_MAX)))
}

/// The next word; `None` when the export has ended.
async fn word(wire: &mut Wire) -> Option<Word> {
    serde_json::from_str(&wire.next().await?.ok()?).ok()
}

/// Has the export in that run folder take its disk over. Returns when the server takes no other host's writes any more.
pub(crate) async fn take(run_dir: &Path, epoch: Epoch) -> Result<(), ExportError> {
    let mut wire = connect(run_dir).await?;
    let silent = |what: String| ExportError::Silent(what);
    let ask = serde_json::to_string(&Ask::Take(epoch)).map_err(|error| silent(error.to_string()))?;
    wire.send(ask).await.map_err(|error| silent(error.to_string()))?;
    let taken = async {
        loop {
            match word(&mut wire).await {
                Some(Word::Taken(_)) => return Ok(()),
                Some(Word::NotTaken(why)) => return Err(ExportError::NotTaken(why)),
                Some(_) => {}
                None => return Err(silent("it has ended".to_owned())),
            }
        }
    };
    let by = PATIENCE + STARTS;
    timeout(by, taken).await.unwrap_or_else(|_| Err(silent(format!("not within {} s", by.as_secs()))))
}

/// Tells what the export in that run folder says, until it has ended.
pub(crate) async fn listen(run_dir: PathBuf, tell: impl Fn(Word)) {
    let Ok(mut wire) = connect(&run_dir).await else { return };
    while let Some(word) = word(&mut wire).await {
        tell(word);
    }
}
