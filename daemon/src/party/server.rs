//! The party API's socket: JSON lines, hello first, calls of one connection side by side.
//!
//! A peer that sends garbage, too much, or nothing is dropped; it cannot hold up another party or the daemon.

use std::{io, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use vt_protocol::{
    error::{ErrorCode, Report},
    party::{Answer, CALLS_MAX, Call, Failure, Hello, LINE_MAX, Reply, Request},
    verdict::Consequence,
};

use super::{attempt::LocalAttempt, failure::caused, supervisor::Supervisor};

/// How long a connection may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// Connections at the same time.
const CONNECTIONS: usize = 64;

/// The listening socket.
#[derive(Debug)]
pub struct PartySocket {
    listener: UnixListener,
}

impl PartySocket {
    /// Listens at `path`; a socket left there by a daemon that is gone is replaced.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &std::path::Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener })
    }

    /// Serves until `stop`.
    pub async fn serve(self, supervisor: Arc<Supervisor>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (supervisor, stop) = (supervisor.clone(), stop.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection(stream, &supervisor) => {}
                            () = stop.cancelled() => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a party's connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// One line, newline cut; `None` at the end or where it is too long.
async fn line(read: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    read.take(LINE_MAX as u64).read_until(b'\n', &mut text).await.ok()?;
    (text.pop() == Some(b'\n')).then_some(text)
}

async fn connection(stream: UnixStream, supervisor: &Arc<Supervisor>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let Ok(Some(first)) = timeout(HELLO, line(&mut read)).await else { return };
    let (id, greeted) = match serde_json::from_slice::<Call>(&first) {
        Ok(Call { id, call: Request::Hello(hello), .. }) => (id, admit(supervisor, &hello)),
        Ok(Call { id, .. }) => {
            (id, Err(caused(Report::new(ErrorCode::Denied, "the first call of a connection is hello"))))
        }
        Err(error) => (0, Err(garbled(&error))),
    };
    let (replies, mut queue) = mpsc::channel::<Reply>(CALLS_MAX);
    // Ended with this connection: what a call that is torn off by the end of the daemon says, the party must not hear.
    let writer = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(reply) = queue.recv().await {
            let Ok(mut text) = serde_json::to_vec(&reply) else { continue };
            text.push(b'\n');
            if write.write_all(&text).await.is_err() {
                return;
            }
        }
    }));
    let attempt = match greeted {
        Ok(attempt) => attempt,
        Err(failure) => {
            let _ = replies.send(Reply::new(id, Err(failure))).await;
            drop(replies);
            let _ = writer.await;
            return;
        }
    };
    let welcome = Answer::Welcome(Box::new(attempt.welcome()));
    if replies.send(Reply::new(id, Ok(welcome))).await.is_err() {
        return;
    }
    let under_way = Arc::new(Semaphore::new(CALLS_MAX));
    while let Some(text) = line(&mut read).await {
        let call = match serde_json::from_slice::<Call>(&text) {
            Ok(call) => call,
            Err(error) => {
                // What follows cannot be trusted to be in step.
                let _ = replies.send(Reply::new(0, Err(garbled(&error)))).await;
                break;
            }
        };
        let Ok(place) = under_way.clone().acquire_owned().await else { break };
        let (attempt, replies) = (attempt.clone(), replies.clone());
        tokio::spawn(async move {
            let reply = attempt.answer(call).await;
            // A party that went away asks again when it comes back.
            let _ = replies.send(reply).await;
            drop(place);
        });
    }
    drop(replies);
    let _ = writer.await;
}

fn garbled(error: &serde_json::Error) -> Failure {
    caused(
        Report::new(ErrorCode::WireVersion, "a line that is no call of the party API")
            .with("detail", error.to_string()),
    )
}

fn admit(supervisor: &Supervisor, hello: &Hello) -> Result<Arc<LocalAttempt>, Failure> {
    let Some(attempt) = supervisor.attempt(hello.attempt) else {
        return Err(Failure::Followed(Consequence::Closed));
    };
    // Digests, so that the time of the comparison says nothing about the secret.
    if blake3::hash(attempt.record().secret.as_bytes()) != blake3::hash(hello.secret.as_bytes()) {
        return Err(caused(Report::new(ErrorCode::Denied, "this is not the secret of the party")));
    }
    Ok(attempt)
}
