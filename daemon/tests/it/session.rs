//! A shell by ssh that outlives whoever began it, with a client that is a script and the real `vtd session`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpListener, time::Instant};
use vt_daemon::guest::{
    GuestError, Place,
    console::Credentials,
    ssh::{Held, Server, again, begin},
};

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
    let [one, other, none] = ["one", "other", "none"].map(|name| folder.path().join(name));
    let vtd = Path::new(env!("CARGO_BIN_EXE_vtd"));
    let held = |socket| Held { vtd, socket, cgroup: None };
    let who = |password: Option<&str>| Credentials { password: password.map(str::to_owned), ..Credentials::default() };
    let mut shell = begin(&server, &held(&one), who(Some("secret")), soon()).await.unwrap();
    let first = shell.run("echo $$", soon()).await.unwrap();
    assert_eq!((first.status, shell.run("echo $$", soon()).await.unwrap()), (0, first.clone()), "one shell for all");
    assert_eq!(shell.run("exit 3", soon()).await.unwrap().status, 3);
    // As after a restart of the daemon: whoever comes finds the same shell.
    drop(shell);
    let mut shell = again(&one, Place::Session(one.clone()), who(None), soon()).await.unwrap();
    assert_eq!(shell.run("echo $$", soon()).await.unwrap(), first);
    for password in [Some("wrong"), None] {
        let refused = begin(&server, &held(&other), who(password), soon()).await.unwrap_err();
        assert!(matches!(&refused, GuestError::Refused { said, .. } if said.contains("denied")), "{refused:?}");
    }
    let missing = begin(&Server { client: "/no/ssh", ..server }, &held(&none), who(None), soon()).await.unwrap_err();
    assert!(missing.to_string().contains("ssh cannot be run"), "{missing}");
}
