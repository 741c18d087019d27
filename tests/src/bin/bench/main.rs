//! The figures that README.md names, measured on this machine by the real programs. Exit code 1: a floor was missed.
//!
//! ```text
//! bench [--quick]         fewer rounds and a shorter look at idle daemons: for a glance, not for the record
//! bench --ways [--quick]  what carries a VM, compared: cost, throughput, readings
//! ```
//!
//! Needs root, QEMU and the built programs beside it. Makes a lab of its own and removes it. Compares commits with etcd
//! where that is installed.

mod bare;
mod consensus;
mod etcd;
mod figures;
mod idle;
mod overhead;
mod raw;
mod start;
mod ways;

use std::{fs, path::Path, process::ExitCode};

use vt_tests::lab::{Lab, lab_root, vtctl};

use crate::figures::Figure;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    starts: usize,
    idle_seconds: u64,
    rounds: usize,
    consensus: consensus::Extent,
}

const FULL: Extent = Extent {
    starts: 100,
    idle_seconds: 60,
    rounds: 5,
    consensus: consensus::Extent { singles: 500, each: 50, barriers: 200 },
};
const QUICK: Extent = Extent {
    starts: 20,
    idle_seconds: 15,
    rounds: 1,
    consensus: consensus::Extent { singles: 100, each: 10, barriers: 20 },
};

/// How much is measured, and whether it is what carries a VM.
fn extent(arguments: &[String]) -> Option<(Extent, bool)> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => Some((FULL, false)),
        ["--quick"] => Some((QUICK, false)),
        ["--ways"] => Some((FULL, true)),
        ["--ways", "--quick"] => Some((QUICK, true)),
        _ => None,
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(ended) = raw::end(&arguments) {
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let Some((extent, ways)) = extent(&arguments) else {
        eprintln!("usage: bench [--ways] [--quick]");
        return ExitCode::from(2);
    };
    match if ways { run_ways(extent.rounds) } else { run(extent) } {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything; whether every floor was kept.
fn run(extent: Extent) -> anyhow::Result<bool> {
    println!("{}", machine());
    let built = vtctl(&["image", "build", "--if-missing"]);
    anyhow::ensure!(built.code == 0, "no image: {}", built.stderr);
    let mut all = vec![start::measure(extent.starts)?];
    show(&all);
    let decided = consensus::measure(Path::new(&lab_root()), extent.consensus)?;
    show(&decided);
    all.extend(decided);
    let lab = Lab::up(3);
    for measured in [idle::measure(&lab, extent.idle_seconds)?, overhead::measure(&lab, extent.rounds)?] {
        show(&measured);
        all.extend(measured);
    }
    Ok(told(&all))
}

/// Measures what carries a VM; whether every floor was kept.
fn run_ways(rounds: usize) -> anyhow::Result<bool> {
    println!("{}", machine());
    let built = vtctl(&["image", "build", "--if-missing"]);
    anyhow::ensure!(built.code == 0, "no image: {}", built.stderr);
    let all = ways::measure(rounds)?;
    show(&all);
    Ok(told(&all))
}

/// Tells whether every floor was kept.
fn told(all: &[Figure]) -> bool {
    let missed: Vec<&str> = all.iter().filter(|figure| !figure.kept()).map(|figure| figure.name.trim()).collect();
    match missed.as_slice() {
        [] => println!("every floor kept"),
        names => println!("MISSED: {}", names.join("; ")),
    }
    missed.is_empty()
}

fn show(figures: &[Figure]) {
    for figure in figures {
        println!("{}", figure.line());
    }
}

/// What the figures were taken on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let profile = if cfg!(debug_assertions) { "DEBUG BUILD, figures do not count" } else { "release build" };
    format!("{cores} cores · Linux {} · load {} · {profile}", read("/proc/sys/kernel/osrelease").trim(), {
        let load = read("/proc/loadavg");
        load.split_whitespace().next().unwrap_or("unknown").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_how_much_is_measured_and_unknown_ones_are_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(extent(&words(&[])), Some((FULL, false)));
        assert_eq!(extent(&words(&["--quick"])), Some((QUICK, false)));
        assert_eq!(extent(&words(&["--ways", "--quick"])), Some((QUICK, true)));
        assert_eq!(extent(&words(&["--fast"])), None);
        assert_eq!(extent(&words(&["--quick", "--quick"])), None);
    }
}
