//! Hosts of another time: builds that speak other versions of the protocol, and clocks that are a day off.

use std::time::Duration;

use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole, TokenCreate},
    error::ErrorCode,
    ids::RequestId,
};

use crate::daemons::Daemons;

const WIRE: &str = "VTMESH_REHEARSE_WIRE";
const CLOCK: &str = "VTMESH_REHEARSE_CLOCK_S";

#[tokio::test]
async fn a_cluster_is_upgraded_host_by_host_and_decides_at_every_step() {
    let mut daemons = Daemons::cluster(3).await;
    // Each host is replaced by a build that speaks one version more; the leader last.
    let leader = daemons.leader(0).await;
    for index in [(leader + 1) % 3, (leader + 2) % 3, leader] {
        daemons.all[index].kill();
        daemons.all[index].pretend(WIRE, "1-2");
        daemons.all[index].start().await;
        daemons.settled(3).await;
        for daemon in &daemons.all {
            daemon.token().await;
        }
    }
    // When all speak the new version, the old one can go. This test speaks the old one: it asks another host.
    let last = (leader + 1) % 3;
    let name = daemons.all[last].name.clone();
    let asked = (last + 1) % 3;
    let live = |status: &ClusterStatus| {
        status.quorum && status.hosts.iter().any(|host| host.name.as_str() == name && host.state == "live")
    };
    let silent = |status: &ClusterStatus| status.quorum && !live(status);
    daemons.all[last].kill();
    daemons.all[asked].wait("without it", silent).await;
    daemons.all[last].pretend(WIRE, "2-3");
    daemons.all[last].spawn();
    daemons.all[asked].wait("together with a later build", live).await;
    // A build without a version in common takes no part, says why, and comes back as soon as it has one.
    daemons.all[last].kill();
    daemons.all[asked].wait("without it", silent).await;
    daemons.all[last].pretend(WIRE, "4-5");
    daemons.all[last].spawn();
    let by = tokio::time::Instant::now() + crate::daemons::PATIENCE;
    let log = daemons.all[last].dir.join("log");
    let says_why = |text: String| text.contains("speaks protocol") || text.contains("refusal: Version");
    while !says_why(std::fs::read_to_string(&log).unwrap()) {
        assert!(tokio::time::Instant::now() < by, "it does not say why: {}", daemons.all[last].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(silent(&daemons.all[asked].status().await.unwrap()), "nothing of it is understood");
    daemons.all[last].kill();
    daemons.all[last].pretend(WIRE, "1-2");
    daemons.all[last].start().await;
    daemons.settled(3).await;
}

#[tokio::test]
async fn clocks_that_are_a_day_off_change_nothing_and_tokens_end_by_the_leaders() {
    let mut daemons = Daemons::new(3);
    daemons.all[1].pretend(CLOCK, "86400");
    daemons.all[2].pretend(CLOCK, "-86400");
    daemons.gather(HostRole::Voter).await;
    daemons.settled(3).await;
    let leader = daemons.leader(0).await;
    // Made, shown and admitted by hosts of three different days: it lives as long as it was given.
    let fourth = daemons.add(4).await;
    let token = daemons.all[(leader + 1) % 3].token().await;
    daemons.all[fourth].join(&token.text).await.unwrap_or_else(|error| panic!("{error:?}"));
    daemons.settled(3).await;
    // And no longer, whoever is asked.
    let create = TokenCreate { request: RequestId::random(), role: HostRole::Voter, ttl_s: 2 };
    let made = match daemons.all[(leader + 2) % 3].ask(&AdminRequest::TokenCreate(create)).await.unwrap() {
        AdminReply::Token(token) => token,
        other => panic!("{other:?}"),
    };
    let by = tokio::time::Instant::now() + crate::daemons::PATIENCE;
    loop {
        let tokens = match daemons.all[leader].ask(&AdminRequest::TokenList).await.unwrap() {
            AdminReply::Tokens(tokens) => tokens,
            other => panic!("{other:?}"),
        };
        if tokens.iter().any(|token| token.id == made.id && token.state == "expired") {
            break;
        }
        assert!(tokio::time::Instant::now() < by, "it never ends: {tokens:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let fifth = daemons.add(5).await;
    let refused = daemons.all[fifth].join(&made.text).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TokenExpired, "{refused:?}");
}
