//! Join tokens: made here, decided by the cluster. The secret is shown once and stored nowhere.

use std::net::SocketAddr;

use tokio::time::Instant;
use vt_protocol::{
    admin::{NewToken, TokenCreate, TokenView},
    error::{ErrorCode, Report},
    ids::{RequestId, TokenId},
    token::{ADDRESSES_MAX, Secret, Token},
};
use vt_sync::command::{CreateToken, RevokeToken};

use super::{
    left,
    views::{self, stored_role},
};
use crate::{cluster::Cluster, control::tokens::unix_s, host::Host};

/// Longest life of a token, seconds.
const TTL_MAX_S: u32 = 24 * 3600;

impl Host {
    pub(super) async fn create_token(&self, create: TokenCreate, by: Instant) -> Result<NewToken, Report> {
        if !(1..=TTL_MAX_S).contains(&create.ttl_s) {
            let title = format!("a join token lives from 1 to {TTL_MAX_S} seconds, not {}", create.ttl_s);
            return Err(Report::new(ErrorCode::Usage, title));
        }
        // The secret follows from the request and a key of this host alone, so that a repeated call gives the same
        // token although the secret is stored nowhere.
        let id = TokenId((RequestId::derived(&[b"token", &create.request.0.to_le_bytes()]).0 as u64) | 1);
        let state = self.state();
        let known = state.tokens.get(&id);
        let secret = self.token_secret(create.request);
        let expires = known.map_or_else(|| unix_s() + u64::from(create.ttl_s), |token| token.expires_unix_s);
        match known {
            Some(token) if token.secret_hash == secret.hash() => {}
            Some(_) => {
                return Err(Report::new(ErrorCode::RequestConflict, "this token was made on another host")
                    .help("vtctl cluster token create"));
            }
            None => {
                let command = CreateToken {
                    token: id,
                    secret_hash: secret.hash(),
                    role: stored_role(create.role),
                    made_by: self.record().name.to_string(),
                    expires_unix_s: expires,
                };
                self.propose(create.request, command.into(), left(by)).await?;
            }
        }
        let token = Token {
            cluster: self.record().cluster,
            ca: self.identity().ca_digest(),
            id,
            secret,
            expires,
            addresses: self.addresses_for_token(),
        };
        Ok(NewToken { id, text: token.reveal(), expires_unix_s: expires })
    }

    /// Voters first, the leader before all: they can admit.
    fn addresses_for_token(&self) -> Vec<SocketAddr> {
        let (state, consensus) = (self.state(), self.consensus());
        let mut hosts: Vec<_> = state.hosts.values().collect();
        hosts.sort_by_key(|host| {
            (consensus.leader != Some(host.id), !consensus.voters.contains(&host.id), host.id != self.me(), host.id)
        });
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in hosts.iter().filter_map(|host| host.addresses.first()) {
            if !addresses.contains(address) && addresses.len() < ADDRESSES_MAX {
                addresses.push(*address);
            }
        }
        addresses
    }

    pub(super) fn tokens(&self) -> Vec<TokenView> {
        views::tokens(&self.state(), |made_by| made_by.parse().unwrap_or_else(|_| self.record().name.clone()))
    }

    pub(super) async fn revoke_token(&self, token: TokenId, by: Instant) -> Result<(), Report> {
        self.propose(RequestId::random(), RevokeToken { token }.into(), left(by)).await?;
        Ok(())
    }

    fn token_secret(&self, request: RequestId) -> Secret {
        Secret::derived(&self.identity().key().secret_for("join tokens"), &request.0.to_le_bytes())
    }
}
