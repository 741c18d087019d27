//! What the cluster knows and decides about a host that wants to join.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    identity::{ClusterCa, store},
    ids::{Digest, TokenId},
    join::{JoinRefusal, Member},
};
use vt_sync::{
    Rejected, State,
    command::{AdmitHost, NewHost},
    state::{Grant, TokenStatus},
};

use super::{blocking, left, views::stored_role};
use crate::{
    cluster::{Cluster, ProposeError},
    control::tokens::unix_s,
    host::Host,
    mesh::{
        MembershipView,
        join::member::{Admission, Applicant, Roster, Standing},
    },
};

/// A token that was made a moment ago on another host may not have come here yet.
const COMES: Duration = Duration::from_secs(2);

#[async_trait]
impl Admission for Host {
    async fn look(&self, applicant: &Applicant, _by: Instant) -> Result<Standing, JoinRefusal> {
        let state = self.with_token(applicant.token).await?;
        // Whether its time is over is the leader's to say, who ends tokens; without one nothing is decided anyway.
        standing(&state, applicant, self.cluster_clock().await.unwrap_or_else(|_| unix_s()))
    }

    async fn certify(&self, applicant: &Applicant) -> Result<Vec<u8>, JoinRefusal> {
        let authority = self.authority().await?;
        let issued = authority.issue_host(&applicant.signing_request, applicant.host, &applicant.name);
        issued.map(|certificate| certificate.to_vec()).map_err(|error| JoinRefusal::BadRequest(error.to_string()))
    }

    async fn admit(&self, applicant: &Applicant, by: Instant) -> Result<(), JoinRefusal> {
        let command = AdmitHost {
            token: applicant.token,
            secret_hash: applicant.secret,
            host: NewHost {
                id: applicant.host,
                name: applicant.name.clone(),
                addresses: vec![applicant.advertise],
                labels: applicant.labels.clone(),
                role: applicant.role.map(stored_role),
                public_key: applicant.key.0.clone(),
                build: applicant.build.clone(),
                facts: applicant.facts,
            },
        };
        match self.propose(applicant.request, command.into(), left(by)).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Rejected(rejected)) => Err(refusal(&self.state(), applicant, rejected)),
            Err(error @ ProposeError::NoQuorum) => Err(JoinRefusal::Unavailable(error.to_string())),
            Err(error) => Err(JoinRefusal::Undecided(error.to_string())),
        }
    }

    async fn roster(&self) -> Roster {
        let members: Vec<Member> = self.members().membership().hosts.values().cloned().collect();
        Roster { cluster_name: self.record().cluster_name.clone(), members, generation: self.generation() }
    }
}

impl Host {
    /// The state, once it holds this token.
    pub(super) async fn with_token(&self, token: TokenId) -> Result<Arc<State>, JoinRefusal> {
        let mut watch = self.watch();
        let known = watch.wait_for(|state| state.tokens.contains_key(&token));
        match timeout(COMES, known).await {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Err(JoinRefusal::Unavailable("the daemon is stopping".to_owned())),
            Err(_) => Err(JoinRefusal::TokenUnknown),
        }
    }

    /// The cluster's authority, where this host holds its key.
    pub(super) async fn authority(&self) -> Result<ClusterCa, JoinRefusal> {
        let (directory, cluster) = (self.data().cluster(), self.record().cluster);
        let authority = blocking(move || store::load_ca(&directory, cluster)).await;
        let unusable = |error: &dyn std::error::Error| {
            let title = "the key of the cluster's authority cannot be used on this host";
            JoinRefusal::Other(Box::new(Report::new(ErrorCode::StoreDamaged, title).caused_by(error)))
        };
        let state = self.state();
        // Not yet where another one has followed and its key has not come here.
        let present = |ca: &ClusterCa| state.cluster.as_ref().is_none_or(|it| it.ca == Digest::of(ca.certificate()));
        authority.map_err(|error| unusable(&error))?.filter(present).ok_or_else(|| {
            let consensus = self.consensus();
            let voters = consensus.voters.iter().filter_map(|voter| state.hosts.get(voter));
            let voters = voters.filter(|host| host.id != self.me());
            JoinRefusal::NotHere { voters: voters.flat_map(|host| host.addresses.clone()).collect() }
        })
    }
}

/// How an applicant stands with the state as it is, at `now` (unix seconds).
fn standing(state: &State, applicant: &Applicant, now: u64) -> Result<Standing, JoinRefusal> {
    let token = state.tokens.get(&applicant.token).ok_or(JoinRefusal::TokenUnknown)?;
    if token.secret_hash != applicant.secret {
        return Err(JoinRefusal::TokenUnknown);
    }
    match token.status {
        TokenStatus::Used { host } if host == applicant.host => return Ok(Standing::Admitted),
        TokenStatus::Used { .. } => return Err(used(state, applicant)),
        TokenStatus::Enrolled { .. } => return Err(JoinRefusal::TokenForOther { admits: "a client".to_owned() }),
        TokenStatus::Revoked => return Err(JoinRefusal::TokenRevoked),
        TokenStatus::Expired => return Err(JoinRefusal::TokenExpired { at: token.expires_unix_s, now }),
        TokenStatus::Open if token.expires_unix_s <= now => {
            return Err(JoinRefusal::TokenExpired { at: token.expires_unix_s, now });
        }
        TokenStatus::Open => {}
    }
    if matches!(token.grant, Grant::Client(_)) {
        return Err(JoinRefusal::TokenForOther { admits: "a client".to_owned() });
    }
    if state.host_named(applicant.name.as_str()).is_some() {
        return Err(JoinRefusal::NameTaken(applicant.name.clone()));
    }
    if let Some(other) = state.hosts.values().find(|host| host.addresses.contains(&applicant.advertise)) {
        return Err(JoinRefusal::AddressTaken { address: applicant.advertise, of: other.name.clone() });
    }
    let key = Digest::of(&applicant.key.0);
    if state.removed.iter().any(|old| old.id == applicant.host || old.key == key) {
        return Err(JoinRefusal::Removed);
    }
    Ok(Standing::New)
}

/// What the state machine's refusal means for the applicant.
fn refusal(state: &State, applicant: &Applicant, rejected: Rejected) -> JoinRefusal {
    let ended = state.tokens.get(&applicant.token).map(|token| token.expires_unix_s).unwrap_or_default();
    match rejected.code {
        ErrorCode::TokenUnknown => JoinRefusal::TokenUnknown,
        ErrorCode::TokenExpired => JoinRefusal::TokenExpired { at: ended, now: unix_s() },
        ErrorCode::TokenUsed => used(state, applicant),
        ErrorCode::TokenRevoked => JoinRefusal::TokenRevoked,
        ErrorCode::TokenForOther => JoinRefusal::TokenForOther { admits: "a client".to_owned() },
        ErrorCode::NameTaken => JoinRefusal::NameTaken(applicant.name.clone()),
        ErrorCode::HostRemoved => JoinRefusal::Removed,
        _ => JoinRefusal::Other(Box::new(rejected.into())),
    }
}

fn used(state: &State, applicant: &Applicant) -> JoinRefusal {
    let by = match state.tokens.get(&applicant.token).map(|token| token.status) {
        Some(TokenStatus::Used { host }) => state.hosts.get(&host),
        _ => None,
    };
    match by {
        Some(host) => JoinRefusal::TokenUsed { by: host.name.clone(), address: host.addresses.first().copied() },
        // Its host was removed since.
        None => JoinRefusal::TokenRevoked,
    }
}
