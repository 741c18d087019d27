//! `vtd launch`: becomes another program in a session and control group of its own.
//!
//! The daemon starts QEMU through this, because what has to happen between fork and exec (a new session, entering the
//! group) cannot be done there in safe Rust, and doing it after the exec would leave a moment in which a QEMU belongs
//! to the daemon's service and dies with it. The process id stays the same.

use std::{ffi::OsString, io, os::unix::process::CommandExt, path::PathBuf, process::Command};

use crate::cgroup::Cgroup;

/// The word that leads here.
pub const WORD: &str = "launch";
/// Exit code when the program is not there or cannot be run.
pub const EXIT_NOT_RUN: i32 = 127;
/// How stderr begins when the program cannot be run.
pub const NOT_RUN: &str = "vtd launch: cannot run ";

/// That the kernel may end the program where memory is short, as it may any other: the daemon itself is spared by its unit.
pub const EXPENDABLE: &str = "--expendable";

/// `[--expendable] [--cgroup DIR] PROGRAM ARG…`. Returns only when that fails, with the exit code.
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
    let Some(program) = program else {
        eprintln!("vtd launch: no program given");
        return 2;
    };
    // Refused only to the leader of a group, which is in a session of its own then or is run by hand from a shell.
    let _ = nix::unistd::setsid();
    let error: io::Error = Command::new(&program).args(words).exec();
    eprintln!("{NOT_RUN}{}: {error}", program.display());
    EXIT_NOT_RUN
}
