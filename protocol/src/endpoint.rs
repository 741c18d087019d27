//! The QUIC endpoint: client and server on one UDP port.
//!
//! A connection is for one service, named by ALPN. It is handed out only after a hello round trip: in TLS 1.3 the
//! client's handshake is done before the server has looked at the client's certificate. A peer that goes silent is
//! dropped after the idle time. Which connections are admitted is the router's decision, not the endpoint's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};

use crate::call::CallError;
use crate::hello::{self, Hello, Welcome};
use crate::identity::subject::{public_key_of, server_name};
use crate::identity::{Identity, IdentityError, tls};
use crate::ids::ClusterId;
use crate::join::Member;
use crate::service::Service;
use crate::token::CaDigest;

/// The UDP port of a daemon, and the TCP port of its bulk service.
pub const DEFAULT_PORT: u16 = 7465;

/// Hosts send something at least this often on an open connection. Longer than the pause between renewals of sessions, so
/// that a connection that carries those needs nothing more; short enough to be lost twice within [`IDLE_HOST`].
const KEEP_ALIVE: Duration = Duration::from_millis(1300);
/// A host that says nothing for this long is dropped; the next call dials again.
const IDLE_HOST: Duration = Duration::from_secs(4);
/// The same for clients, whose links may be long.
const IDLE_CLIENT: Duration = Duration::from_secs(15);
/// A handshake whose first packet is lost repeats it after three times this.
const FIRST_RTT: Duration = Duration::from_millis(100);
/// Requests at once on one connection.
const STREAMS: u32 = 256;
/// Bytes a peer may have on their way to us, on one connection and on one stream.
const WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for a peer that was not admitted yet, and its streams: enough for a hello and a join.
const STRANGERS_WINDOW: u32 = 300 << 10;
const STRANGERS_STREAMS: u32 = 2;
/// Connections that wait to be looked at, and bytes of their first packets that are kept, of each and of all.
const WAITING: usize = 1024;
const WAITING_BYTES: u64 = 16 << 10;
const WAITING_BYTES_ALL: u64 = 4 << 20;

/// Why a connection was closed, as a number the other side sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// Nothing is wrong.
    Done = 0,
    /// The hello was refused.
    Refused = 1,
    /// What came was not understood.
    Garbled = 2,
    /// The daemon ends.
    Stopping = 3,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> VarInt {
        VarInt::from_u32(code as u32)
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The port cannot be used.
    #[error("UDP {address} cannot be used")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A TLS setting was refused.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The crypto provider lacks what QUIC needs.
    #[error("TLS settings do not fit QUIC")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// A QUIC endpoint with an identity.
#[derive(Debug, Clone)]
pub struct MeshEndpoint {
    endpoint: quinn::Endpoint,
    cluster: ClusterId,
    serves: bool,
    shown: Arc<RwLock<Shown>>,
}

/// What new connections show. Those that are open stay as they are.
#[derive(Debug)]
struct Shown {
    identity: Arc<Identity>,
    dials: [quinn::ClientConfig; 4],
}

impl MeshEndpoint {
    /// A daemon's endpoint: listens on `address` for every service and dials from the same port.
    pub fn serve(address: SocketAddr, identity: Arc<Identity>) -> Result<Self, EndpointError> {
        let endpoint = bind(address, Some(serve_of(&identity)?), identity.key().secret_for("quic stateless reset"))?;
        Self::of(endpoint, identity, true)
    }

    /// A client's endpoint: dials only. `address` is a wildcard of the family to be dialled, with port 0.
    pub fn dial_only(address: SocketAddr, identity: Arc<Identity>) -> Result<Self, EndpointError> {
        Self::of(bind(address, None, rand::random())?, identity, false)
    }

    fn of(endpoint: quinn::Endpoint, identity: Arc<Identity>, serves: bool) -> Result<Self, EndpointError> {
        let (cluster, dials) = (identity.facts().subject.cluster(), dials_of(&identity)?);
        Ok(Self { endpoint, cluster, serves, shown: Arc::new(RwLock::new(Shown { identity, dials })) })
    }

    /// From now on new connections, on every clone of this endpoint, show this identity of the same cluster.
    ///
    /// # Errors
    /// TLS refuses it; nothing changes then.
    pub fn show(&self, identity: Arc<Identity>) -> Result<(), EndpointError> {
        let dials = dials_of(&identity)?;
        if self.serves {
            self.endpoint.set_server_config(Some(serve_of(&identity)?));
        }
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Shown { identity, dials };
        Ok(())
    }

    /// Opens a connection for one service and says hello. The answer tells who is there; whether its key is the wanted
    /// host's is for the caller to check with [`peer_certificate`].
    pub async fn connect(
        &self,
        address: SocketAddr,
        service: Service,
        mine: &Hello,
        by: Instant,
    ) -> Result<(quinn::Connection, Welcome), CallError> {
        connect_with(&self.endpoint, self.dial_of(service, address)?, address, self.cluster, mine, by).await
    }

    fn dial_of(&self, service: Service, address: SocketAddr) -> Result<quinn::ClientConfig, CallError> {
        let place = Service::OVER_QUIC.iter().position(|known| *known == service);
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        place
            .map(|place| shown.dials[place].clone())
            .ok_or_else(|| CallError::Unreachable { to: address.to_string(), why: format!("{service} is not on QUIC") })
    }

    /// As [`MeshEndpoint::connect`] to a host of the cluster: whoever does not hold its key is told nothing, and what
    /// the holder says, a refusal included, is the host's own word.
    ///
    /// # Errors
    /// It cannot be reached there, another one answers, or it refuses.
    pub async fn connect_host(
        &self,
        member: &Member,
        address: SocketAddr,
        service: Service,
        mine: &Hello,
        by: Instant,
    ) -> Result<(quinn::Connection, Welcome), CallError> {
        let connection = handshake(&self.endpoint, self.dial_of(service, address)?, address, self.cluster, by).await?;
        let shown = peer_certificate(&connection).map(|shown| public_key_of(&shown));
        if !matches!(shown, Some(Ok(ref key)) if *key == member.key) {
            connection.close(CloseCode::Refused.into(), b"another host");
            return Err(CallError::WrongKey { to: address, host: member.host });
        }
        greet(connection, address, mine, by).await
    }

    /// The next connection that comes in; none once the endpoint is closed.
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What new connections show.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner).identity)
    }

    /// The endpoint below.
    pub fn quic(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    /// Closes every connection and waits at most `patience` until the other sides know.
    pub async fn close(&self, patience: Duration) {
        self.endpoint.close(CloseCode::Stopping.into(), b"stopping");
        let _ = tokio::time::timeout(patience, self.endpoint.wait_idle()).await;
        // Whoever still holds a handle must not keep the port: a daemon may go on without its host and take another one.
        // Twice, because an endpoint holds on to the socket before its last.
        for _ in 0..2 {
            let moved =
                std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| self.endpoint.rebind(socket));
            if let Err(error) = moved {
                tracing::debug!(%error, "a closed endpoint keeps its port until it is dropped");
            }
        }
    }
}

/// Dials with any client settings, finishes the handshake and says hello.
pub async fn connect_with(
    endpoint: &quinn::Endpoint,
    dial: quinn::ClientConfig,
    address: SocketAddr,
    cluster: ClusterId,
    mine: &Hello,
    by: Instant,
) -> Result<(quinn::Connection, Welcome), CallError> {
    let connection = handshake(endpoint, dial, address, cluster, by).await?;
    greet(connection, address, mine, by).await
}

async fn handshake(
    endpoint: &quinn::Endpoint,
    dial: quinn::ClientConfig,
    address: SocketAddr,
    cluster: ClusterId,
    by: Instant,
) -> Result<quinn::Connection, CallError> {
    let unreachable = |why: String| CallError::Unreachable { to: address.to_string(), why };
    let connecting =
        endpoint.connect_with(dial, address, &server_name(cluster)).map_err(|error| unreachable(error.to_string()))?;
    match timeout_at(by, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(distrusted(&error, address).unwrap_or_else(|| unreachable(error.to_string()))),
        Err(_) => Err(unreachable("no answer in time".to_owned())),
    }
}

/// What it means where a handshake ended because one side does not know the authority of the other's certificate, or
/// knows one of its name with another key.
fn distrusted(error: &quinn::ConnectionError, to: SocketAddr) -> Option<CallError> {
    const UNKNOWN_CA: u8 = 48;
    const DECRYPT_ERROR: u8 = 51;
    let (code, ours) = match error {
        quinn::ConnectionError::TransportError(error) => (error.code, false),
        quinn::ConnectionError::ConnectionClosed(close) => (close.error_code, true),
        _ => return None,
    };
    let meant = [UNKNOWN_CA, DECRYPT_ERROR].map(quinn::TransportErrorCode::crypto).contains(&code);
    meant.then_some(CallError::OtherAuthority { to, ours })
}

async fn greet(
    connection: quinn::Connection,
    address: SocketAddr,
    mine: &Hello,
    by: Instant,
) -> Result<(quinn::Connection, Welcome), CallError> {
    let unreachable = |why: String| CallError::Unreachable { to: address.to_string(), why };
    let greeting = async {
        // The refusal of our certificate may be here already.
        let opened = connection.open_bi().await;
        let (mut send, mut receive) =
            opened.map_err(|error| distrusted(&error, address).unwrap_or_else(|| unreachable(error.to_string())))?;
        let welcome = hello::introduce(&mut send, &mut receive, mine, by).await;
        welcome.map_err(|error| match connection.close_reason() {
            // The refusal of our certificate arrives here, as the connection's end.
            Some(reason) if !matches!(error, hello::HelloError::Refused(_)) => {
                distrusted(&reason, address).unwrap_or_else(|| unreachable(reason.to_string()))
            }
            _ => CallError::of_hello(address, error),
        })
    };
    match timeout_at(by, greeting).await.unwrap_or(Err(CallError::Deadline { sent: false })) {
        Ok(welcome) => Ok((connection, welcome)),
        Err(error) => {
            connection.close(CloseCode::Refused.into(), b"no hello");
            Err(error)
        }
    }
}

/// Waits until a UDP port can be bound again, for `patience` at most: connections that were closed hold on to it until
/// their last packets are gone.
pub async fn port_is_free(address: SocketAddr, patience: Duration) {
    let until = Instant::now() + patience;
    while Instant::now() < until && std::net::UdpSocket::bind(address).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The certificate the other side showed, if it showed one.
pub fn peer_certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// The digest of the CA's certificate that the other side showed behind its own.
pub fn peer_authority(connection: &quinn::Connection) -> Option<CaDigest> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.get(1).map(|ca| CaDigest::of(ca))
}

/// The service a connection was opened for.
pub fn service_of(connection: &quinn::Connection) -> Option<Service> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    Service::from_alpn(data.protocol.as_deref()?)
}

/// Binds a UDP port; with `server`, connections are taken on it.
///
/// An endpoint that comes back on its port with the same `reset` secret tells peers at once that their connections are
/// gone. Without that, every peer of a restarted daemon would wait for the idle time.
pub fn bind(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
    reset: [u8; 32],
) -> Result<quinn::Endpoint, EndpointError> {
    let mut config = quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset)));
    config.cid_generator(|| Box::new(AnyId));
    std::net::UdpSocket::bind(address)
        .and_then(|socket| quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)))
        .map_err(|source| EndpointError::Bind { address, source })
}

/// Random connection ids of which none is known to be foreign. The default ids can be told from those of an earlier
/// process, and such packets are dropped in silence; they are what has to be answered with a reset.
#[derive(Debug)]
struct AnyId;

impl quinn::ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// QUIC settings around a TLS client.
pub fn client_config(config: rustls::ClientConfig, service: Service) -> Result<quinn::ClientConfig, EndpointError> {
    let mut dial = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let mut transport = transport(if service == Service::Admin { IDLE_CLIENT } else { IDLE_HOST });
    let keep_alive = if service == Service::Admin { 3 * KEEP_ALIVE } else { KEEP_ALIVE };
    transport.keep_alive_interval(Some(keep_alive));
    dial.transport_config(Arc::new(transport));
    Ok(dial)
}

/// QUIC settings around a TLS server.
pub fn server_config(config: rustls::ServerConfig) -> Result<quinn::ServerConfig, EndpointError> {
    let mut serve = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    // The lower of both sides' idle times holds: hosts that dial ask for the shorter one.
    let mut transport = transport(IDLE_CLIENT);
    transport
        .receive_window(VarInt::from_u32(STRANGERS_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGERS_STREAMS));
    serve.transport_config(Arc::new(transport));
    serve.migration(false);
    serve.max_incoming(WAITING).incoming_buffer_size(WAITING_BYTES).incoming_buffer_size_total(WAITING_BYTES_ALL);
    Ok(serve)
}

/// The peer was admitted: from now on it may have as much on its way as its requests need.
pub fn admitted(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS));
}

fn serve_of(identity: &Identity) -> Result<quinn::ServerConfig, EndpointError> {
    server_config(tls::server(identity, &Service::OVER_QUIC, true)?)
}

fn dials_of(identity: &Identity) -> Result<[quinn::ClientConfig; 4], EndpointError> {
    let [raft, admin, peer, join] = Service::OVER_QUIC;
    let dial = |service| client_config(tls::client(identity, service)?, service);
    Ok([dial(raft)?, dial(admin)?, dial(peer)?, dial(join)?])
}

fn transport(idle: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("seconds fit QUIC's milliseconds")))
        .initial_rtt(FIRST_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}
