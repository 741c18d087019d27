//! Who is refused, and that the daemon lives on after each.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use vt_protocol::admin::{AccessRole, AdminReply, AdminRequest, HostRole, TokenCreate};
use vt_protocol::call::{self, CallError};
use vt_protocol::client::{Client, open_stream};
use vt_protocol::endpoint::{self, MeshEndpoint};
use vt_protocol::error::ErrorCode;
use vt_protocol::frame::Kind;
use vt_protocol::hello::{Hello, Refusal};
use vt_protocol::identity::{ClusterCa, Identity, PrivateKey, Validity, tls};
use vt_protocol::ids::{ClusterId, JobId, RequestId};
use vt_protocol::join::host_id_of;
use vt_protocol::service::Service;
use vt_protocol::version::VersionRange;

use crate::support::{CLUSTER, Host, Lab, address, by, echoed, name, now};

/// The daemon lives on: another host of the cluster is served.
async fn lives_on(host: &Host, other: &Host) {
    assert_eq!(other.echo(host, b"alive").await.unwrap(), echoed(other.id, b"alive"));
}

/// An identity of `ca` that trusts `trusted`.
fn identity_of(ca: &ClusterCa, trusted: &ClusterCa) -> Arc<Identity> {
    let key = PrivateKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let certificate = ca.issue_host(&request, host_id_of(&key.public()), &name("stranger")).unwrap();
    Arc::new(Identity::new(key, certificate, trusted.certificate().clone()).unwrap())
}

fn dialler(identity: &Arc<Identity>) -> MeshEndpoint {
    MeshEndpoint::dial_only("127.0.0.1:0".parse().unwrap(), Arc::clone(identity)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_ca_is_refused_by_either_side() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let foreign = ClusterCa::generate(CLUSTER).unwrap();

    // The stranger would trust the host; the host does not trust the stranger.
    let stranger = identity_of(&foreign, &lab.ca);
    let hello = Hello::of(Some(CLUSTER), Some(host_id_of(&stranger.key().public())), 1);
    for service in Service::OVER_QUIC {
        let error = dialler(&stranger).connect(host.at, service, &hello, by()).await.unwrap_err();
        assert!(matches!(error, CallError::OtherAuthority { ours: true, .. }), "{service}: {error}");
        assert_eq!(error.report().code, ErrorCode::OtherAuthority);
    }
    // The stranger does not trust the host.
    let stranger = identity_of(&foreign, &foreign);
    let error = dialler(&stranger).connect(host.at, Service::Raft, &hello, by()).await.unwrap_err();
    assert!(matches!(error, CallError::OtherAuthority { ours: false, .. }), "{error}");
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_cluster_is_refused_in_tls_and_in_the_hello() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;

    // A certificate of the same CA for another cluster.
    let key = PrivateKey::from_pem(&lab.ca.key().to_pem()).unwrap();
    let elsewhere = ClusterCa::from_parts(ClusterId(8), key, lab.ca.certificate().clone()).unwrap();
    let stranger = identity_of(&elsewhere, &lab.ca);
    let hello = Hello::of(Some(ClusterId(8)), Some(host_id_of(&stranger.key().public())), 1);
    let error = dialler(&stranger).connect(host.at, Service::Peer, &hello, by()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");

    // The right certificate and a hello that names another cluster.
    let hello = Hello { cluster: Some(ClusterId(8)), ..other.hello.clone() };
    let error = other.endpoint.connect(host.at, Service::Peer, &hello, by()).await.unwrap_err();
    let CallError::Refused { refusal, .. } = &error else { panic!("{error}") };
    assert_eq!(*refusal, Refusal::OtherCluster { theirs: CLUSTER, yours: ClusterId(8) });
    assert_eq!(error.report().code, ErrorCode::OtherCluster);
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_version_is_refused_with_both_ranges() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let hello = Hello { versions: VersionRange { oldest: 40, newest: 41 }, ..other.hello.clone() };
    let error = other.endpoint.connect(host.at, Service::Raft, &hello, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::WireVersion);
    assert!(error.to_string().contains("40–41"), "{error}");
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_may_not_name_another_host_than_the_key() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let hello = Hello { host: Some(host.id), ..other.hello.clone() };
    let error = other.endpoint.connect(host.at, Service::Raft, &hello, by()).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { refusal: Refusal::NotAdmitted, .. }), "{error}");
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_garbled_frames_end_in_a_reason() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let (connection, _) = other.endpoint.connect(host.at, Service::Peer, &other.hello, by()).await.unwrap();
    let long = (Service::Peer.cap() as u32 + 1).to_le_bytes();
    let frames: [&[u8]; 5] = [
        &[long[0], long[1], long[2], long[3], Kind::Request as u8, 1],
        &[4, 0, 0, 0, Kind::Request as u8, 9, 1, 2, 3, 4],
        &[4, 0, 0, 0, 77, 1, 1, 2, 3, 4],
        &[0, 0, 0, 0, Kind::Reply as u8, 1],
        &[9, 0, 0, 0, Kind::Request as u8, 1, 255, 255, 0, 0, 1, 200, 200, 200, 200],
    ];
    for bytes in frames {
        let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
        send.write_all(bytes).await.unwrap();
        let error = call::next_reply(&mut receive, 1 << 16, by()).await.unwrap_err();
        let CallError::Failed(report) = error else { panic!("{bytes:?}: {error}") };
        assert_eq!(report.code, ErrorCode::WireVersion, "{bytes:?}");
    }
    // Cut in the middle of a frame.
    let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
    send.write_all(&[200, 0, 0, 0, Kind::Request as u8, 1, 5]).await.unwrap();
    send.shutdown().await.unwrap();
    assert!(call::next_reply(&mut receive, 1 << 16, by()).await.is_err());
    // The very same connection is still good.
    let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
    let ping = call::encode(&vt_protocol::peer::PeerRequest::Ping, 64).unwrap();
    call::ask(&mut send, &mut receive, &ping, 4096, by()).await.unwrap();

    // A hello that is none.
    let tls = tls::client(&other.endpoint.identity(), Service::Peer).unwrap();
    let dial = endpoint::client_config(tls, Service::Peer).unwrap();
    let sni = vt_protocol::identity::subject::server_name(CLUSTER);
    let connection = other.endpoint.quic().connect_with(dial, host.at, &sni).unwrap().await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[5, 0, 0, 0, Kind::Hello as u8, 1, 1, 255, 255, 255, 255]).await.unwrap();
    let answer = vt_protocol::frame::read_kind(&mut receive, Kind::Refused, 4096, by()).await.unwrap();
    assert_eq!(vt_protocol::codec::decode_wire::<Refusal>(&answer, 4096).unwrap(), Refusal::Garbled);
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_no_hello_is_dropped() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let tls = tls::client(&other.endpoint.identity(), Service::Raft).unwrap();
    let dial = endpoint::client_config(tls, Service::Raft).unwrap();
    let sni = vt_protocol::identity::subject::server_name(CLUSTER);
    let connection = other.endpoint.quic().connect_with(dial, host.at, &sni).unwrap().await.unwrap();
    // Its keep-alives keep the connection from being idle: it is the hello that is missed.
    tokio::time::timeout(Duration::from_secs(25), connection.closed()).await.expect("a silent peer is dropped");
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_every_service_but_join_is_closed() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let dialler = endpoint::bind("127.0.0.1:0".parse().unwrap(), None, [0; 32]).unwrap();
    // The best hello there is: it claims to be an admitted host.
    let hello = other.hello.clone();
    for service in Service::OVER_QUIC {
        let tls = tls::client_without_certificate(lab.ca.certificate(), service).unwrap();
        let dial = endpoint::client_config(tls, service).unwrap();
        let met = endpoint::connect_with(&dialler, dial, host.at, CLUSTER, &hello, by()).await;
        match (service, met) {
            (Service::Join, Ok(_)) => {}
            (Service::Join, Err(error)) => panic!("join is open to all: {error}"),
            (_, Err(CallError::Refused { refusal, .. })) => assert_eq!(refusal, Refusal::NoCertificate(service)),
            (_, met) => panic!("{service}: {met:?}"),
        }
        // Without waiting for the answer to the hello: requests are not read from one who was refused.
        if service != Service::Join {
            let tls = tls::client_without_certificate(lab.ca.certificate(), service).unwrap();
            let dial = endpoint::client_config(tls, service).unwrap();
            let sni = vt_protocol::identity::subject::server_name(CLUSTER);
            let connection = dialler.connect_with(dial, host.at, &sni).unwrap().await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            let bytes = vt_protocol::codec::encode_wire(&hello, 4096).unwrap();
            vt_protocol::frame::write(&mut send, Kind::Hello, &bytes, by()).await.unwrap();
            let asked = async {
                let (mut send, mut receive) = open_stream(&connection, by()).await?;
                call::ask(&mut send, &mut receive, b"hi", 4096, by()).await
            };
            let error = asked.await.unwrap_err();
            assert!(!matches!(error, CallError::Failed(_)), "{service}: {error}");
        }
    }
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_is_refused_on_open_and_on_new_connections() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let third = lab.add("host3").await;
    assert!(other.echo(&host, b"x").await.is_ok());
    lab.remove(other.id);
    // Both share one state here, so the removed host's own pool would refuse first: it is asked below the pool.
    let error = other.endpoint.connect(host.at, Service::Raft, &other.hello, by()).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { refusal: Refusal::NotAdmitted, .. }), "{error}");
    assert_eq!(error.report().code, ErrorCode::HostRemoved);
    assert!(matches!(third.echo(&other, b"x").await, Err(CallError::UnknownHost(_))), "nobody dials it either");

    let (connection, _) = third.endpoint.connect(host.at, Service::Raft, &third.hello, by()).await.unwrap();
    lab.remove(third.id);
    let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
    let error = call::ask(&mut send, &mut receive, b"x", 4096, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::HostRemoved, "{error}");
    let fourth = lab.add("host4").await;
    lives_on(&host, &fourth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_dates_do_not_matter() {
    let (lab, host) = Lab::with_host().await;
    let key = PrivateKey::generate().unwrap();
    let past = Validity { from: 1_000_000, until: 2_000_000 };
    let request = key.signing_request().unwrap();
    let id = host_id_of(&key.public());
    let certificate = lab.ca.issue_host_with_dates(&request, id, &name("old"), past).unwrap();
    let identity = Arc::new(Identity::new(key, certificate, lab.ca.certificate().clone()).unwrap());
    let at = address();
    lab.admit(&identity, "old", at);
    let old = lab.start(identity, "old", at);
    assert!(old.echo(&host, b"x").await.is_ok(), "as a client");
    assert!(host.echo(&old, b"x").await.is_ok(), "as a server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_dates_bind() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let over = Validity { from: now() - 7200, until: now() - 3600 };
    let ahead = Validity { from: now() + 3600, until: now() + 7200 };
    for dates in [over, ahead] {
        let error = Client::remote(host.at, lab.client(AccessRole::Admin, dates), by()).await.unwrap_err();
        assert!(matches!(error, CallError::Refused { refusal: Refusal::Expired, .. }), "{error}");
        let report = error.report();
        assert_eq!(report.code, ErrorCode::CertificateExpired);
        assert!(report.help[0].starts_with("vtctl cluster token create --role client-"), "{:?}", report.help);
    }
    let good = lab.client(AccessRole::Viewer, Validity::from_now(Duration::from_secs(3600)));
    Client::remote(host.at, good, by()).await.unwrap();
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_while_its_connection_lives_is_refused_from_then_on() {
    let (lab, host) = Lab::with_host().await;
    let until = now() + 3;
    let identity = lab.client(AccessRole::Viewer, Validity { from: now() - 60, until });
    let client = Client::remote(host.at, identity, by()).await.unwrap();
    client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
    crate::support::until("the certificate has ended", || now() > until).await;
    let error = client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::CertificateExpired, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_refused_on_open_and_on_new_connections() {
    let (lab, host) = Lab::with_host().await;
    let identity = lab.client(AccessRole::Admin, Validity::from_now(Duration::from_secs(3600)));
    let client = Client::remote(host.at, Arc::clone(&identity), by()).await.unwrap();
    client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
    lab.revoke(&identity);
    let error = client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::ClientRevoked, "{error}");
    let error = Client::remote(host.at, identity, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::ClientRevoked, "{error}");
    let other = lab.add("host2").await;
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_enforced() {
    let (lab, host) = Lab::with_host().await;
    let cancel = AdminRequest::JobCancel(JobId(1));
    let create =
        AdminRequest::TokenCreate(TokenCreate { request: RequestId::random(), role: HostRole::Learner, ttl_s: 60 });
    let dates = Validity::from_now(Duration::from_secs(3600));
    for (role, may_cancel, may_create) in
        [(AccessRole::Viewer, false, false), (AccessRole::Runner, true, false), (AccessRole::Admin, true, true)]
    {
        let client = Client::remote(host.at, lab.client(role, dates), by()).await.unwrap();
        client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
        for (request, allowed) in [(&cancel, may_cancel), (&create, may_create)] {
            match client.call::<_, AdminReply>(request, by()).await {
                Ok(_) => assert!(allowed, "{role:?} did {request:?}"),
                Err(error) => {
                    assert!(!allowed, "{role:?} could not {request:?}: {error}");
                    assert_eq!(error.report().code, ErrorCode::Denied);
                }
            }
        }
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_no_service_of_hosts_and_hosts_not_that_of_clients() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    let client = lab.client(AccessRole::Admin, Validity::from_now(Duration::from_secs(3600)));
    for service in [Service::Raft, Service::Peer] {
        let error = dialler(&client).connect(host.at, service, &other.hello, by()).await.unwrap_err();
        assert!(matches!(&error, CallError::Refused { refusal: Refusal::WrongKind(_), .. }), "{error}");
    }
    let error = other.endpoint.connect(host.at, Service::Admin, &other.hello, by()).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { refusal: Refusal::WrongKind(_), .. }), "{error}");
    lives_on(&host, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_host_at_an_address_is_not_taken_for_the_right_one() {
    let (lab, host) = Lab::with_host().await;
    let other = lab.add("host2").await;
    // A third host is said to live where the first does.
    let identity = lab.identity("host3");
    lab.admit(&identity, "host3", host.at);
    let third = host_id_of(&identity.key().public());
    use vt_protocol::transport::Transport;
    let error = other.peers.call(third, Service::Raft, b"x".to_vec(), by()).await.unwrap_err();
    assert!(matches!(error, CallError::WrongKey { .. }), "{error}");
    assert!(!error.may_be_done());
    lives_on(&host, &other).await;
}
