//! The figures that README.md and docs/proofs.md name, measured on this machine by the real programs. Exit code 1: a floor was missed.
//!
//! ```text
//! bench [--quick]            fewer rounds and a shorter look at idle daemons: for a glance, not for the record
//! bench --ways [--quick]     what carries a VM, compared: cost, throughput, readings
//! bench --libvirt [--quick]  a move by virsh, by libvirt, over QMP, and by a bare QMP exchange
//! bench --images [--quick]   images from host to host, against scp, rsync and a TLS socket; to an NFS server, against nfs-cp
//! bench --nfs [--quick]      the last of these alone
//! ```
//!
//! Needs root, QEMU and the built programs beside it. Makes a lab of its own and removes it. Compares commits with etcd
//! where that is installed.

mod bare;
mod consensus;
mod etcd;
mod figures;
mod idle;
mod images;
mod libvirt;
mod nfs;
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

const IMAGES: images::Extent = images::Extent { large_mib: 2048, rounds: 3, small_mib: 256, hosts: 8 };
const QUICK_IMAGES: images::Extent = images::Extent { large_mib: 256, rounds: 1, small_mib: 32, hosts: 4 };

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Cluster(Extent),
    /// What carries a VM; in so many rounds.
    Ways(usize),
    /// The same move with and without libvirt; in so many rounds.
    Libvirt(usize),
    Images(images::Extent),
    /// A disk of so many MiB to an NFS server.
    Nfs(u64),
}

fn what(arguments: &[String]) -> Option<What> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => Some(What::Cluster(FULL)),
        ["--quick"] => Some(What::Cluster(QUICK)),
        ["--ways"] => Some(What::Ways(FULL.rounds)),
        ["--ways", "--quick"] => Some(What::Ways(QUICK.rounds)),
        ["--libvirt"] => Some(What::Libvirt(FULL.rounds)),
        ["--libvirt", "--quick"] => Some(What::Libvirt(QUICK.rounds)),
        ["--images"] => Some(What::Images(IMAGES)),
        ["--images", "--quick"] => Some(What::Images(QUICK_IMAGES)),
        ["--nfs"] => Some(What::Nfs(IMAGES.small_mib)),
        ["--nfs", "--quick"] => Some(What::Nfs(QUICK_IMAGES.small_mib)),
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
    let Some(what) = what(&arguments) else {
        eprintln!("usage: bench [--ways | --libvirt | --images | --nfs] [--quick]");
        return ExitCode::from(2);
    };
    match run(what) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything; whether every floor was kept.
fn run(what: What) -> anyhow::Result<bool> {
    println!("{}", machine());
    let built = vtctl(&["image", "build", "--if-missing"]);
    anyhow::ensure!(built.code == 0, "no image: {}", built.stderr);
    let all = match what {
        What::Cluster(extent) => cluster(extent)?,
        What::Ways(rounds) => shown(ways::measure(rounds)?),
        What::Libvirt(rounds) => shown(libvirt::measure(rounds)?),
        What::Images(extent) => shown(images::measure(extent)?),
        What::Nfs(mib) => shown(nfs::measure(mib)?),
    };
    let missed: Vec<&str> = all.iter().filter(|figure| !figure.kept()).map(|figure| figure.name.trim()).collect();
    match missed.as_slice() {
        [] => println!("every floor kept"),
        names => println!("MISSED: {}", names.join("; ")),
    }
    Ok(missed.is_empty())
}

fn cluster(extent: Extent) -> anyhow::Result<Vec<Figure>> {
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
    Ok(all)
}

fn shown(figures: Vec<Figure>) -> Vec<Figure> {
    show(&figures);
    figures
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
        let what = |words: &[&str]| what(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(what(&[]), Some(What::Cluster(FULL)));
        assert_eq!(what(&["--quick"]), Some(What::Cluster(QUICK)));
        assert_eq!(what(&["--ways", "--quick"]), Some(What::Ways(QUICK.rounds)));
        assert_eq!(what(&["--images", "--quick"]), Some(What::Images(QUICK_IMAGES)));
        assert_eq!(what(&["--nfs"]), Some(What::Nfs(256)));
        assert_eq!(what(&["--fast"]), None);
        assert_eq!(what(&["--quick", "--quick"]), None);
    }
}
