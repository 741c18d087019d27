//! A TCP connection to the echo in a guest, used all the time while the guest moves: what comes back is what was sent, over
//! one connection.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    probe::{PAGE_BYTES, Pattern},
};

/// Bytes sent before they are waited for.
const PIECE_PAGES: u32 = 4;
/// How long one piece may take to come back: a guest that moves stands still for less.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a flow carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flowed {
    pub(super) bytes: u64,
    /// Longest time one piece took to come back.
    pub(super) longest: Duration,
}

/// A connection under way.
#[derive(Debug)]
pub(super) struct Flow {
    carried: watch::Receiver<Flowed>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), Report>>,
}

impl Flow {
    /// Connects from this host and begins to send. At most `bytes_s` a second.
    pub(super) async fn begin(guest: Ipv4Addr, port: u16, seed: u64, bytes_s: u64) -> Result<Self, Report> {
        let lost = |why: &dyn std::fmt::Display| {
            Report::new(ErrorCode::AddressLost, format!("no connection to {guest}:{port}"))
                .with("reason", why.to_string())
        };
        let stream = match timeout(PATIENCE, TcpStream::connect((guest, port))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(lost(&error)),
            Err(_) => return Err(lost(&"no answer")),
        };
        let (told, carried) = watch::channel(Flowed::default());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(carry(stream, seed, bytes_s.max(1), told, stopped));
        Ok(Self { carried, stop, task })
    }

    /// What it has carried so far.
    pub(super) fn carried(&self) -> Flowed {
        *self.carried.borrow()
    }

    /// Waits until it has carried that much, or has broken off.
    pub(super) async fn until(&mut self, bytes: u64, patience: Duration) -> bool {
        matches!(timeout(patience, self.carried.wait_for(|now| now.bytes >= bytes)).await, Ok(Ok(_)))
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had broken off, or something else came back than was sent.
    pub(super) async fn end(self) -> Result<Flowed, Report> {
        self.stop.send_replace(true);
        match self.task.await {
            Ok(done) => done.map(|()| *self.carried.borrow()),
            Err(error) => Err(Report::new(ErrorCode::Internal, "the flow ended by itself").caused_by(&error)),
        }
    }
}

async fn carry(
    mut stream: TcpStream,
    seed: u64,
    bytes_s: u64,
    told: watch::Sender<Flowed>,
    stopped: watch::Receiver<bool>,
) -> Result<(), Report> {
    let pattern = Pattern::new(seed);
    let mut sent = vec![0; PIECE_PAGES as usize * PAGE_BYTES];
    let mut back = vec![0; sent.len()];
    let began = Instant::now();
    let broke = |error: std::io::Error, now: Flowed| {
        Report::new(ErrorCode::AddressLost, format!("the connection broke off after {} bytes", now.bytes))
            .with("reason", error.to_string())
    };
    for generation in 1.. {
        if *stopped.borrow() {
            break;
        }
        for (page, bytes) in (0..).zip(sent.chunks_mut(PAGE_BYTES)) {
            pattern.fill(bytes, page, generation);
        }
        let now = *told.borrow();
        let asked = Instant::now();
        let round = async {
            stream.write_all(&sent).await?;
            stream.read_exact(&mut back).await
        };
        match timeout(PATIENCE, round).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(broke(error, now)),
            Err(_) => return Err(broke(std::io::ErrorKind::TimedOut.into(), now)),
        }
        if back != sent {
            let title = format!("something else came back than was sent, after {} bytes", now.bytes);
            return Err(Report::new(ErrorCode::AddressLost, title));
        }
        let bytes = now.bytes + sent.len() as u64;
        told.send_replace(Flowed { bytes, longest: now.longest.max(asked.elapsed()) });
        let due = Duration::from_secs_f64(bytes as f64 / bytes_s as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// An echo on loopback; after `whole` bytes it flips one.
    async fn echo(whole: usize) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut bytes, mut seen) = (vec![0; 4096], 0);
            while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                seen += n;
                if seen > whole {
                    bytes[0] ^= 1;
                }
                if stream.write_all(&bytes[..n]).await.is_err() {
                    return;
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn what_comes_back_is_compared() {
        let port = echo(usize::MAX).await;
        let mut flow = Flow::begin(Ipv4Addr::LOCALHOST, port, 7, 1 << 30).await.unwrap();
        assert!(flow.until(1 << 20, PATIENCE).await);
        let flowed = flow.end().await.unwrap();
        assert!(flowed.bytes >= 1 << 20 && flowed.longest > Duration::ZERO);

        let port = echo(100_000).await;
        let mut flow = Flow::begin(Ipv4Addr::LOCALHOST, port, 7, 1 << 30).await.unwrap();
        assert!(!flow.until(1 << 20, PATIENCE).await);
        let report = flow.end().await.unwrap_err();
        assert!(report.title.starts_with("something else came back"), "{report:?}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { drop(listener.accept().await) });
        let mut flow = Flow::begin(Ipv4Addr::LOCALHOST, port, 7, 1 << 30).await.unwrap();
        assert!(!flow.until(1 << 20, PATIENCE).await);
        assert_eq!(flow.end().await.unwrap_err().code, ErrorCode::AddressLost);
    }
}
