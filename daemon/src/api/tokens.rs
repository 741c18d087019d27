//! Join tokens: made here, decided by the cluster. The secret is shown once and stored nowhere.

use std::net::SocketAddr;

use tokio::time::Instant;
use vt_protocol::{
    admin::{NewToken, TokenCreate, TokenView},
    error::{ErrorCode, Report},
    ids::{Digest, RequestId, TokenId},
    token::{ADDRESSES_MAX, CaDigest, Secret, Token},
};
use vt_sync::{
    Command,
    command::{CreateToken, RevokeToken},
};

use super::{
    left,
    views::{self, stored_role},
};
use crate::{cluster::Cluster, host::Host};

/// Longest life of a token, seconds.
const TTL_MAX_S: u32 = 24 * 3600;

impl Host {
    pub(super) async fn create_token(&self, create: TokenCreate, by: Instant) -> Result<NewToken, Report> {
        let role = stored_role(create.role);
        self.new_token(create.request, create.ttl_s, by, |token, secret_hash, made_by, expires_unix_s| {
            CreateToken { token, secret_hash, role, made_by, expires_unix_s }.into()
        })
        .await
    }

    /// Makes a token with the command that puts it into the log: of its id, the hash of its secret, its maker, its end.
    pub(super) async fn new_token(
        &self,
        request: RequestId,
        ttl_s: u32,
        by: Instant,
        command: impl FnOnce(TokenId, Digest, String, u64) -> Command,
    ) -> Result<NewToken, Report> {
        if !(1..=TTL_MAX_S).contains(&ttl_s) {
            let title = format!("a join token lives from 1 to {TTL_MAX_S} seconds, not {ttl_s}");
            return Err(Report::new(ErrorCode::Usage, title));
        }
        // The secret follows from the request and a key of this host alone, so that a repeated call gives the same
        // token although the secret is stored nowhere.
        let id = TokenId((RequestId::derived(&[b"token", &request.0.to_le_bytes()]).0 as u64) | 1);
        let state = self.state();
        let known = state.tokens.get(&id);
        let secret = self.token_secret(request);
        let expires = match known {
            Some(token) => token.expires_unix_s,
            None => self.cluster_clock().await?.saturating_add(ttl_s.into()),
        };
        match known {
            Some(token) if token.secret_hash == secret.hash() => {}
            Some(_) => {
                return Err(Report::new(ErrorCode::RequestConflict, "this token was made on another host")
                    .help("vtctl cluster token create"));
            }
            None => {
                let command = command(id, secret.hash(), self.record().name.to_string(), expires);
                self.propose(request, command, left(by)).await?;
            }
        }
        let token = Token {
            cluster: self.record().cluster,
            ca: self.present_authority(),
            id,
            secret,
            expires,
            addresses: self.addresses(ADDRESSES_MAX),
        };
        Ok(NewToken { id, text: token.reveal(), expires_unix_s: expires })
    }

    /// What whoever comes now has to find at the other end.
    fn present_authority(&self) -> CaDigest {
        match &self.state().authority {
            Some(authority) => CaDigest::of(&authority.certificate),
            None => self.identity().ca_digest(),
        }
    }

    /// Where hosts are reached: voters first, the leader before all, because they can admit.
    pub(super) fn addresses(&self, most: usize) -> Vec<SocketAddr> {
        let (state, consensus) = (self.state(), self.consensus());
        let mut hosts: Vec<_> = state.hosts.values().collect();
        hosts.sort_by_key(|host| {
            (consensus.leader != Some(host.id), !consensus.voters.contains(&host.id), host.id != self.me(), host.id)
        });
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in hosts.iter().filter_map(|host| host.addresses.first()) {
            if !addresses.contains(address) && addresses.len() < most {
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
