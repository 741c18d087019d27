//! The side that lets a host in: check the token, probe the address, admit by one entry.
//!
//! What the cluster knows and decides is behind [`Admission`]; that the joiner can be reached is behind [`Prober`].
//! Nothing changes anywhere before [`Admission::admit`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use vt_protocol::admin::HostRole;
use vt_protocol::call;
use vt_protocol::client::open_stream;
use vt_protocol::codec;
use vt_protocol::endpoint::{self, CloseCode, MeshEndpoint};
use vt_protocol::hello::Hello;
use vt_protocol::identity::authority::key_of_request;
use vt_protocol::identity::{PublicKey, tls};
use vt_protocol::ids::{Digest, HostId, Name, RequestId, TokenId};
use vt_protocol::join::{Admitted, JoinAnswer, JoinCall, JoinRefusal, JoinRequest, Member, host_id_of};
use vt_protocol::service::Service;

/// The probe back to the joiner gets this long.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// Most labels, and longest key and value, of a joiner.
const LABELS_MAX: usize = 64;
const LABEL_TEXT_MAX: usize = 128;

/// A join request that was read and found to be well-formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applicant {
    /// The id it will have: it follows from its key.
    pub host: HostId,
    /// The request id of the entry that admits it. It follows from everything that is said here: a repetition that
    /// says something new, like other facts, is no conflict. That a token admits one key is the state machine's rule.
    pub request: RequestId,
    /// Its key.
    pub key: PublicKey,
    /// Its signing request, in DER.
    pub signing_request: Vec<u8>,
    /// The token it shows.
    pub token: TokenId,
    /// The hash of the secret it shows.
    pub secret: Digest,
    /// The name it wants.
    pub name: Name,
    /// Where it says it is reached.
    pub advertise: SocketAddr,
    /// The role it wishes for.
    pub role: Option<HostRole>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its build.
    pub build: String,
    /// The digest of its facts.
    pub facts: Option<Digest>,
}

/// How an applicant stands before anything is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its token is open and its name is free.
    New,
    /// The same key was admitted with the same token: this is a repetition.
    Admitted,
}

/// The cluster as an admission sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// The cluster's name.
    pub cluster_name: Name,
    /// Its hosts, the new one included once it is admitted.
    pub members: Vec<Member>,
    /// The generation it is in.
    pub generation: u64,
}

/// What the cluster knows and decides about applicants.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Checks token, secret, name, address and key against committed state, and the token's end against the clock.
    /// Changes nothing.
    async fn look(&self, applicant: &Applicant, by: Instant) -> Result<Standing, JoinRefusal>;

    /// The certificate of the applicant, in DER; [`JoinRefusal::NotHere`] where this host holds no CA key.
    async fn certify(&self, applicant: &Applicant) -> Result<Vec<u8>, JoinRefusal>;

    /// The one entry: consumes the token and admits the host. Checks all that [`Admission::look`] checks again, where
    /// it is applied. Repeating it is doing it once.
    async fn admit(&self, applicant: &Applicant, by: Instant) -> Result<(), JoinRefusal>;

    /// The cluster after an admission.
    async fn roster(&self) -> Roster;
}

/// Finds out whether a host can be reached.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Whether the holder of `key` answers at `address`; if not, what was met.
    async fn probe(&self, address: SocketAddr, key: &PublicKey, by: Instant) -> Result<(), String>;

    /// This host's name, for the message.
    fn name(&self) -> Name;
}

/// Answers a join request.
pub async fn admit(
    admission: &dyn Admission,
    prober: &dyn Prober,
    endpoint: &MeshEndpoint,
    request: JoinRequest,
    by: Instant,
) -> JoinAnswer {
    let asked = (request.name.clone(), request.token, request.advertise);
    match decide(admission, prober, endpoint, request, by).await {
        Ok(admitted) => {
            tracing::info!(host = %admitted.host, name = %asked.0, token = %asked.1, "a host was admitted");
            JoinAnswer::Admitted(Box::new(admitted))
        }
        Err(refusal) => {
            tracing::info!(name = %asked.0, token = %asked.1, address = %asked.2, %refusal, "a host was not admitted");
            JoinAnswer::Refused(refusal)
        }
    }
}

async fn decide(
    admission: &dyn Admission,
    prober: &dyn Prober,
    endpoint: &MeshEndpoint,
    request: JoinRequest,
    by: Instant,
) -> Result<Admitted, JoinRefusal> {
    let applicant = applicant(request)?;
    let standing = admission.look(&applicant, by).await?;
    // Signed first: an entry that admits a host which then gets no certificate would strand it.
    let certificate = admission.certify(&applicant).await?;
    if standing == Standing::New {
        let until = by.min(Instant::now() + PROBE_TIME);
        prober.probe(applicant.advertise, &applicant.key, until).await.map_err(|why| JoinRefusal::DialBackFailed {
            address: applicant.advertise,
            from: prober.name(),
            why,
        })?;
        admission.admit(&applicant, by).await?;
    }
    let mut roster = admission.roster().await;
    if !roster.members.iter().any(|member| member.host == applicant.host) {
        // The entry is committed, but this host has not applied it yet.
        let Applicant { host, name, key, advertise, .. } = applicant.clone();
        roster.members.push(Member { host, name, key, addresses: vec![advertise] });
    }
    Ok(Admitted {
        cluster: endpoint.identity().facts().subject.cluster(),
        cluster_name: roster.cluster_name,
        host: applicant.host,
        certificate,
        ca: endpoint.identity().ca().to_vec(),
        members: roster.members,
        generation: roster.generation,
    })
}

/// Reads what an unknown host sent; trusts nothing of it.
fn applicant(request: JoinRequest) -> Result<Applicant, JoinRefusal> {
    let bad = |why: String| JoinRefusal::BadRequest(why);
    let key = key_of_request(&request.signing_request).map_err(|error| bad(error.to_string()))?;
    let address = request.advertise;
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err(bad(format!("{address} is no address to be reached at")));
    }
    let long = |text: &String| text.len() > LABEL_TEXT_MAX;
    if request.labels.len() > LABELS_MAX || request.labels.iter().any(|(key, value)| long(key) || long(value)) {
        return Err(bad("there are too many labels, or one is too long".to_owned()));
    }
    if long(&request.build) {
        return Err(bad("its build is too long".to_owned()));
    }
    let facts = request
        .facts
        .as_deref()
        .map(|facts| codec::encode_wire(facts, Service::Join.cap()).map(|bytes| Digest::of(&bytes)))
        .transpose()
        .map_err(|error| bad(error.to_string()))?;
    let said = (
        (request.token, request.secret.hash(), &key, &request.name, address),
        (request.role, &request.labels, &request.build, facts),
    );
    let said = codec::encode_wire(&said, Service::Join.cap()).map_err(|error| bad(error.to_string()))?;
    Ok(Applicant {
        host: host_id_of(&key),
        request: RequestId::derived(&[b"join", &said]),
        key,
        signing_request: request.signing_request,
        token: request.token,
        secret: request.secret.hash(),
        name: request.name,
        advertise: address,
        role: request.role,
        labels: request.labels,
        build: request.build,
        facts,
    })
}

/// Probes over QUIC: the joiner has to answer on its port, with its new key, and give a nonce back.
pub struct QuicProber {
    endpoint: MeshEndpoint,
    mine: Hello,
    name: Name,
}

impl QuicProber {
    /// A prober that dials from `endpoint`.
    pub fn new(endpoint: MeshEndpoint, mine: Hello, name: Name) -> Self {
        Self { endpoint, mine, name }
    }

    async fn echo(&self, address: SocketAddr, key: &PublicKey, by: Instant) -> Result<(), String> {
        let identity = self.endpoint.identity();
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let tls = tls::client_of_key(&identity, key.clone(), Service::Join).map_err(|error| said(&error))?;
        let dial = endpoint::client_config(tls, Service::Join).map_err(|error| said(&error))?;
        let cluster = identity.facts().subject.cluster();
        let (connection, _) = endpoint::connect_with(self.endpoint.quic(), dial, address, cluster, &self.mine, by)
            .await
            .map_err(|error| said(&error))?;
        let nonce: [u8; 32] = rand::random();
        let cap = Service::Join.cap();
        let asked = async {
            let payload = call::encode(&JoinCall::Echo(nonce), cap)?;
            let (mut send, mut receive) = open_stream(&connection, by).await?;
            call::ask(&mut send, &mut receive, &payload, cap, by).await
        };
        let reply = asked.await;
        connection.close(CloseCode::Done.into(), b"probed");
        match codec::decode_wire(&reply.map_err(|error| said(&error))?, cap) {
            Ok(JoinAnswer::Echo(back)) if back == nonce => Ok(()),
            _ => Err("it answered, but not with the nonce".to_owned()),
        }
    }
}

#[async_trait]
impl Prober for QuicProber {
    async fn probe(&self, address: SocketAddr, key: &PublicKey, by: Instant) -> Result<(), String> {
        self.echo(address, key, by).await
    }

    fn name(&self) -> Name {
        self.name.clone()
    }
}
