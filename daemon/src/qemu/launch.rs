//! `vtd launch`: becomes another program in a session and control group of its own.
//!
//! The daemon starts QEMU through this, because what has to happen between fork and exec (a new session, entering the
//! group) cannot be done there in safe Rust, and doing it after the exec would leave a moment in which a QEMU belongs
//! to the daemon's service and dies with it. The process id stays the same. Nor can a descriptor be handed on there: the
//! devices of macvtaps are opened here, too.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
};

use rustix::io::{FdFlags, fcntl_setfd};

use super::macvtap;
use crate::cgroup::Cgroup;

/// The word that leads here.
pub const WORD: &str = "launch";
/// Exit code when the program is not there or cannot be run.
pub const EXIT_NOT_RUN: i32 = 127;
/// How stderr begins when the program cannot be run.
pub const NOT_RUN: &str = "vtd launch: cannot run ";

/// Exit code when the device of a macvtap is not to be had.
pub const EXIT_NOT_OPENED: i32 = 126;
/// How stderr begins then.
pub const NOT_OPENED: &str = "vtd launch: cannot open macvtap ";

/// That the kernel may end the program where memory is short, as it may any other: the daemon itself is spared by its unit.
pub const EXPENDABLE: &str = "--expendable";

/// In front of the name of a macvtap whose device the program is to have open.
pub const MACVTAP: &str = "--macvtap";

/// `[--expendable] [--cgroup DIR] [--macvtap NAME]… PROGRAM ARG…`. Returns only when that fails, with the exit code.
pub fn run(words: impl IntoIterator<Item = OsString>) -> i32 {
    let mut words = words.into_iter();
    let mut program = words.next();
    if program.as_deref() == Some(EXPENDABLE.as_ref()) {
        // Everybody may give up being spared; where the file is not there, nobody is spared.
        if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "0") {
            eprintln!("vtd launch: spared by the kernel like the daemon: {error}");
        }
        program = words.next();
    }
    if program.as_deref() == Some("--cgroup".as_ref()) {
        let group = words.next().map(PathBuf::from);
        // Without its group the program still runs; the daemon sees from the group that it is not in it.
        if let Some(Err(error)) = group.map(|group| Cgroup::at(group).enter()) {
            eprintln!("vtd launch: not in its control group: {error}");
        }
        program = words.next();
    }
    let mut opened = Vec::new();
    while program.as_deref() == Some(MACVTAP.as_ref()) {
        let name = words.next().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let open = || -> io::Result<OwnedFd> {
            let device = macvtap::open(&name)?;
            fcntl_setfd(&device, FdFlags::empty())?;
            Ok(device)
        };
        match open() {
            Ok(device) => opened.push((name, device)),
            Err(error) => {
                eprintln!("{NOT_OPENED}{name}: {error}");
                return EXIT_NOT_OPENED;
            }
        }
        program = words.next();
    }
    let Some(program) = program else {
        eprintln!("vtd launch: no program given");
        return 2;
    };
    // Refused only to the leader of a group, which is in a session of its own then or is run by hand from a shell.
    let _ = nix::unistd::setsid();
    let numbers: Vec<(String, i32)> = opened.iter().map(|(name, device)| (name.clone(), device.as_raw_fd())).collect();
    let words = words.map(|word| with_numbers(word, &numbers));
    let error: io::Error = Command::new(&program).args(words).exec();
    eprintln!("{NOT_RUN}{}: {error}", program.display());
    EXIT_NOT_RUN
}

/// A word with the numbers of descriptors in the place of names: `tap,fd=NAME` becomes `tap,fd=7`.
fn with_numbers(word: OsString, numbers: &[(String, i32)]) -> OsString {
    let Some(text) = word.to_str().filter(|_| !numbers.is_empty()) else { return word };
    let number = |option: &str| {
        let name = option.strip_prefix("fd=")?;
        numbers.iter().find(|(known, _)| known == name).map(|(_, number)| format!("fd={number}"))
    };
    let options = text.split(',').map(|option| number(option).unwrap_or_else(|| option.to_owned()));
    options.collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_macvtaps_become_numbers_and_nothing_else_does() {
        let numbers = [("vmt0".to_owned(), 7), ("vmt1".to_owned(), 8)];
        for (word, becomes) in [
            ("tap,id=net0,fd=vmt0,vhost=on", "tap,id=net0,fd=7,vhost=on"),
            ("tap,fd=vmt1", "tap,fd=8"),
            ("tap,ifname=vmt0,fd=vmt2", "tap,ifname=vmt0,fd=vmt2"),
            ("path=/a,,fd=b,", "path=/a,,fd=b,"),
        ] {
            assert_eq!(with_numbers(word.into(), &numbers), OsString::from(becomes));
        }
    }
}
