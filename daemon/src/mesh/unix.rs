//! The admin service on a Unix socket: how vtctl reaches the daemon of its own machine, claimed or not.
//!
//! The socket has mode 0660: its owner and group are the gate. One request a connection, after a hello.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vt_protocol::hello::{self, Refusal, Welcome};

use super::serve;
use super::services::{AdminService, Caller};

/// Connections at once.
const CONNECTIONS: usize = 128;
/// A caller that has not said hello after this long is dropped.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("{0}: another vtd listens there")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} is there and is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path} cannot be listened on")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds `path` with mode 0660. A socket left by a daemon that died is replaced; a living one is an error.
    ///
    /// # Errors
    /// Another daemon listens there, something else is in the way, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // Bound under another name first, so that the socket is never there with a wider mode, nor missing.
        let mut part = path.as_os_str().to_owned();
        part.push(".new");
        let part = PathBuf::from(part);
        let _ = std::fs::remove_file(&part);
        let listener = UnixListener::bind(&part).map_err(failed)?;
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o660))
            .and_then(|()| std::fs::rename(&part, path))
            .map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until `stop`.
    pub async fn serve(self, services: Arc<dyn AdminService>, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => return,
                permit = Arc::clone(&room).acquire_owned() => permit.ok(),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (services, stop) = (Arc::clone(&services), stop.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = connection(stream, services, permit) => {}
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: the condition passes, and a tight loop would not help it.
                    tracing::warn!(%error, "the admin socket takes no connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn connection(mut stream: UnixStream, services: Arc<dyn AdminService>, permit: Option<OwnedSemaphorePermit>) {
    let caller = match stream.peer_cred() {
        Ok(credentials) => Caller::Local { uid: credentials.uid(), pid: credentials.pid() },
        Err(error) => return tracing::warn!(%error, "a caller of the admin socket is not known to the kernel"),
    };
    let (mut reader, mut writer) = stream.split();
    let by = Instant::now() + HELLO_TIME;
    let mine = services.hello();
    let checked = match hello::hear(&mut reader, by).await {
        Ok(theirs) => hello::check(&mine, &theirs).map(|version| Welcome { hello: mine, version }),
        Err(hello::HelloError::Frame(vt_protocol::frame::FrameError::Closed)) => return,
        Err(error) => {
            tracing::debug!(%error, "a caller of the admin socket said no hello");
            Err(Refusal::Garbled)
        }
    };
    if hello::answer(&mut writer, &checked, by).await.is_err() || checked.is_err() {
        return;
    }
    if let Err(error) = serve::admin(&mut reader, &mut writer, caller, services, permit).await {
        tracing::debug!(%error, "a request of the admin socket ended early");
    }
}
