//! Runs of the simulator, for as long as one likes. Exit code 1: a rule was broken, or a healed cluster did not go on.
//!
//! ```text
//! sim [--minutes N | --runs N] [--from SEED]     runs seeds in order; says which one failed, and how
//! sim --reproduce SEED                           one run, told line by line, with the number of its trace
//! sim --mutation NAME …                          with a rule broken on purpose (debug builds)
//! ```

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use vt_tests::{
    seeds::{Words, with},
    sim::{Options, disk::Honesty, run},
};

fn main() -> anyhow::Result<ExitCode> {
    let words = Words::read(std::env::args().skip(1))?;
    with(words.mutation, || match words.reproduce {
        Some(seed) => tell(seed),
        None => many(&words),
    })
}

fn tell(seed: u64) -> ExitCode {
    let ran = run(Options { seed, honesty: Honesty::Honest });
    for line in &ran.trace {
        println!("{line}");
    }
    println!("trace {}", ran.hash());
    match ran.outcome {
        Ok(outcome) => {
            println!("seed {seed}: {outcome:?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(words: &Words) -> ExitCode {
    let begun = Instant::now();
    let (mut runs, mut faults, mut simulated) = (0, 0, Duration::ZERO);
    while words.go_on(runs, begun) {
        let seed = words.from + runs;
        match run(Options { seed, honesty: Honesty::Honest }).outcome {
            Ok(outcome) => {
                faults += outcome.faults;
                simulated += outcome.simulated;
            }
            Err(violation) => {
                println!("seed {seed}: {violation}");
                println!("the whole run: cargo run -p vt-tests --bin sim -- --reproduce {seed}");
                return ExitCode::FAILURE;
            }
        }
        runs += 1;
        if runs.is_multiple_of(50) {
            println!("{runs} runs, no rule broken");
        }
    }
    let (hours, minutes) = (simulated.as_secs_f64() / 3600.0, begun.elapsed().as_secs_f64() / 60.0);
    println!("{runs} runs from seed {}, {faults} faults, no rule broken", words.from);
    println!("{hours:.2} h simulated, {:.2} h in a real minute", hours / minutes);
    ExitCode::SUCCESS
}
