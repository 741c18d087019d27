//! Join tokens: each admits one host, or one client, once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vt_protocol::{
    admin::AccessRole,
    error::ErrorCode,
    ids::{Digest, Epoch, HostId, Name, TokenId},
};

use super::{Decision, Entry, Role, State, reject, within};
use crate::{
    answer::{Answer, Effect, Rejected},
    bounds,
    command::{CreateClientToken, CreateToken, ExpireToken, NewHost, RevokeToken},
};

/// A join token, as far as the cluster keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public half.
    pub id: TokenId,
    /// Hash of its secret half.
    pub secret_hash: Digest,
    /// Whom it admits.
    pub grant: Grant,
    /// How it stands.
    pub status: TokenStatus,
    /// Who made it, for people.
    pub made_by: String,
    /// When it was made.
    pub made_at: Epoch,
    /// When it ends, seconds since 1970. Data for the leader, never compared here.
    pub expires_unix_s: u64,
}

/// Whom a token admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// A host, with this role.
    Host(Role),
    /// A client.
    Client(ClientGrant),
}

/// What the client is given that a token admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientGrant {
    /// What it may do.
    pub role: AccessRole,
    /// Its name; `None`: the one it wishes for.
    pub name: Option<Name>,
    /// For how long, seconds from its admission.
    pub valid_s: u32,
}

/// How a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenStatus {
    /// It can admit a host.
    Open,
    /// It admitted this one.
    Used {
        /// The host.
        host: HostId,
    },
    /// An admin ended it.
    Revoked,
    /// Its time is over.
    Expired,
    /// It admitted the client with this key.
    Enrolled {
        /// Digest of the client's public key.
        client: Digest,
    },
}

impl State {
    pub(super) fn create_token(&mut self, entry: &mut Entry, c: &CreateToken) -> Decision {
        let token = Token {
            id: c.token,
            secret_hash: c.secret_hash,
            grant: Grant::Host(c.role),
            status: TokenStatus::Open,
            made_by: c.made_by.clone(),
            made_at: entry.epoch(),
            expires_unix_s: c.expires_unix_s,
        };
        self.add_token(entry, token)
    }

    pub(super) fn create_client_token(&mut self, entry: &mut Entry, c: &CreateClientToken) -> Decision {
        let token = Token {
            id: c.token,
            secret_hash: c.secret_hash,
            grant: Grant::Client(c.grant.clone()),
            status: TokenStatus::Open,
            made_by: c.made_by.clone(),
            made_at: entry.epoch(),
            expires_unix_s: c.expires_unix_s,
        };
        self.add_token(entry, token)
    }

    fn add_token(&mut self, entry: &mut Entry, token: Token) -> Decision {
        within("bytes of a user's name", token.made_by.len(), bounds::TEXT_BYTES)?;
        let id = token.id;
        if self.tokens.contains_key(&id) {
            return reject(ErrorCode::RequestConflict, format!("token {id} exists already"));
        }
        if self.tokens.len() >= bounds::TOKENS {
            let ended = self.tokens.values().filter(|token| token.status != TokenStatus::Open);
            let Some(oldest) = ended.min_by_key(|token| token.made_at).map(|token| token.id) else {
                return reject(ErrorCode::TooLarge, format!("{} tokens are open", self.tokens.len()));
            };
            self.tokens.remove(&oldest);
            entry.tell(Effect::Token(oldest));
        }
        self.tokens.insert(id, Arc::new(token));
        entry.tell(Effect::Token(id));
        Ok(Answer::Done)
    }

    pub(super) fn revoke_token(&mut self, entry: &mut Entry, c: &RevokeToken) -> Decision {
        self.end_token(entry, c.token, TokenStatus::Revoked)
    }

    pub(super) fn expire_token(&mut self, entry: &mut Entry, c: &ExpireToken) -> Decision {
        self.end_token(entry, c.token, TokenStatus::Expired)
    }

    /// Ends an open token. One that ended in the same way already is left alone.
    fn end_token(&mut self, entry: &mut Entry, id: TokenId, status: TokenStatus) -> Decision {
        let Some(token) = self.tokens.get_mut(&id) else { return Err(unknown_token(id)) };
        if token.status == status {
            return Ok(Answer::Done);
        }
        check_open(token)?;
        Arc::make_mut(token).status = status;
        entry.tell(Effect::Token(id));
        Ok(Answer::Done)
    }

    /// The token, if it is open, or was used by this very host with this very key.
    pub(super) fn open_token(&self, id: TokenId, secret: Digest, host: &NewHost) -> Result<Arc<Token>, Rejected> {
        let token = self.known_token(id, secret)?;
        if let TokenStatus::Used { host: by } = token.status
            && by == host.id
            && self.hosts.get(&by).is_some_and(|known| known.public_key == host.public_key)
        {
            return Ok(token);
        }
        check_open(&token)?;
        Ok(token)
    }

    /// The token. A wrong secret is told like an unknown token: who guesses learns nothing.
    pub(super) fn known_token(&self, id: TokenId, secret: Digest) -> Result<Arc<Token>, Rejected> {
        let token = self.tokens.get(&id).filter(|token| token.secret_hash == secret);
        token.cloned().ok_or_else(|| unknown_token(id))
    }
}

fn unknown_token(id: TokenId) -> Rejected {
    Rejected::new(ErrorCode::TokenUnknown, format!("token {id} is not known, or its secret is another one"))
}

pub(super) fn check_open(token: &Token) -> Result<(), Rejected> {
    match token.status {
        TokenStatus::Open => Ok(()),
        TokenStatus::Used { host } => {
            reject(ErrorCode::TokenUsed, format!("token {} admitted {host} already", token.id))
        }
        TokenStatus::Enrolled { .. } => {
            reject(ErrorCode::TokenUsed, format!("token {} admitted a client already", token.id))
        }
        TokenStatus::Revoked => reject(ErrorCode::TokenRevoked, format!("token {} was revoked", token.id)),
        TokenStatus::Expired => reject(ErrorCode::TokenExpired, format!("the time of token {} is over", token.id)),
    }
}
