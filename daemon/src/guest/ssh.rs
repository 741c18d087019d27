//! A shell in the guest by ssh: the system's client, in a terminal of the guest's, spoken to as a serial console is.
//!
//! The system's client and no crate: a client in Rust brings some sixty crates with a second set of ciphers for what a
//! machine that is reached by ssh has installed. It is a process of its own with no terminal here, that ends with its value.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{net::UnixStream, process::Command, time::Instant};

use super::{
    GuestError, Place,
    console::{Console, Credentials},
    reach::ssh_greeting,
};

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

/// Logs in and waits for a shell.
///
/// # Errors
/// The server does not greet, the client cannot be run, or the guest does not let this user in.
pub async fn begin(server: &Server<'_>, who: Credentials, deadline: Instant) -> Result<Console, GuestError> {
    let place = Place::Network(SocketAddr::new(server.address, server.port));
    ssh_greeting(server.address, server.port, deadline).await?;
    let failed = |source| GuestError::Io { place: place.clone(), what: "ssh cannot be run", source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut client = command(server, &who).map_err(failed)?;
    // The client reads and writes as if it had a terminal.
    let theirs = theirs.into_std().map_err(failed)?;
    theirs.set_nonblocking(false).map_err(failed)?;
    let theirs = OwnedFd::from(theirs);
    let (output, errors) = (theirs.try_clone().map_err(failed)?, theirs.try_clone().map_err(failed)?);
    client.stdin(Stdio::from(theirs)).stdout(Stdio::from(output)).stderr(Stdio::from(errors)).kill_on_drop(true);
    let process = client.spawn().map_err(failed)?;
    // It holds our copies of its ends: without them gone, its end would not be seen.
    drop(client);
    let mut console = Console::over(ours, place, who, process);
    match console.login(deadline).await {
        Ok(()) => Ok(console),
        Err(GuestError::Closed(place)) => Err(GuestError::Refused { place, said: console.last_words().await }),
        Err(error) => Err(error),
    }
}

fn command(server: &Server<'_>, who: &Credentials) -> io::Result<Command> {
    let mut command = Command::new(server.client);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// A client that asks for the password as the real one does, and is a shell for whoever has it.
    const CLIENT: &str = "#!/bin/bash\n\
        if [ \"$SSH_ASKPASS_REQUIRE\" = force ] && [ \"$(\"$SSH_ASKPASS\" 'password: ')\" = secret ]; then\n\
        while printf 'guest$ '; IFS= read -r -d $'\\r' line; do printf '%s\\r\\n' \"$line\"; eval \"${line#$'\\x03'}\"; done\n\
        else echo 'Permission denied (publickey,password).' >&2; exit 255; fi\n";

    #[tokio::test]
    async fn who_has_the_password_has_a_shell_and_others_are_told_what_the_client_said() {
        let folder = tempfile::tempdir().unwrap();
        let client = folder.path().join("ssh");
        fs::write(&client, CLIENT).unwrap();
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"SSH-2.0-test\r\n").await;
            }
        });
        let client = client.to_str().unwrap();
        let server = Server { client, address: at.ip(), port: at.port(), key: None, folder: folder.path() };
        let who =
            |password: Option<&str>| Credentials { password: password.map(str::to_owned), ..Credentials::default() };
        let mut shell = begin(&server, who(Some("secret")), soon()).await.unwrap();
        let first = shell.run("echo $$", soon()).await.unwrap();
        assert_eq!((first.status, shell.run("echo $$", soon()).await.unwrap()), (0, first), "one shell for all");
        assert_eq!(shell.run("exit 3", soon()).await.unwrap().status, 3);
        for password in [Some("wrong"), None] {
            let refused = begin(&server, who(password), soon()).await.unwrap_err();
            assert!(matches!(&refused, GuestError::Refused { said, .. } if said.contains("denied")), "{refused:?}");
        }
        let missing = begin(&Server { client: "/no/ssh", ..server }, who(None), soon()).await.unwrap_err();
        assert!(missing.to_string().contains("ssh cannot be run"), "{missing}");
    }
}
