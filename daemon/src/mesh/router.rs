//! Takes QUIC connections and routes each to the service that ALPN names, if its key opens that service.
//!
//! Clients without a certificate pass TLS and are admitted to `join` alone. Each request is checked against the
//! membership of its moment, so that a removed key is refused on a connection that is already open. Whatever a peer
//! sends, the worst that happens is that its connection ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use vt_protocol::call;
use vt_protocol::codec;
use vt_protocol::endpoint::{self, CloseCode, MeshEndpoint};
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::frame::FrameError;
use vt_protocol::hello::{self, HelloError, Refusal, Welcome};
use vt_protocol::identity::subject::Facts;
use vt_protocol::join::{JoinAnswer, JoinCall, JoinRefusal};
use vt_protocol::peer::PeerRequest;
use vt_protocol::service::Service;

use super::access::{self, Pass};
use super::serve;
use super::services::{Caller, Services};

/// Connections at once, and how many of them may be on `join`.
const CONNECTIONS: usize = 512;
const JOINING: usize = 32;
/// Requests at once, over all connections.
const REQUESTS: usize = 2048;
/// Handshake and hello must be done after this long.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// How long a refused client has to read why.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// Routes connections of one endpoint.
pub struct Router {
    endpoint: MeshEndpoint,
    shared: Arc<Shared>,
}

struct Shared {
    services: Arc<dyn Services>,
    requests: Arc<Semaphore>,
    joining: Arc<Semaphore>,
}

impl Router {
    /// A router in front of `services`.
    pub fn new(endpoint: MeshEndpoint, services: Arc<dyn Services>) -> Self {
        let requests = Arc::new(Semaphore::new(REQUESTS));
        let joining = Arc::new(Semaphore::new(JOINING));
        Self { endpoint, shared: Arc::new(Shared { services, requests, joining }) }
    }

    /// Takes connections until `stop`, or until the endpoint is closed.
    pub async fn run(self, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let incoming = tokio::select! {
                () = stop.cancelled() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = shared.connection(incoming) => {}
                }
                drop(permit);
            });
        }
    }
}

impl Shared {
    async fn connection(self: Arc<Self>, incoming: quinn::Incoming) {
        let address = incoming.remote_address();
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => return tracing::debug!(%address, %error, "a connection did not begin"),
        };
        let connection = match timeout(GREETING_TIME, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::info!(%address, %error, "a handshake failed"),
            Err(_) => return tracing::info!(%address, "a handshake took too long"),
        };
        // Without a known service TLS ends the handshake, so there is one.
        let Some(service) = endpoint::service_of(&connection) else { return };
        let shown = match endpoint::peer_certificate(&connection).map(|shown| Facts::read(&shown)) {
            None => None,
            Some(Ok(facts)) => Some(facts),
            Some(Err(error)) => return tracing::info!(%address, %error, "a certificate is unreadable"),
        };
        let joining = if service == Service::Join {
            match Arc::clone(&self.joining).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return connection.close(CloseCode::Refused.into(), b"busy"),
            }
        } else {
            None
        };
        match timeout(GREETING_TIME, self.greet(&connection, service, shown.as_ref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(%address, %service, %error, "a connection was refused");
                let _ = timeout(FAREWELL_TIME, connection.closed()).await;
                return connection.close(CloseCode::Refused.into(), b"refused");
            }
            Err(_) => {
                tracing::info!(%address, %service, "a peer said no hello");
                return connection.close(CloseCode::Garbled.into(), b"no hello");
            }
        }
        let shown = Arc::new(shown);
        let ended = loop {
            match connection.accept_bi().await {
                Ok((send, receive)) => {
                    let (shared, connection, shown) = (Arc::clone(&self), connection.clone(), Arc::clone(&shown));
                    tokio::spawn(async move {
                        let served = shared.stream(&connection, service, (*shown).as_ref(), send, receive).await;
                        if let Err(error) = served {
                            tracing::debug!(address = %connection.remote_address(), %service, %error, "a stream ended early");
                        }
                    });
                }
                Err(error) => break error,
            }
        };
        tracing::debug!(%address, %service, reason = %ended, "a connection ended");
        drop(joining);
    }

    async fn greet(
        &self,
        connection: &quinn::Connection,
        service: Service,
        shown: Option<&Facts>,
    ) -> Result<(), HelloError> {
        let by = Instant::now() + GREETING_TIME;
        let (mut send, mut receive) = connection.accept_bi().await.map_err(|error| FrameError::Io(error.into()))?;
        let mine = self.services.hello();
        let checked = match hello::hear(&mut receive, by).await {
            Ok(theirs) => hello::check(&mine, &theirs).and_then(|version| {
                let pass = access::admit(service, shown, &self.services.membership(), now())?;
                // The hello may not name another host than the key does.
                if matches!(pass, Pass::Host(host) if theirs.host != Some(host)) {
                    return Err(Refusal::NotAdmitted);
                }
                Ok(Welcome { hello: mine, version })
            }),
            Err(error) => {
                tracing::debug!(%error, "a hello was not understood");
                Err(Refusal::Garbled)
            }
        };
        hello::answer(&mut send, &checked, by).await?;
        let _ = send.finish();
        match checked {
            Ok(_) => Ok(()),
            Err(refusal) => {
                let _ = send.stopped().await;
                Err(HelloError::Refused(refusal))
            }
        }
    }

    async fn stream(
        &self,
        connection: &quinn::Connection,
        service: Service,
        shown: Option<&Facts>,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) -> Result<(), FrameError> {
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            let busy = Report::new(ErrorCode::Unreachable, "the host serves too many requests").retryable();
            return call::put_failure(&mut send, &busy).await;
        };
        match access::admit(service, shown, &self.services.membership(), now()) {
            Ok(Pass::Client { name, role }) => {
                let caller = Caller::Remote { name, role, address: connection.remote_address() };
                let services = Arc::clone(&self.services);
                serve::admin(&mut receive, &mut send, caller, services, Some(permit)).await
            }
            Ok(pass) => self.unary(connection, service, pass, send, receive, permit).await,
            Err(refusal) => {
                let code = match refusal {
                    Refusal::NotAdmitted => ErrorCode::HostRemoved,
                    _ => ErrorCode::Denied,
                };
                let told = call::put_failure(&mut send, &Report::new(code, refusal.to_string())).await;
                let _ = send.finish();
                let _ = timeout(FAREWELL_TIME, send.stopped()).await;
                connection.close(CloseCode::Refused.into(), b"no longer admitted");
                told
            }
        }
    }

    async fn unary(
        &self,
        connection: &quinn::Connection,
        service: Service,
        pass: Pass,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), FrameError> {
        let (payload, by) = match serve::request(&mut receive, service).await {
            Ok(request) => request,
            Err(error @ (FrameError::Closed | FrameError::Io(_))) => return Err(error),
            Err(error) => return call::put_failure(&mut send, &serve::unreadable(&error)).await,
        };
        let services = Arc::clone(&self.services);
        let handler = match (service, pass) {
            (Service::Raft, Pass::Host(from)) => tokio::spawn(async move {
                let _permit = permit;
                services.raft(from, payload, by).await
            }),
            (Service::Peer, Pass::Host(from)) => {
                let request: PeerRequest = match codec::decode_wire(&payload, service.cap()) {
                    Ok(request) => request,
                    Err(error) => return call::put_failure(&mut send, &serve::unreadable(&error)).await,
                };
                tokio::spawn(async move {
                    let _permit = permit;
                    serve::encode(&services.peer(from, request, by).await, Service::Peer)
                })
            }
            (Service::Join, _) => {
                let request: JoinCall = match codec::decode_wire(&payload, service.cap()) {
                    Ok(request) => request,
                    Err(error) => return call::put_failure(&mut send, &serve::unreadable(&error)).await,
                };
                let address = connection.remote_address();
                tokio::spawn(async move {
                    let _permit = permit;
                    let answer = match request {
                        JoinCall::Admit(request) => services.join(*request, address, by).await,
                        JoinCall::Echo(_) => {
                            JoinAnswer::Refused(JoinRefusal::BadRequest("this host is a member already".to_owned()))
                        }
                    };
                    serve::encode(&answer, Service::Join)
                })
            }
            _ => return call::put_failure(&mut send, &Report::new(ErrorCode::Denied, "the service is not open")).await,
        };
        serve::finish(&mut send, handler, by).await
    }
}

/// Unix seconds by this host's clock: only the dates of clients' certificates are compared with it.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
