//! An owner changes only by the decision of a migration, and that decision needs both votes.
//!
//! The source votes when its QEMU has completed and cannot resume by itself; the destination votes when everything is
//! loaded. Only then can the VM change hands with nothing lost and nothing running twice (design 7). Owner and writer
//! move in the entry of the second vote, to the epoch of that entry; a decision is never changed afterwards.

use std::collections::BTreeMap;

use vt_sync::{
    State,
    state::{Migration, Phase},
};

use super::{Invariant, Seen};

/// The rule.
#[derive(Debug)]
pub struct BothVotes;

fn decided(state: &State) -> BTreeMap<String, &Migration> {
    let current = state.vms.values().filter_map(|vm| vm.migration.as_ref());
    let history = state.attempts.values().chain(state.ended.values()).flat_map(|attempt| &attempt.history);
    current.chain(history).filter(|m| !m.is_under_way()).map(|m| (m.id.to_string(), m)).collect()
}

impl Invariant for BothVotes {
    fn rule(&self) -> &'static str {
        "an owner changes only by Move, and Move needs both votes"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Entry { before, after, .. } = seen else { return Ok(()) };
        for (id, vm) in &after.vms {
            if vm.epoch != vm.writer_epoch {
                return Err(format!("{id}: owner and writer have different epochs"));
            }
            let Some(old) = before.vms.get(id) else { continue };
            if (old.owner, old.epoch) == (vm.owner, vm.epoch) {
                continue;
            }
            let Some(m) = vm.migration.as_ref() else { return Err(format!("{id}: the owner changed by no migration")) };
            if !(m.source_completed && m.dest_loaded) {
                let voted = if m.source_completed { "source" } else { "destination" };
                return Err(format!("{}: it moved on the vote of the {voted} alone", m.id));
            }
            let by_it = m.phase == Phase::Moved { epoch: vm.epoch } && (m.from, m.to) == (old.owner, vm.owner);
            let undecided = old.migration.as_ref().is_some_and(Migration::is_under_way);
            if !by_it || !undecided || vm.epoch.0 != after.index || vm.epoch <= old.epoch {
                return Err(format!("{id}: the owner changed by something else than the decision of {}", m.id));
            }
        }
        let (old, new) = (decided(before), decided(after));
        match old.iter().find(|(id, m)| new.get(*id).is_some_and(|later| later.phase != m.phase)) {
            Some((id, _)) => Err(format!("{id}: a decision changed")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use std::sync::Arc;

    #[test]
    fn an_owner_that_changed_without_both_votes_is_noticed() {
        let before = moving(true, false);
        let mut after = moving(true, false);
        after.index += 1;
        let record = Arc::make_mut(after.vms.get_mut(&vm()).unwrap());
        (record.owner, record.epoch, record.writer_epoch) = (host(2), epoch(after.index), epoch(after.index));
        record.migration.as_mut().unwrap().phase = Phase::Moved { epoch: epoch(after.index) };
        assert!(entry(&mut BothVotes, &before, &after).unwrap_err().contains("of the source alone"));
        let record = Arc::make_mut(after.vms.get_mut(&vm()).unwrap());
        record.migration.as_mut().unwrap().dest_loaded = true;
        assert_eq!(entry(&mut BothVotes, &before, &after), Ok(()));
        Arc::make_mut(after.vms.get_mut(&vm()).unwrap()).writer_epoch = epoch(1);
        assert!(entry(&mut BothVotes, &before, &after).unwrap_err().contains("different epochs"));
    }
}
