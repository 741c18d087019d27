//! The cluster's own record, its hosts and its settings.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::ErrorCode,
    ids::{ClusterId, Digest, Epoch, HostId, Name, TokenId},
};

use super::{Decision, Entry, Grant, Session, SessionStatus, State, TokenStatus, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{AdmitHost, Cordon, InitCluster, NewHost, RemoveHost, SetLabels, SetRole, SetSetting, UpdateHost},
};

/// What the cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: Name,
    /// Digest of the certificate of its authority.
    pub ca: Digest,
    /// How often it began: once, and once more at each recovery.
    pub generation: u64,
}

/// What part a host is wished to take in decisions. What it is at the moment is Raft's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Votes where a voter is needed.
    Voter,
    /// Never votes.
    Learner,
    /// Votes and runs nothing.
    Witness,
}

/// An admitted host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its Raft id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Where its daemon is reached.
    pub addresses: Vec<SocketAddr>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// The role it is wished to have.
    pub role: Role,
    /// Its public key: its identity.
    pub public_key: Vec<u8>,
    /// Version of its daemon.
    pub build: String,
    /// Digest of its facts.
    pub facts: Option<Digest>,
    /// The token that admitted it; `None` for the first host.
    pub admitted_with: Option<TokenId>,
    /// When it was admitted.
    pub admitted_at: Epoch,
    /// Its session; `None` until its daemon opened the first.
    pub session: Option<Session>,
    /// No new attempt begins on it.
    pub cordoned: bool,
}

impl Host {
    /// Whether its session is live: neither suspect nor expired.
    pub fn is_live(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.status == SessionStatus::Live)
    }
}

/// A host that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedHost {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Digest of its public key.
    pub key: Digest,
    /// When.
    pub at: Epoch,
}

impl State {
    pub(super) fn init_cluster(&mut self, entry: &mut Entry, c: &InitCluster) -> Decision {
        if let Some(cluster) = &self.cluster {
            return reject(ErrorCode::AlreadyClaimed, format!("cluster {} exists already", cluster.name));
        }
        self.check_new_host(&c.host)?;
        self.cluster = Some(Cluster { id: c.id, name: c.name.clone(), ca: c.ca, generation: 1 });
        self.add_host(entry, &c.host, Role::Voter, None);
        entry.tell(Effect::Cluster);
        Ok(Answer::Epoch(entry.epoch()))
    }

    pub(super) fn admit_host(&mut self, entry: &mut Entry, c: &AdmitHost) -> Decision {
        let token = self.open_token(c.token, c.secret_hash, &c.host)?;
        let Grant::Host(role) = token.grant else {
            return reject(ErrorCode::TokenForOther, format!("token {} admits a client, not a host", c.token));
        };
        if let TokenStatus::Used { host } = token.status {
            let admitted = self.hosts.get(&host).map_or_else(|| entry.epoch(), |host| host.admitted_at);
            return Ok(Answer::Epoch(admitted));
        }
        self.check_new_host(&c.host)?;
        within("hosts of the cluster", self.hosts.len() + 1, bounds::HOSTS)?;
        self.add_host(entry, &c.host, role, Some(c.token));
        // Its token was made after the present authority came.
        self.certify(Digest::of(&c.host.public_key));
        if let Some(token) = self.tokens.get_mut(&c.token) {
            Arc::make_mut(token).status = TokenStatus::Used { host: c.host.id };
        }
        entry.tell(Effect::Token(c.token));
        Ok(Answer::Epoch(entry.epoch()))
    }

    pub(super) fn add_host(&mut self, entry: &mut Entry, new: &NewHost, role: Role, token: Option<TokenId>) {
        let host = Host {
            id: new.id,
            name: new.name.clone(),
            addresses: new.addresses.clone(),
            labels: new.labels.clone(),
            role: new.role.unwrap_or(role),
            public_key: new.public_key.clone(),
            build: new.build.clone(),
            facts: new.facts,
            admitted_with: token,
            admitted_at: entry.epoch(),
            session: None,
            cordoned: false,
        };
        self.hosts.insert(new.id, Arc::new(host));
        entry.tell(Effect::Host(new.id));
    }

    pub(super) fn check_new_host(&self, new: &NewHost) -> Result<(), Rejected> {
        if new.id.0 == 0 {
            return reject(ErrorCode::BadParameter, "a host id is never zero");
        }
        check_addresses(&new.addresses)?;
        check_labels(&new.labels)?;
        within("bytes of a build's name", new.build.len(), bounds::TEXT_BYTES)?;
        within("bytes of a public key", new.public_key.len(), bounds::KEY_BYTES)?;
        if new.public_key.is_empty() {
            return reject(ErrorCode::BadParameter, "a host needs a public key");
        }
        let key = Digest::of(&new.public_key);
        if let Some(old) = self.removed.iter().find(|old| old.id == new.id || old.key == key) {
            return reject(ErrorCode::HostRemoved, format!("{} was removed and cannot come back as it was", old.name));
        }
        if self.host_named(new.name.as_str()).is_some() {
            return reject(ErrorCode::NameTaken, format!("a host named {} is in the cluster", new.name));
        }
        let same = |host: &&Arc<Host>| host.id == new.id || host.public_key == new.public_key;
        if let Some(host) = self.hosts.values().find(same) {
            return reject(ErrorCode::NameTaken, format!("{} is in the cluster with this id or key", host.name));
        }
        Ok(())
    }

    pub(super) fn host_mut(&mut self, id: HostId) -> Result<&mut Host, Rejected> {
        match self.hosts.get_mut(&id) {
            Some(host) => Ok(Arc::make_mut(host)),
            None => Err(unknown_host(&self.removed, id)),
        }
    }

    pub(super) fn known_host(&self, id: HostId) -> Result<&Arc<Host>, Rejected> {
        self.hosts.get(&id).ok_or_else(|| unknown_host(&self.removed, id))
    }

    pub(super) fn update_host(&mut self, entry: &mut Entry, c: &UpdateHost) -> Decision {
        check_addresses(&c.addresses)?;
        within("bytes of a build's name", c.build.len(), bounds::TEXT_BYTES)?;
        let host = self.host_mut(c.host)?;
        host.addresses.clone_from(&c.addresses);
        host.build.clone_from(&c.build);
        host.facts = c.facts;
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    pub(super) fn set_labels(&mut self, entry: &mut Entry, c: &SetLabels) -> Decision {
        let mut labels = self.known_host(c.host)?.labels.clone();
        for (key, value) in &c.labels {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        check_labels(&labels)?;
        self.host_mut(c.host)?.labels = labels;
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    pub(super) fn set_role(&mut self, entry: &mut Entry, c: &SetRole) -> Decision {
        let name = &self.known_host(c.host)?.name;
        let others = self.hosts.values().any(|host| host.id != c.host && host.role != Role::Learner);
        if c.role == Role::Learner && !others {
            let text = format!("{name} is the last host that may vote: without it nobody decides");
            return reject(ErrorCode::LastVoter, text);
        }
        self.host_mut(c.host)?.role = c.role;
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    pub(super) fn cordon(&mut self, entry: &mut Entry, c: &Cordon) -> Decision {
        self.host_mut(c.host)?.cordoned = c.cordoned;
        entry.tell(Effect::Host(c.host));
        Ok(Answer::Done)
    }

    pub(super) fn remove_host(&mut self, entry: &mut Entry, c: &RemoveHost) -> Decision {
        let host = Arc::clone(self.known_host(c.host)?);
        if self.hosts.len() == 1 {
            return reject(ErrorCode::BadParameter, "the last host of a cluster cannot be removed");
        }
        let over = host.session.as_ref().is_none_or(|session| session.status == SessionStatus::Expired);
        if !over && self.holds_something(c.host) {
            // Its guards are sure to have stopped its VMs when its session has ended, and not before.
            let text = format!("{} serves an attempt or owns a VM, and its session has not ended", host.name);
            return reject(ErrorCode::HostInUse, text);
        }
        self.drop_host(entry, c.host, &format!("{} was removed from the cluster", host.name))?;
        Ok(Answer::Done)
    }

    /// Takes a host off the record: what it holds is fenced, its key and id stay refused.
    pub(super) fn drop_host(&mut self, entry: &mut Entry, id: HostId, why: &str) -> Result<(), Rejected> {
        let host = Arc::clone(self.known_host(id)?);
        self.fence_host(entry, id, why);
        self.drop_copies_of(entry, id);
        self.reservations.remove(&id);
        self.hosts.remove(&id);
        let removed = Arc::make_mut(&mut self.removed);
        removed.push(RemovedHost {
            id: host.id,
            name: host.name.clone(),
            key: Digest::of(&host.public_key),
            at: entry.epoch(),
        });
        if removed.len() > bounds::REMOVED_HOSTS {
            removed.remove(0);
        }
        entry.tell(Effect::Host(id));
        Ok(())
    }

    pub(super) fn set_setting(&mut self, entry: &mut Entry, c: &SetSetting) -> Decision {
        within("bytes of a setting's key", c.key.len(), bounds::TEXT_BYTES)?;
        if let Some(value) = &c.value {
            within("bytes of a setting", value.len(), bounds::TEXT_BYTES)?;
            if !self.settings.contains_key(&c.key) {
                within("settings", self.settings.len() + 1, bounds::SETTINGS)?;
            }
        }
        let settings = Arc::make_mut(&mut self.settings);
        match &c.value {
            Some(value) => settings.insert(c.key.clone(), value.clone()),
            None => settings.remove(&c.key),
        };
        entry.tell(Effect::Setting(c.key.clone()));
        Ok(Answer::Done)
    }
}

fn unknown_host(removed: &[RemovedHost], id: HostId) -> Rejected {
    match removed.iter().find(|host| host.id == id) {
        Some(host) => Rejected::new(ErrorCode::HostRemoved, format!("{} was removed from the cluster", host.name)),
        None => Rejected::new(ErrorCode::UnknownHost, format!("{id} is not in the cluster")),
    }
}

fn check_addresses(addresses: &[SocketAddr]) -> Result<(), Rejected> {
    if addresses.is_empty() {
        return reject(ErrorCode::BadParameter, "a host needs an address");
    }
    within("addresses of a host", addresses.len(), bounds::ADDRESSES)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Rejected> {
    within("labels of a host", labels.len(), bounds::LABELS)?;
    labels.iter().try_for_each(|(key, value)| within("bytes of a label", key.len() + value.len(), bounds::TEXT_BYTES))
}
