//! A real Ceph for one test: a monitor and one server of objects, which keeps them in memory, in a namespace of their own on
//! the network of a lab's hosts. Its pool is called `disks`, and nobody has to say who he is.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{lab::Lab, server_host::ServerHost, wait};

/// The pool.
pub const CEPH_POOL: &str = "disks";
/// How it is installed; CI does without.
const INSTALL: &str = ".ci/install .ci/packages-ceph";

const SETTINGS: &str = "auth cluster required = none\nauth service required = none\nauth client required = none\n\
                        osd pool default size = 1\nosd pool default min size = 1\nosd crush chooseleaf type = 0\n\
                        mon allow pool size one = true\nmon warn on pool no redundancy = false\n\
                        mon data avail crit = 1\nosd objectstore = memstore\nmemstore device bytes = 1073741824\n";

/// `$1`: the folder, `$2`: the address, `$3`: the pool. A question that is not answered, on a busy machine, is asked again.
const SCRIPT: &str = "set -e; cd \"$1\"; export CEPH_CONF=\"$1/ceph.conf\"; id=$(cat /proc/sys/kernel/random/uuid)\n\
                      monmaptool --create --add a \"$2:6789\" --fsid \"$(cat fsid)\" monmap\n\
                      ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'\n\
                      ceph-mon -i a --mkfs --monmap monmap --keyring keyring; ceph-mon -i a -f &\n\
                      until timeout 30 ceph mon stat; do sleep 0.1; done\n\
                      ceph osd new \"$id\" 0; ceph-osd -i 0 --mkfs --osd-uuid \"$id\"; ceph-osd -i 0 -f &\n\
                      until timeout 30 ceph osd stat | grep -q '1 up'; do sleep 0.1; done\n\
                      until timeout 30 ceph osd pool create \"$3\" 8; do sleep 0.1; done\n\
                      until timeout 30 rbd pool init \"$3\"; do sleep 0.1; done; touch ready; wait";

/// A running Ceph.
#[derive(Debug)]
pub struct CephServer {
    host: ServerHost,
    child: Child,
}

impl CephServer {
    /// Whether this machine has one; where not, a line says how to get it.
    pub fn is_installed() -> bool {
        let found = ["ceph-mon", "ceph-osd", "rbd"]
            .into_iter()
            .all(|program| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok());
        if !found {
            eprintln!("SKIPPED: there is no Ceph on this machine: {INSTALL}");
        }
        found
    }

    /// Starts it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn on(lab: &Lab) -> Self {
        let host = ServerHost::on(lab, "cph");
        let folder = host.folder().display().to_string();
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel makes one");
        let own = format!(
            "[global]\nfsid = {fsid}mon host = {}\nmon initial members = a\n{SETTINGS}mon data = {folder}/mon\n\
             osd data = {folder}/osd\nrun dir = {folder}\nkeyring = {folder}/keyring\npid file = {folder}/$name.pid\n\
             admin socket = {folder}/$name.asok\nlog file = {folder}/$name.log\n",
            host.address()
        );
        fs::write(host.folder().join("ceph.conf"), own).expect("its settings");
        fs::write(host.folder().join("fsid"), &fsid).expect("its id");
        for data in ["mon", "osd"] {
            fs::create_dir(host.folder().join(data)).expect("a folder of the server");
        }
        let log = fs::File::create(host.folder().join("log")).expect("a log of the server");
        let mut command = host.command("sh");
        command.args(["-c", SCRIPT, "sh", &folder, host.address(), CEPH_POOL]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("sh runs");
        wait::until("a pool of Ceph", Duration::from_secs(180), || {
            let said = || fs::read_to_string(host.folder().join("log"));
            if host.folder().join("ready").exists() { Ok(()) } else { Err(said()) }
        });
        Self { host, child }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.host.address()
    }

    /// Names of images in the pool.
    ///
    /// # Panics
    /// It does not tell.
    pub fn images(&self) -> Vec<PathBuf> {
        let settings = self.host.folder().join("ceph.conf");
        let listed = self.host.command("rbd").arg("-c").arg(settings).args(["-p", CEPH_POOL, "ls"]).output();
        let listed = listed.expect("rbd runs");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        String::from_utf8_lossy(&listed.stdout).lines().map(PathBuf::from).collect()
    }
}

impl Drop for CephServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.host.end_all();
    }
}
