//! Trying the way that migrations take: one host listens where they come in and sends back what comes, the other one
//! sends more than one packet holds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::seen::Echo;
use crate::migrate::inlet::free_ports;

/// Bytes that are sent there and back.
pub(crate) const SENT: usize = 256 << 10;
/// How long a connection may take, and then the bytes.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it is listened.
const LISTENS: Duration = Duration::from_secs(10);
/// Who may try the way in at once.
static ROOM: Semaphore = Semaphore::const_new(8);

/// Listens at `at`, on a port for migrations, for one connection; sends back what comes. Returns where.
///
/// # Errors
/// No port is free, or too many try at once.
pub(crate) async fn echo_once(at: IpAddr) -> io::Result<SocketAddr> {
    let room = ROOM.try_acquire().map_err(|_| io::Error::other("too many try the way in at once"))?;
    let mut none = io::Error::other("every port for migrations is taken");
    for address in free_ports(at) {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                none = error;
                continue;
            }
        };
        tokio::spawn(async move {
            let _room = room;
            // Whoever tries the way learns how it went; there is nobody to tell here.
            let _ = timeout(LISTENS, echo(listener)).await;
        });
        return Ok(address);
    }
    Err(none)
}

async fn echo(listener: TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    drop(listener);
    let (reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader.take(SENT as u64), &mut writer).await?;
    writer.shutdown().await
}

/// Sends [`SENT`] bytes to who listens with [`echo_once`], and counts what comes back.
pub(crate) async fn try_echo(address: SocketAddr) -> Result<Echo, String> {
    let begun = Instant::now();
    let mut stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("{address}: {error}")),
        Err(_) => return Err(format!("{address}: no connection within {} s", PATIENCE.as_secs())),
    };
    let (mut reader, mut writer) = stream.split();
    let mut came = 0;
    let sending = async {
        writer.write_all(&vec![0x5a; SENT]).await?;
        // Nothing more is sent, and nothing that came is left out.
        std::future::pending::<io::Result<()>>().await
    };
    let counting = async {
        let mut piece = vec![0; 16 << 10];
        while came < SENT {
            match reader.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(length) => came += length,
            }
        }
    };
    let both = async {
        tokio::select! {
            () = counting => {}
            // Where it cannot be sent, what came back so far tells.
            _ = sending => {}
        }
    };
    let _ = timeout(PATIENCE, both).await;
    Ok(if came == SENT { Echo::Whole(begun.elapsed()) } else { Echo::Stuck(came) })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn all_bytes_come_back_once() {
        let at = echo_once(Ipv4Addr::LOCALHOST.into()).await.unwrap();
        assert!(matches!(try_echo(at).await, Ok(Echo::Whole(_))));
        // The port is not left open.
        let refused = try_echo(at).await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }

    #[tokio::test]
    async fn a_way_that_takes_only_the_handshake_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        // Accepts in the kernel, and nobody reads.
        assert_eq!(try_echo(at).await, Ok(Echo::Stuck(0)));
        drop(listener);
    }
}
