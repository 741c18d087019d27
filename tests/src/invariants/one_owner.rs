//! At most one copy of a VM runs at any instant, and only on the host that the log names as its owner.
//!
//! Two running copies write one disk: the guest is destroyed in a way that no test report would explain. Design 7 gives
//! the means (sessions, guards, two votes) and this is the end: at the instant an entry takes effect, and at the instant
//! a CPU begins to run, nothing runs that the log does not allow. The second half is stronger than counting copies: it
//! also catches a host that runs on after its session was given up, before anybody else has begun.

use std::sync::Arc;

use vt_sync::{
    State,
    state::{VmRecord, VmState},
};

use super::{Invariant, Running, Seen};

/// The rule, with what was seen last.
#[derive(Debug, Default)]
pub struct OneOwner {
    owners: std::collections::BTreeMap<vt_protocol::ids::VmId, Arc<VmRecord>>,
    running: Running,
}

impl OneOwner {
    fn check(&self) -> Result<(), String> {
        for (vm, hosts) in &self.running {
            if hosts.len() > 1 {
                let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                return Err(format!("{vm} runs on {}", hosts.join(" and ")));
            }
            let Some(host) = hosts.first() else { continue };
            match self.owners.get(vm) {
                None => return Err(format!("{vm} runs on {host} and is on no record")),
                Some(record) if record.owner != *host => {
                    return Err(format!("{vm} runs on {host} and {} owns it", record.owner));
                }
                Some(record) if record.state == VmState::Lost => {
                    return Err(format!("{vm} runs on {host}, whose session is over"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, state: &State) {
        self.owners.clone_from(&state.vms);
    }
}

impl Invariant for OneOwner {
    fn rule(&self) -> &'static str {
        "at most one copy of a VM runs, and only where the log says"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Entry { after, .. } => self.take(after),
            Seen::Running(running) => self.running.clone_from(running),
            _ => return Ok(()),
        }
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn two_copies_and_a_copy_where_it_may_not_run_are_noticed() {
        let mut rule = OneOwner::default();
        let world = owned_by(1);
        rule.take(&world);
        let runs = |hosts: &[u64]| Running::from([(vm(), hosts.iter().map(|id| host(*id)).collect())]);
        assert_eq!(rule.see(&Seen::Running(&runs(&[1]))), Ok(()));
        assert!(rule.see(&Seen::Running(&runs(&[1, 2]))).unwrap_err().contains("runs on hst_1 and hst_2"));
        assert!(rule.see(&Seen::Running(&runs(&[2]))).unwrap_err().contains("hst_1 owns it"));
        let mut rule = OneOwner::default();
        assert!(rule.see(&Seen::Running(&runs(&[1]))).unwrap_err().contains("on no record"));
        let mut lost = world;
        Arc::make_mut(lost.vms.get_mut(&vm()).unwrap()).state = VmState::Lost;
        rule.take(&lost);
        assert!(rule.check().unwrap_err().contains("session is over"));
    }
}
