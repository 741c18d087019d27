//! A TCP and a UDP echo, so that a host can see whether the guest is at its address and where its traffic has gaps.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Connections served at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 16;
/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Starts both on `port`, on every address of the guest.
pub(crate) fn start(port: u16) -> Result<(), String> {
    if port == 0 {
        return Err("port: 0 is not in 1 to 65535".into());
    }
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|error| format!("tcp port {port}: {error}"))?;
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|error| format!("udp port {port}: {error}"))?;
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.into()).spawn(run).map_err(|error| error.to_string())
    };
    spawn("echo-tcp", Box::new(move || accept(&tcp)))?;
    spawn("echo-udp", Box::new(move || datagrams(&udp)))?;
    Ok(())
}

fn accept(listener: &TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors or aborted by the peer: neither may spin.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let done = Arc::clone(&open);
        let spawned = thread::Builder::new().name("echo".into()).spawn(move || {
            // An echo that breaks off is the peer's to notice.
            let _ = echo(stream);
            done.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            length => stream.write_all(&bytes[..length])?,
        }
    }
}

fn datagrams(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        match socket.recv_from(&mut bytes) {
            // Lost answers look like lost questions to the host, which is what it counts.
            Ok((length, from)) => drop(socket.send_to(&bytes[..length], from)),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
