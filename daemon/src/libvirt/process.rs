//! vt-libvirt, the process that libvirt is linked into: started when it is needed, and again when it has ended.
//!
//! A call that a helper took with it is not repeated: who asked knows whether that is safe. What may not happen here: a
//! hanging libvirt that keeps the daemon waiting without end.

use std::{collections::HashMap, io, path::PathBuf, process::Stdio, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};
use tokio_util::codec::{FramedRead, LinesCodec};
use vt_protocol::libvirt::{Answer, Call, LINE_MAX, Refusal, Reply, Request};

/// Calls that wait to be written.
const QUEUE: usize = 16;

/// Why the helper has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It cannot be started.
    #[error("{program} cannot be started")]
    NotStarted {
        /// Its path.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("vt-libvirt ended before it answered")]
    Gone,
    /// It did not answer in time, and was ended.
    #[error("libvirt did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It answered something else.
    #[error("vt-libvirt answered {0}")]
    Garbled(String),
    /// libvirt refused, or was lost.
    #[error("libvirt refused")]
    Refused(#[source] Refusal),
}

impl HelperError {
    /// Whether libvirt has said that what was asked for was not done. Else nobody knows.
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Refused(Refusal { lost: false, .. }) | Self::NotStarted { .. })
    }
}

type Waiter = oneshot::Sender<Result<Reply, Refusal>>;

/// The helper of one libvirt.
#[derive(Debug)]
pub struct Helper {
    program: PathBuf,
    uri: String,
    calls: Mutex<Option<mpsc::Sender<(Request, Waiter)>>>,
}

impl Helper {
    /// Not yet started.
    pub fn new(program: PathBuf, uri: String) -> Self {
        Self { program, uri, calls: Mutex::default() }
    }

    /// Asks, and waits for the answer. A helper that does not answer in time is ended; the next call starts another one.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn ask(&self, request: Request, within: Duration) -> Result<Reply, HelperError> {
        let calls = self.running().await?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            calls.send((request, answer)).await.map_err(|_| HelperError::Gone)?;
            answered.await.map_err(|_| HelperError::Gone)
        };
        match timeout(within, asked).await {
            Ok(result) => result?.map_err(HelperError::Refused),
            Err(_) => {
                // Without its queue the task ends, and the process with it.
                self.calls.lock().await.take_if(|now| now.same_channel(&calls));
                Err(HelperError::Silent(within))
            }
        }
    }

    async fn running(&self) -> Result<mpsc::Sender<(Request, Waiter)>, HelperError> {
        let mut calls = self.calls.lock().await;
        if let Some(calls) = calls.as_ref().filter(|calls| !calls.is_closed()) {
            return Ok(calls.clone());
        }
        let not_started = |source| HelperError::NotStarted { program: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .arg(&self.uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(not_started)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| not_started(io::Error::other("it has no pipes")))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(serve(child, input, output, receiver));
        Ok(calls.insert(sender).clone())
    }
}

/// Hands calls to the process and answers to those who wait, until either side has no more. Whoever still waits then
/// learns that the helper is gone.
async fn serve(
    mut child: Child,
    mut input: ChildStdin,
    output: ChildStdout,
    mut calls: mpsc::Receiver<(Request, Waiter)>,
) {
    let mut lines = FramedRead::new(output, LinesCodec::new_with_max_length(LINE_MAX));
    let mut waiting: HashMap<u64, Waiter> = HashMap::new();
    let mut last = 0;
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some((request, waiter)) = call else { break };
                last += 1;
                waiting.insert(last, waiter);
                if write(&mut input, &Call { id: last, request }).await.is_err() {
                    break;
                }
            }
            line = lines.next() => {
                let Some(Ok(line)) = line else { break };
                let Ok(Answer { id, result }) = serde_json::from_str(&line) else {
                    tracing::warn!(line, "vt-libvirt says what it should not, and is ended");
                    break;
                };
                if let Some(waiter) = waiting.remove(&id) {
                    // Whoever asked may have given up.
                    let _ = waiter.send(result);
                }
            }
        }
    }
    let _ = child.start_kill();
    let ended = child.wait().await;
    tracing::info!(?ended, unanswered = waiting.len(), "vt-libvirt has ended");
}

async fn write(input: &mut ChildStdin, call: &Call) -> io::Result<()> {
    let mut line = serde_json::to_vec(call)?;
    line.push(b'\n');
    input.write_all(&line).await?;
    input.flush().await
}
