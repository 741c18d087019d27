//! Clusters that lost what they cannot do without: their quorum, a data directory, a certificate's date, everything.

use std::{collections::BTreeSet, fs, path::Path};

use vt_protocol::{
    admin::{AdminReply, AdminRequest, HostRole, Joined},
    error::{ErrorCode, Report},
    identity::{Identity, PrivateKey, Validity, store},
    ids::{JobId, RequestId},
    membership::{Change, HostChange, Leave, Recover, Restore},
};

use crate::{
    cluster::tokens,
    daemons::{Daemon, Daemons},
    jobs,
};

async fn recover(daemon: &Daemon, yes: bool) -> Result<Vec<String>, Report> {
    match daemon.ask(&AdminRequest::Recover(Recover { yes })).await? {
        AdminReply::Steps(steps) => Ok(steps),
        other => panic!("{other:?}"),
    }
}

async fn forget(daemon: &Daemon) {
    let leave = AdminRequest::Leave(Leave { request: RequestId::random(), forget: true });
    daemon.ask(&leave).await.unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

async fn rejoin(daemon: &Daemon, by: &Daemon) {
    let token = by.token().await;
    daemon.join(&token.text).await.unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

#[tokio::test]
async fn one_survivor_goes_on_with_all_it_had_and_the_others_are_fenced_until_they_join_afresh() {
    let mut daemons = Daemons::cluster(3).await;
    let survivor = daemons.leader(0).await;
    let mut made = BTreeSet::new();
    for index in 0..6 {
        made.insert(daemons.all[index % 3].token().await.id);
    }
    let refused = recover(&daemons.all[survivor], true).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuorumHeld, "{refused:?}");
    let others: Vec<usize> = (0..3).filter(|index| *index != survivor).collect();
    for index in &others {
        daemons.all[*index].kill();
    }
    let left = &daemons.all[survivor];
    left.wait("without a quorum", |status| !status.quorum).await;

    let asked = recover(left, false).await.unwrap_err();
    assert_eq!(asked.code, ErrorCode::Usage, "it is to be said that losses are known: {asked:?}");
    assert!(asked.evidence.iter().any(|(key, _)| key == "lost"), "{asked:?}");
    assert!(!left.status().await.unwrap().quorum, "nothing was done");

    let steps = recover(left, true).await.unwrap_or_else(|error| panic!("{error:?}\n{}", left.log()));
    assert!(steps.iter().any(|step| step.contains("left behind")), "{steps:?}");
    let status = left.wait("able to decide alone", |status| status.quorum && status.hosts.len() == 1).await;
    assert_eq!(status.voters, 1);
    assert!(tokens(left).await.is_superset(&made), "what was acknowledged is there");
    let fresh = left.token().await;

    // Together they would have been a majority of the old cluster.
    for index in &others {
        daemons.all[*index].start().await;
    }
    for index in &others {
        let daemon = &daemons.all[*index];
        daemon.refused(ErrorCode::OldGeneration).await;
    }
    // Being fenced outlives a restart.
    daemons.all[others[0]].kill();
    daemons.all[others[0]].start().await;
    daemons.all[others[0]].refused(ErrorCode::OldGeneration).await;
    forget(&daemons.all[others[0]]).await;
    daemons.all[others[0]].join(&fresh.text).await.unwrap();
    forget(&daemons.all[others[1]]).await;
    rejoin(&daemons.all[others[1]], &daemons.all[survivor]).await;
    daemons.settled(3).await;
    for daemon in &daemons.all {
        assert!(tokens(daemon).await.is_superset(&made), "{} lost a token", daemon.name);
    }
}

#[tokio::test]
async fn a_learner_recovers_too_and_admits_hosts_under_an_authority_of_its_own() {
    let mut daemons = Daemons::cluster(2).await;
    let made = daemons.all[0].token().await.id;
    let known = |status: &vt_protocol::admin::ClusterStatus| status.hosts.len() == 2;
    daemons.all[1].wait("up to date", known).await;
    while !tokens(&daemons.all[1]).await.contains(&made) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemons.all[0].kill();
    let left = &daemons.all[1];
    left.wait("without a quorum", |status| !status.quorum).await;
    recover(left, true).await.unwrap_or_else(|error| panic!("{error:?}\n{}", left.log()));
    left.wait("able to decide alone", |status| status.quorum && status.hosts.len() == 1).await;
    assert!(tokens(left).await.contains(&made));
    let third = daemons.add(3).await;
    rejoin(&daemons.all[third], &daemons.all[1]).await;
    daemons.all[1]
        .wait("two hosts", |status| status.hosts.iter().filter(|host| host.state == "live").count() == 2)
        .await;
}

async fn save(daemon: &Daemon, file: &Path) {
    let mut items = daemon.stream(&AdminRequest::SnapshotSave).await;
    let mut bytes = Vec::new();
    let mut told = false;
    while let Some(item) = items.next().await {
        match item {
            AdminReply::Files(chunk) => bytes.extend(chunk.bytes),
            AdminReply::Steps(steps) => told = !steps.is_empty(),
            other => panic!("{other:?}"),
        }
    }
    assert!(told);
    fs::write(file, bytes).unwrap();
}

async fn restore(daemon: &Daemon, file: &Path, yes: bool) -> Result<Joined, Report> {
    let restore = Restore { file: file.to_path_buf(), host: None, advertise: None, yes };
    match daemon.ask(&AdminRequest::Restore(restore)).await? {
        AdminReply::Joined(joined) => Ok(joined),
        other => panic!("{other:?}"),
    }
}

async fn job_list(daemon: &Daemon) -> Vec<JobId> {
    match daemon.ask(&AdminRequest::JobList).await.unwrap() {
        AdminReply::Jobs(jobs) => jobs.into_iter().map(|job| job.id).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_saved_snapshot_makes_the_cluster_anew_on_another_machine() {
    let mut daemons = Daemons::new(2);
    for daemon in &mut daemons.all {
        daemon.start().await;
    }
    let [old, new] = &daemons.all[..] else { panic!("two daemons") };
    let founded = old.init().await.unwrap();
    old.wait("live", |status| status.hosts[0].state == "live").await;
    old.wait("live", |status| status.hosts[0].state == "live").await;
    let job = jobs::submit(old, jobs::plan(&[&["host1"]])).await.unwrap();
    jobs::done(old, job).await;
    let file = old.dir.join("snapshot");
    save(old, &file).await;

    let refused = restore(old, &file, true).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AlreadyClaimed, "{refused:?}");
    let asked = restore(new, &file, false).await.unwrap_err();
    assert_eq!(asked.code, ErrorCode::Usage, "{asked:?}");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = old.dir.join("damaged");
    fs::write(&damaged, bytes).unwrap();
    let refused = restore(new, &damaged, true).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SnapshotUnusable, "{refused:?}");
    assert_eq!(new.status().await.unwrap_err().code, ErrorCode::Unclaimed, "nothing was done");

    let joined = restore(new, &file, true).await.unwrap_or_else(|error| panic!("{error:?}\n{}", new.log()));
    assert_eq!((joined.cluster, joined.host_name.as_str()), (founded.cluster, "host2"));
    assert_ne!(joined.ca_fingerprint, founded.ca_fingerprint, "no key is in a snapshot");
    let status = new.wait("able to decide", |status| status.quorum).await;
    assert_eq!(status.hosts.len(), 1, "host1 is left behind");
    assert_eq!(job_list(new).await, [job]);
    daemons.all[1].kill();
    daemons.all[1].start().await;
    daemons.all[1].wait("able to decide after a restart", |status| status.quorum && status.hosts.len() == 1).await;
}

#[tokio::test]
async fn a_host_comes_back_past_every_date_of_its_certificate() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let old = (leader + 1) % 3;
    daemons.all[old].kill();
    let dir = daemons.all[old].dir.join("data/cluster");
    let identity = store::load(&dir).unwrap();
    let cluster = identity.facts().subject.cluster();
    let authority = store::load_ca(&dir, cluster).unwrap().unwrap();
    let key = PrivateKey::from_pem(&identity.key().to_pem()).unwrap();
    let host = vt_protocol::join::host_id_of(&key.public());
    let name = daemons.all[old].name.parse().unwrap();
    // Valid for a second in 1971.
    let dates = Validity { from: 31_536_000, until: 31_536_001 };
    let certificate = authority.issue_host_with_dates(&key.signing_request().unwrap(), host, &name, dates).unwrap();
    store::save(&dir, &Identity::new(key, certificate, identity.ca().clone()).unwrap()).unwrap();
    daemons.all[old].start().await;
    daemons.settled(3).await;
    // It votes and leads as well as any.
    let lead = AdminRequest::TransferLeader(daemons.all[old].name.parse().unwrap());
    daemons.all[leader].ask(&lead).await.unwrap();
}

/// Removes a host that is gone.
async fn remove(by: &Daemon, name: &str) {
    by.wait("aware of the lost host", |status| {
        status.hosts.iter().any(|host| host.name.as_str() == name && host.state != "live")
    })
    .await;
    let remove = HostChange { request: RequestId::random(), host: name.parse().unwrap(), what: Change::Remove };
    by.ask(&AdminRequest::HostChange(remove)).await.unwrap();
}

#[tokio::test]
async fn one_changed_bit_in_the_log_stops_its_host_at_the_start_and_the_way_back_it_says_leads_back() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let hurt = (leader + 1) % 3;
    let made = daemons.all[leader].token().await.id;
    let (name, data) = (daemons.all[hurt].name.clone(), daemons.all[hurt].dir.join("data"));
    daemons.all[hurt].kill();
    let log = data.join("raft/raft.log");
    let mut bytes = fs::read(&log).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    bytes[used[used.len() / 2]] ^= 1;
    fs::write(&log, bytes).unwrap();

    daemons.all[hurt].spawn();
    let status = daemons.all[hurt].ended().await;
    assert!(!status.success(), "it goes on with a damaged log");
    let told = daemons.all[hurt].log();
    for word in ["is damaged", "vtctl host remove", "move the data directory away", "join afresh"] {
        assert!(told.contains(word), "it does not say {word:?}: {told}");
    }

    remove(&daemons.all[leader], &name).await;
    fs::rename(&data, data.with_extension("damaged")).unwrap();
    daemons.all[hurt].start().await;
    rejoin(&daemons.all[hurt], &daemons.all[leader]).await;
    daemons.settled(3).await;
    assert!(tokens(&daemons.all[hurt]).await.contains(&made), "it has what the others had kept");
}

#[tokio::test]
async fn a_host_without_its_data_joins_afresh_and_its_old_id_stays_refused() {
    let mut daemons = Daemons::cluster(3).await;
    let leader = daemons.leader(0).await;
    let lost = (leader + 1) % 3;
    let name = daemons.all[lost].name.clone();
    let id = |status: &vt_protocol::admin::ClusterStatus| {
        status.hosts.iter().find(|host| host.name.as_str() == name).map(|host| host.id)
    };
    let before = id(&daemons.all[leader].status().await.unwrap()).unwrap();
    daemons.all[lost].kill();
    fs::remove_dir_all(daemons.all[lost].dir.join("data")).unwrap();
    daemons.all[lost].start().await;
    let token = daemons.all[leader].token().await;
    let refused = daemons.all[lost].join(&token.text).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NameTaken, "{refused:?}");
    remove(&daemons.all[leader], &name).await;
    daemons.all[lost].join(&token.text).await.unwrap();
    daemons.settled(3).await;
    let after = id(&daemons.all[leader].status().await.unwrap()).unwrap();
    assert_ne!(after, before, "it is another host");
    let status = daemons.all[leader].status().await.unwrap();
    assert!(status.hosts.iter().all(|host| host.role != HostRole::Learner), "it votes again");
}
