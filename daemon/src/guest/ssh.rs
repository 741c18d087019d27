//! A shell in the guest by ssh: the system's client, in a terminal of the guest's, spoken to as a serial console is.
//!
//! The system's client and no crate: a client in Rust brings some sixty crates with a second set of ciphers for what a
//! machine that is reached by ssh has installed. It runs in a process that holds it ([`super::holder`]), so that a session
//! outlives the daemon that began it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::{process::Command, time::Instant};

use super::{
    GuestError, Place,
    console::{Console, Credentials},
    holder,
    reach::ssh_greeting,
};
use crate::cgroup::Cgroup;

/// Answers every question of the client with the password, which nobody else reads from there.
const ASKPASS: &str = "#!/bin/sh\nprintf '%s\\n' \"$VTMESH_PASSWORD\"\n";

/// Where and with what to log in.
#[derive(Debug)]
pub struct Server<'a> {
    /// The client: a path, or a name in `PATH`.
    pub client: &'a str,
    /// The guest's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// A private key, where there is one.
    pub key: Option<PathBuf>,
    /// A folder for what the client needs to be told the password, where there is one.
    pub folder: &'a Path,
}

/// Where a session is held.
#[derive(Debug)]
pub struct Held<'a> {
    /// The vtd binary.
    pub vtd: &'a Path,
    /// The socket by which the session is found again; where it is taken away, the session ends.
    pub socket: &'a Path,
    /// The control group that its processes are to be in.
    pub cgroup: Option<Cgroup>,
}

/// Logs in and waits for a shell.
///
/// # Errors
/// The server does not greet, the client cannot be run, or the guest does not let this user in.
pub async fn begin(
    server: &Server<'_>,
    held: &Held<'_>,
    who: Credentials,
    deadline: Instant,
) -> Result<Console, GuestError> {
    let place = Place::Network(SocketAddr::new(server.address, server.port));
    ssh_greeting(server.address, server.port, deadline).await?;
    let failed = |source| GuestError::Io { place: place.clone(), what: "ssh cannot be run", source };
    let mut holder = command(server, held, &who).map_err(failed)?.spawn().map_err(failed)?;
    let console = tokio::select! {
        console = Console::at(held.socket, place.clone(), who, deadline) => console?,
        _ = holder.wait() => return Err(failed(io::Error::other("its holder has ended at once"))),
    };
    // It ends by itself, and its parent is told: this process, as long as there is it.
    tokio::spawn(async move { holder.wait().await });
    shell(console, deadline).await
}

/// Takes up a session that is held at a socket.
///
/// # Errors
/// Nobody is there, or the guest does not let this user in.
pub async fn again(socket: &Path, place: Place, who: Credentials, deadline: Instant) -> Result<Console, GuestError> {
    shell(Console::at(socket, place, who, deadline).await?, deadline).await
}

async fn shell(mut console: Console, deadline: Instant) -> Result<Console, GuestError> {
    match console.login(deadline).await {
        Ok(()) => Ok(console),
        Err(GuestError::Closed(place)) => Err(GuestError::Refused { place, said: console.last_words().await }),
        Err(error) => Err(error),
    }
}

fn command(server: &Server<'_>, held: &Held<'_>, who: &Credentials) -> io::Result<Command> {
    let mut command = holder::command(held.vtd, held.socket, held.cgroup.as_ref(), server.client);
    command.args(["-F", "none", "-tt", "-e", "none", "-p", &server.port.to_string(), "-l", &who.user]);
    // A guest makes its key when it boots: there is nobody to be taken for it on a network of our own.
    for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes"] {
        command.args(["-o", option]);
    }
    if let Some(key) = &server.key {
        command.arg("-i").arg(key);
    }
    match &who.password {
        Some(password) => {
            let program = server.folder.join("askpass");
            // One that is there may be run at this moment.
            if !fs::read(&program).is_ok_and(|known| known == ASKPASS.as_bytes()) {
                fs::write(&program, ASKPASS)?;
                fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
            }
            command.env("SSH_ASKPASS", program).env("SSH_ASKPASS_REQUIRE", "force").env("VTMESH_PASSWORD", password);
            command.args(["-o", "NumberOfPasswordPrompts=1"]);
        }
        None => drop(command.args(["-o", "BatchMode=yes"])),
    }
    // Not asked for by anybody here.
    command.env_remove("SSH_AUTH_SOCK").arg(server.address.to_string());
    Ok(command)
}
