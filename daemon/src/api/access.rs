//! Clients: tokens for them, their admission, who they are, and an end to it. And who did what.
//!
//! A client is admitted like a host: a token that is used once, a key that it makes itself, one entry that consumes the
//! one and admits the other. Its certificate is only a carrier of that key, with dates.

use futures_util::future::join_all;
use tokio::time::Instant;
use vt_protocol::{
    admin::{AccessRole, ClientToken, ClientView, NewToken},
    audit::{AuditEntry, AuditQuery, AuditTrail},
    error::{ErrorCode, Report},
    identity::{Validity, authority::key_of_request},
    ids::{Digest, Name, RequestId},
    join::{EnrollRequest, Enrolled, JoinAnswer, JoinRefusal},
    peer::{PeerReply, PeerRequest},
};
use vt_sync::{
    State, bounds,
    command::{AdmitClient, CreateClientToken, RemoveClient},
    state::{ClientGrant, Grant, TokenStatus},
};

use super::{ASKS, blocking, left};
use crate::{
    audit,
    cluster::{AskError, Cluster, ProposeError},
    control::tokens::unix_s,
    host::Host,
    nearest::nearest,
};

/// Longest life of a client's certificate, seconds.
const VALID_MAX_S: u32 = 400 * 24 * 3600;

/// What a client is given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    name: Name,
    role: AccessRole,
    until_unix_s: u64,
    /// Whether it has still to be admitted; else this is a repetition.
    new: bool,
}

impl Host {
    pub(super) async fn create_client_token(&self, create: ClientToken, by: Instant) -> Result<NewToken, Report> {
        let ClientToken { request, role, name, ttl_s, valid_s } = create;
        if !(1..=VALID_MAX_S).contains(&valid_s) {
            let title = format!("a client's certificate lives from 1 to {VALID_MAX_S} seconds, not {valid_s}");
            return Err(Report::new(ErrorCode::Usage, title));
        }
        let grant = ClientGrant { role, name, valid_s };
        self.new_token(request, ttl_s, by, |token, secret_hash, made_by, expires_unix_s| {
            CreateClientToken { token, secret_hash, grant, made_by, expires_unix_s }.into()
        })
        .await
    }

    /// Admits a client and gives it a certificate.
    pub(crate) async fn enroll_client(&self, request: EnrollRequest, by: Instant) -> JoinAnswer {
        match self.try_enroll(request, by).await {
            Ok(enrolled) => JoinAnswer::Enrolled(Box::new(enrolled)),
            Err(refusal) => JoinAnswer::Refused(refusal),
        }
    }

    async fn try_enroll(&self, request: EnrollRequest, by: Instant) -> Result<Enrolled, JoinRefusal> {
        let bad = |error: &dyn std::error::Error| JoinRefusal::BadRequest(error.to_string());
        let key = key_of_request(&request.signing_request).map_err(|error| bad(&error))?.digest();
        let state = self.with_token(request.token).await?;
        let now = self.cluster_clock().await.unwrap_or_else(|_| unix_s());
        let terms = terms(&state, &request, key, now)?;
        // Signed first: an entry that admits a client which then gets no certificate would strand it.
        let dates = Validity { from: now.saturating_sub(300), until: terms.until_unix_s };
        let authority = self.authority().await?;
        let issued = authority.issue_client(&request.signing_request, terms.role, &terms.name, dates);
        let certificate = issued.map_err(|error| bad(&error))?.to_vec();
        if terms.new {
            self.make_room(&state, now, by).await;
            let command = AdmitClient {
                token: request.token,
                secret_hash: request.secret.hash(),
                key,
                name: terms.name.clone(),
                until_unix_s: terms.until_unix_s,
            };
            match self.propose(RequestId::random(), command.into(), left(by)).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(rejected)) => return Err(JoinRefusal::Other(Box::new(rejected.into()))),
                Err(error @ ProposeError::NoQuorum) => return Err(JoinRefusal::Unavailable(error.to_string())),
                Err(error) => return Err(JoinRefusal::Undecided(error.to_string())),
            }
        }
        Ok(Enrolled {
            cluster: self.record().cluster,
            cluster_name: self.record().cluster_name.clone(),
            name: terms.name,
            role: terms.role,
            certificate,
            ca: authority.certificate().to_vec(),
            until_unix_s: terms.until_unix_s,
            endpoints: self.addresses(bounds::HOSTS),
        })
    }

    /// Where as many clients are admitted as there may be, those whose certificates are over make room.
    async fn make_room(&self, state: &State, now: u64, by: Instant) {
        if state.clients.len() < bounds::CLIENTS {
            return;
        }
        for (key, _) in state.clients.iter().filter(|(_, client)| client.until_unix_s < now) {
            if let Err(error) = self.propose(RequestId::random(), RemoveClient { key: *key }.into(), left(by)).await {
                tracing::info!(%error, "a client whose certificate is over stays on record");
            }
        }
    }

    pub(super) fn clients(&self) -> Vec<ClientView> {
        let state = self.state();
        let view = |(key, client): (&Digest, &vt_sync::state::Client)| ClientView {
            name: client.name.clone(),
            role: client.role,
            key: *key,
            until_unix_s: client.until_unix_s,
            admitted_with: client.admitted_with,
        };
        let mut clients: Vec<_> = state.clients.iter().map(view).collect();
        clients.sort_by(|one, other| one.name.cmp(&other.name));
        clients
    }

    pub(super) async fn revoke_client(&self, name: &Name, by: Instant) -> Result<(), Report> {
        let state = self.state();
        let Some((key, _)) = state.client_named(name.as_str()) else {
            let report = Report::new(ErrorCode::UnknownClient, format!("no client named {name} is admitted"));
            let near = nearest(name.as_str(), state.clients.values().map(|client| client.name.as_str()));
            let report = match near {
                Some(near) => report.help(format!("did you mean {near}?")),
                None => report,
            };
            return Err(report.help("vtctl cluster access list"));
        };
        self.propose(RequestId::random(), RemoveClient { key }.into(), left(by)).await?;
        Ok(())
    }

    /// This host's part of the audit trail.
    pub(super) async fn audit_here(&self, query: AuditQuery) -> Vec<AuditEntry> {
        let (audit, name) = (std::sync::Arc::clone(self.audit_trail()), self.record().name.clone());
        blocking(move || audit.read(query, &name)).await
    }

    /// The audit trail of all hosts that answer.
    pub(super) async fn audit_everywhere(&self, query: AuditQuery) -> AuditTrail {
        let state = self.state();
        let asked = state.hosts.values().map(|host| async move {
            (host.name.to_string(), self.ask(host.id, PeerRequest::Audit(query), ASKS).await)
        });
        let mut trail = AuditTrail::default();
        for (host, answer) in join_all(asked).await {
            match answer {
                Ok(PeerReply::Audit(entries)) => trail.entries.extend(entries),
                Ok(_) => trail.missing.push((host, "it gave another kind of answer".to_owned())),
                Err(AskError::Refused(report)) => trail.missing.push((host, report.title)),
                Err(error) => trail.missing.push((host, error.to_string())),
            }
        }
        audit::newest(&mut trail.entries, query.limit as usize);
        trail
    }
}

/// What the token that was shown gives to this key at `now` (unix seconds).
fn terms(state: &State, request: &EnrollRequest, key: Digest, now: u64) -> Result<Terms, JoinRefusal> {
    // A wrong secret is told like an unknown token: who guesses learns nothing.
    let token = state.tokens.get(&request.token).filter(|token| token.secret_hash == request.secret.hash());
    let token = token.ok_or(JoinRefusal::TokenUnknown)?;
    let Grant::Client(grant) = &token.grant else {
        return Err(JoinRefusal::TokenForOther { admits: "a host".to_owned() });
    };
    let expired = || JoinRefusal::TokenExpired { at: token.expires_unix_s, now };
    match token.status {
        TokenStatus::Enrolled { client } => {
            return match state.clients.get(&client) {
                Some(known) if client == key => Ok(Terms {
                    name: known.name.clone(),
                    role: known.role,
                    until_unix_s: known.until_unix_s,
                    new: false,
                }),
                Some(known) => Err(JoinRefusal::TokenUsed { by: known.name.clone(), address: None }),
                None => Err(JoinRefusal::TokenRevoked),
            };
        }
        TokenStatus::Revoked | TokenStatus::Used { .. } => return Err(JoinRefusal::TokenRevoked),
        TokenStatus::Expired => return Err(expired()),
        TokenStatus::Open if token.expires_unix_s <= now => return Err(expired()),
        TokenStatus::Open => {}
    }
    let name = grant.name.as_ref().unwrap_or(&request.name);
    if state.client_named(name.as_str()).is_some() {
        return Err(JoinRefusal::NameTaken(name.clone()));
    }
    let until_unix_s = now.saturating_add(grant.valid_s.into());
    Ok(Terms { name: name.clone(), role: grant.role, until_unix_s, new: true })
}
