//! Sessions: the renewed right of a host to act, from which everything it holds hangs and with which it falls.

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{Epoch, HostId},
    verdict::{Blame, Cause, Outcome},
};

use super::{Decision, Entry, PartyState, State, VmState, in_force, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{ExpireSession, OpenSession, RenewSessions, SuspectHost},
};

/// A host's right to act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its fencing number.
    pub epoch: Epoch,
    /// The daemon's start that holds it.
    pub incarnation: u64,
    /// How it stands.
    pub status: SessionStatus,
    /// When it was renewed last, or opened.
    pub renewed: Epoch,
}

impl Session {
    /// Its epoch, unless it is over.
    fn in_force(&self) -> Option<Epoch> {
        (self.status != SessionStatus::Expired).then_some(self.epoch)
    }
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// The host renews it.
    Live,
    /// The host was silent for a while. It still holds what it holds.
    Suspect,
    /// It is over; what it held was given up.
    Expired,
}

impl State {
    pub(super) fn open_session(&mut self, entry: &mut Entry, c: &OpenSession) -> Decision {
        let host = self.known_host(c.host)?;
        let name = host.name.clone();
        let held = host.session.as_ref().filter(|session| session.status != SessionStatus::Expired).cloned();
        entry.tell(Effect::Host(c.host));
        let epoch = match held {
            Some(session) if c.resume => session.epoch,
            _ => {
                self.fence_host(entry, c.host, &format!("the daemon of {name} started anew and lost what it held"));
                entry.epoch()
            }
        };
        let (status, renewed) = (SessionStatus::Live, entry.epoch());
        let session = Session { epoch, incarnation: c.incarnation, status, renewed };
        self.host_mut(c.host)?.session = Some(session);
        Ok(Answer::Epoch(epoch))
    }

    pub(super) fn renew_sessions(&mut self, entry: &mut Entry, c: &RenewSessions) -> Decision {
        within("sessions renewed at once", c.sessions.len(), bounds::HOSTS)?;
        let mut refused = Vec::new();
        for (id, epoch) in &c.sessions {
            match self.held_session(*id, *epoch) {
                Ok(status) => {
                    self.set_status(*id, SessionStatus::Live);
                    if let Ok(host) = self.host_mut(*id)
                        && let Some(session) = &mut host.session
                    {
                        session.renewed = entry.epoch();
                    }
                    if status != SessionStatus::Live {
                        entry.tell(Effect::Host(*id));
                    }
                }
                Err(_) => refused.push(*id),
            }
        }
        Ok(Answer::Renewed { refused })
    }

    pub(super) fn suspect_host(&mut self, entry: &mut Entry, c: &SuspectHost) -> Decision {
        let status = self.held_session(c.host, c.epoch)?;
        self.silent_since(c.host, c.renewed)?;
        if status == SessionStatus::Suspect {
            return Ok(Answer::Done);
        }
        self.set_status(c.host, SessionStatus::Suspect);
        entry.tell(Effect::Host(c.host));
        let name = self.host_name(c.host);
        let why = format!("{name} does not answer");
        for id in self.attempts_of(c.host) {
            let cause = Report::new(ErrorCode::HostLost, why.clone()).with("host", name.clone());
            let cause = Cause { blame: Blame::Infrastructure, report: cause };
            self.break_barriers_of(entry, id, c.host, &why, Some(cause));
        }
        Ok(Answer::Done)
    }

    pub(super) fn expire_session(&mut self, entry: &mut Entry, c: &ExpireSession) -> Decision {
        self.held_session(c.host, c.epoch)?;
        self.silent_since(c.host, c.renewed)?;
        let why = format!("{} stopped answering and its session ended", self.host_name(c.host));
        self.fence_host(entry, c.host, &why);
        self.set_status(c.host, SessionStatus::Expired);
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    /// The status of the session that holds `epoch`; refused where it is over.
    fn held_session(&self, host: HostId, epoch: Epoch) -> Result<SessionStatus, Rejected> {
        let host = self.known_host(host)?;
        match &host.session {
            Some(session) if in_force(session.in_force(), epoch) => Ok(session.status),
            Some(session) if session.epoch == epoch => {
                reject(ErrorCode::SessionOver, format!("the session of {} has expired", host.name))
            }
            Some(session) => {
                let text = format!("the session of {} has epoch {}, not {epoch}", host.name, session.epoch);
                reject(ErrorCode::SessionOver, text)
            }
            None => reject(ErrorCode::SessionOver, format!("{} has no session", host.name)),
        }
    }

    /// Refuses a verdict about silence that was decided before a renewal came and is late in the log, perhaps because the
    /// leader that reached it was cut off: the host acts on what it was told after it.
    fn silent_since(&self, host: HostId, renewed: Epoch) -> Result<(), Rejected> {
        let session = self.known_host(host)?.session.as_ref();
        if session.is_some_and(|session| session.renewed > renewed) {
            let text = format!("{} has renewed its session meanwhile", self.host_name(host));
            return reject(ErrorCode::SessionOver, text);
        }
        Ok(())
    }

    fn set_status(&mut self, host: HostId, status: SessionStatus) {
        if let Ok(host) = self.host_mut(host)
            && let Some(session) = &mut host.session
        {
            session.status = status;
        }
    }

    /// Live attempts in which the host's party still runs.
    fn attempts_of(&self, host: HostId) -> Vec<vt_protocol::ids::AttemptId> {
        let running = self.attempts.iter().filter(|(_, a)| a.parties.get(&host) == Some(&PartyState::Running));
        running.map(|(id, _)| *id).collect()
    }

    /// Whether the host runs a party, or may run a VM.
    pub(super) fn holds_something(&self, host: HostId) -> bool {
        let owns = self.vms.values().any(|vm| vm.owner == host && vm.state == VmState::Owned);
        owns || !self.attempts_of(host).is_empty()
    }

    /// Takes from a host everything it holds: migrations are resolved, its VMs are lost, its parties are fenced.
    pub(super) fn fence_host(&mut self, entry: &mut Entry, host: HostId, why: &str) {
        let report = Report::new(ErrorCode::HostLost, why).with("host", self.host_name(host));
        self.resolve_migrations_of(entry, host, &report);
        self.lose_vms_of(entry, host);
        for id in self.attempts_of(host) {
            let outcome = Outcome::Caused(Cause { blame: Blame::Infrastructure, report: report.clone() });
            self.end_party(entry, id, host, PartyState::Fenced, outcome);
        }
    }
}
