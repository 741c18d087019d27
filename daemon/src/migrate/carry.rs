//! Carrying the connections of a QEMU to the host of the other QEMU, over the daemons' bulk channel.
//!
//! ```text
//! QEMU ── run folder's socket, or a descriptor ──▶ Carrier ══ bulk channel ══▶ inlet ──▶ QEMU
//! ```
//!
//! Connections are made over there in the order in which QEMU makes them, one after the other: some channels of a
//! migration are told apart by their order alone. When a daemon ends, what it carries breaks, and the migration fails
//! or, in a post-copy, is mended.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use vt_protocol::ids::{HostId, MigrationId};

use super::sender::AbortOnDrop;
use crate::party::attempt::LocalAttempt;

/// How long a connection to the other host may take.
const CONNECTS: Duration = Duration::from_secs(15);
/// When one way has ended, the other may stand still for this long.
const LINGERS: Duration = Duration::from_secs(30);
/// Bytes carried at once.
const BUFFER: usize = 256 << 10;

/// A stream both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Carries what one source QEMU sends, until it is dropped.
#[derive(Debug)]
pub(super) struct Carrier {
    _task: AbortOnDrop,
    socket: Option<PathBuf>,
}

impl Carrier {
    /// Takes connections at `socket`.
    pub(super) fn listen(
        attempt: &Arc<LocalAttempt>,
        id: &MigrationId,
        to: HostId,
        socket: PathBuf,
    ) -> io::Result<Self> {
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let (attempt, id) = (attempt.clone(), id.clone());
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((local, _)) = listener.accept().await {
                carry_one(&attempt, &id, to, local, &mut carried).await;
            }
        });
        Ok(Self { _task: AbortOnDrop(task), socket: Some(socket) })
    }

    /// Carries one stream: our end of a descriptor that QEMU holds the other end of.
    pub(super) fn stream(attempt: &Arc<LocalAttempt>, id: &MigrationId, to: HostId, local: UnixStream) -> Self {
        let (attempt, id) = (attempt.clone(), id.clone());
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            carry_one(&attempt, &id, to, local, &mut carried).await;
            carried.join_all().await;
        });
        Self { _task: AbortOnDrop(task), socket: None }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Connects to the other host and leaves the rest to a task. Without a connection the local one is dropped: QEMU sees its
/// end and says so.
async fn carry_one(
    attempt: &Arc<LocalAttempt>,
    id: &MigrationId,
    to: HostId,
    mut local: UnixStream,
    carried: &mut JoinSet<()>,
) {
    match attempt.cluster.migration_stream(to, id, CONNECTS).await {
        Ok(mut remote) => {
            carried.spawn(async move {
                if let Err(error) = splice(&mut local, &mut remote).await {
                    tracing::debug!(%error, "a carried connection broke");
                }
            });
        }
        Err(error) => attempt.evidence.events.warn(format!("{id}: its stream is not carried: {error}")),
    }
}

/// Carries both ways until both have ended, or one has and the other stands still, or either breaks.
///
/// # Errors
/// A side broke.
pub(crate) async fn splice(a: &mut (impl Duplex + ?Sized), b: &mut (impl Duplex + ?Sized)) -> io::Result<()> {
    let moved = AtomicU64::new(0);
    let (mut from_a, mut to_a) = tokio::io::split(a);
    let (mut from_b, mut to_b) = tokio::io::split(b);
    let there = one_way(&mut from_a, &mut to_b, &moved);
    let back = one_way(&mut from_b, &mut to_a, &moved);
    tokio::pin!(there, back);
    let mut there_done = false;
    tokio::select! {
        ended = &mut there => {
            ended?;
            there_done = true;
        }
        ended = &mut back => ended?,
    }
    loop {
        let before = moved.load(Ordering::Relaxed);
        let rest = async { if there_done { (&mut back).await } else { (&mut there).await } };
        match timeout(LINGERS, rest).await {
            Ok(ended) => return ended,
            Err(_) if moved.load(Ordering::Relaxed) == before => return Ok(()),
            Err(_) => {}
        }
    }
}

async fn one_way<R, W>(from: &mut R, to: &mut W, moved: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_in_comes_out_and_an_end_is_passed_on() {
        let (mut left, mut a) = tokio::io::duplex(64);
        let (mut b, mut right) = tokio::io::duplex(64);
        let carried = tokio::spawn(async move { splice(&mut a, &mut b).await });
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            left.write_all(&sent).await.unwrap();
            left.shutdown().await.unwrap();
            let mut back = Vec::new();
            left.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut got = Vec::new();
        right.read_to_end(&mut got).await.unwrap();
        assert!(got == bytes, "{} of {} bytes, or others", got.len(), bytes.len());
        right.write_all(b"done").await.unwrap();
        drop(right);
        assert_eq!(writer.await.unwrap(), b"done");
        carried.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_says_nothing_after_the_others_end_is_let_go() {
        let (left, mut a) = tokio::io::duplex(64);
        let (mut b, _silent) = tokio::io::duplex(64);
        drop(left);
        let carried = timeout(LINGERS * 3, splice(&mut a, &mut b));
        carried.await.expect("it must not wait for ever").unwrap();
    }
}
