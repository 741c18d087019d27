//! The life of a cluster: hosts that are cordoned, promoted, replaced, that leave and come back.

use std::{collections::BTreeSet, fs};

use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole},
    error::{ErrorCode, Report},
    ids::RequestId,
    membership::{Change, HostChange, Leave},
};

use crate::daemons::{Daemon, Daemons};

async fn change(daemon: &Daemon, host: &str, what: Change) -> Result<Vec<String>, Report> {
    let change = HostChange { request: RequestId::random(), host: host.parse().unwrap(), what };
    steps(daemon.ask(&AdminRequest::HostChange(change)).await?)
}

async fn leave(daemon: &Daemon, forget: bool) -> Result<Vec<String>, Report> {
    let leave = Leave { request: RequestId::random(), forget };
    steps(daemon.ask(&AdminRequest::Leave(leave)).await?)
}

fn steps(reply: AdminReply) -> Result<Vec<String>, Report> {
    match reply {
        AdminReply::Steps(steps) => Ok(steps),
        other => panic!("{other:?}"),
    }
}

fn voters(status: &ClusterStatus) -> BTreeSet<&str> {
    let votes = status.hosts.iter().filter(|host| host.role != HostRole::Learner);
    votes.map(|host| host.name.as_str()).collect()
}

fn names<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

fn holds_authority(daemon: &Daemon) -> bool {
    daemon.dir.join("data/cluster/ca.key").exists()
}

#[tokio::test]
async fn voters_are_one_three_five_three_one_as_hosts_are_promoted_and_demoted() {
    let daemons = Daemons::cluster_of(5, HostRole::Learner).await;
    let first = &daemons.all[0];
    let vote = Change::Role(HostRole::Voter);
    let follow = Change::Role(HostRole::Learner);
    for (host, what, expected) in [
        ("host2", &vote, &["host1"][..]),
        ("host3", &vote, &["host1", "host2", "host3"]),
        ("host4", &vote, &["host1", "host2", "host3"]),
        ("host5", &vote, &["host1", "host2", "host3", "host4", "host5"]),
        ("host1", &follow, &["host2", "host3", "host4"]),
        ("host2", &follow, &["host3", "host4", "host5"]),
        ("host3", &follow, &["host4"]),
        ("host4", &follow, &["host5"]),
    ] {
        change(first, host, what.clone()).await.unwrap_or_else(|error| panic!("{host} {what:?}: {error:?}"));
        let status = first.wait("led by a voter", |status| status.quorum && status.leader.is_some()).await;
        assert_eq!(voters(&status).len(), expected.len(), "{host} {what:?}: {:?}", voters(&status));
        if expected.len() > 1 || expected == ["host1"] {
            assert_eq!(voters(&status), names(expected), "{host} {what:?}");
        }
    }
    let refused = change(first, "host5", follow).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::LastVoter, "{refused:?}");
    let refused = change(first, "host9", vote).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::UnknownHost, "{refused:?}");
    let by = tokio::time::Instant::now() + crate::daemons::PATIENCE;
    while daemons.all.iter().filter(|daemon| holds_authority(daemon)).count() != 1 {
        assert!(tokio::time::Instant::now() < by, "who lost its vote keeps the authority's key");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_cordoned_host_takes_no_new_case_and_labels_change_one_by_one() {
    let daemons = Daemons::cluster(1).await;
    let only = &daemons.all[0];
    change(only, "host1", Change::Cordon).await.unwrap();
    assert!(only.status().await.unwrap().hosts[0].cordoned);
    let refused = crate::jobs::submit(only, crate::jobs::plan(&[&["host1"]])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Cordoned, "{refused:?}");
    change(only, "host1", Change::Uncordon).await.unwrap();
    let job = crate::jobs::submit(only, crate::jobs::plan(&[&["host1"]])).await.unwrap();
    crate::jobs::done(only, job).await;
    let label = |key: &str, value: Option<&str>| Change::Label([(key.to_owned(), value.map(str::to_owned))].into());
    change(only, "host1", label("nic", Some("100g"))).await.unwrap();
    change(only, "host1", label("rack", Some("a"))).await.unwrap();
    change(only, "host1", label("nic", None)).await.unwrap();
    let labels = only.status().await.unwrap().hosts[0].labels.clone();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("rack".to_owned(), "a".to_owned())]);
    for what in [Change::Remove, Change::Role(HostRole::Learner)] {
        let refused = change(only, "host1", what.clone()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::LastVoter, "{what:?}: {refused:?}");
    }
}

#[tokio::test]
async fn leadership_goes_to_the_voter_that_is_named_and_to_no_other_host() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let heir = daemons.all[(leader + 1) % 3].name.clone();
    // Asked of a third host: it forwards.
    let asked = &daemons.all[(leader + 2) % 3];
    steps(asked.ask(&AdminRequest::TransferLeader(heir.parse().unwrap())).await.unwrap()).unwrap();
    let status =
        asked.wait("led by the heir", |status| status.leader.as_ref().is_some_and(|l| l.as_str() == heir)).await;
    assert!(status.quorum);
    let fourth = daemons.add(4).await;
    let token = daemons.all[0].token().await;
    daemons.all[fourth].join(&token.text).await.unwrap();
    let refused = daemons.all[0].ask(&AdminRequest::TransferLeader("host4".parse().unwrap())).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotAVoter, "{refused:?}");
}

#[tokio::test]
async fn a_host_that_leaves_is_forgotten_and_comes_back_as_a_new_one() {
    let mut daemons = Daemons::cluster(3).await;
    let old = daemons.all[2].status().await.unwrap().hosts[2].id;
    // The leader, for it is the hardest: its vote and leadership go first.
    let leader = daemons.leader(0).await;
    let other = (leader + 1) % 3;
    leave(&daemons.all[leader], false).await.unwrap_or_else(|error| panic!("{error:?}\n{}", daemons.all[leader].log()));
    let name = daemons.all[leader].name.clone();
    assert!(!daemons.all[leader].dir.join("data/cluster").exists(), "nothing is kept of the cluster");
    let refused = daemons.all[leader].status().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unclaimed);
    let status = daemons.all[other].wait("of two hosts", |status| status.quorum && status.hosts.len() == 2).await;
    assert_eq!(voters(&status).len(), 1, "never two voters");
    let token = daemons.all[other].token().await;
    daemons.all[leader].join(&token.text).await.unwrap();
    daemons.settled(3).await;
    let status = daemons.all[other].status().await.unwrap();
    let back = status.hosts.iter().find(|host| host.name.as_str() == name).unwrap();
    assert!(leader != 2 || back.id != old, "a new host with a new id");
    // Removed while it is dead, it is refused when it comes back, and told what to do.
    let dead = daemons.leader(0).await;
    let alive = (dead + 1) % 3;
    let name = daemons.all[dead].name.clone();
    daemons.all[dead].kill();
    daemons.all[alive]
        .wait("without the dead host", |status| {
            status.quorum && status.hosts.iter().any(|host| host.name.as_str() == name && host.state != "live")
        })
        .await;
    change(&daemons.all[alive], &name, Change::Remove).await.unwrap_or_else(|error| panic!("{error:?}"));
    daemons.all[dead].start().await;
    daemons.all[dead].refused(ErrorCode::HostRemoved).await;
    let refused = leave(&daemons.all[dead], false).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::HostRemoved, "{refused:?}");
    leave(&daemons.all[dead], true).await.unwrap();
    let token = daemons.all[alive].token().await;
    daemons.all[dead].join(&token.text).await.unwrap();
    daemons.settled(3).await;
}

#[tokio::test]
async fn a_dead_voter_is_replaced_by_a_joined_host_that_takes_over_its_labels() {
    let mut daemons = Daemons::cluster(3).await;
    let fourth = daemons.add(4).await;
    let token = daemons.all[0].token().await;
    daemons.all[fourth].join_as(&token.text, HostRole::Learner).await.unwrap();
    let leader = daemons.leader(0).await;
    let dead = (leader + 1) % 3;
    let name = daemons.all[dead].name.clone();
    let rack = Change::Label([("rack".to_owned(), Some("a".to_owned()))].into());
    change(&daemons.all[leader], &name, rack).await.unwrap();
    daemons.all[dead].kill();
    let replace = Change::Replace { by: "host4".parse().unwrap() };
    let asked = &daemons.all[leader];
    asked
        .wait("aware of host4", |status| status.hosts.iter().any(|h| h.name.as_str() == "host4" && h.state == "live"))
        .await;
    change(asked, &name, replace).await.unwrap_or_else(|error| panic!("{error:?}\n{}", asked.log()));
    let status = asked.status().await.unwrap();
    assert_eq!(voters(&status).len(), 3);
    assert!(voters(&status).contains("host4") && !voters(&status).contains(name.as_str()), "{:?}", voters(&status));
    let new = status.hosts.iter().find(|host| host.name.as_str() == "host4").unwrap();
    assert_eq!(new.labels.get("rack").map(String::as_str), Some("a"));
    assert!(fs::exists(daemons.all[fourth].dir.join("data/cluster/ca.key")).unwrap(), "a voter can admit others");
}

#[tokio::test]
async fn without_a_quorum_nobody_is_promoted_or_removed() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    for index in (0..3).filter(|index| *index != leader) {
        daemons.all[index].kill();
    }
    let left = &daemons.all[leader];
    left.wait("without a quorum", |status| !status.quorum).await;
    let other = daemons.all[(leader + 1) % 3].name.clone();
    for what in [Change::Cordon, Change::Label([("a".to_owned(), None)].into())] {
        let refused = change(left, &other, what).await.unwrap_err();
        assert!(matches!(refused.code, ErrorCode::NoQuorum | ErrorCode::DeadlinePassed), "{refused:?}");
    }
}

#[tokio::test]
async fn a_voter_that_is_away_too_long_is_replaced_and_comes_back_as_learner() {
    let mut daemons = Daemons::new(4);
    for daemon in &mut daemons.all {
        daemon.set(
            "[session]\nrenew = 250\nsuspect = 1000\npause = 2000\nkill = 2500\nexpire = 4000\n\
             [raft]\nvoter_away_ms = 6000\n",
        );
    }
    daemons.gather(HostRole::Voter).await;
    daemons.settled(3).await;
    let leader = daemons.leader(0).await;
    let status = daemons.all[leader].status().await.unwrap();
    let learner = status.hosts.iter().find(|host| host.role == HostRole::Learner).unwrap().name.clone();
    let gone = (0..4).find(|index| *index != leader && daemons.all[*index].name != learner.as_str()).unwrap();
    let name = daemons.all[gone].name.clone();
    daemons.all[gone].kill();
    let asked = &daemons.all[leader];
    let replaced =
        |status: &ClusterStatus| voters(status).contains(learner.as_str()) && !voters(status).contains(name.as_str());
    let status = asked.wait("voted for by the learner", |status| status.quorum && replaced(status)).await;
    assert_eq!(voters(&status).len(), 3);
    daemons.all[gone].start().await;
    daemons.settled(3).await;
    let status = daemons.all[leader].status().await.unwrap();
    assert!(replaced(&status), "it is back and follows: {:?}", voters(&status));
}
