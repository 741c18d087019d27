//! Who was let in and wants more than he may.

use std::{sync::Arc, time::Duration};

use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest, HostRole, TokenCreate},
    audit::Outcome,
    call::CallError,
    client::Client,
    enroll::enroll,
    error::ErrorCode,
    hello::{Hello, Refusal},
    identity::{Identity, PrivateKey, Validity},
    ids::{JobId, RequestId},
    service::Service,
};

use super::{
    Row,
    parameters::submit,
    print,
    target::{Target, by, dialler},
};

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_no_more_than_they_may() {
    let mut target = Target::start(2).await;
    let mut rows = Vec::new();
    let token_for_a_host =
        || AdminRequest::TokenCreate(TokenCreate { request: RequestId::random(), role: HostRole::Voter, ttl_s: 60 });

    for (role, name, request) in [
        (AccessRole::Viewer, "vera", token_for_a_host()),
        (AccessRole::Viewer, "vio", AdminRequest::RunSubmit(submit("uptime", &[]))),
        (AccessRole::Viewer, "vim", AdminRequest::JobCancel(JobId(1))),
        (AccessRole::Runner, "rudi", token_for_a_host()),
        (AccessRole::Runner, "rosa", AdminRequest::AccessRevoke("vera".parse().unwrap())),
    ] {
        let since = target.moment().await;
        let attack = format!("a {role:?} does {}", request.verb().name).to_lowercase();
        let identity = target.client(role, name).await;
        let client = Client::remote(target.at, identity, by()).await.unwrap();
        client.call::<_, AdminReply>(&AdminRequest::Status, by()).await.unwrap();
        let error = client.call::<_, AdminReply>(&request, by()).await.unwrap_err();
        assert_eq!(error.report().code, ErrorCode::Denied, "{attack}: {error}");
        let verb = request.verb().name;
        let entry = target.logged(since, &attack, |entry| entry.who.contains(name) && entry.verb == verb).await;
        assert_eq!(entry.outcome, Outcome::Denied);
        rows.push(Row::of(&attack, &error, &entry));
        client.close().await;
    }

    // A certificate that boasts: signed as admin for a key that was admitted as viewer. Only a stolen CA could make it.
    let attack = "a certificate that says more than the record";
    let since = target.moment().await;
    let token = target.client_token(AccessRole::Viewer, "bo").await;
    let key = PrivateKey::generate().unwrap();
    let (pem, request) = (key.to_pem(), key.signing_request().unwrap());
    enroll(&token, key, &"bo".parse().unwrap(), by()).await.unwrap();
    let dates = Validity::from_now(Duration::from_secs(600));
    let boast = target.ca.issue_client(&request, AccessRole::Admin, &"bo".parse().unwrap(), dates).unwrap();
    let key = PrivateKey::from_pem(&pem).unwrap();
    let identity = Arc::new(Identity::new(key, boast, target.ca.certificate().clone()).unwrap());
    let client = Client::remote(target.at, identity, by()).await.unwrap();
    let error = client.call::<_, AdminReply>(&token_for_a_host(), by()).await.unwrap_err();
    let entry = target.logged(since, attack, |entry| entry.who == "client bo (viewer)").await;
    rows.push(Row::of(attack, &error, &entry));

    // A revoked key: on the connection that is open, and on a new one.
    let attack = "a revoked client, on an open connection";
    let identity = target.client(AccessRole::Admin, "rex").await;
    let client = Client::remote(target.at, Arc::clone(&identity), by()).await.unwrap();
    client.call::<_, AdminReply>(&AdminRequest::JobList, by()).await.unwrap();
    target.ask(&AdminRequest::AccessRevoke("rex".parse().unwrap())).await.unwrap();
    let since = target.moment().await;
    let error = client.call::<_, AdminReply>(&AdminRequest::JobList, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::ClientRevoked, "{error}");
    let entry = target.logged(since, attack, |entry| entry.verb == "request admin").await;
    rows.push(Row::of(attack, &error, &entry));
    let attack = "a revoked client, on a new connection";
    let since = target.moment().await;
    let error = Client::remote(target.at, identity, by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::ClientRevoked, "{error}");
    let entry = target.logged(since, attack, |entry| entry.verb == "connect admin").await;
    rows.push(Row::of(attack, &error, &entry));

    // Dates.
    let attack = "a client certificate that is over";
    let since = target.moment().await;
    let key = PrivateKey::generate().unwrap();
    let past = Validity { from: 1_000_000, until: 2_000_000 };
    let old = target.ca.issue_client(&key.signing_request().unwrap(), AccessRole::Admin, &"old".parse().unwrap(), past);
    let identity = Identity::new(key, old.unwrap(), target.ca.certificate().clone()).unwrap();
    let error = Client::remote(target.at, Arc::new(identity), by()).await.unwrap_err();
    assert_eq!(error.report().code, ErrorCode::CertificateExpired, "{error}");
    let entry = target.logged(since, attack, |entry| entry.who.contains("old")).await;
    rows.push(Row::of(attack, &error, &entry));

    // A client on the services of hosts.
    let identity = target.client(AccessRole::Admin, "curt").await;
    for service in [Service::Raft, Service::Peer] {
        let attack = format!("an admin's certificate on {service}");
        let since = target.moment().await;
        let hello = Hello::of(Some(target.cluster), None, 1);
        let met = dialler(&identity).connect(target.at, service, &hello, by()).await;
        let Err(CallError::Refused { refusal: Refusal::WrongKind(_), .. }) = &met else { panic!("{attack}: {met:?}") };
        let entry = target.logged(since, &attack, |entry| entry.who.contains("curt")).await;
        rows.push(Row::of(&attack, met.unwrap_err(), &entry));
    }
    target.lives("clients").await;
    print("clients", &rows);
}
