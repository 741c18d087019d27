//! Owner records of VMs: one entry says which host may run a VM and write its images, under which epoch.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::ErrorCode,
    ids::{AttemptId, Digest, Epoch, HostId, Name, VmId},
};

use super::{Decision, Entry, Migration, State, in_force, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{ClaimVm, ReleaseVm},
};

/// Who owns a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Which VM.
    pub id: VmId,
    /// The host that may run it.
    pub owner: HostId,
    /// The owner's fencing number.
    pub epoch: Epoch,
    /// When it was claimed.
    pub claimed: Epoch,
    /// Fencing number of who writes its images; moves with the owner, in the same entry.
    pub writer_epoch: Epoch,
    /// A number no other VM of the cluster has meanwhile, from 0: address and MAC of its guest are made from it.
    pub slot: u16,
    /// The image it writes.
    pub image: Name,
    /// Digest of its full description.
    pub spec: Option<Digest>,
    /// Whether the owner still has its session.
    pub state: VmState,
    /// Number of the last migration begun; 0 before the first.
    pub migrations: u32,
    /// The migration under way, or decided and not finished.
    pub migration: Option<Migration>,
    /// Other images that its disks lie upon.
    pub also: Vec<Name>,
    /// Pools of one disk each, which no other VM may have meanwhile.
    pub alone: Vec<Name>,
}

/// Whether a VM's owner may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// The owner may run it.
    Owned,
    /// The owner lost its session; its guard has stopped the VM.
    Lost,
}

impl VmRecord {
    /// Whether one of its disks lies upon that image.
    pub fn lies_on(&self, image: &Name) -> bool {
        self.image == *image || self.also.contains(image)
    }

    /// Whether that host, which knows it under that epoch, may let it run again where it was stopped. Not while it moves:
    /// a source that has completed and is let run would run beside the destination.
    pub fn may_go_on(&self, host: HostId, epoch: Epoch) -> bool {
        let moves = self.migration.as_ref().is_some_and(Migration::is_under_way);
        self.owner == host && self.epoch == epoch && self.state == VmState::Owned && !moves
    }
}

impl State {
    pub(super) fn claim_vm(&mut self, entry: &mut Entry, c: &ClaimVm) -> Decision {
        let attempt = self.running_party(c.vm.attempt, c.epoch, c.host)?;
        if attempt.cancelled {
            return reject(ErrorCode::Cancelled, format!("attempt {} was cancelled", c.vm.attempt));
        }
        if let Some(vm) = self.vms.get(&c.vm) {
            // A repeated claim after a lost answer, as long as nothing happened to the VM since.
            let same = vm.owner == c.host && vm.state == VmState::Owned && vm.image == c.image && vm.spec == c.spec;
            if same && vm.epoch == vm.claimed {
                return Ok(Answer::Epoch(vm.epoch));
            }
            return reject(ErrorCode::NotOwner, format!("{} is owned by {}", c.vm, self.host_name(vm.owner)));
        }
        let count = self.vms.keys().filter(|vm| vm.attempt == c.vm.attempt).count();
        within("VMs of an attempt", count + 1, bounds::VMS_PER_ATTEMPT)?;
        within("VMs", self.vms.len() + 1, bounds::VMS)?;
        within("images of a VM", c.also.len(), bounds::IMAGES_PER_VM)?;
        within("pools of a VM", c.alone.len(), bounds::IMAGES_PER_VM)?;
        for (at, pool) in c.alone.iter().enumerate() {
            let other = self.vms.values().find(|vm| vm.alone.contains(pool)).map(|vm| &vm.id);
            if let Some(has) = other.or_else(|| c.alone[..at].contains(pool).then_some(&c.vm)) {
                return reject(ErrorCode::PoolInUse, format!("VM {has} has the disk of pool {pool}"));
            }
        }
        let moves = attempt.moves.get(&c.vm.name).copied().unwrap_or(0);
        let record = VmRecord {
            slot: self.free_slot(),
            id: c.vm.clone(),
            owner: c.host,
            epoch: entry.epoch(),
            claimed: entry.epoch(),
            writer_epoch: entry.epoch(),
            image: c.image.clone(),
            spec: c.spec,
            state: VmState::Owned,
            migrations: moves,
            migration: None,
            also: c.also.clone(),
            alone: c.alone.clone(),
        };
        self.vms.insert(c.vm.clone(), Arc::new(record));
        for image in std::iter::once(&c.image).chain(&c.also) {
            self.image_used(image, c.vm.attempt.case.job);
        }
        entry.tell(Effect::Vm(c.vm.clone()));
        Ok(Answer::Epoch(entry.epoch()))
    }

    pub(super) fn release_vm(&mut self, entry: &mut Entry, c: &ReleaseVm) -> Decision {
        let vm = self.owned_vm(&c.vm, c.host, c.epoch)?;
        if vm.migration.as_ref().is_some_and(Migration::is_under_way) {
            return reject(ErrorCode::MigrationRefused, format!("{} is being migrated", c.vm));
        }
        let decided = vm.migration.clone();
        self.vms.remove(&c.vm);
        self.keep_history(c.vm.attempt, decided);
        entry.tell(Effect::Vm(c.vm.clone()));
        Ok(Answer::Done)
    }

    /// The smallest slot that no VM has.
    fn free_slot(&self) -> u16 {
        let taken: BTreeSet<u16> = self.vms.values().map(|vm| vm.slot).collect();
        (0..).find(|slot| !taken.contains(slot)).expect("there are fewer VMs than numbers")
    }

    /// The record of a VM that this host owns under this epoch.
    pub(super) fn owned_vm(&self, id: &VmId, host: HostId, epoch: Epoch) -> Result<&Arc<VmRecord>, Rejected> {
        let Some(vm) = self.vms.get(id) else {
            return reject(ErrorCode::NotOwner, format!("{id} is not on record"));
        };
        if vm.owner != host || !in_force(Some(vm.epoch), epoch) {
            let owner = self.host_name(vm.owner);
            return reject(ErrorCode::NotOwner, format!("{id} is owned by {owner} under epoch {}", vm.epoch));
        }
        if vm.state == VmState::Lost {
            return reject(
                ErrorCode::SessionOver,
                format!("{} lost its session and with it {id}", self.host_name(host)),
            );
        }
        Ok(vm)
    }

    /// Marks the VMs of a host whose session fell.
    pub(super) fn lose_vms_of(&mut self, entry: &mut Entry, host: HostId) {
        for (id, vm) in &mut self.vms {
            if vm.owner == host && vm.state == VmState::Owned {
                Arc::make_mut(vm).state = VmState::Lost;
                entry.tell(Effect::Vm(id.clone()));
            }
        }
    }

    /// Drops the records of an attempt that is closing: no party is left that could claim or run them.
    pub(super) fn drop_vms_of(&mut self, entry: &mut Entry, attempt: AttemptId) {
        let ids: Vec<_> = self.vms.keys().filter(|vm| vm.attempt == attempt).cloned().collect();
        for id in ids {
            if let Some(vm) = self.vms.remove(&id) {
                self.keep_history(attempt, vm.migration.clone());
                entry.tell(Effect::Vm(id));
            }
        }
    }
}
