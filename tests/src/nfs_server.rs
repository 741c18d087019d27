//! A real NFS server for one test: nfs-ganesha with its portmapper, in namespaces of its own. It can stand still, end and
//! come back, and turn read-only, and what it serves is a folder that the test can look into from outside.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    lab::Lab,
    server_host::{Neighbour, ServerHost},
    wait,
};

/// What runs in the mount namespace of its own: its pid files, sockets and state are nobody else's. `$2`: how much room there
/// is in `disks`, where it is to be little.
const SCRIPT: &str = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p /run/ganesha /run/rpcbind && \
                      { test -z \"$2\" || { truncate -s \"$2\" \"$1/room\" && \
                      mke2fs -q -t ext4 -m 0 -O ^has_journal \"$1/room\" && mount -o loop \"$1/room\" \"$1/disks\" && \
                      rmdir \"$1/disks/lost+found\"; }; } && \
                      mount -t tmpfs tmpfs /var/lib/nfs && mkdir -p /var/lib/nfs/ganesha && rpcbind -w && \
                      exec ganesha.nfsd -F -f \"$1/ganesha.conf\" -L \"$1/ganesha.log\" -p /run/ganesha.pid -N EVENT";

/// What [`NfsServer::fill`] writes.
const FILLER: &str = "filler";

/// A running server.
#[derive(Debug)]
pub struct NfsServer {
    host: ServerHost,
    child: Option<Child>,
    /// How much room there is in `disks`, MiB; `None`: as much as on the machine.
    room: Option<u32>,
}

impl NfsServer {
    /// A server that only processes in its own network see.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn alone() -> Self {
        Self::started(ServerHost::alone("nfs"), None)
    }

    /// The same with so much room in `disks`, MiB: what is there goes with the server.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn alone_with_room(mib: u32) -> Self {
        Self::started(ServerHost::alone("nfs"), Some(mib))
    }

    /// A server on the network of a lab's hosts.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn on(lab: &Lab) -> Self {
        Self::started(ServerHost::on(lab, "nfs"), None)
    }

    /// The same with so much room in `disks`, MiB: what is there goes with the server.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn on_with_room(lab: &Lab, mib: u32) -> Self {
        Self::started(ServerHost::on(lab, "nfs"), Some(mib))
    }

    fn started(host: ServerHost, room: Option<u32>) -> Self {
        let mut server = Self { host, child: None, room };
        for export in ["disks", "isos", "squashed"] {
            fs::create_dir(server.host.folder().join(export)).expect("a folder of the server");
        }
        server.write_settings("RW");
        server.come_back();
        server
    }

    fn write_settings(&self, disks: &str) {
        let root = self.host.folder().display();
        let export = |id: u32, name: &str, access: &str, squash: &str| {
            format!(
                "EXPORT {{ Export_Id = {id}; Path = {root}/{name}; Pseudo = /{name}; Protocols = 3; Transports = TCP; \
                 Access_Type = {access}; Squash = {squash}; SecType = sys; FSAL {{ Name = VFS; }} }}\n"
            )
        };
        // No lock manager: it would want a status daemon, and QEMU takes no locks here.
        let text = "NFS_CORE_PARAM { NFS_Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; NFS_Port = 2049; \
                    MNT_Port = 20048; mount_path_pseudo = true; }\n"
            .to_owned()
            + &export(1, "disks", disks, "No_Root_Squash")
            + &export(2, "isos", "RO", "No_Root_Squash")
            + &export(3, "squashed", "RW", "All_Squash");
        fs::write(self.host.folder().join("ganesha.conf"), text).expect("the server's settings");
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.host.address()
    }

    /// What an export is made of, seen from outside: `disks`, `isos` (read-only), or `squashed` (all users are one).
    pub fn folder(&self, export: &str) -> PathBuf {
        let folder = self.host.folder().join(export);
        match self.room {
            // What is mounted there only the server sees.
            Some(_) => PathBuf::from(format!("/proc/{}/root{}", self.server(), folder.display())),
            None => folder,
        }
    }

    /// Takes all the room that is left in `disks` of a server that has little.
    ///
    /// # Panics
    /// It has no end.
    pub fn fill(&self) {
        assert!(self.room.is_some(), "the machine itself would be full");
        let mut filler = fs::File::create(self.folder("disks").join(FILLER)).expect("a file of the server");
        let full = io::copy(&mut io::repeat(1), &mut filler).expect_err("there is an end");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives that room back.
    ///
    /// # Panics
    /// It was not taken.
    pub fn make_room(&self) {
        fs::remove_file(self.folder("disks").join(FILLER)).expect("it was filled");
    }

    /// A host beside it, whose link can be cut.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn neighbour(&self) -> Neighbour {
        self.host.neighbour()
    }

    /// A command in the server's network.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.host.command(program)
    }

    fn server(&self) -> Pid {
        let child = self.child.as_ref().expect("the server was started");
        Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"))
    }

    /// It stands still: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.host.freeze();
    }

    /// It goes on, with whatever was sent to it meanwhile.
    pub fn thaw(&self) {
        self.host.thaw();
    }

    /// From now on it refuses every write to `disks`.
    pub fn turn_read_only(&self) {
        self.write_settings("RO");
        kill(self.server(), Signal::SIGHUP).expect("the server reads its settings");
    }

    /// It ends, with what it had in its own memory.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The portmapper forks and is no child. A test's own programs in this network live on.
            self.host.end_with(child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It is started, and waited for.
    ///
    /// # Panics
    /// It does not serve.
    pub fn come_back(&mut self) {
        let mut command = self.command("unshare");
        let room = self.room.map(|mib| format!("{mib}M")).unwrap_or_default();
        command.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(self.host.folder()).arg(room);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.expect("unshare runs"));
        wait::until("an NFS server", Duration::from_secs(30), || {
            let log = fs::read_to_string(self.host.folder().join("ganesha.log")).unwrap_or_default();
            let listens = self.command("ss").args(["-Hltn", "sport = :2049"]).output();
            let listens = listens.is_ok_and(|output| !output.stdout.is_empty());
            let tail: String = log.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
            if listens && log.contains("NFS SERVER INITIALIZED") { Ok(()) } else { Err(tail) }
        });
    }
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        self.end();
    }
}
