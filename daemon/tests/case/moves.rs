//! Cases with real guests: the built-in scenarios from end to end.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use vt_daemon::migrate::lanes::Lanes;
use vt_protocol::{error::ErrorCode, verdict::Verdict};

use crate::in_process::{World, real};

const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

#[tokio::test(flavor = "multi_thread")]
async fn uptime_runs_on_one_host() {
    let world = World::new(1, real()).await;
    let attempt = world.begin("uptime", 1, &[("mem", "128M")], HALF_AN_HOUR);
    let (verdict, cause) = world.verdict().await;
    assert_eq!(verdict, Verdict::Pass, "{cause:#?}\n{}", world.events(0, attempt));
    assert!(world.events(0, attempt).contains("load average"));
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_guest_goes_there_and_back_unhurt() {
    let world = World::new(2, real()).await;
    let attempt = world.begin("multihost_migration", 2, &[("mig_speed", "40M")], HALF_AN_HOUR);
    let (verdict, cause) = world.verdict().await;
    let events = || format!("{}\n{}", world.events(0, attempt), world.events(1, attempt));
    // No bridge here, so no address to check: that is said.
    assert_eq!(verdict, Verdict::Warn, "{cause:#?}\n{}", events());
    world.assert_clean().await;

    let result = |place: usize, number: u32| -> Value {
        serde_json::from_str(&world.evidence(place, attempt, &format!("migrations/vm1-{number}.json"))).unwrap()
    };
    let (there, back) = (result(0, 1), result(1, 2));
    let pids: BTreeSet<u64> = [&there, &back]
        .iter()
        .flat_map(|result| [result["source_pid"].as_u64().unwrap(), result["destination_pid"].as_u64().unwrap()])
        .collect();
    assert_eq!(pids.len(), 3, "three QEMUs: {pids:?}");
    assert_eq!(there["destination_pid"], back["source_pid"]);
    for (place, other, result) in [(0, 1, &there), (1, 0, &back)] {
        assert!(result["normal_pages"].as_u64().unwrap() > 1000, "{result}");
        let sum: f64 = result["parts_ms"].as_array().unwrap().iter().map(|part| part[1].as_f64().unwrap()).sum();
        let wall = result["wall_ms"].as_f64().unwrap();
        assert!((sum - wall).abs() < 1.0, "parts make the whole: {sum} {wall}");
        let samples = result["samples"].as_array().unwrap().len() as f64;
        let seconds = result["total_ms"].as_f64().unwrap() / 1000.0;
        assert!(seconds > 1.5 && samples / seconds >= 5.0, "{samples} readings in {seconds} s");
        // QEMU itself says so, on both sides.
        let transcript = |place, side: &str| world.evidence(place, attempt, result[side].as_str().unwrap());
        let source = transcript(place, "source_transcript");
        assert!(source.contains("\"completed\"") && source.contains("\"execute\":\"migrate\""), "{source}");
        let destination = transcript(other, "destination_transcript");
        assert!(destination.contains("migrate-incoming") && destination.contains("\"RESUME\""), "{destination}");
        let number = result["id"]["number"].as_u64().unwrap();
        let csv = world.evidence(place, attempt, &format!("migrations/vm1-{number}.csv"));
        assert!(csv.lines().count() as f64 > samples, "{csv}");
    }
    let checks: Value = serde_json::from_str(&world.evidence(1, attempt, "checks/vm1-1.json")).unwrap();
    assert!(checks["found"]["rewritten_bytes_s"].as_u64().unwrap() > 0, "{checks}");
    let ended = world.ended(attempt);
    assert_eq!(ended.history.len(), 2);
    assert!(ended.metrics.contains_key("guest_downtime_ms"), "{:?}", ended.metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_wanders_over_three_hosts_and_home() {
    let world = World::new(3, real()).await;
    let params = [("mem", "128M"), ("mem_probe", "4M"), ("downtime_limit", "500")];
    let attempt = world.begin("multihost_migration", 3, &params, HALF_AN_HOUR);
    let (verdict, cause) = world.verdict().await;
    assert_eq!(verdict, Verdict::Warn, "{cause:#?}\n{}", world.events(0, attempt));
    let way: Vec<(u64, u64)> = world.ended(attempt).history.iter().map(|m| (m.from.0, m.to.0)).collect();
    assert_eq!(way, [(1, 2), (2, 3), (3, 1)]);
    world.assert_clean().await;
}

/// From when to when each transfer that left a host was under way, by what its daemon wrote down, ms.
fn transfers(world: &World, place: usize, attempt: vt_protocol::ids::AttemptId) -> Vec<(u64, u64)> {
    let events = world.events(place, attempt);
    let lines = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said: Vec<(u64, String)> =
        lines.map(|line| (line["unix_ms"].as_u64().unwrap(), line["what"].to_string())).collect();
    let begun = said.iter().filter_map(|(at, what)| {
        let (before, _) = what.split_once(": how: ").filter(|(_, how)| !how.contains("QEMU process"))?;
        let id = before.rsplit('"').next()?;
        let decided = format!("{id}: decided");
        let end = said.iter().find(|(_, what)| what.contains(&decided))?;
        Some((*at, end.0))
    });
    begun.collect()
}

/// The most that were under way at the same time.
fn at_once(transfers: &[(u64, u64)]) -> usize {
    let under_way = |at: u64| transfers.iter().filter(|(from, to)| (*from..*to).contains(&at)).count();
    transfers.iter().map(|(from, _)| under_way(*from)).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_guests_move_at_once_and_no_more_than_the_host_lets() {
    // Slow enough that transfers which may overlap do.
    let params =
        [("vms", "vm1 vm2 vm3"), ("mem", "128M"), ("mem_probe", "1M"), ("mem_rewrite", "256K"), ("mig_speed", "12M")];
    for (lanes, wanted) in [((8, 8), 3), ((8, 2), 2), ((1, 8), 1)] {
        let mut world = World::new(2, real()).await;
        world.change(0, |places| places.lanes = Lanes::new(lanes.0, lanes.1)).await;
        let attempt = world.begin("multihost_migration", 2, &params, HALF_AN_HOUR);
        let (verdict, cause) = world.verdict().await;
        assert_eq!(verdict, Verdict::Warn, "{cause:#?}\n{}", world.events(0, attempt));
        let left = transfers(&world, 0, attempt);
        assert_eq!((left.len(), at_once(&left)), (3, wanted), "{lanes:?}: {left:?}\n{}", world.events(0, attempt));
        assert_eq!(world.ended(attempt).history.len(), 6);
        world.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_wander_over_three_hosts_in_each_others_way() {
    let world = World::new(3, real()).await;
    let params = [
        ("vms", "vm1 vm2 vm3"),
        ("vms_start", "spread"),
        ("mem", "128M"),
        ("mem_vm2", "112M"),
        ("mem_probe", "1M"),
        ("mem_rewrite", "256K"),
        ("mig_speed", "24M"),
    ];
    let attempt = world.begin("multihost_migration", 3, &params, HALF_AN_HOUR);
    let (verdict, cause) = world.verdict().await;
    assert_eq!(verdict, Verdict::Warn, "{cause:#?}\n{}", world.events(0, attempt));
    // Every host sends one and takes another at the same time.
    let all: Vec<(u64, u64)> = (0..3).flat_map(|place| transfers(&world, place, attempt)).collect();
    assert_eq!((all.len(), at_once(&all)), (9, 3), "{all:?}");
    let mut ways: Vec<(u64, u64)> = world.ended(attempt).history.iter().map(|m| (m.from.0, m.to.0)).collect();
    ways.sort_unstable();
    assert_eq!(ways, [(1, 2), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (3, 1), (3, 1), (3, 1)]);
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_gets_nowhere_is_told_so_before_it_is_given_up() {
    let world = World::new(2, real()).await;
    // What is sent in a pass is written anew meanwhile.
    let params =
        [("mem", "192M"), ("mem_probe", "24M"), ("mem_rewrite", "64M"), ("mig_speed", "12M"), ("mig_timeout", "25")];
    let attempt = world.begin("multihost_migration", 2, &params, HALF_AN_HOUR);
    let (verdict, cause) = world.verdict().await;
    let code = cause.as_ref().map(|cause| cause.code);
    assert_eq!((verdict, code), (Verdict::Fail, Some(ErrorCode::MigrationTimeout)), "{cause:#?}");
    let events = world.events(0, attempt);
    assert!(events.contains("the transfer is stalled"), "{events}");
    let csv = world.evidence(0, attempt, "migrations/vm1-1.csv");
    assert!(csv.lines().filter(|row| row.ends_with(",1")).count() > 10, "{csv}");
    world.assert_clean().await;
}
