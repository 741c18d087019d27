//! Who shows a fencing number that is over changes nothing.
//!
//! A host that was given up, an attempt that was closed, an owner that was replaced: each may still have messages under
//! way, or be alive behind a cut link. Its number is older than the one in force, and by that alone it is refused
//! (design 2: session, attempt and owner have epochs). The rule finds the number in force from the state before the
//! entry by itself and lets nothing pass that shows another one.

use vt_protocol::ids::{AttemptId, Epoch, HostId, VmId};
use vt_sync::{
    Command, State,
    command::{Arrive, BeginMigration, BreakBarrier, ClaimVm, ExpireSession, PartyEnded, ReleaseVm, SuspectHost},
    state::{SessionStatus, VmState},
};

use super::{Invariant, Seen, same_but_for_memory};

/// The rule.
#[derive(Debug)]
pub struct StaleEpoch;

fn session(state: &State, host: HostId) -> Option<Epoch> {
    let session = state.hosts.get(&host)?.session.as_ref()?;
    (session.status != SessionStatus::Expired).then_some(session.epoch)
}

fn attempt(state: &State, id: AttemptId) -> Option<Epoch> {
    state.attempts.get(&id).map(|attempt| attempt.epoch)
}

fn owner(state: &State, id: &VmId) -> Option<Epoch> {
    state.vms.get(id).filter(|vm| vm.state == VmState::Owned).map(|vm| vm.epoch)
}

/// The number shown and the one in force, for commands that show one.
fn shown(state: &State, command: &Command) -> Option<(Epoch, Option<Epoch>)> {
    Some(match command {
        Command::SuspectHost(SuspectHost { host, epoch, .. }) => (*epoch, session(state, *host)),
        Command::ExpireSession(ExpireSession { host, epoch, .. }) => (*epoch, session(state, *host)),
        Command::PartyEnded(PartyEnded { attempt: id, epoch, .. })
        | Command::Arrive(Arrive { attempt: id, epoch, .. })
        | Command::BreakBarrier(BreakBarrier { attempt: id, epoch, .. }) => (*epoch, attempt(state, *id)),
        Command::ClaimVm(ClaimVm { vm, epoch, .. }) => (*epoch, attempt(state, vm.attempt)),
        Command::ReleaseVm(ReleaseVm { vm, epoch, .. }) => (*epoch, owner(state, vm)),
        Command::BeginMigration(BeginMigration { migration, epoch, .. }) => (*epoch, owner(state, &migration.vm)),
        _ => return None,
    })
}

impl Invariant for StaleEpoch {
    fn rule(&self) -> &'static str {
        "a stale epoch changes nothing"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Entry { before, request, after, .. } = seen else { return Ok(()) };
        if let Command::RenewSessions(renewals) = &request.command {
            // Of one entry some may hold and some not: each is looked at alone.
            for (host, epoch) in &renewals.sessions {
                let held = |state: &State| state.hosts.get(host).map(|host| host.session.clone());
                if session(before, *host) != Some(*epoch) && held(before) != held(after) {
                    return Err(format!("{host} renewed its session with epoch {epoch}, which is over"));
                }
            }
        }
        if let Some((shown, in_force)) = shown(before, &request.command)
            && in_force != Some(shown)
            && !same_but_for_memory(before, after)
        {
            let in_force = in_force.map_or_else(|| "over".to_owned(), |epoch| epoch.to_string());
            return Err(format!("{} shows epoch {shown}, in force is {in_force}", request.command.name()));
        }
        for (id, host) in &after.hosts {
            let old = before.hosts.get(id).and_then(|host| host.session.as_ref());
            if let (Some(old), Some(new)) = (old, &host.session)
                && old.status == SessionStatus::Expired
                && new.status != SessionStatus::Expired
                && old.epoch == new.epoch
            {
                return Err(format!("the session of {id} came back under epoch {}", new.epoch));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use std::sync::Arc;
    use vt_sync::{Request, command::RenewSessions};

    #[test]
    fn an_effect_of_an_old_number_is_noticed() {
        let before = owned_by(1);
        let mut after = before.clone();
        after.vms.clear();
        let release = |n: u64| Request::new(ReleaseVm { vm: vm(), host: host(1), epoch: epoch(n) });
        let now = before.vms[&vm()].epoch.0;
        assert_eq!(asked(&mut StaleEpoch, &before, &release(now), &after), Ok(()));
        assert!(asked(&mut StaleEpoch, &before, &release(now - 1), &after).unwrap_err().contains("shows epoch"));
        assert_eq!(asked(&mut StaleEpoch, &before, &release(now - 1), &before), Ok(()));

        let live = before.hosts[&host(1)].session.clone().unwrap();
        let mut expired = before.clone();
        let session = &mut Arc::make_mut(expired.hosts.get_mut(&host(1)).unwrap()).session;
        session.as_mut().unwrap().status = SessionStatus::Expired;
        let renew = Request::new(RenewSessions { sessions: vec![(host(1), live.epoch)] });
        assert!(asked(&mut StaleEpoch, &expired, &renew, &before).unwrap_err().contains("renewed its session"));
        let other = Request::new(RenewSessions { sessions: vec![] });
        assert!(asked(&mut StaleEpoch, &expired, &other, &before).unwrap_err().contains("came back"));
    }
}
