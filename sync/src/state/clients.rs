//! Clients: keys that a token admitted to use the cluster from outside its hosts, each with a name and a role.
//!
//! What is not on record here is refused, whatever its certificate says: taking a record away is how a key is revoked.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    admin::AccessRole,
    error::ErrorCode,
    ids::{Digest, Epoch, Name, TokenId},
};

use super::{Decision, Entry, Grant, State, TokenStatus, reject, within};
use crate::{
    answer::{Answer, Effect},
    bounds,
    command::{AdmitClient, RemoveClient},
};

/// An admitted client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its name, unique among clients.
    pub name: Name,
    /// What it may do.
    pub role: AccessRole,
    /// When its certificate ends, seconds since 1970. Data only: it is never compared here.
    pub until_unix_s: u64,
    /// The token that admitted it.
    pub admitted_with: TokenId,
    /// When it was admitted.
    pub admitted_at: Epoch,
}

/// Clients by the digest of their public key.
pub type Clients = BTreeMap<Digest, Client>;

impl State {
    /// An admitted client by its name.
    pub fn client_named(&self, name: &str) -> Option<(Digest, &Client)> {
        self.clients.iter().find(|(_, client)| client.name.as_str() == name).map(|(key, client)| (*key, client))
    }

    /// Consumes a token and admits a client, both or neither. The same key again is answered alike.
    pub(super) fn admit_client(&mut self, entry: &mut Entry, c: &AdmitClient) -> Decision {
        let token = self.known_token(c.token, c.secret_hash)?;
        if token.status == (TokenStatus::Enrolled { client: c.key })
            && let Some(known) = self.clients.get(&c.key)
        {
            return Ok(Answer::Epoch(known.admitted_at));
        }
        super::tokens::check_open(&token)?;
        let Grant::Client(grant) = &token.grant else {
            return reject(ErrorCode::TokenForOther, format!("token {} admits a host, not a client", c.token));
        };
        if self.clients.contains_key(&c.key) {
            return reject(ErrorCode::NameTaken, "this key is admitted already");
        }
        let name = grant.name.as_ref().unwrap_or(&c.name);
        if self.client_named(name.as_str()).is_some() {
            return reject(ErrorCode::NameTaken, format!("a client named {name} is admitted already"));
        }
        within("clients of the cluster", self.clients.len() + 1, bounds::CLIENTS)?;
        let client = Client {
            name: name.clone(),
            role: grant.role,
            until_unix_s: c.until_unix_s,
            admitted_with: c.token,
            admitted_at: entry.epoch(),
        };
        Arc::make_mut(&mut self.clients).insert(c.key, client);
        // Its token was made after the present authority came.
        self.certify(c.key);
        if let Some(token) = self.tokens.get_mut(&c.token) {
            Arc::make_mut(token).status = TokenStatus::Enrolled { client: c.key };
        }
        entry.tell(Effect::Client(c.key));
        entry.tell(Effect::Token(c.token));
        Ok(Answer::Epoch(entry.epoch()))
    }

    pub(super) fn remove_client(&mut self, entry: &mut Entry, c: &RemoveClient) -> Decision {
        if !self.clients.contains_key(&c.key) {
            return reject(ErrorCode::UnknownClient, "no client with this key is admitted");
        }
        Arc::make_mut(&mut self.clients).remove(&c.key);
        entry.tell(Effect::Client(c.key));
        Ok(Answer::Done)
    }
}
