//! Walks of the model, for as long as one likes. Exit code 1: a rule was broken.
//!
//! ```text
//! model [--minutes N | --runs N] [--from SEED]     walks seeds in order; says which one broke a rule, and how
//! model --reproduce SEED                           one walk, told line by line, with the number of its trace
//! model --mutation NAME …                          with a rule broken on purpose (debug builds)
//! ```

use std::{process::ExitCode, time::Instant};

use vt_tests::{
    model,
    seeds::{Words, hash, with},
};

fn main() -> anyhow::Result<ExitCode> {
    let words = Words::read(std::env::args().skip(1))?;
    with(words.mutation, || match words.reproduce {
        Some(seed) => tell(seed),
        None => many(&words),
    })
}

fn tell(seed: u64) -> ExitCode {
    let trace = model::tell(seed);
    for line in &trace {
        println!("{line}");
    }
    println!("trace {}", hash(&trace));
    many(&Words { count: Some(1), from: seed, ..Words::default() })
}

fn many(words: &Words) -> ExitCode {
    let begun = Instant::now();
    let mut tally = model::Tally::new();
    let mut walked = 0;
    while words.go_on(walked, begun) {
        match model::walk(words.from + walked) {
            Ok(came_across) => model::add(&mut tally, came_across),
            Err(broken) => {
                println!("{broken}");
                return ExitCode::FAILURE;
            }
        }
        walked += 1;
        if walked.is_multiple_of(20_000) {
            println!("{walked} walks, no rule broken: {tally:?}");
        }
    }
    let hours = tally.get("simulated ms").copied().unwrap_or(0) as f64 / 3.6e6;
    println!("{walked} walks from seed {} in {:?}, no rule broken: {tally:?}", words.from, begun.elapsed());
    println!("{hours:.2} h simulated, {:.2} h in a real minute", hours / (begun.elapsed().as_secs_f64() / 60.0));
    ExitCode::SUCCESS
}
