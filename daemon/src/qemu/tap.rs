//! Taps: a guest's end of the host's bridge, or of its uplink (a macvtap), in the network namespace that the daemon itself is in.
//!
//! A tap is persistent, so that it outlives the daemon as its VM does. Its name follows from the VM's run folder, so two
//! VMs of one host never share one. Made and removed with `ip`, as an admin would.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use vt_protocol::error::{ErrorCode, Report};

use super::cable::MacvtapMode;

/// Longest name the kernel takes for an interface.
const NAME_MAX: usize = 15;
const PREFIX: &str = "vmt";

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `ip` refused.
    #[error("`ip {command}` failed: {words}")]
    Refused {
        /// What it was asked.
        command: String,
        /// What it said.
        words: String,
    },
    /// `ip` cannot be run.
    #[error("cannot run `ip`")]
    NoIp(#[source] std::io::Error),
    /// The VM has network cards, and the host no bridge for them.
    #[error("the VM has a network card, and this host has no bridge for guests")]
    NoBridge,
    /// A card is to hang on the host's uplink, and the host has none.
    #[error("the VM has a network card on a macvtap, and this host has no uplink for it")]
    NoUplink,
    /// Its device was not to be had for QEMU.
    #[error("the device of macvtap {0}")]
    NotOpened(String),
}

impl TapError {
    /// The error as a user meets it.
    pub fn report(&self) -> Report {
        let report = Report::new(ErrorCode::NetworkSetup, self.to_string()).caused_by(self);
        match self {
            Self::NoBridge => report.help("set network.bridge in the daemon's settings"),
            Self::NoUplink => report.help("set network.uplink in the daemon's settings"),
            Self::NotOpened(_) => report.help("ip -details link show type macvtap"),
            Self::Refused { .. } => report.help("ip link show type bridge"),
            Self::NoIp(_) => report.help("apt-get install iproute2"),
        }
    }
}

/// A tap that is removed when the value is dropped, unless it is kept.
#[derive(Debug)]
pub struct Tap {
    name: String,
    kept: bool,
}

impl Tap {
    /// The name of the tap of network card `number` of the VM in `run_dir`.
    pub fn name_for(run_dir: &Path, number: usize) -> String {
        let digest = blake3::hash(format!("{}#{number}", run_dir.display()).as_bytes()).to_hex();
        format!("{PREFIX}{}", &digest[..NAME_MAX - PREFIX.len()])
    }

    /// Makes a tap on `bridge` and brings it up. One of that name left from before is replaced.
    pub fn create(name: &str, bridge: &str) -> Result<Self, TapError> {
        if Self::exists(name) {
            Self::delete(name)?;
        }
        ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        let tap = Self { name: name.to_owned(), kept: false };
        ip(&["link", "set", "dev", name, "master", bridge])?;
        ip(&["link", "set", "dev", name, "up"])?;
        Ok(tap)
    }

    /// Makes a macvtap on `uplink` for the card with that MAC address and brings it up. One of that name left from before is
    /// replaced.
    pub fn create_macvtap(name: &str, uplink: &str, mode: MacvtapMode, mac: [u8; 6]) -> Result<Self, TapError> {
        if Self::exists(name) {
            Self::delete(name)?;
        }
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let made =
            ["link", "add", "link", uplink, "name", name, "address", &mac, "type", "macvtap", "mode", mode.name()];
        ip(&made)?;
        let tap = Self { name: name.to_owned(), kept: false };
        // The host itself has nothing to say by the card's address, which at first is still in use on another host.
        ip(&["link", "set", "dev", name, "addrgenmode", "none"])?;
        ip(&["link", "set", "dev", name, "up"])?;
        Ok(tap)
    }

    /// Leaves it there; who has its name removes it.
    pub fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is an interface of that name in the namespace of this thread. (`/sys/class/net` shows the namespace
    /// in which sysfs was mounted, which may be another.)
    pub fn exists(name: &str) -> bool {
        nix::net::if_::if_nametoindex(name).is_ok()
    }

    /// Removes a tap by name; one that is not there is removed already.
    pub fn delete(name: &str) -> Result<(), TapError> {
        match ip(&["link", "delete", "dev", name]) {
            Err(TapError::Refused { words, .. }) if words.contains("Cannot find device") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Names of all our taps in this namespace, sorted.
    pub fn all() -> Result<Vec<String>, TapError> {
        let listing = ip(&["-o", "link", "show"])?;
        let names = listing.lines().filter_map(|line| line.split(": ").nth(1));
        let mut names: Vec<String> = names
            .map(|name| name.split('@').next().unwrap_or(name))
            .filter(|n| is_ours(n))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = Self::delete(&self.name)
        {
            tracing::warn!(tap = self.name, %error, "tap is left behind");
        }
    }
}

/// Forgets which card had an address. Addresses are given anew, each time to another card: what the host remembers of a VM
/// that is gone would have its packets sent to nobody until it is doubted, some 10 s to a minute later.
pub fn forget_neighbour(address: Ipv4Addr, bridge: &str) -> Result<(), TapError> {
    ip(&["neigh", "flush", "to", &address.to_string(), "dev", bridge]).map(drop)
}

fn is_ours(name: &str) -> bool {
    name.len() == NAME_MAX && name.strip_prefix(PREFIX).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn ip(words: &[&str]) -> Result<String, TapError> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output().map_err(TapError::NoIp)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words_said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(TapError::Refused { command: words.join(" "), words: words_said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ_by_vm_and_card() {
        let name = Tap::name_for(Path::new("/run/vtmesh/vm/a"), 0);
        assert!(name.len() <= NAME_MAX && is_ours(&name), "{name}");
        assert_ne!(name, Tap::name_for(Path::new("/run/vtmesh/vm/a"), 1));
        assert_ne!(name, Tap::name_for(Path::new("/run/vtmesh/vm/b"), 0));
        assert!(!is_ours("vmt0") && !is_ours("eth0") && !is_ours("vmtxxxxxxxxxxxx"));
    }
}
