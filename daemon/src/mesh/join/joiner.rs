//! The side that wants in: dial, pin the CA, ask, answer the probe, store the claim.
//!
//! Nothing is sent before the CA in the token was found at the other end. The request goes out from another port than
//! the one that is advertised: a probe back along the path of the request would prove nothing about a firewall. When
//! the outcome is unknown the same request is sent again, for as long as the deadline allows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;
use vt_protocol::admin::HostRole;
use vt_protocol::endpoint::{self, EndpointError};
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::facts::HostFacts;
use vt_protocol::hello::BUILD;
use vt_protocol::identity::verify::check_host_certificate;
use vt_protocol::identity::{Identity, IdentityError, PrivateKey, tls};
use vt_protocol::ids::Name;
use vt_protocol::join::{Admitted, JoinAnswer, JoinCall, JoinRefusal, JoinRequest};
use vt_protocol::pinned::Pinned;
use vt_protocol::round::{NotNow, Round, pause, round};
use vt_protocol::token::{CaDigest, Token};

use super::claim::{Claim, ClaimError, Record, Staging};
use super::echo::Echo;

/// What a host says when it joins.
#[derive(Debug)]
pub struct Joining {
    /// The token, decoded.
    pub token: Token,
    /// Where this host listens.
    pub listen: SocketAddr,
    /// Where it says it is reached.
    pub advertise: SocketAddr,
    /// The name it wants.
    pub name: Name,
    /// The role it wishes for.
    pub role: Option<HostRole>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it is.
    pub facts: Option<HostFacts>,
}

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Nobody could admit this host now.
    #[error(transparent)]
    NotNow(NotNow),
    /// The cluster said no.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// This host cannot listen where it must.
    #[error("this host cannot listen")]
    Listen(#[from] EndpointError),
    /// What the cluster answered cannot be used.
    #[error("the answer cannot be used: {0}")]
    Answer(&'static str),
    /// Whether the host was admitted is unknown: the same command resumes.
    #[error("no answer came; whether this host was admitted is unknown")]
    Unknown(String),
    /// The claim could not be stored, or the host has one.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl JoinError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        let title = self.to_string();
        match self {
            JoinError::NotNow(why) => why.report(),
            JoinError::Refused(refusal) => refusal.report(),
            JoinError::Listen(error) => Report::new(ErrorCode::Unreachable, title).caused_by(error),
            JoinError::Answer(_) => Report::new(ErrorCode::Internal, title),
            JoinError::Unknown(why) => Report::new(ErrorCode::DeadlinePassed, title)
                .with("reason", why.clone())
                .help("run the same command again: it resumes this join")
                .retryable(),
            JoinError::Claim(error) => error.report(),
        }
    }
}

/// Joins, and puts the claim at `place`. `tell` hears of each step, for people.
///
/// # Errors
/// See [`JoinError`]. Except for [`JoinError::Unknown`], nothing is left behind.
pub async fn join(
    plan: &Joining,
    place: &Path,
    by: Instant,
    tell: &(dyn Fn(String) + Send + Sync),
) -> Result<Claim, JoinError> {
    let (staging, key) = Staging::of_join(place, plan.token.id)?;
    let key = Arc::new(key);
    let mut attempt = Attempt { plan, key: &key, staging: &staging, tell, echo: None };
    let outcome = attempt.repeat(by).await;
    if let Some(echo) = attempt.echo.take() {
        echo.stop(plan.listen).await;
    }
    let admitted = outcome?;
    let members = admitted.members.len();
    // Where this fails, the key stays: the cluster has admitted it.
    let claim = staging.keep(claim_of(plan, &key, admitted)?)?;
    tell(format!("admitted to cluster {} as learner, {members} hosts", claim.record.cluster_name));
    Ok(claim)
}

fn claim_of(plan: &Joining, key: &PrivateKey, admitted: Admitted) -> Result<Claim, JoinError> {
    if admitted.cluster != plan.token.cluster {
        return Err(JoinError::Answer("it is of another cluster"));
    }
    if CaDigest::of(&admitted.ca) != plan.token.ca {
        return Err(JoinError::Answer("its CA is not the token's"));
    }
    let (certificate, ca) = (admitted.certificate.into(), admitted.ca.into());
    check_host_certificate(&certificate, &ca, admitted.cluster, &tls::provider())
        .map_err(|_| JoinError::Answer("its certificate is not the CA's"))?;
    // The key is copied by way of its text: rcgen's key pairs cannot be cloned.
    let key = PrivateKey::from_pem(&key.to_pem()).map_err(ClaimError::from)?;
    let identity = Identity::new(key, certificate, ca).map_err(|_| JoinError::Answer("it certifies another key"))?;
    let record = Record {
        cluster: admitted.cluster,
        cluster_name: admitted.cluster_name,
        host: admitted.host,
        name: plan.name.clone(),
        advertise: plan.advertise,
        members: admitted.members,
        generation: admitted.generation,
    };
    Ok(Claim { identity, record })
}

struct Attempt<'a> {
    plan: &'a Joining,
    key: &'a Arc<PrivateKey>,
    staging: &'a Staging,
    tell: &'a (dyn Fn(String) + Send + Sync),
    echo: Option<Echo>,
}

impl Attempt<'_> {
    async fn repeat(&mut self, by: Instant) -> Result<Admitted, JoinError> {
        let mut unknown = None;
        loop {
            // Whether an earlier request may still be on its way into the log.
            let silence = self.staging.resumed() || unknown.is_some();
            match round(&self.plan.token, by, |address, pinned| self.begin(address, pinned)).await {
                Round::Answered(JoinAnswer::Admitted(admitted)) => return Ok(*admitted),
                Round::Answered(_) => return self.failed(silence, JoinError::Answer("it is of another kind")),
                Round::Refused(refusal) => return self.failed(silence, JoinError::Refused(refusal)),
                Round::Failed(error) => return self.failed(silence, error),
                Round::Unknown(why) => {
                    tracing::info!(%why, "no answer to the join; it is sent again");
                    unknown = Some(why);
                }
                // Without a silence before it, there is nothing to find out.
                Round::NotNow(why) if unknown.is_none() => {
                    if !silence {
                        self.staging.release();
                    }
                    return Err(JoinError::NotNow(why));
                }
                Round::NotNow(why) => tracing::debug!(%why, "the join waits"),
            }
            if !pause(by).await {
                return Err(JoinError::Unknown(unknown.unwrap_or_default()));
            }
        }
    }

    /// The end, for good. The key stays where a request that was sent before may still come into the log.
    fn failed(&self, silence: bool, error: JoinError) -> Result<Admitted, JoinError> {
        if !silence || matches!(&error, JoinError::Refused(refusal) if refusal.is_final()) {
            self.staging.release();
        }
        Err(error)
    }

    /// Listens for the probe, from the first address on that showed the CA; then there is a request, and the key is held.
    fn begin(&mut self, address: SocketAddr, pinned: &Pinned) -> Result<JoinCall, JoinError> {
        let token = &self.plan.token;
        if self.echo.is_none() {
            (self.tell)(format!("CA BLAKE3 {} at {address} matches the token", token.ca));
            let config = tls::server_of_joiner(self.key, token.cluster, pinned.ca()).map_err(ClaimError::from)?;
            let listening = endpoint::bind(self.plan.listen, Some(endpoint::server_config(config)?), rand::random())?;
            self.echo = Some(Echo::start(listening, token.cluster));
        }
        let request = self.request().map_err(ClaimError::from)?;
        self.staging.hold();
        Ok(JoinCall::Admit(Box::new(request)))
    }

    fn request(&self) -> Result<JoinRequest, IdentityError> {
        let plan = self.plan;
        Ok(JoinRequest {
            token: plan.token.id,
            secret: plan.token.secret.clone(),
            signing_request: self.key.signing_request()?,
            advertise: plan.advertise,
            name: plan.name.clone(),
            role: plan.role,
            labels: plan.labels.clone(),
            build: BUILD.to_owned(),
            facts: plan.facts.clone().map(Box::new),
        })
    }
}
