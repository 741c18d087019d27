//! The cluster's authority, and how another one follows it.
//!
//! From the entry that names the new one both are trusted, until an entry drops the old one. Hosts are their admitted
//! keys, whoever signed for them: no host is cut off by either entry, however long it was off. A client knows no keys of
//! hosts, only an authority: it has to get a certificate of the new one while both are trusted. Private keys are not here.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::ErrorCode,
    ids::{Digest, Epoch, Name},
};

use super::{Decision, Entry, State, TokenStatus, reject, within};
use crate::{
    answer::{Answer, Effect},
    bounds,
    command::{Certified, DropAuthority, RotateAuthority},
};

/// The present authority, once it is not the cluster's first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// Digests of the keys of hosts that show a certificate of it, and of clients that were given one.
    pub certified: BTreeSet<Digest>,
    /// The one before it, while that is trusted as well.
    pub previous: Option<Previous>,
}

/// An authority that was followed by another one and is still trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// A certificate of it for the key of the present authority, in DER: who trusts it alone finds the way from there.
    pub cross: Vec<u8>,
    /// Since when it is the former one.
    pub since: Epoch,
}

/// Who has no certificate of the present authority, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uncertified {
    /// Hosts: they get one as soon as they are there.
    pub hosts: Vec<Name>,
    /// Clients: they get one when they are used while both authorities are trusted, and need a new token after that.
    pub clients: Vec<Name>,
}

impl State {
    /// Who has no certificate of the present authority, where it is not the cluster's first.
    pub fn uncertified(&self) -> Uncertified {
        let Some(authority) = &self.authority else { return Uncertified::default() };
        let missing = |key: &Digest| !authority.certified.contains(key);
        let hosts = self.hosts.values().filter(|host| missing(&Digest::of(&host.public_key)));
        let clients = self.clients.iter().filter(|(key, _)| missing(key));
        Uncertified {
            hosts: hosts.map(|host| host.name.clone()).collect(),
            clients: clients.map(|(_, client)| client.name.clone()).collect(),
        }
    }

    pub(super) fn rotate_authority(&mut self, entry: &mut Entry, c: &RotateAuthority) -> Decision {
        for certificate in [&c.old, &c.new, &c.cross] {
            within("bytes of a certificate", certificate.len(), bounds::CERTIFICATE_BYTES)?;
        }
        if self.authority.as_ref().is_some_and(|authority| authority.previous.is_some()) {
            return reject(ErrorCode::Rotating, "the authority before the present one is still trusted");
        }
        let Some(cluster) = &mut self.cluster else { return reject(ErrorCode::Unclaimed, "there is no cluster yet") };
        if Digest::of(&c.old) != cluster.ca {
            return reject(ErrorCode::Rotating, "the authority is another one by now");
        }
        if Digest::of(&c.new) == cluster.ca {
            return reject(ErrorCode::BadParameter, "this is the present authority");
        }
        cluster.ca = Digest::of(&c.new);
        let previous = Previous { certificate: c.old.clone(), cross: c.cross.clone(), since: entry.epoch() };
        self.authority = Some(Arc::new(Authority {
            certificate: c.new.clone(),
            certified: BTreeSet::new(),
            previous: Some(previous),
        }));
        // They name the old authority, and who shows one is to be given a certificate of the new one.
        self.revoke_open_tokens(entry);
        entry.tell(Effect::Cluster);
        Ok(Answer::Done)
    }

    pub(super) fn certified(&mut self, entry: &mut Entry, c: &Certified) -> Decision {
        if self.cluster.as_ref().is_none_or(|cluster| cluster.ca != c.ca) {
            return reject(ErrorCode::Rotating, "this is not the present authority");
        }
        let known = self.hosts.values().any(|host| Digest::of(&host.public_key) == c.key);
        if !known && !self.clients.contains_key(&c.key) {
            return reject(ErrorCode::UnknownHost, "no host and no client with this key is admitted");
        }
        self.certify(c.key);
        entry.tell(Effect::Cluster);
        Ok(Answer::Done)
    }

    /// Notes that this admitted key has a certificate of the present authority; keys that are no longer admitted go.
    pub(super) fn certify(&mut self, key: Digest) {
        let Some(authority) = &mut self.authority else { return };
        let admitted: BTreeSet<Digest> = self.hosts.values().map(|host| Digest::of(&host.public_key)).collect();
        let certified = &mut Arc::make_mut(authority).certified;
        certified.insert(key);
        certified.retain(|key| admitted.contains(key) || self.clients.contains_key(key));
    }

    pub(super) fn drop_authority(&mut self, entry: &mut Entry, c: &DropAuthority) -> Decision {
        let Uncertified { hosts, clients } = self.uncertified();
        let Some(authority) = &mut self.authority else {
            return reject(ErrorCode::Rotating, "the cluster has its first authority");
        };
        match &authority.previous {
            Some(previous) if Digest::of(&previous.certificate) == c.old => {}
            // The same again, in other words.
            None => return Ok(Answer::Done),
            Some(_) => return reject(ErrorCode::Rotating, "another authority is the former one by now"),
        }
        let waiting = hosts.len() + clients.len();
        if waiting > 0 && !c.anyway {
            return reject(ErrorCode::Rotating, format!("{waiting} hosts and clients have no new certificate yet"));
        }
        Arc::make_mut(authority).previous = None;
        entry.tell(Effect::Cluster);
        Ok(Answer::Done)
    }

    /// Ends every token that could still be used.
    pub(super) fn revoke_open_tokens(&mut self, entry: &mut Entry) {
        for (id, token) in self.tokens.iter_mut().filter(|(_, token)| token.status == TokenStatus::Open) {
            Arc::make_mut(token).status = TokenStatus::Revoked;
            entry.tell(Effect::Token(*id));
        }
    }
}
