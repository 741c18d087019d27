//! Who has no certificate, one of another CA, or a key that nobody admitted, or no longer.

use std::sync::Arc;

use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::TlsConnector;
use vt_protocol::{
    admin::AdminRequest,
    bulk::BulkRequest,
    call::{self, CallError},
    client::open_stream,
    endpoint,
    error::ErrorCode,
    hello::Refusal,
    identity::{ClusterCa, subject::server_name, tls},
    ids::{Digest, RequestId},
    membership::{Change, HostChange},
    service::Service,
};

use super::{
    Row, print,
    target::{Target, by, dialler, fetch},
};

#[tokio::test(flavor = "multi_thread")]
async fn strangers_come_nowhere() {
    let mut target = Target::start(1).await;
    let mut rows = Vec::new();
    let known = target.insider();

    // No certificate, and the best hello there is: it claims to be the host itself.
    for service in [Service::Raft, Service::Admin, Service::Peer] {
        let since = target.moment().await;
        let attack = format!("no certificate, {service}");
        let anonymous = endpoint::bind("127.0.0.1:0".parse().unwrap(), None, [0; 32]).unwrap();
        let tls = tls::client_without_certificate(target.ca.certificate(), service).unwrap();
        let dial = endpoint::client_config(tls, service).unwrap();
        let hello = target.hello_of(&known);
        let met = endpoint::connect_with(&anonymous, dial, target.at, target.cluster, &hello, by()).await;
        let Err(CallError::Refused { refusal, .. }) = met else { panic!("{attack}: {met:?}") };
        assert_eq!(refusal, Refusal::NoCertificate(service));
        let verb = format!("connect {service}");
        let entry = target.logged(since, &attack, |entry| entry.verb == verb && entry.who == "unknown").await;
        rows.push(Row::of(&attack, &refusal, &entry));
        target.lives(&attack).await;
    }
    let attack = "no certificate, blob";
    let since = target.moment().await;
    let error = bulk_without_certificate(&target).await;
    let entry = target.logged(since, attack, |entry| entry.verb == "connect blob").await;
    rows.push(Row::of(attack, error, &entry));

    // A CA of one's own, on every service.
    let foreign = ClusterCa::generate(target.cluster).unwrap();
    let stranger = target.stranger(&foreign);
    for service in Service::OVER_QUIC {
        let since = target.moment().await;
        let attack = format!("a certificate of another CA, {service}");
        let error =
            dialler(&stranger).connect(target.at, service, &target.hello_of(&stranger), by()).await.unwrap_err();
        assert!(matches!(error, CallError::OtherAuthority { ours: true, .. }), "{attack}: {error}");
        let entry = target.logged(since, &attack, |entry| entry.verb == "handshake").await;
        rows.push(Row::of(&attack, &error, &entry));
    }
    let since = target.moment().await;
    let attack = "a certificate of another CA, blob";
    let error = fetch(&target, &stranger, BulkRequest::Blob(Digest::of(b"x"))).await.unwrap_err();
    let entry = target.logged(since, attack, |entry| entry.verb == "connect blob").await;
    rows.push(Row::of(attack, error, &entry));
    target.lives(attack).await;

    // The right CA, and a key that nobody admitted: also what a removed host has.
    let unadmitted = target.stranger(&target.ca);
    for service in [Service::Raft, Service::Peer] {
        let since = target.moment().await;
        let attack = format!("a key that is not admitted, {service}");
        let met = dialler(&unadmitted).connect(target.at, service, &target.hello_of(&unadmitted), by()).await;
        let Err(CallError::Refused { refusal: Refusal::NotAdmitted, .. }) = met else { panic!("{attack}: {met:?}") };
        let entry = target.logged(since, &attack, |entry| entry.detail.contains("not admitted")).await;
        rows.push(Row::of(&attack, Refusal::NotAdmitted, &entry));
    }
    // Another's name in the hello.
    let since = target.moment().await;
    let attack = "a hello in another host's name";
    let hello = target.hello_of(&known);
    let met = dialler(&unadmitted).connect(target.at, Service::Raft, &hello, by()).await;
    assert!(matches!(met, Err(CallError::Refused { refusal: Refusal::NotAdmitted, .. })), "{met:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "connect raft").await;
    rows.push(Row::of(attack, Refusal::NotAdmitted, &entry));
    target.lives(attack).await;
    print("strangers", &rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_host_comes_nowhere() {
    let mut target = Target::start(9).await;
    let other = target.joined(10, "host2").await;
    let mut rows = Vec::new();
    let identity = other.insider();
    let hello = target.hello_of(&identity);
    // It was just admitted and may stay where it is connected.
    let (connection, _) = dialler(&identity).connect(target.at, Service::Peer, &hello, by()).await.unwrap();
    let change = HostChange { request: RequestId::random(), host: "host2".parse().unwrap(), what: Change::Remove };
    target.ask(&AdminRequest::HostChange(change)).await.unwrap();

    let attack = "a removed host, on an open connection";
    let since = target.moment().await;
    let (mut send, mut receive) = open_stream(&connection, by()).await.unwrap();
    let error = call::ask(&mut send, &mut receive, b"x", 4096, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::HostRemoved, "{error}");
    let entry = target.logged(since, attack, |entry| entry.verb == "request peer").await;
    rows.push(Row::of(attack, error, &entry));
    for service in [Service::Raft, Service::Peer] {
        let attack = format!("a removed host, {service}");
        let since = target.moment().await;
        let error = dialler(&identity).connect(target.at, service, &hello, by()).await.unwrap_err();
        assert_eq!(error.report().code, ErrorCode::HostRemoved, "{error}");
        let verb = format!("connect {service}");
        let entry = target.logged(since, &attack, |entry| entry.verb == verb).await;
        rows.push(Row::of(&attack, error, &entry));
    }
    let attack = "a removed host, blob";
    let since = target.moment().await;
    let error = fetch(&target, &identity, BulkRequest::Blob(Digest::of(b"x"))).await.unwrap_err();
    let entry = target.logged(since, attack, |entry| entry.verb == "connect blob").await;
    rows.push(Row::of(attack, error, &entry));
    target.lives("removed").await;
    print("a removed host", &rows);
}

/// Asks the bulk service without showing a certificate; gives what was met.
async fn bulk_without_certificate(target: &Target) -> String {
    let tls = tls::client_without_certificate(target.ca.certificate(), Service::Blob).unwrap();
    let tcp = TcpStream::connect(target.at).await.unwrap();
    let name = server_name(target.cluster).try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
    // In TLS 1.3 the client is done before the server has looked at what it showed.
    let met = match stream {
        Ok(mut stream) => stream.read(&mut [0; 16]).await,
        Err(error) => Err(error),
    };
    match met {
        Ok(read) => panic!("{read} bytes came without a certificate"),
        Err(error) => error.to_string(),
    }
}
