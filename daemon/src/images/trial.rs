//! Whether a pool can do what images and disks need of it, tried on this host: create, write, read back, lock, fsync,
//! direct I/O, and room. Each is told on its own. What another host wrote is read here where the pool is shared.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::statvfs::statvfs,
};
use vt_protocol::error::{ErrorCode, Report};

use super::{
    blocks,
    store::{Store, trouble},
};

/// Less room than this is told: a guest's disk grows.
const ROOM: u64 = 1 << 30;
/// What direct I/O is tried with; every device of today has sectors of this length or shorter.
const SECTOR: usize = 4096;

const NAME: &str = ".trial-";

/// A name that nothing else has.
pub(crate) fn trial_name() -> String {
    format!("{NAME}{:016x}", rand::random::<u64>())
}

/// Whether a name can be that of a trial.
pub(crate) fn is_like(name: &str) -> bool {
    name.strip_prefix(NAME).is_some_and(|digits| digits.len() == 16 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// A file that is removed with this value.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a copy of a file shares its blocks in a directory; `None` where that cannot be tried.
pub(crate) fn shares_blocks(directory: &Path) -> Option<bool> {
    let [from, to] = [(); 2].map(|()| Trial(directory.join(trial_name())));
    let mut file = File::create_new(&from.0).ok()?;
    file.write_all(&[1; SECTOR]).ok()?;
    blocks::shares(&file, &File::create_new(&to.0).ok()?).ok()
}

/// Tries a pool. `written`: name and text of a file that another host left there.
///
/// # Errors
/// Something does not work that images need; the report names it.
pub(crate) fn run(store: &Store, written: Option<&(String, String)>) -> Result<Vec<String>, Report> {
    let mut told = Vec::new();
    fs::create_dir_all(&store.path).map_err(|error| trouble("its directory cannot be made", &store.path, &error))?;
    if let Some((name, text)) = written {
        // Whatever another host says, it is the name of a trial.
        let found = match is_like(name) {
            true => fs::read_to_string(store.path.join(name)),
            false => Err(io::ErrorKind::NotFound.into()),
        };
        match found {
            Ok(found) if found == *text => told.push("reads what another host wrote".to_owned()),
            Ok(_) => return Err(not_shared("it reads something else than another host has written", store)),
            Err(error) => {
                return Err(not_shared("what another host has written there is not seen here", store).caused_by(&error));
            }
        }
    }
    let trial = Trial(store.path.join(trial_name()));
    let failed = |what: &str, error: io::Error| trouble(what, &trial.0, &error);
    let opened = File::options().read(true).write(true).create_new(true).open(&trial.0);
    let mut file = opened.map_err(|error| failed("a file cannot be made", error))?;
    let text: Vec<u8> = (0..=255).cycle().take(3 * SECTOR).collect();
    file.write_all(&text).map_err(|error| failed("a file cannot be written", error))?;
    file.sync_all().map_err(|error| failed("fsync fails", error))?;
    let mut back = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut back));
    read.map_err(|error| failed("a file cannot be read back", error))?;
    if back != text {
        return Err(Report::new(ErrorCode::StorageFailed, "a file reads back as something else")
            .with("path", store.path.display().to_string()));
    }
    told.push("creates, writes, syncs and reads back".to_owned());
    told.push(lock(file, &trial.0).map_err(|error| failed("a file cannot be locked", error))?);
    told.push(direct(&trial.0));
    told.push(match statvfs(&store.path) {
        Ok(stat) => room(stat.blocks_available().saturating_mul(stat.fragment_size())),
        Err(error) => format!("how much is free is not told: {error}"),
    });
    Ok(told)
}

/// Writes a file that other hosts are to read; returns its name and text. Removed by [`forget`].
pub(crate) fn leave(store: &Store) -> Result<(String, String), Report> {
    let (name, text) = (trial_name(), format!("{:032x}", rand::random::<u128>()));
    let path = store.path.join(&name);
    let written = fs::create_dir_all(&store.path)
        .and_then(|()| File::create_new(&path))
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| trouble("a file cannot be written", &path, &error))?;
    Ok((name, text))
}

/// Removes what [`leave`] wrote.
pub(crate) fn forget(store: &Store, name: &str) {
    let _ = fs::remove_file(store.path.join(name));
}

fn not_shared(title: &str, store: &Store) -> Report {
    Report::new(ErrorCode::StorageFailed, title)
        .with("path", store.path.display().to_string())
        .help("mount the same storage on every host, or add the pool without --shared")
}

/// Whether a second holder of a lock is refused, which is what keeps two QEMUs from one disk. The second is a process of
/// its own, as QEMU would be.
fn lock(file: File, path: &Path) -> io::Result<String> {
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
    let second = Command::new("flock")
        .args(["--nonblock", "--conflict-exit-code", "9"])
        .arg(path)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    drop(held);
    Ok(match second.map(|status| status.code()) {
        Ok(Some(9)) => "a second lock is refused: QEMU's own locks protect disks here".to_owned(),
        Ok(_) => "locks hold nobody off: only the owner's epoch protects disks here".to_owned(),
        Err(_) => "locks were not tried: there is no program flock (util-linux)".to_owned(),
    })
}

/// Direct I/O needs aligned memory, so another program does it.
fn direct(path: &Path) -> String {
    let opened = File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(path);
    match opened {
        Ok(_) => "takes direct I/O (cache=none)".to_owned(),
        Err(error) => format!("no direct I/O, so no cache=none: {error}"),
    }
}

/// How much is free, bytes, as it is told.
pub(crate) fn room(free: u64) -> String {
    let little = if free < ROOM { ": that is little" } else { "" };
    format!("{} MiB are free{little}", free >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { path: dir.path().join("pool"), shared: true };
        let left = leave(&store).unwrap();
        let told = run(&store, Some(&left)).unwrap();
        assert!(told.iter().any(|line| line.contains("second lock is refused")), "{told:?}");
        forget(&store, &left.0);
        assert_eq!(fs::read_dir(&store.path).unwrap().count(), 0, "nothing is left");
        let other = Store { path: dir.path().join("other"), shared: true };
        let left = leave(&store).unwrap();
        let report = run(&other, Some(&left)).unwrap_err();
        assert!(report.title.contains("not seen here"), "{report}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let report = run(&Store { path: file.join("pool"), shared: false }, None).unwrap_err();
        assert_eq!(report.code, ErrorCode::StorageFailed);
        assert!(report.evidence[0].1.contains("file/pool"), "{report:?}");
    }
}
