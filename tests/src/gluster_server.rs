//! A real Gluster for one test: glusterd and a volume `disks` of one brick, in namespaces of their own on the network of a
//! lab's hosts.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use crate::{lab::Lab, server_host::ServerHost, wait};

/// What runs in the mount namespace of its own: its sockets and state are nobody else's. `force`: the brick may lie on the
/// root file system. Whoever asks glusterd before it is quite there waits for ever.
const SCRIPT: &str = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir -p /run/gluster\n\
                      for folder in /var/lib/glusterd /var/log/glusterfs; do\n\
                      mkdir -p $folder; mount -t tmpfs tmpfs $folder; done\n\
                      mkdir \"$1/brick\"; glusterd -N &\n\
                      until timeout 5 gluster --mode=script pool list; do sleep 0.1; done\n\
                      gluster --mode=script volume create disks \"$2:$1/brick\" force\n\
                      until timeout 20 gluster --mode=script volume start disks force; do sleep 0.1; done\n\
                      touch \"$1/ready\"; wait";

/// A running Gluster.
#[derive(Debug)]
pub struct GlusterServer {
    host: ServerHost,
    child: Child,
}

impl GlusterServer {
    /// Starts it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn on(lab: &Lab) -> Self {
        let host = ServerHost::on(lab, "glu");
        let log = fs::File::create(host.folder().join("log")).expect("a log of the server");
        let mut command = host.command("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(host.folder()).arg(host.address());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("unshare runs");
        wait::until("a volume of Gluster", Duration::from_secs(120), || {
            let said = || fs::read_to_string(host.folder().join("log"));
            if host.folder().join("ready").exists() { Ok(()) } else { Err(said()) }
        });
        Self { host, child }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.host.address()
    }

    /// It stands still: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.host.freeze();
    }

    /// It goes on, with whatever was sent to it meanwhile.
    pub fn thaw(&self) {
        self.host.thaw();
    }

    /// What the volume is made of, seen from outside.
    pub fn brick(&self) -> PathBuf {
        self.host.folder().join("brick")
    }

    /// What lies in the volume, seen from outside: names and paths.
    ///
    /// # Panics
    /// The brick cannot be read.
    pub fn files(&self) -> Vec<PathBuf> {
        let brick = fs::read_dir(self.brick()).expect("the brick");
        let paths = brick.map(|entry| entry.expect("an entry of the brick").path());
        // Gluster's own books.
        paths.filter(|path| !path.ends_with(".glusterfs")).collect()
    }
}

impl Drop for GlusterServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.host.end_all();
    }
}
