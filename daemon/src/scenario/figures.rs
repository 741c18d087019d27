//! Figures of the moves of a case, as one party saw them.

use vt_protocol::party::Migrated;

use super::{checks::Checked, downtime::Downtime};
use crate::party::Party;

/// Figures of all moves as this party saw them.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Moves so far, by whomever.
    pub(super) moves: u32,
    completed: u64,
    qemu_downtime_ms: u64,
    guest_downtime_ms: Option<u64>,
    network_downtime_ms: Option<u64>,
    /// Moves whose figures of downtime disagree.
    apart: u64,
    total_ms: u64,
    transferred_bytes: u64,
    least_rewritten_bytes_s: Option<u64>,
}

impl Figures {
    pub(super) fn moved(&mut self, migrated: &Migrated) -> String {
        if migrated.cancelled {
            return "cancelled: the VM stays where it was".to_owned();
        }
        let Some(result) = &migrated.result else {
            let ms = migrated.resume_ms.unwrap_or(0.0);
            return format!("runs here, {ms:.1} ms after the decision");
        };
        self.completed += 1;
        self.qemu_downtime_ms = self.qemu_downtime_ms.max(result.qemu_downtime_ms);
        self.total_ms = self.total_ms.max(result.total_ms);
        self.transferred_bytes += result.ram_transferred_bytes;
        format!(
            "{} ms, downtime {} ms by QEMU, {:.1} MB, {} pages, wall {:.1} ms",
            result.total_ms,
            result.qemu_downtime_ms,
            result.ram_transferred_bytes as f64 / 1e6,
            result.normal_pages + result.duplicate_pages,
            result.wall_ms
        )
    }

    pub(super) fn downtime(&mut self, downtime: &Downtime) {
        self.guest_downtime_ms = self.guest_downtime_ms.max(downtime.guest_ms);
        self.network_downtime_ms = self.network_downtime_ms.max(downtime.network_ms);
        self.apart += u64::from(downtime.disagree);
    }

    pub(super) fn checked(&mut self, checked: &Checked) {
        let least = self.least_rewritten_bytes_s.unwrap_or(u64::MAX).min(checked.rewritten_bytes_s);
        self.least_rewritten_bytes_s = Some(least);
    }

    /// With those of another guest of the same party.
    pub(super) fn add(&mut self, other: &Self) {
        self.moves += other.moves;
        self.completed += other.completed;
        self.qemu_downtime_ms = self.qemu_downtime_ms.max(other.qemu_downtime_ms);
        self.guest_downtime_ms = self.guest_downtime_ms.max(other.guest_downtime_ms);
        self.network_downtime_ms = self.network_downtime_ms.max(other.network_downtime_ms);
        self.apart += other.apart;
        self.total_ms = self.total_ms.max(other.total_ms);
        self.transferred_bytes += other.transferred_bytes;
        let least = [self.least_rewritten_bytes_s, other.least_rewritten_bytes_s].into_iter().flatten().min();
        self.least_rewritten_bytes_s = least;
    }

    /// A party tells only what it saw: the cluster keeps the greatest of each name.
    pub(super) fn tell(&self, party: &Party) {
        if self.completed > 0 {
            party.metric("qemu_downtime_ms", self.qemu_downtime_ms);
            party.metric("total_ms", self.total_ms);
            party.metric(&format!("transferred_bytes_{}", party.me()), self.transferred_bytes);
        }
        if let Some(ms) = self.guest_downtime_ms {
            party.metric("guest_downtime_ms", ms);
        }
        if let Some(ms) = self.network_downtime_ms {
            party.metric("network_downtime_ms", ms);
        }
        if self.apart > 0 {
            party.metric("downtimes_apart", self.apart);
        }
        if let Some(rate) = self.least_rewritten_bytes_s {
            party.metric(&format!("rewritten_bytes_s_{}", party.me()), rate);
        }
    }
}
