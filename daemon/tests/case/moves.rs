//! Cases with real guests: the built-in scenarios from end to end, and migrations that break on the way.

use std::time::Duration;

use vt_protocol::verdict::Verdict;

use crate::in_process::{World, real};

#[tokio::test(flavor = "multi_thread")]
async fn uptime_runs_on_one_host() {
    let world = World::new(1, real()).await;
    let attempt = world.begin("uptime", 1, &[("mem", "128M")], Duration::from_secs(300));
    let (verdict, cause) = world.verdict().await;
    assert_eq!(verdict, Verdict::Pass, "{cause:#?}\n{}", world.events(0, attempt));
    assert!(world.events(0, attempt).contains("load average"));
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_guest_goes_there_and_back_unhurt() {
    let world = World::new(2, real()).await;
    let attempt = world.begin("multihost_migration", 2, &[], Duration::from_secs(600));
    let (verdict, cause) = world.verdict().await;
    let events = || format!("{}\n{}", world.events(0, attempt), world.events(1, attempt));
    // No bridge here, so no address to check: that is said.
    assert_eq!(verdict, Verdict::Warn, "{cause:#?}\n{}", events());
    world.assert_clean().await;
}
