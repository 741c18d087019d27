//! Clusters of daemons: made, joined, killed, restarted.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::Duration};

use nix::sys::signal::Signal;
use tokio::time::Instant;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, HostRole},
    error::ErrorCode,
    ids::TokenId,
};

use crate::daemons::{Daemon, Daemons};

pub(crate) async fn tokens(daemon: &Daemon) -> BTreeSet<TokenId> {
    match daemon.ask(&AdminRequest::TokenList).await.unwrap() {
        AdminReply::Tokens(tokens) => tokens.into_iter().map(|token| token.id).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_killed_leader_is_followed_by_another_and_comes_back() {
    let mut daemons = Daemons::cluster(3).await;
    let old = daemons.leader(0).await;
    daemons.all[old].kill();
    let other = (old + 1) % 3;
    let name = daemons.all[old].name.clone();
    daemons.all[other]
        .wait("led by another", |status| {
            status.quorum && status.leader.as_ref().is_some_and(|leader| leader.as_str() != name)
        })
        .await;
    // The cluster decides without it, and says that it is gone.
    let made = daemons.all[other].token().await;
    daemons.all[other]
        .wait("aware of the dead host", |status| {
            status.hosts.iter().any(|host| host.name.as_str() == name && host.state != "live")
        })
        .await;
    daemons.all[old].start().await;
    daemons.settled(3).await;
    assert!(tokens(&daemons.all[old]).await.contains(&made.id), "the host that came back has what it missed");
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_all() {
    let mut daemons = Daemons::cluster(3).await;
    let mut made = BTreeSet::new();
    for index in 0..9 {
        // By way of each host: followers forward.
        made.insert(daemons.all[index % 3].token().await.id);
    }
    for daemon in &mut daemons.all {
        daemon.kill();
    }
    for daemon in &mut daemons.all {
        daemon.start().await;
    }
    daemons.settled(3).await;
    for daemon in &daemons.all {
        assert!(tokens(daemon).await.is_superset(&made), "{} lost a token", daemon.name);
    }
}

#[tokio::test]
async fn two_hosts_have_one_voter_and_say_so() {
    let daemons = Daemons::cluster(2).await;
    let status = daemons.all[1].status().await.unwrap();
    assert_eq!((status.voters, status.survives), (1, 0));
    assert!(status.notes.iter().any(|note| note.contains("losing host1 stops everything")), "{:?}", status.notes);
    assert_eq!(status.hosts.iter().map(|host| host.role).collect::<Vec<_>>(), [HostRole::Voter, HostRole::Learner]);
    let keys: Vec<bool> = daemons.all.iter().map(|daemon| daemon.dir.join("data/cluster/ca.key").exists()).collect();
    assert_eq!(keys, [true, false], "only voters hold the authority's key");
}

#[tokio::test]
async fn without_a_quorum_it_is_said_and_nothing_is_decided() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    for index in (0..3).filter(|index| *index != leader) {
        daemons.all[index].kill();
    }
    let left = &daemons.all[leader];
    let status = left.wait("without a quorum", |status| !status.quorum).await;
    assert!(status.notes[0].contains("may be old"), "{:?}", status.notes);
    let request = AdminRequest::TokenCreate(vt_protocol::admin::TokenCreate {
        request: vt_protocol::ids::RequestId::random(),
        role: HostRole::Voter,
        ttl_s: 60,
    });
    let refused = left.ask(&request).await.unwrap_err();
    assert!(matches!(refused.code, ErrorCode::NoQuorum | ErrorCode::DeadlinePassed), "{refused:?}");
}

#[tokio::test]
async fn sigterm_hands_leadership_over_and_ends_in_time() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let begun = Instant::now();
    daemons.all[leader].signal(Signal::SIGTERM);
    let status = daemons.all[leader].ended().await;
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    let log = fs::read_to_string(daemons.all[leader].dir.join("log")).unwrap();
    assert!(log.contains("handing leadership over"), "{log}");
    let next = daemons.leader((leader + 1) % 3).await;
    assert_ne!(next, leader);
    daemons.all[leader].start().await;
    daemons.settled(3).await;
}

#[tokio::test]
async fn a_join_that_fails_says_why_and_leaves_no_trace() {
    let mut daemons = Daemons::new(3);
    for daemon in &mut daemons.all {
        daemon.start().await;
    }
    let [first, second, third] = &daemons.all[..] else { panic!("three daemons") };
    first.init().await.unwrap();
    let refused = first.init().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AlreadyClaimed, "{refused:?}");

    let used = first.token().await.text;
    second.join(&used).await.unwrap();
    let revoked = first.token().await;
    first.ask(&AdminRequest::TokenRevoke(revoked.id)).await.unwrap();
    let taken = first.token().await.text;
    let before = first.status().await.unwrap().hosts;
    for (token, code) in [
        ("vtj1_nonsense".to_owned(), ErrorCode::TokenGarbled),
        (taken[..taken.len() - 8].to_owned(), ErrorCode::TokenGarbled),
        (used, ErrorCode::TokenUsed),
        (revoked.text, ErrorCode::TokenRevoked),
    ] {
        let refused = third.join(&token).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(!third.dir.join("data/cluster").exists(), "{code}");
        assert!(!third.dir.join("data/cluster.part").exists(), "{code}");
        assert!(!third.dir.join("data/raft").exists(), "{code}");
    }
    let refused = third.ask(&AdminRequest::Status).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unclaimed);
    let names =
        |hosts: &[vt_protocol::admin::HostView]| -> Vec<_> { hosts.iter().map(|host| host.name.clone()).collect() };
    assert_eq!(names(&first.status().await.unwrap().hosts), names(&before));
    // The token that only failed tries were near to still works.
    third.join(&taken).await.unwrap();
    daemons.settled(3).await;
    // Every voter was given the authority's key before it voted, and keeps it to itself.
    for daemon in &daemons.all {
        let key = fs::metadata(daemon.dir.join("data/cluster/ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600, "{}", daemon.name);
    }
}

#[tokio::test]
async fn a_voter_that_is_no_leader_admits_hosts_too() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let token = daemons.all[leader].token().await;
    let fourth = daemons.add(4).await;
    // The leader is gone: only the others can let a host in now.
    daemons.all[leader].kill();
    daemons.all[(leader + 1) % 3].wait("led by another", |status| status.quorum).await;
    daemons.all[fourth].join(&token.text).await.unwrap();
    daemons.all[fourth]
        .wait("live", |status| status.hosts.iter().any(|host| host.name.as_str() == "host4" && host.state == "live"))
        .await;
}
