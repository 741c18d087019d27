//! Who has a token that was used, is for something else, or is another cluster's.

use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest},
    audit::Outcome,
    enroll::{EnrollError, enroll},
    identity::PrivateKey,
    join::{EnrollRequest, JoinAnswer, JoinCall, JoinRefusal, JoinRequest},
    pinned::{Pinned, PinnedError},
    token::{Secret, Token},
};

use super::{
    Row, print,
    target::{Target, by},
};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_let_in_whom_they_are_for_and_once() {
    let mut target = Target::start(3).await;
    let other = Target::start(4).await;
    let mut rows = Vec::new();

    // What was sent in a join that was done is sent again, by somebody who has another key.
    let attack = "a client's join replayed with another key";
    let token = target.client_token(AccessRole::Admin, "alice").await;
    enroll(&token, PrivateKey::generate().unwrap(), &"alice".parse().unwrap(), by()).await.unwrap();
    let since = target.moment().await;
    let refused = enroll(&token, PrivateKey::generate().unwrap(), &"alice".parse().unwrap(), by()).await.unwrap_err();
    let EnrollError::Refused(refusal @ JoinRefusal::TokenUsed { .. }) = refused else { panic!("{refused}") };
    let entry = target.logged(since, attack, |entry| entry.verb == "enroll" && entry.outcome == Outcome::Denied).await;
    rows.push(Row::of(attack, refusal, &entry));

    // Byte for byte: the answer is the certificate of a key that the attacker does not have, and nothing changes.
    let attack = "a client's join replayed byte for byte";
    let token = target.client_token(AccessRole::Viewer, "bob").await;
    let key = PrivateKey::generate().unwrap();
    let request = enroll_request(&token, &key);
    let since = target.moment().await;
    for _ in 0..3 {
        let answer = Pinned::dial(&token, target.at, by()).await.unwrap().ask(&request, by()).await.unwrap();
        let JoinAnswer::Enrolled(enrolled) = answer else { panic!("{answer:?}") };
        assert_eq!(enrolled.name.as_str(), "bob");
    }
    let Ok(AdminReply::Access(clients)) = target.ask(&AdminRequest::AccessList).await else { panic!() };
    assert_eq!(clients.iter().filter(|client| client.name.as_str() == "bob").count(), 1);
    let entry = target.logged(since, attack, |entry| entry.verb == "enroll").await;
    rows.push(Row::of(attack, "gives nothing: the key never travelled", &entry));

    let attack = "a guessed secret";
    let mut guess = target.host_token().await;
    guess.secret = Secret::random();
    let since = target.moment().await;
    let refusal = join(&target, &guess).await;
    assert!(matches!(refusal, JoinRefusal::TokenUnknown), "{refusal:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "join").await;
    rows.push(Row::of(attack, refusal, &entry));

    let attack = "a token of another cluster, at its CA's pin";
    let foreign = other.host_token().await;
    let since = target.moment().await;
    let error = Pinned::dial(&foreign, target.at, by()).await.unwrap_err();
    assert!(matches!(error, PinnedError::OtherCluster { .. } | PinnedError::CaMismatch { .. }), "{error}");
    let entry = target.logged(since, attack, |entry| entry.verb == "handshake").await;
    rows.push(Row::of(attack, error, &entry));
    let attack = "a token of another cluster, forced";
    let forced = Token { cluster: target.cluster, ca: target.ca.digest(), ..foreign };
    let since = target.moment().await;
    let refusal = join(&target, &forced).await;
    assert!(matches!(refusal, JoinRefusal::TokenUnknown), "{refusal:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "join").await;
    rows.push(Row::of(attack, refusal, &entry));

    let attack = "a client's token to become a host";
    let token = target.client_token(AccessRole::Viewer, "carl").await;
    let since = target.moment().await;
    let refusal = join(&target, &token).await;
    assert!(matches!(refusal, JoinRefusal::TokenForOther { .. }), "{refusal:?}");
    let entry = target.logged(since, attack, |entry| entry.verb == "join").await;
    rows.push(Row::of(attack, refusal, &entry));
    let attack = "a host's token to become a client";
    let token = target.host_token().await;
    let since = target.moment().await;
    let refused = enroll(&token, PrivateKey::generate().unwrap(), &"dora".parse().unwrap(), by()).await.unwrap_err();
    let EnrollError::Refused(refusal @ JoinRefusal::TokenForOther { .. }) = refused else { panic!("{refused}") };
    let entry = target.logged(since, attack, |entry| entry.verb == "enroll").await;
    rows.push(Row::of(attack, refusal, &entry));

    let attack = "a signing request that is not its key's";
    let token = target.client_token(AccessRole::Viewer, "emil").await;
    let JoinCall::Enroll(mut request) = enroll_request(&token, &PrivateKey::generate().unwrap()) else { panic!() };
    let last = request.signing_request.len() - 1;
    request.signing_request[last] ^= 1;
    let since = target.moment().await;
    let pinned = Pinned::dial(&token, target.at, by()).await.unwrap();
    let answer = pinned.ask(&JoinCall::Enroll(request), by()).await.unwrap();
    let JoinAnswer::Refused(refusal @ JoinRefusal::BadRequest(_)) = answer else { panic!("{answer:?}") };
    let entry = target.logged(since, attack, |entry| entry.verb == "enroll").await;
    rows.push(Row::of(attack, refusal, &entry));
    target.lives("tokens").await;
    print("tokens", &rows);
}

fn enroll_request(token: &Token, key: &PrivateKey) -> JoinCall {
    JoinCall::Enroll(EnrollRequest {
        token: token.id,
        secret: token.secret.clone(),
        signing_request: key.signing_request().unwrap(),
        name: "wish".parse().unwrap(),
    })
}

/// Tries to join as a host; the target refuses.
async fn join(target: &Target, token: &Token) -> JoinRefusal {
    let request = JoinRequest {
        token: token.id,
        secret: token.secret.clone(),
        signing_request: PrivateKey::generate().unwrap().signing_request().unwrap(),
        advertise: "127.0.0.1:9".parse().unwrap(),
        name: "mallory".parse().unwrap(),
        role: None,
        labels: Default::default(),
        build: "0".into(),
        facts: None,
    };
    let pinned = Pinned::dial(token, target.at, by()).await.unwrap();
    match pinned.ask(&JoinCall::Admit(Box::new(request)), by()).await.unwrap() {
        JoinAnswer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}
