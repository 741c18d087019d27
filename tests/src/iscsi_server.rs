//! A real iSCSI server for one test: tgtd with a few LUNs, which are files that the test can look into, in namespaces of its
//! own on the network of a lab's hosts.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use crate::{lab::Lab, server_host::ServerHost, wait};

/// What it calls the unit that has the LUNs.
pub const IQN: &str = "iqn.2026-11.lab.vtmesh:disks";

/// What runs in the mount namespace of its own: its control sockets are nobody else's. `$3` and on: names of the LUNs' files.
const SCRIPT: &str = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; cd \"$1\"; portal=\"$2:3260\" iqn=\"$3\"; shift 3\n\
                      tgtd -f --iscsi portal=\"$portal\" &\n\
                      until tgtadm --op show --mode sys; do sleep 0.1; done\n\
                      tgtadm --lld iscsi --op new --mode target --tid 1 -T \"$iqn\"; number=0\n\
                      for file; do number=$((number + 1))\n\
                      tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun $number -b \"$PWD/$file\"; done\n\
                      tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL; touch ready; wait";

/// A running server.
#[derive(Debug)]
pub struct IscsiServer {
    host: ServerHost,
    child: Child,
}

impl IscsiServer {
    /// Starts it with LUNs from number 1 on, of so many MiB each.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn on(lab: &Lab, luns_mib: &[u64]) -> Self {
        let host = ServerHost::on(lab, "lun");
        let names: Vec<String> = (1..=luns_mib.len()).map(file_name).collect();
        for (name, mib) in names.iter().zip(luns_mib) {
            let file = File::create(host.folder().join(name)).expect("a LUN's file");
            file.set_len(mib << 20).expect("its length");
        }
        let log = File::create(host.folder().join("log")).expect("a log of the server");
        let mut command = host.command("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(host.folder()).args([host.address(), IQN]).args(&names);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("unshare runs");
        wait::until("LUNs of an iSCSI server", Duration::from_secs(60), || {
            if host.folder().join("ready").exists() {
                Ok(())
            } else {
                Err(std::fs::read_to_string(host.folder().join("log")))
            }
        });
        Self { host, child }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        self.host.address()
    }

    /// What a LUN is made of.
    pub fn file(&self, lun: usize) -> PathBuf {
        self.host.folder().join(file_name(lun))
    }
}

impl Drop for IscsiServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.host.end_all();
    }
}

fn file_name(lun: usize) -> String {
    format!("lun{lun}.raw")
}
