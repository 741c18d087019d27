//! How long `vtctl` takes to start.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use vt_tests::program;

use crate::figures::Figure;

/// Times `vtctl version` and, as the peer, the smallest program that does nothing.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Figure> {
    let mut figure = Figure::new("vtctl start, ms", Some(20.0));
    let mut peer = Figure::new("/bin/true", None);
    for _ in 0..rounds {
        figure.values.push(time(program("vtctl").as_os_str(), &["version"])?);
        peer.values.push(time("/bin/true".as_ref(), &[])?);
    }
    figure.peer = peer.percentile(50.0).map(|value| ("/bin/true".to_owned(), value));
    Ok(figure)
}

fn time(program: &std::ffi::OsStr, arguments: &[&str]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    let took = begun.elapsed();
    anyhow::ensure!(status.success(), "{} failed", program.to_string_lossy());
    Ok(took.as_secs_f64() * 1000.0)
}
