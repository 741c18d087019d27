//! Replicas under faults on simulated disks and links: nothing acknowledged is lost, and a healed cluster goes on.
//!
//! `VT_SIM_SEED=17 cargo nextest run -p vt-tests sim::` runs one seed again; `VT_SIM_SEEDS=100` runs more of them.

use std::time::Instant;

use vt_tests::sim::{Options, disk::Honesty, run, run_barrier};

fn seeds(first: u64, count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("VT_SIM_SEED") {
        return vec![seed];
    }
    (first..first + number("VT_SIM_SEEDS").unwrap_or(count)).collect()
}

fn all_hold(seeds: Vec<u64>) {
    let (mut faults, mut entries) = (0, 0);
    for seed in &seeds {
        let begun = Instant::now();
        let outcome = run(Options { seed: *seed, honesty: Honesty::Honest });
        println!("seed {seed}: {outcome:?} in {:?}", begun.elapsed());
        let outcome = outcome.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        faults += outcome.faults;
        entries += outcome.entries;
    }
    // A seed alone may have little of the one or the other.
    assert!(seeds.len() < 3 || (faults > 10 && entries > 150), "no bite: {faults} faults, {entries} entries");
}

#[test]
fn nothing_acknowledged_is_lost_and_a_healed_cluster_goes_on() {
    all_hold(seeds(1, 3));
}

#[test]
fn the_same_under_other_faults() {
    all_hold(seeds(1001, 3));
}

#[test]
fn a_leader_killed_between_the_first_and_the_last_arrival_leaves_one_release() {
    for seed in seeds(1, 20) {
        let outcome = run_barrier(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert_eq!(outcome.faults, 1, "seed {seed}: the leader was not killed");
    }
}

#[test]
fn a_disk_that_forgets_what_it_synced_is_caught() {
    for seed in [1, 2] {
        let violation =
            run(Options { seed, honesty: Honesty::Lying }).expect_err("a store that forgets was not noticed");
        println!("seed {seed}: {violation}");
    }
}
