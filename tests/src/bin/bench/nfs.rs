//! A disk written to an NFS server through our export, against libnfs's own copy tool: the same bytes, the same server, the
//! same run, by turns.

use std::{fs, path::Path, process::Command};

use anyhow::ensure;
use vt_tests::{nfs_server::NfsServer, program, writers::fence::Export};

use crate::{
    figures::Figure,
    images::{noise, run, timed},
};

/// In so many rounds.
const ROUNDS: u64 = 5;

/// Measures it with a file of that size. Both are charged for `sync` of what they wrote.
pub(crate) fn measure(mib: u64) -> anyhow::Result<Vec<Figure>> {
    let server = NfsServer::alone();
    let work = tempfile::tempdir()?;
    let source = work.path().join("noise.raw");
    noise(&source, mib)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        ours.push(by_export(&server, &source, round)?);
        theirs.push(by_nfs_cp(&server, &source, round)?);
    }
    let theirs = Figure { values: theirs, ..Figure::new(format!("nfs-cp of {mib} MiB to an NFS server, s"), None) };
    let peer = theirs.percentile(50.0).map(|median| ("nfs-cp".to_owned(), median));
    let ours = Figure { values: ours, peer, ..Figure::new("the same through our export, s", None) };
    Ok(vec![theirs, ours])
}

// Each round has a file of its own: one that is removed past the server it goes on writing to, where it knows the name.

fn by_export(server: &NfsServer, source: &Path, round: u64) -> anyhow::Result<f64> {
    let name = format!("ours-{round}");
    let disk = server.folder("disks").join(&name);
    fs::File::create(&disk)?.set_len(fs::metadata(source)?.len())?;
    let export = Export::start(server.command(program("vtd")), server.address(), &name, Some(round))?;
    let device = format!("nbd+unix:///?socket={}", export.socket().display());
    let mut copy = Command::new("qemu-img");
    copy.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(source).arg(device);
    written(source, &disk, &mut copy)
}

fn by_nfs_cp(server: &NfsServer, source: &Path, round: u64) -> anyhow::Result<f64> {
    let name = format!("theirs-{round}");
    let mut copy = server.command("nfs-cp");
    copy.arg(source).arg(format!("nfs://{}/disks/{name}", server.address()));
    written(source, &server.folder("disks").join(name), &mut copy)
}

/// How long a copy takes until it is on disk, s. It is compared and removed.
fn written(source: &Path, to: &Path, copy: &mut Command) -> anyhow::Result<f64> {
    let took = timed(|| {
        run(copy)?;
        run(Command::new("sync").arg(to))
    })?;
    ensure!(fs::read(source)? == fs::read(to)?, "{copy:?} wrote something else");
    fs::remove_file(to)?;
    Ok(took)
}
