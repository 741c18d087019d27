//! What a cluster of replicas keeps, and how it goes on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use vt_protocol::ids::HostId;
use vt_sync::{
    ProposeError, ReplicaRole, Request, Storage,
    command::{CreateToken, SetSetting},
    raft::{OpenError, StoreError},
};

use crate::harness::{Cluster, PATIENCE, config, wait};

const ALL: [u64; 3] = [1, 2, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_restart_of_one_two_and_all() {
    let cluster = Cluster::of(3, config()).await;
    cluster.set(&ALL, "a", "1").await;

    cluster.stop(1).await;
    cluster.set(&[2, 3], "b", "2").await;
    cluster.start(1).await;
    cluster.sees(1, "b", "2").await;

    cluster.stop(2).await;
    cluster.stop(3).await;
    cluster.start(2).await;
    cluster.start(3).await;
    cluster.set(&ALL, "c", "3").await;

    for host in ALL {
        cluster.stop(host).await;
    }
    for host in ALL {
        cluster.start(host).await;
    }
    cluster.set(&ALL, "d", "4").await;
    for host in ALL {
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")] {
            cluster.sees(host, key, value).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_keeps_everything_over_a_restart() {
    let cluster = Cluster::single(config()).await;
    for i in 0..20 {
        cluster.set(&[1], &format!("k{i}"), "v").await;
    }
    cluster.stop(1).await;
    cluster.start(1).await;
    let leader = cluster.leader(&[1]).await;
    assert!(leader.status().quorum);
    let state = leader.read_barrier(PATIENCE).await.unwrap();
    assert_eq!(state.settings.len(), 20);
    assert_eq!(state.cluster.as_ref().unwrap().name.as_str(), "test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_demand_and_writes_go_on() {
    let cluster = Cluster::of(3, config()).await;
    cluster.set(&ALL, "a", "1").await;
    let leader = cluster.leader(&ALL).await;
    let heir = ALL.into_iter().map(HostId).find(|host| *host != leader.host()).unwrap();
    wait("the heir to catch up", || (leader.status().followers.get(&heir)?.lag == 0).then_some(())).await;
    let term = leader.status().leadership.term;
    leader.transfer_leader(heir).await.unwrap();
    let new = wait("the heir to lead", || {
        let status = cluster.at(heir.0).status();
        (status.leadership.role == ReplicaRole::Leader).then_some(status)
    })
    .await;
    assert!(new.leadership.term > term);
    cluster.set(&ALL, "b", "2").await;
    // A follower names the leader instead of answering.
    let refused =
        wait("the old leader to know", || (leader.status().leadership.leader == Some(heir)).then_some(leader.clone()))
            .await;
    let request = Request::new(SetSetting { key: "c".into(), value: None });
    assert_eq!(refused.propose(request, PATIENCE).await, Err(ProposeError::NotLeader { leader: Some(heir) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_follower_burns_no_terms() {
    // The times of production: a busy machine must not bring about an election of its own.
    let config = vt_sync::ReplicaConfig::default();
    let cluster = Cluster::of(3, config.clone()).await;
    let leader = cluster.leader(&ALL).await;
    let term = leader.status().leadership.term;
    let away = ALL.into_iter().find(|host| HostId(*host) != leader.host()).unwrap();
    cluster.fabric.cut(HostId(away));
    // It gives up the leader and asks around, several times over, before it is let back in.
    wait("the follower to miss its leader", || (!cluster.at(away).status().quorum).then_some(())).await;
    tokio::time::sleep(config.election_max * 3).await;
    assert_eq!(cluster.at(away).status().leadership.term, term, "pre-vote keeps the term");
    cluster.fabric.heal();
    cluster.set(&ALL, "a", "1").await;
    cluster.sees(away, "a", "1").await;
    assert_eq!(cluster.leader(&ALL).await.status().leadership.term, term, "the leader was not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_leader_serves_nothing_stale_and_steps_back() {
    let cluster = Cluster::of(3, config()).await;
    cluster.set(&ALL, "a", "1").await;
    let old = cluster.leader(&ALL).await;
    let others: Vec<_> = ALL.into_iter().filter(|host| HostId(*host) != old.host()).collect();
    cluster.fabric.cut(old.host());
    cluster.set(&others, "a", "2").await;
    assert!(old.read_barrier(Duration::from_secs(2)).await.is_err(), "a read needs most voters");
    let request = Request::new(SetSetting { key: "a".into(), value: Some("3".into()) });
    assert!(old.propose(request, Duration::from_secs(2)).await.is_err());
    assert!(!old.status().quorum);
    cluster.fabric.heal();
    cluster.sees(old.host().0, "a", "2").await;
    let leader = cluster.leader(&ALL).await;
    assert_eq!(leader.read_barrier(PATIENCE).await.unwrap().settings["a"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_learner_is_brought_up_by_a_snapshot() {
    let config = vt_sync::ReplicaConfig { snapshot_entries: 100, keep_entries: 10, ..config() };
    let mut cluster = Cluster::single(config).await;
    for i in 0..120 {
        cluster.set(&[1], &format!("k{i}"), &"v".repeat(200)).await;
    }
    // Tokens make the state large enough for several parts.
    for i in 0..200 {
        let token = CreateToken {
            token: vt_protocol::ids::TokenId(i + 1),
            secret_hash: vt_protocol::ids::Digest::of(b"s"),
            role: vt_sync::state::Role::Voter,
            made_by: "x".repeat(250),
            expires_unix_s: 0,
        };
        cluster.at(1).propose(Request::new(token), PATIENCE).await.unwrap();
    }
    let leader = cluster.at(1);
    leader.snapshot().await.unwrap();
    wait("a snapshot", || (leader.status().snapshot > 200).then_some(())).await;
    cluster.add(2).await;
    leader.add_learner(HostId(2), "host2").await.unwrap();
    cluster.set(&[1], "last", "1").await;
    cluster.sees(2, "last", "1").await;
    let (one, two) = (leader.state(), cluster.at(2).state());
    assert!(one == two, "the same log gives the same state");
    wait("the learner to tell of the snapshot it got", || (cluster.at(2).status().snapshot > 0).then_some(())).await;
    // And it is kept over a restart.
    cluster.stop(2).await;
    cluster.start(2).await;
    cluster.sees(2, "last", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_takes_effect_once_whoever_leads() {
    let cluster = Cluster::of(3, config()).await;
    let request = Request::new(SetSetting { key: "a".into(), value: Some("1".into()) });
    let first = cluster.leader(&ALL).await.propose(request.clone(), PATIENCE).await.unwrap();
    let old = cluster.leader(&ALL).await.host().0;
    cluster.stop(old).await;
    let rest: Vec<_> = ALL.into_iter().filter(|host| *host != old).collect();
    let again = cluster.leader(&rest).await.propose(request.clone(), PATIENCE).await.unwrap();
    assert_eq!(again.index, first.index, "the second time tells of the first");
    let other = Request::with_id(request.id, SetSetting { key: "a".into(), value: Some("2".into()) });
    let refused = cluster.leader(&rest).await.propose(other, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Rejected(r) if r.code == vt_protocol::error::ErrorCode::RequestConflict));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_change_by_one_joint_change_and_who_leaves_follows_on() {
    let cluster = Cluster::of(3, config()).await;
    let leader = cluster.leader(&ALL).await;
    leader.change_voters(BTreeSet::from([leader.host()])).await.unwrap();
    let leadership = wait("the leader to tell of its voters", || {
        let now = leader.status().leadership;
        (now.settled && now.voters.len() == 1).then_some(now)
    })
    .await;
    assert_eq!(leadership.voters, BTreeSet::from([leader.host()]));
    assert_eq!(leadership.learners.len(), 2);
    assert_eq!(leadership.changing_to, None);
    for host in ALL.into_iter().filter(|host| HostId(*host) != leader.host()) {
        cluster.stop(host).await;
    }
    cluster.set(&[leader.host().0], "alone", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_anothers_name_or_without_sense_is_refused() {
    let cluster = Cluster::of(3, config()).await;
    let replica = cluster.at(1);
    let before = replica.status().leadership.term;
    for bytes in [&b""[..], &[0xff; 40], &[1], &[1, 0, 1, 2, 3]] {
        let answer = replica.handle(HostId(2), bytes).await;
        assert!(!answer.is_empty());
    }
    assert_eq!(replica.status().leadership.term, before);
    cluster.set(&ALL, "a", "1").await;
}

#[tokio::test]
async fn a_host_without_its_store_does_not_come_back_under_its_old_id() {
    let dir = tempfile::TempDir::new().unwrap();
    let storage = || Storage::Directory { path: dir.path().to_owned(), create: false };
    let link = || Arc::new(Nobody);
    let error = vt_sync::Replica::open(storage(), HostId(1), &config(), link()).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::Missing(_))), "{error}");

    let create = Storage::Directory { path: dir.path().to_owned(), create: true };
    let replica = vt_sync::Replica::open(create, HostId(1), &config(), link()).await.unwrap();
    let busy = vt_sync::Replica::open(storage(), HostId(1), &config(), link()).await.err().unwrap();
    assert!(matches!(busy, OpenError::Store(StoreError::Busy)), "{busy}");
    replica.shutdown().await;
    drop(replica);
    let other = vt_sync::Replica::open(storage(), HostId(2), &config(), link()).await.err().unwrap();
    assert!(matches!(other, OpenError::Store(StoreError::OtherHost { .. })), "{other}");
}

/// A transport that reaches nobody.
pub(crate) fn nobody() -> Arc<dyn vt_sync::RaftTransport> {
    Arc::new(Nobody)
}

struct Nobody;

#[async_trait::async_trait]
impl vt_sync::RaftTransport for Nobody {
    async fn call(&self, _: HostId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, vt_sync::Unreachable> {
        Err(vt_sync::Unreachable("nobody is there".into()))
    }
}

/// The case of openraft's issue 1808: a snapshot that supersedes an uncommitted change of membership must take it back,
/// or the host counts votes of a configuration that never was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_back_a_change_of_voters_that_was_never_committed() {
    // Long enough for the old leader to begin a change before it notices that nobody answers.
    let config = vt_sync::ReplicaConfig {
        snapshot_entries: 40,
        keep_entries: 0,
        election_min: Duration::from_millis(2000),
        election_max: Duration::from_millis(3000),
        ..config()
    };
    let cluster = Cluster::of(3, config).await;
    cluster.set(&ALL, "a", "1").await;
    let old = cluster.leader(&ALL).await;
    let others: Vec<_> = ALL.into_iter().filter(|host| HostId(*host) != old.host()).collect();
    cluster.fabric.cut(old.host());
    let alone = BTreeSet::from([old.host()]);
    let change = tokio::spawn({
        let old = old.clone();
        async move { old.change_voters(alone).await }
    });
    wait("the change to stand in the old leader's log", || old.status().leadership.changing_to).await;
    for i in 0..100 {
        cluster.set(&others, &format!("k{i}"), "v").await;
    }
    let new = cluster.leader(&others).await;
    new.snapshot().await.unwrap();
    wait("a snapshot", || (new.status().snapshot > 90).then_some(())).await;
    cluster.fabric.heal();
    cluster.sees(old.host().0, "k99", "v").await;
    wait("the old leader to tell of the snapshot it got", || (old.status().snapshot > 0).then_some(())).await;
    let leadership = old.status().leadership;
    assert_eq!(leadership.voters, ALL.into_iter().map(HostId).collect());
    assert_eq!(leadership.changing_to, None, "the change is taken back");
    change.abort();
    // And it is so after a restart.
    cluster.stop(old.host().0).await;
    cluster.start(old.host().0).await;
    cluster.sees(old.host().0, "k99", "v").await;
    let again = cluster.at(old.host().0);
    wait("three voters after the restart", || (again.status().leadership.voters.len() == 3).then_some(())).await;
    assert_eq!(again.status().leadership.changing_to, None);
}
