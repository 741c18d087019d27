//! The helper as vtd meets it: a process, lines in, lines out. Against libvirt's own test driver, which is inside the
//! library; against a real one it is seen by the migrations in `tests`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use vt_protocol::libvirt::{Answer, Call, DomainState, LINE_MAX, Refusal, Reply, Request, Running};

struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    calls: u64,
}

impl Helper {
    fn start(uri: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vt-libvirt"))
            .arg(uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, calls: 0 }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.calls += 1;
        let mut line = serde_json::to_vec(&Call { id: self.calls, request }).unwrap();
        line.push(b'\n');
        self.write(&line);
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        let answer: Answer = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer:?}: {error}"));
        assert_eq!(answer.id, self.calls);
        answer.result
    }

    fn write(&mut self, bytes: &[u8]) {
        // Refused bytes may find a process that has ended already.
        let _ = self.input.as_mut().unwrap().write_all(bytes);
    }

    /// Ends its input; how it ended, and its last words.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.input.take());
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn named(domain: &str) -> String {
    domain.to_owned()
}

#[test]
fn a_domain_is_found_and_one_that_is_not_there_is_said_to_be_none() {
    let mut helper = Helper::start("test:///default");
    let Ok(Reply::Hello(hello)) = helper.ask(Request::Hello) else { panic!("no hello") };
    assert!(hello.library.split('.').count() == 3 && !hello.host.is_empty(), "{hello:?}");
    let state = |helper: &mut Helper, domain| helper.ask(Request::State { domain: named(domain) });
    // The driver has one that runs, `test`.
    assert_eq!(state(&mut helper, "test"), Ok(Reply::State(Some(DomainState { cpus: Running::Yes, busy: false }))));
    assert_eq!(state(&mut helper, "vm1"), Ok(Reply::State(None)));
    assert_eq!(helper.end(), (Some(0), String::new()), "it prints nothing by itself, and ends with its input");
}

#[test]
fn what_libvirt_refuses_is_answered_in_its_words() {
    let mut helper = Helper::start("test:///default");
    for (request, words) in [
        (Request::Start { xml: named("<domain") }, "xml"),
        (Request::Start { xml: named("a\0b") }, "NUL"),
        // What this driver cannot is refused and not done otherwise: the CPUs would run.
        (Request::Start { xml: named("<domain type='test'><name>vm1</name></domain>") }, "unsupported flags"),
        (Request::Abort { domain: named("nobody") }, "not found"),
        (Request::Abort { domain: named("test") }, ""),
        (Request::StartPostcopy { domain: named("test") }, ""),
    ] {
        let refusal = helper.ask(request.clone()).unwrap_err();
        assert!(refusal.message.to_lowercase().contains(&words.to_lowercase()), "{request:?}: {refusal:?}");
    }
    assert!(matches!(helper.ask(Request::Hello), Ok(Reply::Hello(_))), "it goes on");
    assert_eq!(helper.end(), (Some(0), String::new()));
}

#[test]
fn a_libvirt_that_is_not_there_is_an_answer_and_not_an_end() {
    let mut helper = Helper::start("qemu+unix:///system?socket=/nowhere/libvirt-sock");
    let refusal = helper.ask(Request::Hello).unwrap_err();
    assert!(refusal.message.contains("/nowhere/libvirt-sock"), "{refusal:?}");
    assert!(helper.ask(Request::Hello).is_err(), "it tries again");
    assert_eq!(helper.end().0, Some(0));
}

#[test]
fn bytes_that_are_no_call_end_it_with_a_reason() {
    for (bytes, words) in [
        (b"hello\n".to_vec(), "expected"),
        (b"{\"id\":1,\"request\":{\"format\":{}}}\n".to_vec(), "unknown variant"),
        (vec![b'x'; LINE_MAX + 1], "does not end"),
    ] {
        let mut helper = Helper::start("test:///default");
        helper.write(&bytes);
        let (code, said) = helper.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
