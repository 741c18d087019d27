//! One round over the addresses of a token: each is dialled and asked, until one says something that counts.
//!
//! A host that wants to join and a client that wants its certificate ask alike. Hosts that cannot admit point to voters, who
//! are asked in the same round. What was sent and not answered may have been done: then the round ends, because only the
//! same request again finds that out.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::call::CallError;
use crate::error::{ErrorCode, Report};
use crate::join::{JoinAnswer, JoinCall, JoinRefusal};
use crate::pinned::{Pinned, PinnedError};
use crate::token::Token;

/// One request gets this long.
const ASK_TIME: Duration = Duration::from_secs(20);
/// Pause before the same request is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// Addresses tried at most, those that hosts point to included.
const ADDRESSES_MAX: usize = 16;

/// What a round came to. `E`: why a request could not be made.
#[derive(Debug)]
pub enum Round<E> {
    /// The cluster did what was asked, or answered with something else.
    Answered(JoinAnswer),
    /// The cluster said no, and says so again.
    Refused(JoinRefusal),
    /// There is no request.
    Failed(E),
    /// The request may have been done.
    Unknown(String),
    /// Nothing was sent to anyone, or the cluster could not decide: it may be different later.
    NotNow(NotNow),
}

/// Why nobody has done what was asked for now.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    /// No address in the token answered.
    #[error("no address in the join token answered")]
    Unreachable(Vec<(SocketAddr, String)>),
    /// An address told why it is of no use.
    #[error(transparent)]
    Pinned(PinnedError),
    /// The cluster cannot decide.
    #[error("{0}")]
    Refused(JoinRefusal),
}

impl NotNow {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        match self {
            NotNow::Unreachable(tried) => {
                let report = Report::new(ErrorCode::JoinUnreachable, self.to_string());
                tried.iter().fold(report, |report, (address, why)| report.with(address.to_string(), why.clone()))
            }
            NotNow::Pinned(error) => error.report(),
            NotNow::Refused(refusal) => refusal.report(),
        }
    }
}

/// Goes round once. `request` is made when the CA of the token was found at an address, and not before.
pub async fn round<E>(
    token: &Token,
    by: Instant,
    mut request: impl FnMut(SocketAddr, &Pinned) -> Result<JoinCall, E>,
) -> Round<E> {
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
            // More telling than that nobody answered, but another address may be better.
            Err(error) => {
                telling = Some(NotNow::Pinned(error));
                continue;
            }
        };
        let request = match request(address, &pinned) {
            Ok(request) => request,
            Err(error) => return Round::Failed(error),
        };
        match pinned.ask(&request, by.min(Instant::now() + ASK_TIME)).await {
            Ok(JoinAnswer::Refused(JoinRefusal::NotHere { voters })) => {
                for voter in voters {
                    if !addresses.contains(&voter) {
                        addresses.push(voter);
                    }
                }
                tried.push((address, "it cannot admit others, and pointed to voters".to_owned()));
            }
            Ok(JoinAnswer::Refused(refusal @ JoinRefusal::Undecided(_))) => return Round::Unknown(refusal.to_string()),
            Ok(JoinAnswer::Refused(refusal @ JoinRefusal::Unavailable(_))) => telling = Some(NotNow::Refused(refusal)),
            Ok(JoinAnswer::Refused(refusal)) => return Round::Refused(refusal),
            Ok(answer) => return Round::Answered(answer),
            Err(error) if error.may_be_done() => return Round::Unknown(error.to_string()),
            // The handler of the other side failed or is late: that is no answer either.
            Err(CallError::Failed(report)) => return Round::Unknown(report.to_string()),
            Err(error) => tried.push((address, error.to_string())),
        }
    }
    Round::NotNow(telling.unwrap_or(NotNow::Unreachable(tried)))
}

/// Waits until it is time for the next round; whether there is time for one.
pub async fn pause(by: Instant) -> bool {
    let next = Instant::now() + PAUSE;
    if next >= by {
        return false;
    }
    sleep_until(next).await;
    true
}
