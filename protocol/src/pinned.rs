//! Dialling with nothing but a token: the CA of whoever answers has to be the one whose digest is in it.
//!
//! A host that wants to join and a client that wants its certificate begin like this. Nothing is sent before the CA was
//! found at the other end; the token's secret goes only into a connection from here.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, timeout};

use crate::call::{self, CallError};
use crate::client::open_stream;
use crate::codec;
use crate::endpoint::{self, CloseCode};
use crate::error::{ErrorCode, Report};
use crate::hello::{Hello, Refusal};
use crate::identity::tls;
use crate::identity::verify::PinFailure;
use crate::ids::ClusterId;
use crate::join::{JoinAnswer, JoinCall};
use crate::service::Service;
use crate::token::{CaDigest, Token};

/// One address gets this long to answer.
const DIAL_TIME: Duration = Duration::from_secs(2);

/// Why an address in a token is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinnedError {
    /// The host that answered shows another CA than the token's.
    #[error("the certificate authority at {address} is not the one in the token")]
    CaMismatch {
        /// The address.
        address: SocketAddr,
        /// The digest in the token.
        wanted: CaDigest,
        /// The digest shown, if one was.
        shown: Option<CaDigest>,
    },
    /// The host that answered belongs to another cluster.
    #[error("the host at {address} belongs to another cluster")]
    OtherCluster {
        /// The address.
        address: SocketAddr,
        /// The cluster it says it is of.
        theirs: ClusterId,
        /// The cluster in the token.
        wanted: ClusterId,
    },
    /// The host that answered refused the connection.
    #[error("{address} refused the connection: {refusal}")]
    Hello {
        /// The address.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
}

impl PinnedError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        let title = self.to_string();
        match self {
            PinnedError::CaMismatch { address, wanted, shown } => Report::new(ErrorCode::CaMismatch, title)
                .with("address", address.to_string())
                .with("wanted", wanted.to_string())
                .with("shown", shown.map_or("none".to_owned(), |shown| shown.to_string())),
            PinnedError::OtherCluster { address, theirs, wanted } => Report::new(ErrorCode::TokenOtherCluster, title)
                .with("address", address.to_string())
                .with("its cluster", theirs.to_string())
                .with("token's", wanted.to_string()),
            PinnedError::Hello { address, refusal } => {
                CallError::Refused { to: address.to_string(), refusal: refusal.clone() }.report()
            }
            PinnedError::Unreachable(_) => Report::new(ErrorCode::JoinUnreachable, title),
        }
    }
}

/// A connection to a host that showed the token's CA, for `join`.
#[derive(Debug)]
pub struct Pinned {
    connection: quinn::Connection,
    dialler: quinn::Endpoint,
    ca: CertificateDer<'static>,
}

impl Pinned {
    /// Dials one address of a token, from a port of its own.
    ///
    /// # Errors
    /// See [`PinnedError`]; nothing of the token was sent.
    pub async fn dial(token: &Token, address: SocketAddr, by: Instant) -> Result<Self, PinnedError> {
        let unreachable = |error: &dyn std::fmt::Display| PinnedError::Unreachable(error.to_string());
        let (config, pin) = tls::client_pinning(token.ca, Service::Join).map_err(|error| unreachable(&error))?;
        let dial = endpoint::client_config(config, Service::Join).map_err(|error| unreachable(&error))?;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let dialler = endpoint::bind(any, None, rand::random()).map_err(|error| unreachable(&error))?;
        let mine = Hello::of(Some(token.cluster), None, rand::random());
        let until = by.min(Instant::now() + DIAL_TIME);
        let met = endpoint::connect_with(&dialler, dial, address, token.cluster, &mine, until).await;
        let (connection, _) = match (met, pin.failure()) {
            (Ok(met), _) => met,
            (Err(_), Some(PinFailure::OtherCa { cluster: Some(theirs), .. })) if theirs != token.cluster => {
                return Err(PinnedError::OtherCluster { address, theirs, wanted: token.cluster });
            }
            (Err(_), Some(PinFailure::OtherCa { shown, .. })) => {
                return Err(PinnedError::CaMismatch { address, wanted: token.ca, shown });
            }
            (Err(CallError::Refused { refusal, .. }), None) => return Err(PinnedError::Hello { address, refusal }),
            (Err(error), _) => return Err(unreachable(&error)),
        };
        let ca = pin.ca().ok_or_else(|| unreachable(&"no CA was shown"))?;
        Ok(Self { connection, dialler, ca })
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// Asks once and says goodbye.
    ///
    /// # Errors
    /// No answer came; see [`CallError::may_be_done`].
    pub async fn ask(self, request: &JoinCall, by: Instant) -> Result<JoinAnswer, CallError> {
        let cap = Service::Join.cap();
        let asked = async {
            let payload = call::encode(request, cap)?;
            let (mut send, mut receive) = open_stream(&self.connection, by).await?;
            let reply = call::ask(&mut send, &mut receive, &payload, cap, by).await?;
            Ok(codec::decode_wire(&reply, cap)?)
        };
        let answered = asked.await;
        self.connection.close(CloseCode::Done.into(), b"done");
        let _ = timeout(Duration::from_millis(200), self.dialler.wait_idle()).await;
        answered
    }
}
