//! The words of the programs that walk and run seeds by hand: `model` and `sim`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use vt_sync::mutation::Mutation;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// For so long; an hour where nothing is said.
    pub minutes: u64,
    /// So many, however long it takes.
    pub count: Option<u64>,
    /// The first seed.
    pub from: u64,
    /// One seed, told line by line.
    pub reproduce: Option<u64>,
    /// The rule to break.
    pub mutation: Option<Mutation>,
}

impl Default for Words {
    fn default() -> Self {
        Self { minutes: 60, count: None, from: 1, reproduce: None, mutation: None }
    }
}

impl Words {
    /// Reads a command line.
    ///
    /// # Errors
    /// A word is not known, or its value is none.
    pub fn read(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut words = Self::default();
        while let Some(word) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{word} wants a value"))?;
            let number = || value.parse::<u64>().with_context(|| format!("{word} {value}: no number"));
            match word.as_str() {
                "--minutes" => words.minutes = number()?,
                "--runs" => words.count = Some(number()?),
                "--from" => words.from = number()?,
                "--reproduce" => words.reproduce = Some(number()?),
                "--mutation" => {
                    let known = Mutation::ALL.map(Mutation::name).join(", ");
                    let named = Mutation::named(&value);
                    words.mutation = Some(named.with_context(|| format!("{value} is none of {known}"))?);
                }
                _ => bail!("known: --minutes N, --runs N, --from SEED, --reproduce SEED, --mutation NAME"),
            }
        }
        Ok(words)
    }

    /// Whether there is more to do after `done` seeds.
    pub fn go_on(&self, done: u64, begun: Instant) -> bool {
        match self.count {
            Some(count) => done < count,
            None => begun.elapsed() < Duration::from_secs(60 * self.minutes),
        }
    }
}

/// The number of a trace: another run of its seed has the same.
pub fn hash(trace: &[String]) -> String {
    blake3::hash(trace.join("\n").as_bytes()).to_hex().to_string()
}

/// Does it with that rule broken.
///
/// # Errors
/// This is a release build, which breaks none.
#[cfg(debug_assertions)]
pub fn with(mutation: Option<Mutation>, what: impl FnOnce() -> ExitCode) -> anyhow::Result<ExitCode> {
    Ok(match mutation {
        Some(mutation) => vt_sync::mutation::while_broken(mutation, what),
        None => what(),
    })
}

/// Does it.
///
/// # Errors
/// A rule is to be broken: a release build breaks none.
#[cfg(not(debug_assertions))]
pub fn with(mutation: Option<Mutation>, what: impl FnOnce() -> ExitCode) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(mutation.is_none(), "a release build breaks no rule: build without --release");
    Ok(what())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_mistakes_are_named() {
        let read = |text: &str| Words::read(text.split_whitespace().map(str::to_owned));
        let words = read("--runs 3 --from 7 --mutation margin-zero").unwrap();
        assert_eq!((words.count, words.from, words.mutation), (Some(3), 7, Some(Mutation::MarginZero)));
        assert!(words.go_on(2, Instant::now()) && !words.go_on(3, Instant::now()));
        for (text, told) in [("--runs", "wants a value"), ("--from x", "no number"), ("--mutation none", "is none of")]
        {
            assert!(read(text).unwrap_err().to_string().contains(told), "{text}");
        }
    }
}
