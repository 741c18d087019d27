//! What a host says of itself. Facts are not replicated; the log carries their digest, a peer call the facts.

use serde::{Deserialize, Serialize};

use crate::vm::Accelerator;

/// Facts about a host, gathered when its daemon starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Version of the daemon.
    pub build: String,
    /// Kernel release.
    pub kernel: String,
    /// Boot id of the host's kernel.
    pub boot_id: String,
    /// PRETTY_NAME of /etc/os-release.
    pub os: String,
    /// CPU model name.
    pub cpu_model: String,
    /// CPUs online.
    pub cpus: u32,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// Its QEMUs, the default first; empty while they are looked at, and where there is none.
    pub qemus: Vec<QemuFacts>,
    /// What kind of host it is: `metal`, `vm`, `namespace`.
    pub kind: String,
    /// The directory of images, and the name of the storage where it is shared with other hosts.
    pub pool: PoolFacts,
    /// Times it runs with: name and milliseconds.
    pub times_ms: Vec<(String, u64)>,
    /// What the machine is itself: `none` where it is no VM, else who makes its hardware, or `unknown`.
    pub hypervisor: String,
    /// What its CPU has for VMs: `vmx`, `svm`, or `none`.
    pub cpu_virtualisation: String,
}

/// Facts about a QEMU binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuFacts {
    /// What the host's settings call it.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its version, as it says it.
    pub version: String,
    /// What a functional probe found to work.
    pub accelerator: Accelerator,
    /// Why it is that one, for people.
    pub accelerator_reason: String,
}

/// Facts about the pool of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFacts {
    /// The directory.
    pub path: String,
    /// Whether all hosts of the cluster see the same directory.
    pub shared: bool,
    /// Names of the images in it.
    pub images: Vec<String>,
}
