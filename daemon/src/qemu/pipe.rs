//! `vtd pipe`: the helper command at either end of a migration over `exec`.
//!
//! ```text
//! pipe connect SOCKET   what QEMU writes goes into the socket       (source)
//! pipe listen SOCKET    what comes out of the socket QEMU reads     (destination)
//! ```
//!
//! One connection, one way: QEMU has no return path over a command. It ends with the QEMU that started it.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use nix::sys::{prctl, signal::Signal};

/// The word that leads here.
pub const WORD: &str = "pipe";
/// The source's end.
pub const CONNECT: &str = "connect";
/// The destination's end.
pub const LISTEN: &str = "listen";

/// `connect|listen SOCKET`. Returns with the exit code when the stream has ended.
pub fn run(words: impl IntoIterator<Item = OsString>) -> i32 {
    let words: Vec<OsString> = words.into_iter().collect();
    let [way, socket] = &words[..] else {
        eprintln!("vtd pipe: connect SOCKET or listen SOCKET");
        return 2;
    };
    // It must not wait for a peer when its QEMU is gone.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let socket = PathBuf::from(socket);
    let done = match way.to_str() {
        Some(CONNECT) => UnixStream::connect(&socket).and_then(|mut stream| {
            let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
            io::copy(&mut input, &mut stream)
        }),
        Some(LISTEN) => {
            UnixListener::bind(&socket).and_then(|listener| listener.accept()).and_then(|(mut stream, _)| {
                let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                io::copy(&mut stream, &mut output)
            })
        }
        _ => Err(io::Error::other("the word before the socket is connect or listen")),
    };
    match done {
        Ok(_) => 0,
        Err(error) => {
            eprintln!("vtd pipe {}: {}: {error}", way.display(), socket.display());
            1
        }
    }
}
