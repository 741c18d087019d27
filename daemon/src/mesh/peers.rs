//! Connections to other hosts: one for each host and service, made when first needed, kept, and made again.
//!
//! A connection counts only after its key was found to be the admitted one and a hello came back. Dialling goes on when
//! the call that began it gives up, so that short calls to a host that comes back succeed at last; between attempts
//! there is a bounded pause. Nothing runs for a host that nobody calls.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use vt_protocol::call::{self, CallError};
use vt_protocol::client::open_stream;
use vt_protocol::endpoint::{CloseCode, MeshEndpoint};
use vt_protocol::error::Report;
use vt_protocol::hello::{Hello, Refusal};
use vt_protocol::ids::HostId;
use vt_protocol::join::Member;
use vt_protocol::peer::{PeerReply, PeerRequest};
use vt_protocol::service::Service;
use vt_protocol::transport::Transport;
use vt_protocol::{codec, identity::PublicKey};

use super::services::MembershipView;

/// One address gets this long to answer.
const DIAL_TIME: Duration = Duration::from_secs(2);
/// Pause after the first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// Addresses tried of one host.
const ADDRESSES_MAX: usize = 4;

/// The pool of connections to other hosts.
pub struct Peers {
    endpoint: MeshEndpoint,
    view: Arc<dyn MembershipView>,
    mine: Hello,
    links: Mutex<HashMap<(HostId, Service), SharedLink>>,
    /// A later generation of the cluster that a host of it told of.
    superseded: Arc<watch::Sender<Option<u64>>>,
    /// The last host that answered does not admit this one's key.
    expelled: Arc<AtomicBool>,
}

/// Packets of a connection, from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packets {
    /// All that were sent.
    pub sent: u64,
    /// Those that nobody confirmed, and what was in them was sent again.
    pub lost: u64,
}

/// Seen by every call that waits for it.
type SharedLink = Arc<watch::Sender<Link>>;

#[derive(Debug, Clone)]
enum Link {
    Idle,
    Dialling,
    Up { connection: quinn::Connection, key: PublicKey },
    Down { until: Instant, failures: u32, why: DialFailure },
}

/// Why dialling failed, as it is told to every call that waited for it.
#[derive(Debug, Clone)]
enum DialFailure {
    Unknown,
    Unreachable { to: String, why: String },
    Refused { to: String, refusal: Refusal },
    WrongKey { to: SocketAddr },
}

impl DialFailure {
    fn of(error: CallError, to: SocketAddr) -> Self {
        match error {
            CallError::Refused { to, refusal } => DialFailure::Refused { to, refusal },
            // A host is its admitted key, whoever signed for it: this one's key is not admitted there.
            CallError::OtherAuthority { to, ours: true } => {
                DialFailure::Refused { to: to.to_string(), refusal: Refusal::NotAdmitted }
            }
            CallError::Unreachable { to, why } => DialFailure::Unreachable { to, why },
            other => DialFailure::Unreachable { to: to.to_string(), why: other.to_string() },
        }
    }

    fn error(&self, host: HostId) -> CallError {
        match self.clone() {
            DialFailure::Unknown => CallError::UnknownHost(host),
            DialFailure::Unreachable { to, why } => CallError::Unreachable { to, why },
            DialFailure::Refused { to, refusal } => CallError::Refused { to, refusal },
            DialFailure::WrongKey { to } => CallError::WrongKey { to, host },
        }
    }
}

impl Peers {
    /// A pool that dials from `endpoint` and says `mine`.
    pub fn new(endpoint: MeshEndpoint, view: Arc<dyn MembershipView>, mine: Hello) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            view,
            mine,
            links: Mutex::default(),
            superseded: Arc::new(watch::Sender::new(None)),
            expelled: Arc::default(),
        })
    }

    /// Told when a host says that the cluster was recovered without this one: the generation it is in.
    pub fn superseded(&self) -> watch::Receiver<Option<u64>> {
        self.superseded.subscribe()
    }

    /// Whether the last host that answered refused this one's key: it was removed, or is not known there yet.
    pub fn expelled(&self) -> bool {
        self.expelled.load(Ordering::Relaxed)
    }

    /// A typed call to the peer service.
    ///
    /// # Errors
    /// No reply; see [`CallError::may_be_done`].
    pub async fn peer(&self, host: HostId, request: &PeerRequest, by: Instant) -> Result<PeerReply, CallError> {
        let cap = Service::Peer.cap();
        let reply = self.call(host, Service::Peer, call::encode(request, cap)?, by).await?;
        Ok(codec::decode_wire(&reply, cap)?)
    }

    /// The same with a refusal as an error.
    ///
    /// # Errors
    /// No reply, or a refusal.
    pub async fn ask(&self, host: HostId, request: &PeerRequest, by: Instant) -> Result<PeerReply, Report> {
        match self.peer(host, request, by).await {
            Ok(PeerReply::Refused(report)) => Err(report),
            Ok(reply) => Ok(reply),
            Err(error) => Err(error.report()),
        }
    }

    fn link(&self, host: HostId, service: Service) -> SharedLink {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(links.entry((host, service)).or_insert_with(|| Arc::new(watch::Sender::new(Link::Idle))))
    }

    /// Packets on the present connection to a host, where there is one: those that were sent, and those of them that got lost.
    pub fn packets(&self, host: HostId) -> Option<Packets> {
        let Link::Up { connection, .. } = self.link(host, Service::Peer).borrow().clone() else { return None };
        let path = connection.stats().path;
        Some(Packets { sent: path.sent_packets, lost: path.lost_packets })
    }

    /// Drops every connection: this host has stopped. As long as one is held, so is the port.
    pub fn forget_all(&self) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn drop_links(&self, host: HostId) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|(of, _), link| {
            if *of != host {
                return true;
            }
            if let Link::Up { connection, .. } = &*link.borrow() {
                connection.close(CloseCode::Done.into(), b"no longer wanted");
            }
            false
        });
    }

    async fn connection(&self, member: &Member, service: Service, by: Instant) -> Result<quinn::Connection, CallError> {
        let link = self.link(member.host, service);
        let mut changes = link.subscribe();
        let mut waited_for_dial = false;
        loop {
            let mut dial = None;
            link.send_if_modified(|link| {
                let failures = match link {
                    Link::Up { connection, key } if connection.close_reason().is_none() && *key == member.key => {
                        return false;
                    }
                    Link::Dialling => return false,
                    Link::Down { until, .. } if Instant::now() < *until => return false,
                    Link::Down { failures, .. } => *failures,
                    Link::Up { .. } | Link::Idle => 0,
                };
                *link = Link::Dialling;
                dial = Some(failures);
                true
            });
            if let Some(failures) = dial {
                self.dial(member.clone(), service, failures, Arc::clone(&link));
            }
            let seen = changes.borrow_and_update().clone();
            match seen {
                Link::Up { connection, .. } if connection.close_reason().is_none() => return Ok(connection),
                Link::Up { .. } | Link::Idle => {}
                Link::Dialling => {
                    waited_for_dial = true;
                    if timeout_at(by, changes.changed()).await.is_err() {
                        return Err(CallError::Deadline { sent: false });
                    }
                }
                // The dial this call waited for failed, or the pause after a failure is longer than this call lives.
                Link::Down { until, why, .. } if waited_for_dial || until >= by => return Err(why.error(member.host)),
                Link::Down { until, .. } => sleep_until(until).await,
            }
        }
    }

    fn dial(&self, member: Member, service: Service, failures: u32, link: SharedLink) {
        let (endpoint, mine) = (self.endpoint.clone(), self.mine.clone().in_generation(self.view.generation()));
        let (superseded, expelled) = (Arc::clone(&self.superseded), Arc::clone(&self.expelled));
        tokio::spawn(async move {
            let dialled = dial(&endpoint, &mine, &member, service).await;
            match &dialled {
                Ok(_) => expelled.store(false, Ordering::Relaxed),
                Err(DialFailure::Refused { refusal: Refusal::NotAdmitted, .. }) => {
                    expelled.store(true, Ordering::Relaxed);
                }
                Err(_) => {}
            }
            let next = match dialled {
                Ok(connection) => Link::Up { connection, key: member.key },
                Err(why) => {
                    if let DialFailure::Refused { refusal: Refusal::Generation { theirs, yours }, .. } = &why
                        && theirs > yours
                    {
                        superseded.send_replace(Some(*theirs));
                    }
                    tracing::debug!(host = %member.name, %service, ?why, "a host was not reached");
                    let pause = PAUSE_FIRST.saturating_mul(1 << failures.min(8)).min(PAUSE_MAX);
                    // Two hosts that dial each other at the same rhythm should not stay in step.
                    let pause = pause.mul_f64(rand::random_range(0.75..1.25));
                    Link::Down { until: Instant::now() + pause, failures: failures.saturating_add(1), why }
                }
            };
            link.send_replace(next);
        });
    }
}

async fn dial(
    endpoint: &MeshEndpoint,
    mine: &Hello,
    member: &Member,
    service: Service,
) -> Result<quinn::Connection, DialFailure> {
    let mut failure = DialFailure::Unknown;
    for address in member.addresses.iter().take(ADDRESSES_MAX) {
        match endpoint.connect_host(member, *address, service, mine, Instant::now() + DIAL_TIME).await {
            Ok((connection, welcome)) if welcome.hello.host == Some(member.host) => return Ok(connection),
            Ok((connection, _)) => {
                connection.close(CloseCode::Refused.into(), b"another host");
                failure = DialFailure::WrongKey { to: *address };
            }
            Err(CallError::WrongKey { to, .. }) => failure = DialFailure::WrongKey { to },
            Err(error) => failure = DialFailure::of(error, *address),
        }
    }
    Err(failure)
}

#[async_trait]
impl Transport for Peers {
    async fn call(&self, host: HostId, service: Service, request: Vec<u8>, by: Instant) -> Result<Vec<u8>, CallError> {
        // A connection may have died unseen: that shows when a stream is opened, before anything is sent.
        let mut again = true;
        loop {
            let membership = self.view.membership();
            let Some(member) = membership.hosts.get(&host) else {
                self.drop_links(host);
                return Err(CallError::UnknownHost(host));
            };
            let connection = self.connection(member, service, by).await?;
            let (mut send, mut receive) = match open_stream(&connection, by).await {
                Ok(streams) => streams,
                Err(CallError::Unreachable { .. }) if again => {
                    again = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            return call::ask(&mut send, &mut receive, &request, service.cap(), by).await;
        }
    }

    async fn close(&self, host: HostId) {
        self.drop_links(host);
    }
}
