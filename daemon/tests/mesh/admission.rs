//! Admission over the replicated state, as the daemon does it, for one state behind a lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::time::Instant;
use vt_protocol::admin::HostRole;
use vt_protocol::identity::{ClusterCa, PublicKey};
use vt_protocol::ids::{Digest, Name};
use vt_protocol::join::{JoinRefusal, Member};
use vt_sync::command::{AdmitHost, NewHost};
use vt_sync::state::{Role, TokenStatus};
use vt_sync::{Command, State};

use vt_daemon::cluster::{Cluster, ProposeError};
use vt_daemon::mesh::Membership;
use vt_daemon::mesh::join::member::{Admission, Applicant, Roster, Standing};

/// The members of a cluster, as its state says.
pub(crate) fn members_of(state: &State) -> Vec<Member> {
    let member = |host: &Arc<vt_sync::state::Host>| Member {
        host: host.id,
        name: host.name.clone(),
        key: PublicKey(host.public_key.clone()),
        addresses: host.addresses.clone(),
    };
    state.hosts.values().map(member).collect()
}

/// The membership, as the state says; none before the first entry.
pub(crate) fn membership_of(state: &State) -> Option<Membership> {
    let cluster = state.cluster.as_ref()?.id;
    let hosts = members_of(state).into_iter().map(|member| (member.host, member)).collect();
    Some(Membership { cluster, hosts, clients: Arc::clone(&state.clients) })
}

/// How an applicant stands in `state` at `now` (unix seconds).
pub(crate) fn standing(state: &State, applicant: &Applicant, now: u64) -> Result<Standing, JoinRefusal> {
    // A wrong secret is told like an unknown token: who guesses learns nothing.
    let token = state.tokens.get(&applicant.token).filter(|token| token.secret_hash == applicant.secret);
    let token = token.ok_or(JoinRefusal::TokenUnknown)?;
    match token.status {
        TokenStatus::Used { host } => {
            let by = state.hosts.get(&host);
            if by.is_some_and(|by| by.id == applicant.host && by.public_key == applicant.key.0) {
                return Ok(Standing::Admitted);
            }
            let removed =
                || state.removed.iter().find(|removed| removed.id == host).map(|removed| removed.name.clone());
            return Err(JoinRefusal::TokenUsed {
                by: by.map(|by| by.name.clone()).or_else(removed).unwrap_or_else(|| applicant.name.clone()),
                address: by.and_then(|by| by.addresses.first().copied()),
            });
        }
        TokenStatus::Enrolled { .. } => return Err(JoinRefusal::TokenForOther { admits: "a client".to_owned() }),
        TokenStatus::Revoked => return Err(JoinRefusal::TokenRevoked),
        TokenStatus::Expired => return Err(JoinRefusal::TokenExpired { at: token.expires_unix_s, now }),
        TokenStatus::Open if token.expires_unix_s <= now => {
            return Err(JoinRefusal::TokenExpired { at: token.expires_unix_s, now });
        }
        TokenStatus::Open => {}
    }
    let key = Digest::of(&applicant.key.0);
    if state.removed.iter().any(|removed| removed.id == applicant.host || removed.key == key) {
        return Err(JoinRefusal::Removed);
    }
    if state.hosts.values().any(|host| host.name == applicant.name) {
        return Err(JoinRefusal::NameTaken(applicant.name.clone()));
    }
    let of = state.hosts.values().find(|host| host.addresses.contains(&applicant.advertise));
    match of {
        Some(host) => Err(JoinRefusal::AddressTaken { address: applicant.advertise, of: host.name.clone() }),
        None => Ok(Standing::New),
    }
}

/// Admission to the cluster this host belongs to.
pub(crate) struct ClusterAdmission {
    cluster: Arc<dyn Cluster>,
    name: Name,
    ca: Option<Arc<ClusterCa>>,
}

impl ClusterAdmission {
    /// For the cluster called `name`; with the CA where this host holds its key: on voters.
    pub(crate) fn new(cluster: Arc<dyn Cluster>, name: Name, ca: Option<Arc<ClusterCa>>) -> Self {
        Self { cluster, name, ca }
    }
}

#[async_trait]
impl Admission for ClusterAdmission {
    async fn look(&self, applicant: &Applicant, _by: Instant) -> Result<Standing, JoinRefusal> {
        standing(&self.cluster.state(), applicant, now())
    }

    async fn certify(&self, applicant: &Applicant) -> Result<Vec<u8>, JoinRefusal> {
        let Some(ca) = &self.ca else {
            let state = self.cluster.state();
            let votes = |role: Role| matches!(role, Role::Voter | Role::Witness);
            let voters = state.hosts.values().filter(|host| votes(host.role) && host.id != self.cluster.me());
            let voters: Vec<SocketAddr> = voters.flat_map(|host| host.addresses.first().copied()).collect();
            return Err(JoinRefusal::NotHere { voters });
        };
        let certificate = ca.issue_host(&applicant.signing_request, applicant.host, &applicant.name);
        certificate.map(|der| der.to_vec()).map_err(|error| JoinRefusal::BadRequest(error.to_string()))
    }

    async fn admit(&self, applicant: &Applicant, by: Instant) -> Result<(), JoinRefusal> {
        let command = Command::from(AdmitHost {
            token: applicant.token,
            secret_hash: applicant.secret,
            host: NewHost {
                id: applicant.host,
                name: applicant.name.clone(),
                addresses: vec![applicant.advertise],
                labels: applicant.labels.clone(),
                role: applicant.role.map(role_of),
                public_key: applicant.key.0.clone(),
                build: applicant.build.clone(),
                facts: applicant.facts,
            },
        });
        let left = by.saturating_duration_since(Instant::now());
        match self.cluster.propose(applicant.request, command, left).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Rejected(rejected)) => match standing(&self.cluster.state(), applicant, now()) {
                // Somebody else was first; the state tells more than the rejection.
                Err(refusal) => Err(refusal),
                Ok(Standing::Admitted) => Ok(()),
                Ok(Standing::New) => Err(JoinRefusal::Other(Box::new(rejected.into()))),
            },
            Err(error) => Err(JoinRefusal::Undecided(error.to_string())),
        }
    }

    async fn roster(&self) -> Roster {
        Roster { cluster_name: self.name.clone(), members: members_of(&self.cluster.state()), generation: 1 }
    }
}

fn role_of(role: HostRole) -> Role {
    match role {
        HostRole::Voter => Role::Voter,
        HostRole::Learner => Role::Learner,
        HostRole::Witness => Role::Witness,
    }
}

/// Unix seconds by this host's clock: compared only with the end of a token, which is told to its user in the same.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
