//! A daemon that says what a test wants it to say, over a real Unix socket with the real frames.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    time::Instant,
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole, HostView, WatchItem},
    call, codec,
    error::Report,
    frame::MESSAGE_CAP,
    hello::{self, Hello, Welcome},
    ids::{AttemptId, CaseId, ClusterId, HostId, JobId},
    job::{AttemptEvent, CaseStateView, CaseView, Happening, JobState, JobView, KeyInfo, ScenarioInfo},
    verdict::Verdict,
};

const LONG: Duration = Duration::from_secs(120);

/// The job that every fake knows.
pub(crate) const JOB: JobId = JobId(7);

/// What a fake does with a request, one after the other.
#[derive(Clone)]
pub(crate) enum Act {
    /// Replies.
    Say(AdminReply),
    /// Says that this was all.
    End,
    /// Closes the connection in the middle.
    HangUp,
    /// Ends the daemon: its socket and all its connections.
    Die,
    /// Waits until the gate is open.
    Wait(Gate),
    /// Opens the gate.
    Open(Gate),
}

/// Something a test opens, or another request does.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }
}

type Script = Box<dyn Fn(&AdminRequest) -> Option<Vec<Act>> + Send + Sync>;

/// A running fake daemon; ends when it is dropped.
pub(crate) struct Fake {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<AdminRequest>>>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// Starts one at `dir/name.sock`. What `script` does not answer is answered as by a healthy cluster.
    pub(crate) fn start(
        dir: &Path,
        name: &str,
        script: impl Fn(&AdminRequest) -> Option<Vec<Act>> + Send + Sync + 'static,
    ) -> Self {
        let socket = dir.join(format!("{name}.sock"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let (path, seen, stopper) = (socket.clone(), requests.clone(), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(path, Arc::new(Box::new(script)), seen, stopped, stopper, ready));
        });
        is_ready.recv_timeout(LONG).unwrap();
        Self { socket, requests, stop, thread: Some(thread) }
    }

    /// A fake that is like a healthy cluster.
    pub(crate) fn healthy(dir: &Path, name: &str) -> Self {
        Self::start(dir, name, |_| None)
    }

    pub(crate) fn socket(&self) -> String {
        self.socket.to_str().unwrap().to_owned()
    }

    pub(crate) fn requests(&self) -> Vec<AdminRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until a request came.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&AdminRequest) -> bool) {
        super::wait(what, || self.requests().iter().any(&wanted));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    socket: PathBuf,
    script: Arc<Script>,
    requests: Arc<Mutex<Vec<AdminRequest>>>,
    mut stopped: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    ready: std::sync::mpsc::Sender<()>,
) {
    let listener = UnixListener::bind(&socket).unwrap();
    ready.send(()).unwrap();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (script, requests, stop) = (script.clone(), requests.clone(), stop.clone());
                connections.spawn(connection(accepted.unwrap().0, script, requests, stop));
            }
            Ok(()) = stopped.changed() => break,
        }
    }
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
}

/// One connection: a hello, and at most one request, as the client makes them. Errors are the other side going away.
async fn connection(
    mut stream: UnixStream,
    script: Arc<Script>,
    requests: Arc<Mutex<Vec<AdminRequest>>>,
    stop: watch::Sender<bool>,
) -> Option<()> {
    let by = Instant::now() + LONG;
    let (mut reader, mut writer) = stream.split();
    let heard = hello::hear(&mut reader, by).await.ok()?;
    let mine = Hello::of(Some(ClusterId(1)), Some(HostId(1)), 1);
    let welcome = hello::check(&mine, &heard).map(|version| Welcome { hello: mine, version });
    hello::answer(&mut writer, &welcome, by).await.ok()?;
    let (payload, _) = call::take_request(&mut reader, MESSAGE_CAP, LONG, by).await.ok()?;
    let request: AdminRequest = codec::decode_wire(&payload, MESSAGE_CAP).unwrap();
    let acts = script(&request).unwrap_or_else(|| healthy(&request));
    requests.lock().unwrap().push(request);
    for act in acts {
        match act {
            Act::Say(reply) => {
                let reply = codec::encode_wire(&reply, MESSAGE_CAP).unwrap();
                call::put_reply(&mut writer, &reply).await.ok()?;
            }
            Act::End => call::put_end(&mut writer).await.ok()?,
            Act::HangUp => return None,
            Act::Die => {
                stop.send_replace(true);
                return None;
            }
            Act::Wait(gate) => {
                gate.0.subscribe().wait_for(|open| *open).await.ok()?;
            }
            Act::Open(gate) => gate.open(),
        }
    }
    // The client closes; a daemon that closes first would look like one that went away.
    let mut rest = [0u8; 1];
    let _ = tokio::io::AsyncReadExt::read(&mut reader, &mut rest).await;
    Some(())
}

/// What a healthy cluster of three hosts answers.
pub(crate) fn healthy(request: &AdminRequest) -> Vec<Act> {
    let reply = match request {
        AdminRequest::Status => AdminReply::Status(Box::new(status(true))),
        AdminRequest::ScenarioList => AdminReply::Scenarios(scenarios()),
        AdminRequest::KeyList => AdminReply::Keys(keys()),
        AdminRequest::RunSubmit(_) => AdminReply::Submitted(JOB),
        AdminRequest::JobShow(_) => AdminReply::Job(Box::new(passed())),
        AdminRequest::JobWatch(_) => return stream(vec![job_item(passed())]),
        AdminRequest::JobLogs(_) => return stream(vec![step(1, "host1", "boot vm1")]),
        AdminRequest::JobFetch(_) => {
            let chunk = |path: &str, text: &str| {
                AdminReply::Files(vt_protocol::admin::FileChunk { path: path.into(), bytes: text.into(), last: true })
            };
            let files = [chunk("job.json", "{}"), chunk("cases/0001/host1/events.jsonl", "")];
            return files.into_iter().map(Act::Say).chain([Act::End]).collect();
        }
        AdminRequest::HostShow(name) => {
            refused(Report::new(vt_protocol::error::ErrorCode::UnknownHost, format!("there is no host {name}")))
        }
        other => {
            refused(Report::new(vt_protocol::error::ErrorCode::Internal, format!("the fake does not answer {other:?}")))
        }
    };
    vec![Act::Say(reply)]
}

pub(crate) fn refused(report: Report) -> AdminReply {
    AdminReply::Refused(report)
}

/// Items, and the end.
pub(crate) fn stream(items: Vec<WatchItem>) -> Vec<Act> {
    says(items).into_iter().chain([Act::End]).collect()
}

pub(crate) fn says(items: Vec<WatchItem>) -> Vec<Act> {
    items.into_iter().map(|item| Act::Say(AdminReply::Watch(Box::new(item)))).collect()
}

pub(crate) fn status(quorum: bool) -> ClusterStatus {
    let host = |n: u64| HostView {
        id: HostId(n),
        name: format!("host{n}").parse().unwrap(),
        role: HostRole::Voter,
        leader: n == 1,
        state: if quorum || n == 1 { "live" } else { "expired" }.into(),
        addresses: vec![],
        labels: Default::default(),
        build: "0.1.0".into(),
        attempt: None,
        vms: 0,
        lag: Some(0),
        cordoned: false,
        reserved: None,
    };
    ClusterStatus {
        cluster: ClusterId(1),
        name: "lab1".parse().unwrap(),
        ca_fingerprint: "00".into(),
        quorum,
        leader: Some("host1".parse().unwrap()),
        term: 3,
        voters: 3,
        survives: u32::from(quorum),
        applied: 214,
        answered_by: "host1".parse().unwrap(),
        hosts: vec![host(1), host(2), host(3)],
        jobs: 0,
        notes: vec![],
    }
}

pub(crate) fn scenarios() -> Vec<ScenarioInfo> {
    let params = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), "1".to_owned(), "m".to_owned())).collect();
    vec![
        ScenarioInfo {
            name: "uptime".into(),
            summary: "boot".into(),
            hosts: 1,
            params: params(&["mem"]),
            types: vec![],
            also_reads: vec![],
            about: String::new(),
        },
        ScenarioInfo {
            name: "multihost_migration".into(),
            summary: "there and back".into(),
            hosts: 2,
            params: params(&["mem", "smp", "migrate_count"]),
            types: vec!["migration_multi_host".into()],
            also_reads: vec!["mig_protocol".into()],
            about: String::new(),
        },
    ]
}

/// What those scenarios read, and one key that nobody does.
pub(crate) fn keys() -> Vec<KeyInfo> {
    let read = |key: &str| KeyInfo { key: key.into(), read_by: vec!["uptime".into()], ..KeyInfo::default() };
    let mut keys = ["mem", "smp", "migrate_count", "mig_protocol"].map(read).to_vec();
    let why = Some("VMs end with their case".to_owned());
    keys.push(KeyInfo { key: "kill_vm".into(), without_effect: why, ..KeyInfo::default() });
    keys
}

pub(crate) fn attempt(index: u32) -> AttemptId {
    AttemptId { case: CaseId { job: JOB, index }, number: 1 }
}

pub(crate) fn step(seq: u64, host: &str, step: &str) -> WatchItem {
    let what = Happening::StepEnded { step: step.to_owned(), ms: 1000 + seq, note: String::new() };
    event(seq, host, what)
}

pub(crate) fn event(seq: u64, host: &str, what: Happening) -> WatchItem {
    WatchItem::Event {
        attempt: attempt(1),
        event: AttemptEvent { seq, unix_ms: 1_795_458_869_000 + seq, host: host.parse().unwrap(), what },
    }
}

pub(crate) fn job_item(job: JobView) -> WatchItem {
    WatchItem::Job(job)
}

pub(crate) fn job(state: JobState, cases: Vec<CaseStateView>) -> JobView {
    let case = |(i, state): (usize, CaseStateView)| CaseView {
        id: CaseId { job: JOB, index: i as u32 + 1 },
        name: "multihost_migration".into(),
        scenario: "multihost_migration".into(),
        hosts: vec!["host1".parse().unwrap(), "host2".parse().unwrap()],
        state,
        attempt: Some(attempt(i as u32 + 1)),
        elapsed_ms: Some(7400),
        guest_downtime_ms: Some(38),
        qemu_downtime_ms: Some(31),
        migrations: Some(2),
        variant: None,
    };
    JobView {
        id: JOB,
        scenario: "multihost_migration".into(),
        state,
        user: "root".into(),
        note: None,
        cases: cases.into_iter().enumerate().map(case).collect(),
        counts: vec![],
        submitted_unix_ms: 1_795_458_869_125,
        matrix: None,
    }
}

pub(crate) fn running() -> JobView {
    job(JobState::Running, vec![CaseStateView::Running { attempt: attempt(1) }])
}

pub(crate) fn passed() -> JobView {
    ended(&[(Verdict::Pass, None)])
}

pub(crate) fn ended(verdicts: &[(Verdict, Option<Report>)]) -> JobView {
    let cases = verdicts.iter().map(|(verdict, cause)| CaseStateView::Done { verdict: *verdict, cause: cause.clone() });
    job(JobState::Done, cases.collect())
}
