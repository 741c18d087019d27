//! Runs a program with a time limit and returns the beginning of what it said.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use vt_protocol::probe::{EXEC_OUTPUT_MAX, Exec, ExecReport};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(5);
/// After the program ended, its output may be held open by what it left behind; then it is not waited for.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// Runs it to its end, or until its time is over.
pub(crate) fn run(wanted: &Exec) -> Result<ExecReport, String> {
    if !(1..=600_000).contains(&wanted.timeout_ms) {
        return Err(format!("timeout_ms: {} is not in 1 to 600000", wanted.timeout_ms));
    }
    let Some((program, arguments)) = wanted.argv.split_first() else {
        return Err("argv: no program is named".into());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let (stdout, stderr) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    let (exit, timed_out) = wait(&mut child, Duration::from_millis(wanted.timeout_ms))?;
    let deadline = Instant::now() + OUTPUT_GRACE;
    let ((stdout, cut_out), (stderr, cut_err)) = (collect(stdout, deadline), collect(stderr, deadline));
    Ok(ExecReport { exit, timed_out, stdout, stderr, cut: cut_out || cut_err })
}

fn wait(child: &mut Child, limit: Duration) -> Result<(Option<i32>, bool), String> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok((status.code(), false));
        }
        if Instant::now() >= deadline {
            // Both fail only when it has just ended by itself.
            let _ = child.kill();
            let status = child.wait().map_err(|error| error.to_string())?;
            return Ok((status.code(), true));
        }
        thread::sleep(POLL);
    }
}

type Reader = Option<JoinHandle<(Vec<u8>, bool)>>;

/// Reads to the end, so that the program never blocks, but keeps only the beginning.
fn reader(mut from: impl Read + Send + 'static) -> Reader {
    let read = move || {
        let (mut kept, mut cut, mut bytes) = (Vec::new(), false, [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            let room = EXEC_OUTPUT_MAX - kept.len();
            kept.extend_from_slice(&bytes[..length.min(room)]);
            cut |= length > room;
        }
        (kept, cut)
    };
    thread::Builder::new().name("exec-output".into()).spawn(read).ok()
}

fn collect(reader: Option<Reader>, deadline: Instant) -> (String, bool) {
    let Some(reader) = reader.flatten() else { return (String::new(), true) };
    while !reader.is_finished() {
        if Instant::now() >= deadline {
            return (String::new(), true);
        }
        thread::sleep(POLL);
    }
    reader.join().map_or((String::new(), true), |(bytes, cut)| (String::from_utf8_lossy(&bytes).into_owned(), cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64) -> ExecReport {
        run(&Exec { argv: ["sh", "-c", script].map(String::from).to_vec(), timeout_ms }).unwrap()
    }

    #[test]
    fn exit_and_output_come_back() {
        let report = sh("echo out; echo err >&2; exit 7", 20_000);
        assert_eq!((report.exit, report.timed_out, report.cut), (Some(7), false, false));
        assert_eq!((report.stdout.as_str(), report.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn much_output_is_cut_and_does_not_block() {
        let report = sh("head -c 1000000 /dev/zero | tr '\\0' x", 20_000);
        assert_eq!((report.exit, report.cut, report.stdout.len()), (Some(0), true, EXEC_OUTPUT_MAX));
    }

    #[test]
    fn a_program_without_end_is_killed() {
        let report = sh("exec sleep 600", 50);
        assert_eq!((report.exit, report.timed_out), (None, true));
    }

    #[test]
    fn what_cannot_run_is_an_error() {
        for argv in [vec![], vec!["/nonexistent/program".to_owned()]] {
            assert!(run(&Exec { argv, timeout_ms: 1000 }).is_err());
        }
        assert!(run(&Exec { argv: vec!["true".into()], timeout_ms: 0 }).is_err());
    }
}
