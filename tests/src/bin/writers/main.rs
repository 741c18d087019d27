//! The proof that a disk at a server has one writer, over seeds.

use std::{process::ExitCode, time::Instant};

use vt_tests::{
    nfs_server::NfsServer,
    seeds::Words,
    writers::{Margin, play},
};

fn main() -> anyhow::Result<ExitCode> {
    let words = Words::read(std::env::args().skip(1))?;
    let server = NfsServer::alone();
    let (begun, mut done, mut red) = (Instant::now(), 0, 0);
    let seeds = words.reproduce.map_or(words.from..u64::MAX, |seed| seed..seed.saturating_add(1));
    for seed in seeds {
        if !words.go_on(done, begun) {
            break;
        }
        let shown = play(&server, seed, Margin::Kept)?;
        done += 1;
        red += u64::from(shown.stale > 0);
        println!(
            "seed {seed}: {} blocks by the first, {} by the second, {} overwritten by the first after that",
            shown.first, shown.second, shown.stale
        );
    }
    let control = play(&server, 0, Margin::TakenOut)?;
    println!("{done} seeds, {red} red; without the margin {} blocks are overwritten", control.stale);
    Ok(if red == 0 && control.stale > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
