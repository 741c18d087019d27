//! How a machine without a daemon gets a client certificate: a token in, an identity out.
//!
//! The key is made by the caller and never travels. Where the outcome is unknown, the same key and token may ask again.

use tokio::time::Instant;

use crate::error::{ErrorCode, Report};
use crate::identity::subject::Facts;
use crate::identity::{Identity, IdentityError, PrivateKey, Subject};
use crate::ids::Name;
use crate::join::{EnrollRequest, Enrolled, JoinAnswer, JoinCall, JoinRefusal};
use crate::round::{NotNow, Round, pause, round};
use crate::token::{CaDigest, Token};

/// Why no certificate was got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// Nobody could admit this client now.
    #[error(transparent)]
    NotNow(NotNow),
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
            EnrollError::NotNow(why) => why.report(),
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
        match round(token, by, |_, _| Ok::<_, IdentityError>(request.clone())).await {
            Round::Answered(JoinAnswer::Enrolled(enrolled)) => return identity_of(token, key, *enrolled),
            Round::Answered(_) => return Err(EnrollError::Answer("it is of another kind")),
            Round::Refused(refusal) => return Err(EnrollError::Refused(refusal)),
            Round::Failed(error) => return Err(error.into()),
            Round::NotNow(why) if unknown.is_none() => return Err(EnrollError::NotNow(why)),
            Round::NotNow(_) => {}
            Round::Unknown(why) => unknown = Some(why),
        }
        if !pause(by).await {
            return Err(EnrollError::Unknown(unknown.unwrap_or_default()));
        }
    }
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
