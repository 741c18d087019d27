//! A machine for a real server of one test: a network namespace, on its own or on the network of a lab's hosts, and a folder
//! that the test can look into from outside.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::Lab;

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// Where it is on a lab's network.
const ADDRESS: &str = "10.77.0.250";

/// The namespace and the folder. Both are removed with this value, and what runs there is killed.
#[derive(Debug)]
pub struct ServerHost {
    namespace: String,
    address: String,
    folder: tempfile::TempDir,
}

impl ServerHost {
    /// One that only processes in its own network see.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn alone(kind: &str) -> Self {
        Self::made(kind, "127.0.0.1".to_owned()).0
    }

    /// One on the network of a lab's hosts.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn on(lab: &Lab, kind: &str) -> Self {
        let (host, number) = Self::made(kind, ADDRESS.to_owned());
        let (namespace, port) = (host.namespace.as_str(), format!("{kind}{number}"));
        let switch = format!("vt-{}-sw", lab.name());
        ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "up0", "netns", namespace]);
        ip(&["-n", &switch, "link", "set", &port, "master", "sw0", "up"]);
        ip(&["-n", namespace, "address", "add", &format!("{ADDRESS}/24"), "dev", "up0"]);
        ip(&["-n", namespace, "link", "set", "up0", "up"]);
        host
    }

    fn made(kind: &str, address: String) -> (Self, u32) {
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{kind}{:x}-{number}", std::process::id());
        let folder = tempfile::tempdir().expect("a folder for the server");
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        (Self { namespace, address, folder }, number)
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command in its network.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        command(&self.namespace, program.as_ref())
    }

    /// A host of its own beside it.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn neighbour(&self) -> Neighbour {
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("nbr{:x}-{number}", std::process::id());
        let (port, net) = (format!("nbr{number}"), number % 250 + 1);
        ip(&["netns", "add", &namespace]);
        let neighbour = Neighbour { namespace, beside: self.namespace.clone(), port, server: format!("10.78.{net}.1") };
        let there = &neighbour.namespace;
        ip(&["-n", there, "link", "set", "lo", "up"]);
        let pair = ["type", "veth", "peer", "name", "up0", "netns", there];
        ip(&[&["-n", &self.namespace, "link", "add", &neighbour.port][..], &pair].concat());
        for (namespace, link, end) in [(&self.namespace, neighbour.port.as_str(), 1), (there, "up0", 2)] {
            ip(&["-n", namespace, "address", "add", &format!("10.78.{net}.{end}/24"), "dev", link]);
            ip(&["-n", namespace, "link", "set", link, "up"]);
        }
        neighbour
    }

    /// Kills whatever runs in its network.
    pub fn end_all(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// All of it stands still: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on, with whatever was sent to it meanwhile.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills whatever is in the mount namespace of a process that runs here, itself too: also what forked away from it.
    pub fn end_with(&self, process: u32) {
        let mounts = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let Some(same) = mounts(process) else { return };
        let pids = pids(&self.namespace).into_iter().filter(|pid| mounts(*pid).as_ref() == Some(&same));
        send(pids, Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        send(pids(&self.namespace), signal);
    }
}

impl Drop for ServerHost {
    fn drop(&mut self) {
        remove(&self.namespace);
    }
}

/// A host beside a server, on a link of its own that can be cut. Removed with this value, and what runs there is killed.
#[derive(Debug)]
pub struct Neighbour {
    namespace: String,
    beside: String,
    port: String,
    server: String,
}

impl Neighbour {
    /// The server's address, as this host reaches it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A command in its network.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        command(&self.namespace, program.as_ref())
    }

    /// From now on nothing comes through, in either direction; connections stay.
    pub fn cut(&self) {
        self.link("down");
    }

    /// The link is whole again, and what was on its way is sent once more.
    pub fn mend(&self) {
        self.link("up");
    }

    fn link(&self, how: &str) {
        ip(&["-n", &self.beside, "link", "set", &self.port, how]);
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        remove(&self.namespace);
    }
}

fn command(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn pids(namespace: &str) -> Vec<u32> {
    let pids = Command::new("ip").args(["netns", "pids", namespace]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    pids.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn remove(namespace: &str) {
    send(pids(namespace), Signal::SIGKILL);
    let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
}

fn send(pids: impl IntoIterator<Item = u32>, signal: Signal) {
    for pid in pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().expect("ip runs");
    assert!(status.success(), "ip {}", words.join(" "));
}
