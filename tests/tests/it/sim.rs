//! Whole hosts under faults in simulation: no rule is broken, and a healed cluster goes on.
//!
//! `VTMESH_SIM_SEEDS=100 cargo nextest run -p vt-tests sim::` runs more seeds; `make sim SEED=17` tells one.

use std::time::{Duration, Instant};

use vt_sync::mutation::{Mutation, while_broken};
use vt_tests::sim::{Options, disk::Honesty, run, run_barrier};

fn seeds(first: u64, count: u64) -> Vec<u64> {
    let wanted = std::env::var("VTMESH_SIM_SEEDS").ok().and_then(|text| text.parse().ok());
    (first..first + wanted.unwrap_or(count)).collect()
}

fn honest(seed: u64) -> Options {
    Options { seed, honesty: Honesty::Honest }
}

fn all_hold(seeds: Vec<u64>) {
    let begun = Instant::now();
    let (mut faults, mut entries, mut simulated) = (0, 0, Duration::ZERO);
    for seed in &seeds {
        let ran = run(honest(*seed));
        let outcome = ran.outcome.unwrap_or_else(|violation| {
            let from = ran.trace.len().saturating_sub(60);
            panic!("seed {seed}: {violation}\n{}\nthe whole run: make sim SEED={seed}", ran.trace[from..].join("\n"))
        });
        println!("seed {seed}: {outcome:?}");
        faults += outcome.faults;
        entries += outcome.entries;
        simulated += outcome.simulated;
    }
    println!("{simulated:?} simulated in {:?}", begun.elapsed());
    // A seed alone may have little of the one or the other.
    assert!(seeds.len() < 3 || (faults > 12 && entries > 600), "no bite: {faults} faults, {entries} entries");
}

#[test]
fn no_rule_is_broken_and_a_healed_cluster_goes_on() {
    all_hold(seeds(1, 3));
}

/// The traces of some seeds, by whatever process runs this.
fn hashes() -> Vec<String> {
    seeds(11, 3).into_iter().map(|seed| format!("{seed}: {}", run(honest(seed)).hash())).collect()
}

const PRINTS: &str = "VTMESH_SIM_PRINTS";

#[test]
fn a_seed_is_one_run_to_the_last_line_in_this_process_and_in_another() {
    let first: Vec<_> = hashes();
    if std::env::var_os(PRINTS).is_some() {
        println!("{}", first.join("\n"));
        return;
    }
    let (one, other) = (run(honest(11)).trace, run(honest(11)).trace);
    for (number, (one, other)) in one.iter().zip(&other).enumerate() {
        assert_eq!(one, other, "line {number} of seed 11");
    }
    assert_eq!(one.len(), other.len());
    let name = "sim::a_seed_is_one_run_to_the_last_line_in_this_process_and_in_another";
    let me = std::env::current_exe().unwrap();
    let child =
        std::process::Command::new(me).args(["--exact", name, "--nocapture"]).env(PRINTS, "1").output().unwrap();
    let printed = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{printed}");
    for line in first {
        assert!(printed.contains(&line), "{line} here, elsewhere\n{printed}");
    }
}

#[test]
fn the_same_under_other_faults() {
    all_hold(seeds(1001, 3));
}

#[test]
fn a_leader_killed_between_the_first_and_the_last_arrival_leaves_one_release() {
    for seed in seeds(1, 20) {
        let ran = run_barrier(seed);
        let outcome = ran.outcome.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert_eq!(outcome.faults, 1, "seed {seed}: the leader was not killed");
    }
}

#[test]
fn a_disk_that_forgets_what_it_synced_is_caught() {
    for seed in [1, 2] {
        let ran = run(Options { seed, honesty: Honesty::Lying });
        println!("seed {seed}: {}", ran.outcome.expect_err("a store that forgets was not noticed"));
    }
}

/// Some seed from the first on catches it: where that is not 1, those before it are known not to.
fn is_caught(mutation: Mutation, first: u64, rule: &str) {
    let broken = |seed| while_broken(mutation, || run(honest(seed)).outcome).err();
    let caught = (first..first + 30).find_map(|seed| Some((seed, broken(seed)?)));
    let (seed, violation) = caught.unwrap_or_else(|| panic!("{mutation} stays green"));
    println!("{mutation}, seed {seed}: {violation}");
    assert!(violation.contains(rule), "{mutation} was caught for another reason: {violation}");
}

#[test]
fn a_move_without_a_decision_is_caught() {
    is_caught(Mutation::NoMove, 1, "at most one copy");
}

#[test]
fn a_move_on_one_vote_is_caught() {
    is_caught(Mutation::MoveOnOneVote, 1, "both votes");
}

#[test]
fn a_source_that_lets_the_guest_run_again_when_its_time_is_over_is_caught() {
    is_caught(Mutation::SourceResumesOnTimeout, 7, "at most one copy");
}

#[test]
fn a_leader_that_leaves_the_guards_no_time_is_caught() {
    is_caught(Mutation::MarginZero, 10, "at most one copy");
}

#[test]
fn a_barrier_that_lets_go_too_early_is_caught() {
    is_caught(Mutation::BarrierAtNMinusOne, 1, "never before all have arrived");
}

#[test]
fn an_epoch_that_is_over_and_counts_is_caught() {
    is_caught(Mutation::StaleEpochAccepted, 11, "stale epoch");
}

#[test]
fn a_source_that_lets_the_guest_run_again_after_the_decision_is_caught() {
    is_caught(Mutation::RunsTwice, 1, "at most one copy");
}
