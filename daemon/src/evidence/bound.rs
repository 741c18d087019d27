//! Logs that others write without end are cut: a guest that fills its console must not fill the disk of its host.
//!
//! The writers append, so a file can be made shorter under them. Its end stays, behind a line that says what is gone. What
//! may not happen here: a file of our own touched, which is bounded where it is written.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use super::files;
use crate::{guard, party::tend, qemu::vm};

/// Files that a guest, QEMU, a guard or a scenario writes.
const NAMES: [&str; 4] = [vm::SERIAL_FILE, vm::STDERR_FILE, guard::LOG_FILE, tend::STDERR_FILE];
/// A file that is longer is cut.
const MOST: u64 = 16 << 20;
/// To so many bytes of its end.
const KEPT: u64 = 4 << 20;
const LOOKS: Duration = Duration::from_secs(1);

/// Cuts what grows too long below `dir`, as long as this is waited for.
pub async fn keep(dir: PathBuf) {
    loop {
        sleep(LOOKS).await;
        let dir = dir.clone();
        let cut = tokio::task::spawn_blocking(move || cut_all(&dir, MOST, KEPT));
        if let Ok(Err(error)) = cut.await {
            tracing::debug!(%error, "logs of an attempt were not looked at");
        }
    }
}

fn cut_all(dir: &Path, most: u64, kept: u64) -> io::Result<()> {
    for (path, size) in files::list(dir)? {
        let name = path.rsplit('/').next().unwrap_or_default();
        if size > most && NAMES.contains(&name) {
            cut(&dir.join(&path), size, most, kept)?;
        }
    }
    Ok(())
}

/// What is written while this runs may be lost as well.
fn cut(path: &Path, size: u64, most: u64, kept: u64) -> io::Result<()> {
    let end = files::tail(path, kept);
    // From a line on, unless one line is all there is.
    let end = end.split_once('\n').map_or(end.as_str(), |(_, rest)| rest);
    let gone = size.saturating_sub(end.len() as u64);
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(0)?;
    write!(file, "[vtd: {gone} bytes before this line were cut; a log is kept up to {most} bytes]\n{end}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_that_grows_too_long_keeps_its_end_and_says_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("vm1/start");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(vm::SERIAL_FILE);
        let mut guest = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for number in 0..100 {
            writeln!(guest, "line {number}").unwrap();
        }
        fs::write(folder.join("other.log"), "x".repeat(5000)).unwrap();
        cut_all(dir.path(), 1 << 20, 60).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 790, "short enough");
        cut_all(dir.path(), 500, 60).unwrap();
        writeln!(guest, "line 100").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "[vtd: 734 bytes before this line were cut; a log is kept up to 500 bytes]");
        assert_eq!((lines[1], *lines.last().unwrap()), ("line 93", "line 100"));
        assert_eq!(fs::metadata(folder.join("other.log")).unwrap().len(), 5000, "no log of others");
    }
}
