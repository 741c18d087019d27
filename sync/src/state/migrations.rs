//! Migrations: who may run a VM while it moves.
//!
//! ```text
//! Begun ──▶ Prepared ──▶ (votes: source completed, destination loaded) ──▶ Moved ──▶ history
//!   └──────────┴──────────────────────┴────────▶ Aborted ──────────────────▶ history
//! ```
//!
//! The second vote moves the owner in its own entry: there is no entry between the votes and the move in which a crash
//! could leave both sides waiting. Before its vote a side may abort alone; after it only the decision counts, for it can
//! no longer know what the other side does. After a decision nothing changes it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{AttemptId, Epoch, HostId, MigrationId},
};

use super::{Decision, Entry, State, VmRecord, VmState, bounded, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{AbortMigration, BeginMigration, FinishMigration, MigrationPrepared},
    mutation::Mutation,
};

/// One movement of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Which movement.
    pub id: MigrationId,
    /// The source: owner when it began.
    pub from: HostId,
    /// The destination.
    pub to: HostId,
    /// When it began.
    pub begun_at: Epoch,
    /// The source voted: its QEMU completed and cannot resume by itself.
    pub source_completed: bool,
    /// The destination voted: everything is loaded.
    pub dest_loaded: bool,
    /// How far it is.
    pub phase: Phase,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The owner asked for it; the destination prepares.
    Begun,
    /// The destination listens.
    Prepared {
        /// Where, as QEMU is told.
        address: String,
        /// What else the source has to know.
        detail: Vec<u8>,
    },
    /// Decided: the destination owns the VM.
    Moved {
        /// The owner's new epoch.
        epoch: Epoch,
    },
    /// Decided: the source keeps the VM.
    Aborted {
        /// Why.
        why: Report,
    },
}

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Migration {
    /// Whether it is not decided yet.
    pub fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Begun | Phase::Prepared { .. })
    }

    fn side(&self, host: HostId) -> Option<Side> {
        if host == self.from {
            Some(Side::Source)
        } else if host == self.to {
            Some(Side::Destination)
        } else {
            None
        }
    }

    fn has_voted(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source_completed,
            Side::Destination => self.dest_loaded,
        }
    }
}

impl State {
    pub(super) fn begin_migration(&mut self, entry: &mut Entry, c: &BeginMigration) -> Decision {
        let id = &c.migration;
        let vm = self.owned_vm(&id.vm, c.from, c.epoch)?;
        if let Some(other) = &vm.migration {
            if other.id == *id && other.from == c.from && other.to == c.to {
                return Ok(Answer::Done);
            }
            return reject(ErrorCode::MigrationRefused, format!("{} is not finished", other.id));
        }
        if id.number <= vm.migrations {
            // A number counts calls, and a call may fail before it comes here: gaps are allowed, repetitions are not.
            let text = format!("{} has begun migration {} already", id.vm, vm.migrations);
            return reject(ErrorCode::MigrationRefused, text);
        }
        if c.from == c.to {
            return reject(ErrorCode::MigrationRefused, "source and destination are the same host");
        }
        let attempt = self.attempts.get(&id.vm.attempt).filter(|attempt| attempt.runs_on(c.from));
        let Some(attempt) = attempt else {
            return reject(ErrorCode::CaseClosed, format!("the party of the source in {} has ended", id.vm.attempt));
        };
        if attempt.cancelled {
            return reject(ErrorCode::Cancelled, format!("attempt {} was cancelled", attempt.id));
        }
        if !attempt.runs_on(c.to) {
            let text = format!("{} has no running party in {}", self.host_name(c.to), attempt.id);
            return reject(ErrorCode::MigrationRefused, text);
        }
        if !attempt.moves.contains_key(&id.vm.name) {
            within("VMs of an attempt that move", attempt.moves.len() + 1, bounds::MOVING_VMS_PER_ATTEMPT)?;
        }
        let migration = Migration {
            id: id.clone(),
            from: c.from,
            to: c.to,
            begun_at: entry.epoch(),
            source_completed: false,
            dest_loaded: false,
            phase: Phase::Begun,
        };
        if let Some(attempt) = self.attempts.get_mut(&id.vm.attempt) {
            Arc::make_mut(attempt).moves.insert(id.vm.name.clone(), id.number);
        }
        if let Some(vm) = self.vms.get_mut(&id.vm) {
            let vm = Arc::make_mut(vm);
            vm.migrations = id.number;
            vm.migration = Some(migration);
        }
        entry.tell(Effect::Vm(id.vm.clone()));
        Ok(Answer::Done)
    }

    pub(super) fn migration_prepared(&mut self, entry: &mut Entry, c: &MigrationPrepared) -> Decision {
        within("bytes of a prepared destination's word", c.address.len() + c.detail.len(), bounds::PREPARED_BYTES)?;
        let migration = self.open_migration(&c.migration)?;
        if c.host != migration.to {
            return reject(ErrorCode::MigrationRefused, "only the destination can say that it is prepared");
        }
        let prepared = Phase::Prepared { address: c.address.clone(), detail: c.detail.clone() };
        if migration.phase == prepared {
            return Ok(Answer::Done);
        }
        if migration.phase != Phase::Begun {
            return reject(ErrorCode::MigrationRefused, format!("{} is prepared already", c.migration));
        }
        self.change(entry, &c.migration, |_, migration| migration.phase = prepared);
        Ok(Answer::Done)
    }

    pub(super) fn vote(&mut self, entry: &mut Entry, id: &MigrationId, host: HostId, side: Side) -> Decision {
        let Some(migration) = self.migration(id) else { return Err(unknown(id)) };
        if migration.side(host) != Some(side) {
            return reject(ErrorCode::MigrationRefused, format!("{} is not that side", self.host_name(host)));
        }
        match &migration.phase {
            Phase::Moved { epoch } => return Ok(Answer::Voted { moved: Some(*epoch) }),
            Phase::Aborted { why } => {
                return reject(ErrorCode::MigrationRefused, format!("{id} was aborted: {}", why.title));
            }
            Phase::Begun => {
                return reject(ErrorCode::MigrationRefused, format!("the destination of {id} is not prepared"));
            }
            Phase::Prepared { .. } => {}
        }
        if migration.has_voted(side) {
            return Ok(Answer::Voted { moved: None });
        }
        let epoch = entry.epoch();
        let mut moved = None;
        self.change(entry, id, |vm, migration| {
            match side {
                Side::Source => migration.source_completed = true,
                Side::Destination => migration.dest_loaded = true,
            }
            let both = migration.source_completed && migration.dest_loaded;
            if both || Mutation::MoveOnOneVote.is_on() {
                migration.phase = Phase::Moved { epoch };
                vm.owner = migration.to;
                vm.epoch = epoch;
                vm.writer_epoch = epoch;
                vm.state = VmState::Owned;
                moved = Some(epoch);
            }
        });
        Ok(Answer::Voted { moved })
    }

    pub(super) fn abort_migration(&mut self, entry: &mut Entry, c: &AbortMigration) -> Decision {
        let Some(migration) = self.migration(&c.migration) else { return Err(unknown(&c.migration)) };
        let Some(side) = migration.side(c.host) else {
            return reject(ErrorCode::MigrationRefused, format!("{} is no side of it", self.host_name(c.host)));
        };
        match migration.phase {
            Phase::Aborted { .. } => return Ok(Answer::Done),
            Phase::Moved { .. } => {
                return reject(ErrorCode::MigrationRefused, format!("{} is decided: the VM has moved", c.migration));
            }
            _ if migration.has_voted(side) => {
                let text = format!("{} has voted; only the decision counts now", self.host_name(c.host));
                return reject(ErrorCode::MigrationRefused, text);
            }
            _ => {}
        }
        self.abort(entry, &c.migration, &c.why);
        Ok(Answer::Done)
    }

    pub(super) fn finish_migration(&mut self, entry: &mut Entry, c: &FinishMigration) -> Decision {
        let Some(vm) = self.vms.get(&c.migration.vm).filter(|vm| has(vm, &c.migration)) else {
            // In the history: finished before. Nowhere: never begun.
            return if self.migration(&c.migration).is_some() { Ok(Answer::Done) } else { Err(unknown(&c.migration)) };
        };
        if vm.owner != c.host {
            return reject(ErrorCode::NotOwner, format!("{} is owned by {}", vm.id, self.host_name(vm.owner)));
        }
        if vm.migration.as_ref().is_some_and(Migration::is_under_way) {
            return reject(ErrorCode::MigrationRefused, format!("{} is not decided", c.migration));
        }
        let mut decided = None;
        if let Some(vm) = self.vms.get_mut(&c.migration.vm) {
            decided = Arc::make_mut(vm).migration.take();
        }
        self.keep_history(c.migration.vm.attempt, decided);
        entry.tell(Effect::Vm(c.migration.vm.clone()));
        Ok(Answer::Done)
    }

    /// Decides what is under way between a host whose session fell and another.
    ///
    /// A destination that fell had its copy stopped by its guard, so the source may go on, voted or not. A source that
    /// fell after its vote has sent everything: the destination may still load it and take over, and the VM lives.
    pub(super) fn resolve_migrations_of(&mut self, entry: &mut Entry, host: HostId, why: &Report) {
        let falls = |m: &Migration| match m.side(host) {
            Some(Side::Destination) => true,
            Some(Side::Source) => !m.source_completed,
            None => false,
        };
        self.abort_where(entry, why, |m| m.is_under_way() && falls(m));
    }

    /// Aborts what a party that ended had begun and not voted for.
    pub(super) fn abort_unvoted_of(&mut self, entry: &mut Entry, attempt: AttemptId, host: HostId) {
        let name = self.host_name(host);
        let why = Report::new(ErrorCode::MigrationRefused, format!("the party of {name} ended during the migration"));
        self.abort_where(entry, &why, |m| {
            let unvoted = m.side(host).is_some_and(|side| !m.has_voted(side));
            m.id.vm.attempt == attempt && m.is_under_way() && unvoted
        });
    }

    fn abort_where(&mut self, entry: &mut Entry, why: &Report, which: impl Fn(&Migration) -> bool) {
        let hit = self.vms.values().filter_map(|vm| vm.migration.as_ref()).filter(|m| which(m));
        let ids: Vec<_> = hit.map(|m| m.id.clone()).collect();
        for id in ids {
            self.abort(entry, &id, why);
        }
    }

    fn abort(&mut self, entry: &mut Entry, id: &MigrationId, why: &Report) {
        let why = bounded(why);
        self.change(entry, id, |_, migration| migration.phase = Phase::Aborted { why });
    }

    fn open_migration(&self, id: &MigrationId) -> Result<&Migration, Rejected> {
        let Some(migration) = self.migration(id) else { return Err(unknown(id)) };
        match &migration.phase {
            Phase::Moved { .. } => reject(ErrorCode::MigrationRefused, format!("{id} is decided: the VM has moved")),
            Phase::Aborted { why } => reject(ErrorCode::MigrationRefused, format!("{id} was aborted: {}", why.title)),
            _ => Ok(migration),
        }
    }

    fn change(&mut self, entry: &mut Entry, id: &MigrationId, change: impl FnOnce(&mut VmRecord, &mut Migration)) {
        let Some(vm) = self.vms.get_mut(&id.vm).filter(|vm| has(vm, id)) else { return };
        let vm = Arc::make_mut(vm);
        if let Some(mut migration) = vm.migration.take() {
            change(vm, &mut migration);
            vm.migration = Some(migration);
        }
        entry.tell(Effect::Vm(id.vm.clone()));
    }

    pub(super) fn keep_history(&mut self, attempt: AttemptId, migration: Option<Migration>) {
        if let (Some(migration), Some(attempt)) = (migration, self.attempts.get_mut(&attempt)) {
            let history = &mut Arc::make_mut(attempt).history;
            history.push(migration);
            if history.len() > bounds::MIGRATIONS_PER_ATTEMPT {
                history.remove(0);
            }
        }
    }
}

fn has(vm: &VmRecord, id: &MigrationId) -> bool {
    vm.migration.as_ref().is_some_and(|migration| migration.id == *id)
}

fn unknown(id: &MigrationId) -> Rejected {
    Rejected::new(ErrorCode::MigrationRefused, format!("{id} is not on record"))
}
