//! A guest over the network, from this host: the greeting of its ssh server, and its echo.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{GuestError, Place};

/// Longest greeting that is read: RFC 4253 allows 255 bytes a line, and lines before the greeting.
const GREETING_MAX: usize = 4096;
/// How often an address that refuses is tried.
const RETRY: Duration = Duration::from_millis(200);
/// How long one try to connect may take: a lost first packet is sent again after a second.
const TRY: Duration = Duration::from_secs(3);

/// Waits until the guest's ssh server greets; returns its greeting, such as `SSH-2.0-dropbear_2022.83`.
///
/// # Errors
/// It does not until the deadline, or something else answers on that port.
pub async fn ssh_greeting(address: IpAddr, port: u16, deadline: Instant) -> Result<String, GuestError> {
    let at = SocketAddr::new(address, port);
    let mut stream = connect(at, deadline).await?;
    let (began, mut bytes) = (Instant::now(), Vec::new());
    loop {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if line.starts_with(b"SSH-") && line.ends_with(b"\n") {
                return Ok(super::shown(line, 255).trim().to_owned());
            }
        }
        if bytes.len() > GREETING_MAX {
            let sent = super::shown(&bytes[..200], 200);
            return Err(GuestError::Garbled { place: Place::Network(at), what: "no ssh server".into(), sent });
        }
        let mut piece = [0; 512];
        let length = read(&mut stream, at, &mut piece, "greeting of an ssh server", began, deadline).await?;
        bytes.extend_from_slice(&piece[..length]);
    }
}

/// Sends bytes to the guest's echo and waits for them; returns the round trip, connecting left out.
///
/// # Errors
/// There is no answer until the deadline, or another one.
pub async fn tcp_echo(address: IpAddr, port: u16, deadline: Instant) -> Result<Duration, GuestError> {
    let at = SocketAddr::new(address, port);
    let mut stream = connect(at, deadline).await?;
    // Errors below name what was done; a socket that takes no option would fail there, too.
    let _ = stream.set_nodelay(true);
    let sent: [u8; 32] = rand::random();
    let began = Instant::now();
    let wrote = timeout_at(deadline, stream.write_all(&sent)).await.map_err(|_| late(at, "room", began))?;
    wrote.map_err(|source| GuestError::Io { place: Place::Network(at), what: "broke off", source })?;
    let mut back = Vec::new();
    while back.len() < sent.len() {
        let mut piece = [0; 32];
        let length = read(&mut stream, at, &mut piece, "echo", began, deadline).await?;
        back.extend_from_slice(&piece[..length]);
    }
    if back != sent {
        let what = "the echo is not what was sent".into();
        return Err(GuestError::Garbled { place: Place::Network(at), what, sent: super::shown(&back, 64) });
    }
    Ok(began.elapsed())
}

async fn connect(at: SocketAddr, deadline: Instant) -> Result<TcpStream, GuestError> {
    let began = Instant::now();
    loop {
        let source = match timeout_at((Instant::now() + TRY).min(deadline), TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => Some(source),
            Err(_) => None,
        };
        if Instant::now() + RETRY >= deadline {
            return Err(match source {
                Some(source) => GuestError::Io { place: Place::Network(at), what: "cannot be connected", source },
                None => late(at, "connection", began),
            });
        }
        if source.is_some() {
            sleep(RETRY).await;
        }
    }
}

async fn read(
    stream: &mut TcpStream,
    at: SocketAddr,
    piece: &mut [u8],
    awaited: &str,
    began: Instant,
    deadline: Instant,
) -> Result<usize, GuestError> {
    match timeout_at(deadline, stream.read(piece)).await {
        Err(_) => Err(late(at, awaited, began)),
        Ok(Ok(0)) => Err(GuestError::Closed(Place::Network(at))),
        Ok(Ok(length)) => Ok(length),
        Ok(Err(source)) => Err(GuestError::Io { place: Place::Network(at), what: "broke off", source }),
    }
}

fn late(at: SocketAddr, awaited: &str, began: Instant) -> GuestError {
    let (awaited, waited) = (awaited.to_owned(), began.elapsed());
    GuestError::Deadline { place: Place::Network(at), awaited, waited, arrived: String::new() }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            std::future::pending::<()>().await;
        });
        at
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn at_once() -> Instant {
        Instant::now() + Duration::from_millis(300)
    }

    #[tokio::test]
    async fn a_greeting_is_found_and_something_else_is_not_one() {
        let at = server(b"welcome\r\nSSH-2.0-dropbear_1\r\n\x00\xff").await;
        assert_eq!(ssh_greeting(at.ip(), at.port(), soon()).await.unwrap(), "SSH-2.0-dropbear_1");
        let at = server(&[b'x'; GREETING_MAX * 2]).await;
        assert!(matches!(ssh_greeting(at.ip(), at.port(), soon()).await, Err(GuestError::Garbled { .. })));
        let at = server(b"SSH-2.0-cut").await;
        assert!(matches!(ssh_greeting(at.ip(), at.port(), at_once()).await, Err(GuestError::Deadline { .. })));
    }

    #[tokio::test]
    async fn an_echo_must_be_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.into_split();
            tokio::io::copy(&mut read, &mut write).await
        });
        tcp_echo(at.ip(), at.port(), soon()).await.unwrap();
        let at = server(&[0; 32]).await;
        assert!(matches!(tcp_echo(at.ip(), at.port(), soon()).await, Err(GuestError::Garbled { .. })));
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let error = tcp_echo(at.ip(), at.port(), at_once()).await.err().unwrap();
        assert!(error.to_string().contains(&at.to_string()), "{error}");
    }
}
