//! Holds of persons on hosts: for a time and a reason. They keep the cases of others from beginning and fence nothing.

use std::sync::Arc;

use vt_protocol::{error::ErrorCode, ids::HostId};

use super::{Decision, Entry, State, reject, within};
use crate::{
    answer::{Answer, Effect},
    bounds,
    command::{ReleaseHost, ReserveHost},
};

impl State {
    /// Who holds one of these hosts, other than `person`.
    pub fn held_from(&self, person: &str, hosts: &[HostId]) -> Option<String> {
        hosts.iter().find_map(|host| {
            let hold = self.reservations.get(host).filter(|hold| hold.by != person)?;
            let reason = if hold.reason.is_empty() { String::new() } else { format!(": {}", hold.reason) };
            Some(format!("{} is reserved by {}{reason}", self.host_name(*host), hold.by))
        })
    }

    /// A person who holds a host already holds it anew.
    pub(super) fn reserve_host(&mut self, entry: &mut Entry, c: &ReserveHost) -> Decision {
        let name = self.known_host(c.host)?.name.clone();
        within("bytes of a person's name", c.hold.by.len(), bounds::TEXT_BYTES)?;
        within("bytes of a reason", c.hold.reason.len(), bounds::TEXT_BYTES)?;
        if let Some(known) = self.reservations.get(&c.host).filter(|known| known.by != c.hold.by) {
            return reject(ErrorCode::HostReserved, format!("{name} is reserved by {}", known.by));
        }
        self.reservations.insert(c.host, Arc::new(c.hold.clone()));
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    pub(super) fn release_host(&mut self, entry: &mut Entry, c: &ReleaseHost) -> Decision {
        self.known_host(c.host)?;
        let held = self.reservations.get(&c.host);
        if c.until_unix_s.is_none_or(|end| held.is_some_and(|held| held.until_unix_s == end)) {
            self.reservations.remove(&c.host);
            entry.tell(Effect::Host(c.host));
        }
        Ok(Answer::Done)
    }
}
