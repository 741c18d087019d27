//! The proof that a disk at a server has one writer, over seeds.

use std::{process::ExitCode, time::Instant};

use vt_tests::{
    nfs_server::NfsServer,
    seeds::Words,
    writers::{Margin, Trouble, play},
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
        done += 1;
        for trouble in Trouble::ALL {
            let shown = play(&server, seed, trouble, Margin::Kept)?;
            red += u64::from(shown.stale > 0);
            println!(
                "seed {seed}, {trouble:?}: {} blocks by the first, {} by the second, {} overwritten by the first after that",
                shown.first, shown.second, shown.stale
            );
        }
    }
    let mut seen = true;
    for trouble in Trouble::ALL {
        let control = play(&server, 0, trouble, Margin::TakenOut)?;
        println!("{trouble:?}, without the margin: {} blocks are overwritten", control.stale);
        seen &= control.stale > 0;
    }
    println!("{done} seeds of each, {red} red");
    Ok(if red == 0 && seen { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
