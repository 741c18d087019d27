//! What a VM is made of, and how one is moved: the values that both hosts of a migration must agree on.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::ids::{MigrationId, Name, VmId};

/// How a guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The host's hardware, through /dev/kvm.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// A VM as a scenario asks for it. Everything that the guest can see must be the same on both sides of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Which VM of which attempt.
    pub id: VmId,
    /// The image it boots from, by name in the pool.
    pub image: Name,
    /// RAM in MiB, 32 to 1 048 576.
    pub memory_mib: u32,
    /// Virtual CPUs, 1 to 255.
    pub cpus: u16,
    /// QEMU machine type; `None`: the versioned type that `pc-q35` or `q35` resolves to on the source.
    pub machine: Option<String>,
    /// QEMU CPU model; `None`: what fits the accelerator.
    pub cpu_model: Option<String>,
    /// `None`: KVM where a functional probe passes on every host of the case, else TCG.
    pub accelerator: Option<Accelerator>,
    /// Network cards, in order.
    pub nics: Vec<Nic>,
    /// Path or name of the QEMU binary; `None`: the host's default.
    pub qemu_binary: Option<String>,
    /// Words appended to QEMU's command line, the same on both sides.
    pub extra_args: Vec<String>,
}

/// A network card. Its MAC and address are the same on every host, so a guest keeps them when it moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// MAC address.
    pub mac: [u8; 6],
    /// The guest's static address, given on its kernel command line; `None`: no address.
    pub address: Option<Ipv4Addr>,
    /// Length of the network prefix of `address`, 0 to 32.
    pub prefix: u8,
}

/// How a VM is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSpec {
    /// QEMU migration capabilities, by QEMU's name. Set on both sides and read back.
    pub capabilities: BTreeMap<String, bool>,
    /// QEMU migration parameters with integer values, by QEMU's name (`max-bandwidth` in bytes/s, `downtime-limit` in ms).
    pub parameters: BTreeMap<String, u64>,
    /// How long the transfer may take before it is cancelled, in ms.
    pub timeout_ms: u64,
}

impl Default for MigrationSpec {
    fn default() -> Self {
        Self { capabilities: BTreeMap::new(), parameters: BTreeMap::new(), timeout_ms: 300_000 }
    }
}

/// One reading of a running migration, taken at the source ten times a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the transfer began, on the source's clock.
    pub t_ms: u64,
    /// QEMU's status word.
    pub status: String,
    /// RAM of the guest, bytes.
    pub ram_total_bytes: u64,
    /// RAM sent so far, bytes.
    pub ram_transferred_bytes: u64,
    /// RAM still to send, bytes.
    pub ram_remaining_bytes: u64,
    /// Times all dirty pages were synchronised.
    pub dirty_sync_count: u64,
    /// Rate at which the guest dirties memory, bytes/s.
    pub dirty_rate_bytes_s: u64,
    /// Rate of the transfer, bytes/s.
    pub xfer_bytes_s: u64,
    /// Downtime that QEMU expects, ms.
    pub expected_downtime_ms: Option<u64>,
    /// How far auto-converge slows the guest, percent.
    pub cpu_throttle_pct: u64,
}

/// What a completed migration was like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationResult {
    /// Which movement.
    pub id: MigrationId,
    /// Source host.
    pub from: Name,
    /// Destination host.
    pub to: Name,
    /// QEMU's own total time, ms.
    pub total_ms: u64,
    /// QEMU's own downtime, ms: what it knows of, without our decision and the resume.
    pub qemu_downtime_ms: u64,
    /// QEMU's set-up time, ms.
    pub setup_ms: u64,
    /// RAM moved, bytes.
    pub ram_transferred_bytes: u64,
    /// Pages sent as they are.
    pub normal_pages: u64,
    /// Pages that were zero.
    pub duplicate_pages: u64,
    /// Times all dirty pages were synchronised.
    pub dirty_sync_count: u64,
    /// From the party's call at the source to the destination's RESUME, ms, as the source measured it.
    pub wall_ms: f64,
    /// Named parts of the wall time in ms, in order: call → started, transfer, vote and decision, resume.
    pub parts_ms: Vec<(String, f64)>,
    /// Process id of the source QEMU.
    pub source_pid: u32,
    /// Process id of the destination QEMU.
    pub destination_pid: u32,
    /// Readings taken meanwhile.
    pub samples: Vec<Sample>,
}
