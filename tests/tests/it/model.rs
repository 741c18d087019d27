//! Ten thousand walks of the model, and each rule that can be broken on purpose is caught by one.
//!
//! `VTMESH_MODEL_WALKS=100000 cargo nextest run -p vt-tests model::` walks more; `make model` walks for an hour.

use vt_sync::mutation::{Mutation, while_broken};
use vt_tests::model::{Tally, add, walk};

/// Walks of one test; they are two, for two cores.
const WALKS: u64 = 5000;

fn walks(half: u64) -> Tally {
    let count = std::env::var("VTMESH_MODEL_WALKS").ok().and_then(|text| text.parse().ok()).unwrap_or(WALKS);
    let mut tally = Tally::new();
    for seed in half * count..(half + 1) * count {
        add(&mut tally, walk(seed).unwrap_or_else(|broken| panic!("{broken}")));
    }
    println!("{count} walks: {tally:?}");
    tally
}

#[test]
fn no_walk_breaks_a_rule_and_walks_get_far_enough_to_mean_something() {
    let tally = walks(0);
    for what in ["moves", "aborts", "passes", "other verdicts", "releases", "breaks", "suspects", "expiries"] {
        assert!(tally.get(what).is_some_and(|many| *many > 20), "too few {what}: {tally:?}");
    }
}

#[test]
fn no_other_walk_breaks_a_rule() {
    walks(1);
}

#[test]
fn every_rule_that_is_broken_on_purpose_is_caught_and_told_shortly() {
    for mutation in Mutation::ALL {
        let broken = while_broken(mutation, || (0..3000).find_map(|seed| walk(seed).err()));
        let broken = broken.unwrap_or_else(|| panic!("{mutation} stays green"));
        println!("{mutation}: {} ({} lines)", broken.violation, broken.trace.len());
        let rule = broken.violation.rule;
        let expected = match mutation {
            Mutation::NoMove | Mutation::SourceResumesOnTimeout | Mutation::MarginZero | Mutation::RunsTwice => {
                "at most one copy"
            }
            Mutation::MoveOnOneVote => "both votes",
            Mutation::BarrierAtNMinusOne => "never before all have arrived",
            Mutation::StaleEpochAccepted => "stale epoch",
        };
        assert!(rule.contains(expected), "{mutation} was caught for another reason: {}", broken.violation);
        assert!(broken.trace.len() < 150, "{mutation}: {} lines are no short story", broken.trace.len());
    }
}
