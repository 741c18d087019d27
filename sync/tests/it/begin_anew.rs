//! Stores that begin anew.

use std::time::Duration;

use vt_protocol::{
    admin::AccessRole,
    error::ErrorCode,
    ids::{Digest, HostId, TokenId},
};
use vt_sync::{
    Request,
    command::{AdmitClient, AdmitHost, CreateClientToken, InitCluster, OpenSession, SetSetting},
    raft::{
        StoreError,
        offline::{self, AnewError},
    },
    state::{ClientGrant, Role, Survivor, TokenStatus, VmState},
};

use crate::{
    harness::{Cluster, PATIENCE, config, wait},
    world::{World, admit, h, new_host, token},
};

#[test]
fn whoever_is_left_behind_loses_all_it_held_and_never_comes_back_as_it_was() {
    let mut world = World::migrating();
    world.ok(token(9));
    let before = world.state.cluster.clone().unwrap();
    let mut anew = world.state.clone();
    let left = anew.begin_anew(world.index + 1, &Survivor::Known(h(2)), Digest::of(b"ca")).unwrap();
    assert_eq!(left.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["host1", "host3"]);
    assert_eq!(anew.hosts.keys().copied().collect::<Vec<_>>(), [h(2)]);
    assert_eq!(anew.cluster.as_ref().unwrap().generation, before.generation + 1);
    assert!(anew.vms.values().all(|vm| vm.state != VmState::Owned), "host1's VM is nobody's");
    assert!(anew.tokens.values().all(|token| token.status != TokenStatus::Open), "old tokens admit nobody");
    world.state = anew;
    world.index += 1;
    assert_eq!(world.no(OpenSession { host: h(1), incarnation: 9, resume: true }), ErrorCode::HostRemoved);
    world.ok(token(20));
    let again = AdmitHost { host: new_host(1), ..admit(20) };
    assert_eq!(world.no(again), ErrorCode::HostRemoved);
    let mut other = new_host(4);
    other.name = "host1".parse().unwrap();
    world.ok(AdmitHost { host: other, ..admit(20) });
}

#[test]
fn a_learner_that_goes_on_alone_votes_and_a_stranger_comes_in_as_voter() {
    let mut world = World::of(2);
    world.ok(vt_sync::command::SetRole { host: h(2), role: Role::Learner });
    let mut known = world.state.clone();
    known.begin_anew(world.index + 1, &Survivor::Known(h(2)), Digest::of(b"ca")).unwrap();
    assert_eq!(known.hosts[&h(2)].role, Role::Voter);
    let mut new = world.state.clone();
    new.begin_anew(world.index + 1, &Survivor::New(new_host(7)), Digest::of(b"new")).unwrap();
    assert_eq!(new.hosts.keys().copied().collect::<Vec<_>>(), [h(7)]);
    assert_eq!(new.cluster.as_ref().unwrap().ca, Digest::of(b"new"));
    let refused = world.state.clone().begin_anew(world.index + 1, &Survivor::Known(h(9)), Digest::of(b"ca"));
    assert_eq!(refused.unwrap_err().code, ErrorCode::UnknownHost);
}

#[test]
fn clients_of_an_authority_that_is_gone_are_gone_with_it() {
    let mut world = World::of(2);
    let (token, secret_hash) = (TokenId(50), Digest::of(b"s"));
    let grant = ClientGrant { role: AccessRole::Admin, name: None, valid_s: 60 };
    world.ok(CreateClientToken { token, secret_hash, grant, made_by: "x".into(), expires_unix_s: 1 });
    let (key, name) = (Digest::of(b"key"), "alice".parse().unwrap());
    world.ok(AdmitClient { token, secret_hash, key, name, until_unix_s: 1 });
    for (ca, left) in [(Digest::of(b"ca"), 1), (Digest::of(b"new"), 0)] {
        let mut anew = world.state.clone();
        anew.begin_anew(world.index + 1, &Survivor::Known(h(2)), ca).unwrap();
        assert_eq!(anew.clients.len(), left, "{ca}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_alone_with_every_entry_of_its_log() {
    let cluster = Cluster::of(3, config()).await;
    for i in 0..20 {
        cluster.set(&[1, 2, 3], &format!("k{i}"), "v").await;
    }
    // The state of these replicas knows host 1 alone, whoever votes.
    let survivor = h(1);
    let until = tokio::time::Instant::now() + PATIENCE;
    let alone = loop {
        let leader = cluster.leader(&[1, 2, 3]).await;
        if leader.host() == survivor {
            break leader;
        }
        assert!(tokio::time::Instant::now() < until, "host 1 never leads");
        leader.transfer_leader(survivor).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    cluster.sees(1, "k19", "v").await;
    // An entry that this host has and whose commit it never hears of: it may have been acknowledged elsewhere.
    cluster.fabric.cut(survivor);
    let set = SetSetting { key: "unheard".into(), value: Some("v".into()) };
    alone.propose(Request::new(set), Duration::from_millis(300)).await.unwrap_err();
    let last = alone.status().last_log;
    drop(alone);

    let directory = cluster.directory(survivor.0);
    let busy = offline::recover(&directory, survivor, "host", Digest::of(b"ca")).await.unwrap_err();
    assert!(matches!(busy, AnewError::Store(StoreError::Busy)), "{busy}");
    for host in [1, 2, 3] {
        cluster.stop(host).await;
    }
    let other = offline::recover(&directory, HostId(9), "host", Digest::of(b"ca")).await.unwrap_err();
    assert!(matches!(other, AnewError::Store(StoreError::OtherHost { .. })), "{other}");
    let anew = offline::recover(&directory, survivor, "host", Digest::of(b"ca")).await.unwrap();
    assert_eq!((anew.generation, anew.last), (2, last));
    assert!(anew.unheard >= 1, "{anew:?}");
    cluster.fabric.heal();
    cluster.start(1).await;
    let replica = wait("it to lead alone", || {
        let replica = cluster.at(1);
        (replica.status().quorum && replica.status().leadership.leader == Some(survivor)).then_some(replica)
    })
    .await;
    assert_eq!(replica.status().leadership.voters.len(), 1);
    drop(replica);
    for key in ["k0", "k19", "unheard"] {
        cluster.sees(1, key, "v").await;
    }
    cluster.set(&[1], "later", "v").await;
    // And it is so after a restart.
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.sees(1, "later", "v").await;
    assert_eq!(cluster.at(1).state().cluster.as_ref().unwrap().generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_state_begins_anew_in_an_empty_store() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut world = World::of(3);
    world.ok(SetSetting { key: "k".into(), value: Some("v".into()) });
    let saved = world.state.clone();
    let anew = offline::restore(dir.path(), saved, new_host(7), Digest::of(b"new")).await.unwrap();
    assert_eq!((anew.generation, anew.last, anew.left.len()), (2, world.index, 3));
    let nobody = crate::cluster::nobody();
    let storage = vt_sync::Storage::Directory { path: dir.path().to_owned(), create: false };
    let replica = vt_sync::Replica::open(storage, h(7), &config(), nobody).await.unwrap();
    let state = replica.state();
    assert_eq!((state.settings["k"].as_str(), state.hosts.len()), ("v", 1));
    wait("it to lead", || (replica.status().leadership.leader == Some(h(7))).then_some(())).await;
    let init = InitCluster {
        id: vt_protocol::ids::ClusterId(2),
        name: "other".parse().unwrap(),
        ca: Digest::of(b"ca"),
        host: new_host(8),
    };
    let refused = replica.propose(Request::new(init), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, vt_sync::ProposeError::Rejected(r) if r.code == ErrorCode::AlreadyClaimed));
    replica.shutdown().await;
}
