//! Replicas under faults on simulated disks and links: nothing acknowledged is lost, and a healed cluster goes on.
//!
//! `VT_SIM_SEED=17 cargo nextest run -p vt-tests sim::` runs one seed again; `VT_SIM_SEEDS=100` runs more of them.

use std::time::Instant;

use vt_tests::sim::{Options, disk::Honesty, run};

fn seeds(first: u64, count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("VT_SIM_SEED") {
        return vec![seed];
    }
    (first..first + number("VT_SIM_SEEDS").unwrap_or(count)).collect()
}

fn all_hold(seeds: Vec<u64>) {
    for seed in seeds {
        let begun = Instant::now();
        let outcome = run(Options { seed, honesty: Honesty::Honest });
        println!("seed {seed}: {outcome:?} in {:?}", begun.elapsed());
        let outcome = outcome.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(outcome.faults > 3 && outcome.entries > 50, "seed {seed} has no bite: {outcome:?}");
    }
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
fn a_disk_that_forgets_what_it_synced_is_caught() {
    for seed in [1, 2] {
        let violation =
            run(Options { seed, honesty: Honesty::Lying }).expect_err("a store that forgets was not noticed");
        println!("seed {seed}: {violation}");
    }
}
