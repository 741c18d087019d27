//! Another certificate authority follows the cluster's first: hosts, voters' keys, clients, tokens, and a host that was off.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest, AuthorityView, ClientToken, Rotate},
    call::CallError,
    client::Client,
    enroll::enroll,
    error::{ErrorCode, Report},
    identity::{Identity, PrivateKey, store},
    ids::RequestId,
    token::CaDigest,
};

use crate::daemons::{Daemon, Daemons, PATIENCE};

async fn rotate(daemon: &Daemon, finish: bool, anyway: bool) -> Result<Vec<String>, Report> {
    match daemon.ask(&AdminRequest::AuthorityRotate(Rotate { finish, anyway })).await? {
        AdminReply::Steps(steps) => Ok(steps),
        other => panic!("{other:?}"),
    }
}

async fn view(daemon: &Daemon) -> AuthorityView {
    match daemon.ask(&AdminRequest::AuthorityShow).await.unwrap() {
        AdminReply::Authority(view) => view,
        other => panic!("{other:?}"),
    }
}

/// Waits until the authority is as wanted.
async fn becomes(daemon: &Daemon, what: &str, wanted: impl Fn(&AuthorityView) -> bool) -> AuthorityView {
    let by = Instant::now() + PATIENCE;
    loop {
        let seen = view(daemon).await;
        if wanted(&seen) {
            return seen;
        }
        assert!(Instant::now() < by, "{what}: {seen:?}\n{}", daemon.log());
        sleep(Duration::from_millis(100)).await;
    }
}

fn by() -> Instant {
    Instant::now() + PATIENCE
}

async fn client(daemon: &Daemon, name: &str) -> Arc<Identity> {
    let grant = ClientToken {
        request: RequestId::random(),
        role: AccessRole::Viewer,
        name: Some(name.parse().unwrap()),
        ttl_s: 600,
        valid_s: 3600,
    };
    let AdminReply::Token(token) = daemon.ask(&AdminRequest::ClientToken(grant)).await.unwrap() else { panic!() };
    let (key, wish) = (PrivateKey::generate().unwrap(), name.parse().unwrap());
    Arc::new(enroll(&token.text.parse().unwrap(), key, &wish, by()).await.unwrap().0)
}

/// What `identity` may look at from outside.
async fn looks(at: SocketAddr, identity: &Arc<Identity>) -> Result<(), CallError> {
    let client = Client::remote(at, Arc::clone(identity), by()).await?;
    let reply = client.call::<_, AdminReply>(&AdminRequest::Status, by()).await?;
    assert!(matches!(reply, AdminReply::Status(_)), "{reply:?}");
    client.close().await;
    Ok(())
}

/// The certificate that a client takes while both authorities are trusted.
async fn renewed(at: SocketAddr, identity: &Arc<Identity>) -> Arc<Identity> {
    let client = Client::remote(at, Arc::clone(identity), by()).await.unwrap();
    let renew = AdminRequest::Renew(identity.key().signing_request().unwrap());
    let reply = client.call::<_, AdminReply>(&renew, by()).await.unwrap();
    let AdminReply::Renewed(renewed) = reply else { panic!("{reply:?}") };
    assert_eq!(Some(CaDigest::of(&renewed.ca)), client.authority());
    let key = PrivateKey::from_pem(&identity.key().to_pem()).unwrap();
    let new = Identity::new(key, renewed.certificate.into(), renewed.ca.into()).unwrap();
    assert_eq!(new.facts().subject, identity.facts().subject, "who it is stays");
    // Nobody else's key is signed for.
    let other = AdminRequest::Renew(PrivateKey::generate().unwrap().signing_request().unwrap());
    let reply = client.call::<_, AdminReply>(&other, by()).await.unwrap();
    assert!(matches!(&reply, AdminReply::Refused(report) if report.code == ErrorCode::Denied), "{reply:?}");
    Arc::new(new)
}

#[tokio::test]
async fn both_are_trusted_until_the_old_one_is_dropped_and_a_host_that_was_off_comes_back_after_that() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let (off, stays) = ((leader + 1) % 3, (leader + 2) % 3);
    let first = view(&daemons.all[leader]).await;
    assert_eq!((&first.previous, first.hosts.len(), first.clients.len()), (&None, 0, 0));
    let alice = client(&daemons.all[leader], "alice").await;
    let bob = client(&daemons.all[leader], "bob").await;
    let old_token = daemons.all[leader].token().await;
    let status = daemons.all[leader].status().await.unwrap();
    let address = |index: usize| {
        let name = &daemons.all[index].name;
        status.hosts.iter().find(|host| host.name.as_str() == name).unwrap().addresses[0]
    };
    let (at, at_leader, at_off) = (address(stays), address(leader), address(off));
    daemons.all[off].kill();

    // Asked of a host that does not lead.
    let steps = rotate(&daemons.all[stays], false, false).await.unwrap();
    assert!(steps.iter().any(|step| step.contains("--finish")), "{steps:?}");
    let both = view(&daemons.all[leader]).await;
    assert_ne!(both.fingerprint, first.fingerprint);
    assert_eq!(both.previous.as_ref(), Some(&first.fingerprint));
    assert_eq!(both.hosts.iter().map(|name| name.as_str()).collect::<Vec<_>>(), [daemons.all[off].name.as_str()]);
    assert_eq!(both.clients.len(), 2);
    let held = |daemon: &Daemon| {
        let dir = daemon.dir.join("data/cluster");
        let identity = store::load(&dir).unwrap();
        let ca = store::load_ca(&dir, identity.facts().subject.cluster()).unwrap();
        (identity.ca_digest(), ca.map(|ca| ca.digest()))
    };
    let (present, _) = held(&daemons.all[leader]);
    for index in [leader, stays] {
        assert_eq!(held(&daemons.all[index]), (present, Some(present)), "a voter holds the key of what it shows");
    }
    let refused = rotate(&daemons.all[leader], false, false).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Rotating, "{refused:?}");

    // Clients of the old one are served, by hosts that show the new one, and alice takes a new certificate.
    for at in [at, at_leader] {
        looks(at, &alice).await.unwrap();
        looks(at, &bob).await.unwrap();
    }
    let alice = renewed(at, &alice).await;
    looks(at_leader, &alice).await.unwrap();
    let fourth = daemons.add(4).await;
    let refused = daemons.all[fourth].join(&old_token.text).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::CaMismatch, "{refused:?}");
    let token = daemons.all[stays].token().await;
    daemons.all[fourth].join(&token.text).await.unwrap_or_else(|error| panic!("{error:?}"));

    // Who would be cut off is named before it happens.
    let refused = rotate(&daemons.all[leader], true, false).await.unwrap_err();
    let said = format!("{refused:?}");
    assert!(refused.code == ErrorCode::Rotating && said.contains("bob") && !said.contains("alice"), "{said}");
    let steps = rotate(&daemons.all[leader], true, true).await.unwrap();
    assert!(steps.iter().any(|step| step.contains("bob")), "{steps:?}");
    assert_eq!(view(&daemons.all[leader]).await.previous, None);

    looks(at, &alice).await.unwrap();
    let refused = looks(at, &bob).await.unwrap_err();
    assert_eq!(refused.report().code, ErrorCode::OtherAuthority, "{refused}");
    assert!(refused.report().help.iter().any(|help| help.contains("use-context --join")), "a way back");

    // The host that was off slept through all of it. It is its key, and takes up what it missed.
    daemons.all[off].start().await;
    let missed =
        |view: &AuthorityView| view.fingerprint == both.fingerprint && view.previous.is_none() && view.hosts.is_empty();
    let seen = becomes(&daemons.all[off], "certified", missed).await;
    assert_eq!(seen.clients.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["bob"]);
    daemons.settled(3).await;
    let until = by();
    while held(&daemons.all[off]) != (present, Some(present)) {
        assert!(Instant::now() < until, "the voter that was off does not get the key: {}", daemons.all[off].log());
        sleep(Duration::from_millis(100)).await;
    }
    looks(at_off, &alice).await.unwrap();

    // What is on disk is enough for all of them at once.
    for daemon in &mut daemons.all {
        daemon.kill();
    }
    for daemon in &mut daemons.all {
        daemon.start().await;
    }
    daemons.settled(3).await;
    looks(at, &alice).await.unwrap();
}
