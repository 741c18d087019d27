//! How a machine without a daemon gets a client certificate: a token in, an identity out.
//!
//! The key is made by the caller and never travels. Where the outcome is unknown, the same key and token may ask again.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::call::CallError;
use crate::error::{ErrorCode, Report};
use crate::identity::subject::Facts;
use crate::identity::{Identity, IdentityError, PrivateKey, Subject};
use crate::ids::Name;
use crate::join::{EnrollRequest, Enrolled, JoinAnswer, JoinCall, JoinRefusal};
use crate::pinned::{Pinned, PinnedError};
use crate::token::{CaDigest, Token};

/// One request gets this long.
const ASK_TIME: Duration = Duration::from_secs(20);
/// Pause before the same request is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// Addresses tried at most, those that hosts point to included.
const ADDRESSES_MAX: usize = 16;

/// Why no certificate was got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// No address in the token was of use.
    #[error("no address in the join token answered")]
    Unreachable(Vec<(SocketAddr, String)>),
    /// An address told why it is of no use.
    #[error(transparent)]
    Pinned(PinnedError),
    /// The cluster said no.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// What the cluster answered cannot be used.
    #[error("the answer cannot be used: {0}")]
    Answer(&'static str),
    /// The key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Whether the key was admitted is unknown.
    #[error("no answer came; whether this client was admitted is unknown")]
    Unknown(String),
}

impl EnrollError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        let title = self.to_string();
        match self {
            EnrollError::Unreachable(tried) => {
                let report = Report::new(ErrorCode::JoinUnreachable, title);
                tried.iter().fold(report, |report, (address, why)| report.with(address.to_string(), why.clone()))
            }
            EnrollError::Pinned(error) => error.report(),
            EnrollError::Refused(JoinRefusal::NameTaken(name)) => {
                Report::new(ErrorCode::NameTaken, format!("a client called {name} is already admitted"))
                    .help("vtctl config use-context --join TOKEN --as OTHER")
                    .help(format!("vtctl cluster access revoke {name}   (an admin, where it is no longer in use)"))
            }
            EnrollError::Refused(refusal) => refusal.report(),
            EnrollError::Answer(_) => Report::new(ErrorCode::Internal, title),
            EnrollError::Identity(error) => Report::new(ErrorCode::Internal, title).caused_by(error),
            EnrollError::Unknown(why) => Report::new(ErrorCode::DeadlinePassed, title)
                .with("reason", why.clone())
                .help("vtctl cluster access list   (an admin: revoke it if it is there, and make a new token)")
                .retryable(),
        }
    }
}

/// Takes a token to the cluster and brings an identity for `key` back.
///
/// # Errors
/// See [`EnrollError`].
pub async fn enroll(
    token: &Token,
    key: PrivateKey,
    name: &Name,
    by: Instant,
) -> Result<(Identity, Enrolled), EnrollError> {
    let request = JoinCall::Enroll(EnrollRequest {
        token: token.id,
        secret: token.secret.clone(),
        signing_request: key.signing_request()?,
        name: name.clone(),
    });
    let mut unknown = None;
    loop {
        match round(token, &request, by).await {
            Round::Enrolled(enrolled) => return identity_of(token, key, *enrolled),
            Round::Failed(error) => return Err(error),
            Round::NotNow(error) if unknown.is_none() => return Err(error),
            Round::NotNow(_) => {}
            Round::Unknown(why) => unknown = Some(why),
        }
        let next = Instant::now() + PAUSE;
        if next >= by {
            return Err(EnrollError::Unknown(unknown.unwrap_or_default()));
        }
        sleep_until(next).await;
    }
}

/// What one round over the addresses came to.
enum Round {
    Enrolled(Box<Enrolled>),
    /// For good.
    Failed(EnrollError),
    /// Nothing was sent to anyone, or the cluster could not decide.
    NotNow(EnrollError),
    /// The request may have been done.
    Unknown(String),
}

async fn round(token: &Token, request: &JoinCall, by: Instant) -> Round {
    let mut addresses = token.addresses.clone();
    let mut tried = Vec::new();
    let mut telling = None;
    let mut at = 0;
    while at < addresses.len().min(ADDRESSES_MAX) && Instant::now() < by {
        let address = addresses[at];
        at += 1;
        let pinned = match Pinned::dial(token, address, by).await {
            Ok(pinned) => pinned,
            Err(PinnedError::Unreachable(why)) => {
                tried.push((address, why));
                continue;
            }
            Err(error) => {
                telling = Some(EnrollError::Pinned(error));
                continue;
            }
        };
        match pinned.ask(request, by.min(Instant::now() + ASK_TIME)).await {
            Ok(JoinAnswer::Enrolled(enrolled)) => return Round::Enrolled(enrolled),
            Ok(JoinAnswer::Refused(JoinRefusal::NotHere { voters })) => {
                let new = voters.into_iter().filter(|voter| !addresses.contains(voter)).collect::<Vec<_>>();
                addresses.extend(new);
                tried.push((address, "it cannot admit others, and pointed to voters".to_owned()));
            }
            Ok(JoinAnswer::Refused(refusal @ JoinRefusal::Undecided(_))) => return Round::Unknown(refusal.to_string()),
            Ok(JoinAnswer::Refused(refusal @ JoinRefusal::Unavailable(_))) => {
                telling = Some(EnrollError::Refused(refusal));
            }
            Ok(JoinAnswer::Refused(refusal)) => return Round::Failed(EnrollError::Refused(refusal)),
            Ok(_) => return Round::Failed(EnrollError::Answer("it is of another kind")),
            Err(error) if error.may_be_done() => return Round::Unknown(error.to_string()),
            Err(CallError::Failed(report)) => return Round::Unknown(report.to_string()),
            Err(error) => tried.push((address, error.to_string())),
        }
    }
    Round::NotNow(telling.unwrap_or(EnrollError::Unreachable(tried)))
}

/// Checks what was answered before anything of it is believed.
fn identity_of(token: &Token, key: PrivateKey, enrolled: Enrolled) -> Result<(Identity, Enrolled), EnrollError> {
    if CaDigest::of(&enrolled.ca) != token.ca || enrolled.cluster != token.cluster {
        return Err(EnrollError::Answer("it is of another cluster"));
    }
    let certificate = enrolled.certificate.clone().into();
    let facts = Facts::read(&certificate).map_err(|_| EnrollError::Answer("its certificate is unreadable"))?;
    let told = Subject::Client { cluster: token.cluster, role: enrolled.role, name: enrolled.name.clone() };
    if facts.subject != told {
        return Err(EnrollError::Answer("its certificate names somebody else"));
    }
    let identity = Identity::new(key, certificate, enrolled.ca.clone().into())
        .map_err(|_| EnrollError::Answer("it certifies another key"))?;
    Ok((identity, enrolled))
}
