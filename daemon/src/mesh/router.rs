//! Takes QUIC connections and routes each to the service that ALPN names, if its key opens that service.
//!
//! Clients without a certificate pass TLS and are admitted to `join` alone. Each request is checked against the
//! membership of its moment, so that a removed key is refused on a connection that is already open. Whatever a peer
//! sends, the worst that happens is that its connection ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use vt_protocol::audit::Outcome;
use vt_protocol::call::{self, CallError};
use vt_protocol::codec;
use vt_protocol::endpoint::{self, CloseCode, MeshEndpoint};
use vt_protocol::error::{ErrorCode, Report};
use vt_protocol::frame::FrameError;
use vt_protocol::hello::{self, HelloError, Refusal, Welcome};
use vt_protocol::identity::subject::{Facts, role_name};
use vt_protocol::join::{JoinAnswer, JoinCall, JoinRefusal};
use vt_protocol::peer::PeerRequest;
use vt_protocol::rehearsal::unix_s;
use vt_protocol::service::Service;

use super::access::{self, Pass};
use super::doors::{Doors, Stranger};
use super::serve;
use super::services::{Caller, Services};
use crate::audit::{Actor, Deed};

/// Connections at once.
const CONNECTIONS: usize = 512;
/// Connections that were not admitted yet, in all and from one address. Those on `join` never are.
const STRANGERS: usize = 256;
const STRANGERS_OF_ONE: usize = 64;
/// Connections on `join`, and how long one lives.
const JOINING: usize = 32;
const JOIN_TIME: Duration = Duration::from_secs(90);
/// Requests at once, over all connections.
const REQUESTS: usize = 2048;
/// Handshake and hello must be done after this long.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// Why a connection for which there is no place is refused.
pub(super) const CROWDED: &str = "there are too many connections";
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
        let doors = Doors::new(STRANGERS, STRANGERS_OF_ONE);
        loop {
            let incoming = tokio::select! {
                () = stop.cancelled() => return,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            if doors.crowded() && incoming.may_retry() {
                // Costs nothing here, and whoever only pretends to be at that address never comes back.
                let _ = incoming.retry();
                continue;
            }
            let address = incoming.remote_address();
            let place = doors.enter(address.ip());
            let (Some(stranger), Ok(permit)) = (place, Arc::clone(&room).try_acquire_owned()) else {
                incoming.refuse();
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move { shared.refused(address, None, "connect", CROWDED).await });
                continue;
            };
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = shared.connection(incoming, stranger) => {}
                }
                drop(permit);
            });
        }
    }
}

impl Shared {
    async fn connection(self: Arc<Self>, incoming: quinn::Incoming, stranger: Stranger) {
        let address = incoming.remote_address();
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => return tracing::debug!(%address, %error, "a connection did not begin"),
        };
        let connection = match timeout(GREETING_TIME, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return self.refused(address, None, "handshake", &error.to_string()).await,
            Err(_) => return self.refused(address, None, "handshake", "it took too long").await,
        };
        // Without a known service TLS ends the handshake, so there is one.
        let Some(service) = endpoint::service_of(&connection) else { return };
        let shown = match endpoint::peer_certificate(&connection).map(|shown| Facts::read(&shown)) {
            None => None,
            Some(Ok(facts)) => Some(facts),
            Some(Err(error)) => return self.refused(address, None, "handshake", &error.to_string()).await,
        };
        let verb = format!("connect {service}");
        let joining = if service == Service::Join {
            match Arc::clone(&self.joining).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    connection.close(CloseCode::Refused.into(), b"busy");
                    return self.refused(address, shown.as_ref(), &verb, "as many join as may at once").await;
                }
            }
        } else {
            None
        };
        match timeout(GREETING_TIME, self.greet(&connection, service, shown.as_ref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.refused(address, shown.as_ref(), &verb, &error.to_string()).await;
                let _ = timeout(FAREWELL_TIME, connection.closed()).await;
                return connection.close(CloseCode::Refused.into(), b"refused");
            }
            Err(_) => {
                self.refused(address, shown.as_ref(), &verb, "it said no hello").await;
                return connection.close(CloseCode::Garbled.into(), b"no hello");
            }
        }
        let until = if service == Service::Join {
            Some((Instant::now() + JOIN_TIME, stranger))
        } else {
            endpoint::admitted(&connection);
            drop(stranger);
            None
        };
        let shown = Arc::new(shown);
        let ended = loop {
            let next = match &until {
                None => connection.accept_bi().await,
                Some((until, _)) => match timeout_at(*until, connection.accept_bi()).await {
                    Ok(next) => next,
                    Err(_) => return connection.close(CloseCode::Refused.into(), b"a join takes less time"),
                },
            };
            match next {
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

    /// Writes down who was not let in, as far as is known who that was.
    async fn refused(&self, address: SocketAddr, shown: Option<&Facts>, verb: &str, reason: &str) {
        let actor = Actor::named(shown.map_or_else(|| "unknown".to_owned(), access::holder), address.to_string());
        self.services.audit().refusal(actor, verb, "", reason).await;
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
                let pass = access::admit(service, shown, &self.services.membership(), unix_s())?;
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
        match access::admit(service, shown, &self.services.membership(), unix_s()) {
            Ok(Pass::Client { name, role }) => {
                let caller = Caller::Remote { name, role, address: connection.remote_address() };
                let services = Arc::clone(&self.services);
                serve::admin(&mut receive, &mut send, caller, services, Some(permit)).await
            }
            Ok(pass) => self.unary(connection, service, pass, send, receive, permit).await,
            Err(refusal) => {
                let verb = format!("request {service}");
                self.refused(connection.remote_address(), shown, &verb, &refusal.to_string()).await;
                let report = CallError::Refused { to: self.services.hello().build, refusal }.report();
                let told = call::put_failure(&mut send, &report).await;
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
        let address = connection.remote_address();
        let (payload, by) = match serve::request(&mut receive, service).await {
            Ok(request) => request,
            Err(error @ (FrameError::Closed | FrameError::Io(_))) => return Err(error),
            Err(error) => return self.not_understood(&mut send, address, service, &pass, &error).await,
        };
        let services = Arc::clone(&self.services);
        let handler = match (service, &pass) {
            (Service::Raft, &Pass::Host(from)) => tokio::spawn(async move {
                let _permit = permit;
                services.raft(from, payload, by).await
            }),
            (Service::Peer, &Pass::Host(from)) => {
                let request: PeerRequest = match codec::decode_wire(&payload, service.cap()) {
                    Ok(request) => request,
                    Err(error) => return self.not_understood(&mut send, address, service, &pass, &error).await,
                };
                tokio::spawn(async move {
                    let _permit = permit;
                    serve::encode(&services.peer(from, request, by).await, Service::Peer)
                })
            }
            (Service::Join, _) => {
                let request: JoinCall = match codec::decode_wire(&payload, service.cap()) {
                    Ok(request) => request,
                    Err(error) => return self.not_understood(&mut send, address, service, &pass, &error).await,
                };
                tokio::spawn(async move {
                    let _permit = permit;
                    serve::encode(&joined(&*services, request, address, by).await, Service::Join)
                })
            }
            _ => return call::put_failure(&mut send, &Report::new(ErrorCode::Denied, "the service is not open")).await,
        };
        serve::finish(&mut send, handler, by).await
    }

    async fn not_understood(
        &self,
        send: &mut quinn::SendStream,
        address: SocketAddr,
        service: Service,
        pass: &Pass,
        error: &(impl std::error::Error + Sync),
    ) -> Result<(), FrameError> {
        let who = match pass {
            Pass::Host(host) => format!("host {host}"),
            Pass::Client { name, role } => format!("client {name} ({})", role_name(*role)),
            Pass::Anyone => "unknown".to_owned(),
        };
        let actor = Actor::named(who, address.to_string());
        self.services.audit().refusal(actor, &format!("request {service}"), "", &error.to_string()).await;
        call::put_failure(send, &serve::unreadable(error)).await
    }
}

/// Lets a host or a client in, or does not, and writes down which.
async fn joined(services: &dyn Services, request: JoinCall, from: SocketAddr, by: Instant) -> JoinAnswer {
    let (verb, actor, answer) = match request {
        JoinCall::Admit(request) => {
            let actor = Actor::named(format!("joining host {}", request.name), from.to_string());
            ("join", actor, services.join(*request, from, by).await)
        }
        JoinCall::Enroll(request) => {
            let actor = Actor::named(format!("joining client {}", request.name), from.to_string());
            ("enroll", actor, services.enroll(request, by).await)
        }
        JoinCall::Echo(_) => {
            let refusal = JoinRefusal::BadRequest("this host is a member already".to_owned());
            ("probe", Actor::named("unknown", from.to_string()), JoinAnswer::Refused(refusal))
        }
    };
    let admitted = match &answer {
        JoinAnswer::Admitted(admitted) => format!("{}", admitted.host),
        JoinAnswer::Enrolled(enrolled) => format!("client {} ({})", enrolled.name, role_name(enrolled.role)),
        JoinAnswer::Echo(_) => String::new(),
        JoinAnswer::Refused(refusal) => {
            services.audit().refusal(actor, verb, "", &refusal.to_string()).await;
            return answer;
        }
    };
    let deed = Deed { verb: verb.to_owned(), object: String::new(), outcome: Outcome::Done, detail: admitted };
    services.audit().action(actor, deed).await;
    answer
}
