//! Floppy disks of 1440 KiB, empty or with the files of a folder, made by mtools in a file: nothing is mounted.
//!
//! Setups of guests look for their answers there, by names that are longer than FAT's own. A name that mtools would change
//! without a word is refused.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use vt_protocol::error::{ErrorCode, Report};

use crate::images::{
    blocking,
    tool::{Said, Tool},
};

/// Length of the disk, bytes.
pub(super) const BYTES: u64 = 1440 << 10;

const SECTOR: u64 = 512;
/// What the boot sector, two tables of nine sectors and a folder of fourteen leave for files, sectors.
const ROOM: u64 = BYTES / SECTOR - 33;
/// Places in that folder; a long name takes several.
const PLACES: usize = 224;
const NAME_MAX: usize = 255;

const MFORMAT: Tool = of_mtools("mformat");
const MCOPY: Tool = of_mtools("mcopy");

const fn of_mtools(name: &'static str) -> Tool {
    Tool { name, package: "mtools", missing: ErrorCode::StorageFailed, patience: Duration::from_secs(60) }
}

/// Makes a floppy disk at `disk`, in place of what is there, with the files of the folder `from`.
///
/// # Errors
/// mtools is not there, the files do not fit or have names that a floppy disk cannot have, or it cannot be written.
pub(super) async fn make(from: Option<PathBuf>, disk: &Path) -> Result<(), Report> {
    let failed = |error: io::Error| Report::new(ErrorCode::StorageFailed, error.to_string()).caused_by(&error);
    let files = blocking(move || from.map_or_else(|| Ok(Vec::new()), |from| files_of(&from))).await.map_err(failed)?;
    if let Some(parent) = disk.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    match tokio::fs::remove_file(disk).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let kilobytes = (BYTES >> 10).to_string();
    let image: [&OsStr; 2] = ["-i".as_ref(), disk.as_os_str()];
    let format = ["-C", "-f", &kilobytes, "::"].map(OsStr::new);
    done(&MFORMAT.run(&[&image[..], &format].concat(), None).await?)?;
    if files.is_empty() {
        return Ok(());
    }
    let files = files.iter().map(|file| file.as_os_str());
    let words: Vec<&OsStr> = image.into_iter().chain(["-Q".as_ref()]).chain(files).chain(["::".as_ref()]).collect();
    done(&MCOPY.run(&words, None).await?)
}

fn done(said: &Said) -> Result<(), Report> {
    if said.code == Some(0) {
        return Ok(());
    }
    let code = if said.is_full() { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
    Err(Report::new(code, format!("mtools cannot do it: {}", said.words())))
}

/// The files of a folder, in order. What a floppy disk cannot have is an error: links and folders, names of other systems,
/// and more than it has room for.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut sectors) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let meta = entry.metadata()?;
        let bad = |c: char| c.is_control() || "\"*/:<>?\\|\u{fffd}".contains(c);
        if !meta.is_file() || name.contains(bad) || name.ends_with(['.', ' ']) || name.chars().count() > NAME_MAX {
            return Err(io::Error::other(format!("{name:?} is no file that a floppy disk can have")));
        }
        sectors += meta.len().div_ceil(SECTOR);
        files.push(entry.path());
        if files.len() > PLACES {
            return Err(io::Error::other(format!("it has more files than the {PLACES} places of a floppy disk")));
        }
    }
    if sectors > ROOM {
        let (needed, room) = ((sectors * SECTOR).div_ceil(1024), ROOM * SECTOR / 1024);
        return Err(io::Error::other(format!("its files need {needed} KiB, and a floppy disk has room for {room}")));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// A folder with files of those names and bytes, and the disk that is made of it.
    async fn made(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<PathBuf, Report>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, disk) = (dir.path().join("kit"), dir.path().join("made/floppy.img"));
        fs::create_dir(&from).unwrap();
        for (name, bytes) in files {
            fs::write(from.join(name), bytes).unwrap();
        }
        let done = make(Some(from), &disk).await.map(|()| disk);
        (dir, done)
    }

    #[tokio::test]
    async fn the_files_of_a_folder_are_on_the_disk_and_it_is_in_order() {
        let long: Vec<u8> = (0..70_000u32).map(|n| (n % 251) as u8).collect();
        let files: [(&str, &[u8]); 5] = [
            ("Autounattend.xml", b"<unattend/>"),
            ("a name of more than twenty-six letters.txt", &long),
            ("Übung.cfg", b"no ASCII"),
            ("empty", b""),
            ("ks.cfg", &[b'k'; 512]),
        ];
        let (_dir, disk) = made(&files).await;
        let disk = disk.unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), BYTES);
        for (name, bytes) in files {
            let mut read = Command::new("mtype");
            read.env("LC_ALL", "C.UTF-8").arg("-i").arg(&disk).arg(format!("::/{name}"));
            let read = read.output().unwrap();
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(read.status.success() && read.stdout == bytes, "{name}: {said}");
        }
        let checked = Command::new("fsck.fat").arg("-n").arg(&disk).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        // One that is there is replaced, here by an empty one.
        make(None, &disk).await.unwrap();
        let listed = Command::new("mdir").arg("-b").arg("-i").arg(&disk).arg("::").output().unwrap();
        assert!(listed.stdout.is_empty(), "{}", String::from_utf8_lossy(&listed.stdout));
    }

    #[tokio::test]
    async fn what_does_not_fit_or_has_no_name_there_is_refused() {
        let all = vec![7; (ROOM * SECTOR) as usize];
        assert!(made(&[("all", &all)]).await.1.is_ok());
        let report = made(&[("all", &all), ("b", b"b")]).await.1.unwrap_err();
        assert_eq!(report.title, "its files need 1424 KiB, and a floppy disk has room for 1423");
        for name in ["a:b", "end.", "a\nb"] {
            let report = made(&[(name, b"1")]).await.1.unwrap_err();
            assert_eq!(report.title, format!("{name:?} is no file that a floppy disk can have"));
        }
        let many: Vec<String> = (0..130).map(|n| format!("a long name {n}")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        let report = made(&many).await.1.unwrap_err();
        assert!(report.title.contains("No directory slots"), "{report}");
    }
}
