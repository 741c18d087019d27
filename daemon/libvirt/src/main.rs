//! `vt-libvirt URI`: does to libvirt what vtd asks for on its input, and answers on its output
//! ([`vt_protocol::libvirt`]).
//!
//! | file | noun |
//! |---|---|
//! | `connection` | libvirt, connected when it is needed, and again when it has gone away |
//! | `domain` | what is done to a domain |
//! | `missing` | the calls that the `virt` crate lacks |
//!
//! It ends when its input ends: a daemon that is gone leaves no helper behind. A move goes on in libvirt all the same.
//! What may not happen here: a call that keeps another one waiting; each has a thread.

mod connection;
mod domain;
mod missing;

use std::{
    io::{self, BufRead, Read, Write},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use vt_protocol::libvirt::{Answer, CALLS_MAX, Call, LINE_MAX, Refusal, Reply, Request};

use crate::connection::Connection;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(uri), None) = (words.next(), words.next()) else {
        eprintln!("usage: vt-libvirt URI   (started by vtd; it speaks lines of JSON)");
        return ExitCode::from(2);
    };
    match serve(Arc::new(Connection::new(uri))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vt-libvirt: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(connection: Arc<Connection>) -> io::Result<()> {
    connection::listen()?;
    let output = Arc::new(Mutex::new(io::stdout()));
    let calls = Arc::new(AtomicUsize::new(0));
    let mut input = io::stdin().lock();
    while let Some(line) = read_line(&mut input)? {
        let call: Call = serde_json::from_slice(&line).map_err(io::Error::other)?;
        if calls.fetch_add(1, Ordering::AcqRel) >= CALLS_MAX {
            calls.fetch_sub(1, Ordering::AcqRel);
            let result = Err(Refusal::ours(format!("{CALLS_MAX} calls are under way")));
            say(&output, &Answer { id: call.id, result })?;
            continue;
        }
        let (connection, output, calls) = (Arc::clone(&connection), Arc::clone(&output), Arc::clone(&calls));
        thread::Builder::new().name(format!("call-{}", call.id)).spawn(move || {
            let result = answer(&connection, call.request);
            calls.fetch_sub(1, Ordering::AcqRel);
            // Nobody listens any more: the input ends too, and with it the process.
            let _ = say(&output, &Answer { id: call.id, result });
        })?;
    }
    Ok(())
}

/// The next line; `None` at the end.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let most = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    input.take(most).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line that does not end")),
    }
}

fn say(output: &Mutex<io::Stdout>, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    output.write_all(&line)?;
    output.flush()
}

fn answer(connection: &Connection, request: Request) -> Result<Reply, Refusal> {
    match request {
        Request::Hello => connection.hello().map(Reply::Hello),
        Request::Start { xml } => domain::start(&connection.get()?, &xml),
        Request::State { domain } => domain::state(&connection.get()?, &domain).map(Reply::State),
        Request::Migrate(migrate) => domain::migrate(&connection.get()?, &migrate),
        Request::Abort { domain } => domain::abort(&connection.get()?, &domain),
        Request::StartPostcopy { domain } => domain::go_over(&connection.get()?, &domain),
    }
}
