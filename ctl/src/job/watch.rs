//! Watching a job to its end: through daemons that go away, Ctrl-C, and a cluster that lost its quorum.
//!
//! What may not happen here: a watch that hangs because its daemon was cut off, an item that is lost or shown twice.

use std::{io::BufRead, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, JobLogs},
    error::{ErrorCode, Report},
    ids::JobId,
    job::{JobState, JobView},
};

use super::{
    interrupt::{Action, Interrupts},
    progress::Progress,
    tracker::{Tracker, Update},
};
use crate::{
    client::{Mesh, Need, Next, Reached, Stream},
    ui::{Ui, stderr},
};

/// After so long without an item the daemon is asked whether it is still part of the cluster.
const SILENCE: Duration = Duration::from_secs(5);
/// How long daemons are looked for after the last one went away.
const LOOK: Duration = Duration::from_secs(60);
/// How long a job that certainly exists may be unknown to a daemon that lags behind.
const LAG: Duration = Duration::from_secs(15);
/// Most updates that wait for the answer to a question.
const HELD: usize = 10_000;
/// How long the next line of a log may take.
const CATCH_UP: Duration = Duration::from_secs(10);

/// How a watch ended.
#[derive(Debug)]
pub enum End {
    /// The job is done.
    Done(Box<JobView>),
    /// The user left; the job goes on.
    Detached,
    /// `--timeout` passed; the job goes on.
    TimedOut,
}

/// Ctrl-C and SIGTERM. From when it is made neither ends the process by itself.
#[derive(Debug)]
pub struct Pressed {
    interrupt: Signal,
    terminate: Signal,
}

impl Pressed {
    /// Begins to catch them.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn catch() -> Result<Self, Report> {
        let internal =
            |error: std::io::Error| Report::new(ErrorCode::Internal, "signals cannot be caught").caused_by(&error);
        let catch = |kind| signal(kind).map_err(internal);
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Watch<'a> {
    mesh: &'a mut Mesh,
    job: JobId,
    progress: Progress,
    tracker: Tracker,
    keys: Interrupts,
    /// Since when nobody answers.
    lost: Option<Instant>,
    /// What came while a question stood on the terminal.
    held: Vec<Update>,
    /// The watch began again: what ended in between is told by the log alone.
    resumed: bool,
    /// Until when the job may be unknown.
    unknown_until: Instant,
    /// The user wants the job cancelled.
    cancelling: Option<JoinHandle<Result<AdminReply, Report>>>,
}

/// Follows a job until it is done. `known`: it was just submitted, so a daemon that does not know it lags behind.
///
/// # Errors
/// The job is not known, or no daemon answers for a minute.
pub async fn watch(mesh: &mut Mesh, job: JobId, ui: &Ui, known: bool, pressed: &mut Pressed) -> Result<End, Report> {
    let now = Instant::now();
    let mut watch = Watch {
        mesh,
        job,
        progress: Progress::new(ui),
        tracker: Tracker::new(ui.err, ui.verbose > 0),
        keys: Interrupts::new(ui.interactive),
        lost: None,
        held: Vec::new(),
        resumed: false,
        unknown_until: if known { now + LAG } else { now },
        cancelling: None,
    };
    let end = watch.run(pressed).await;
    watch.progress.finish();
    if matches!(end, Ok(End::Detached | End::TimedOut)) {
        ui.note(format_args!(
            "the job goes on. Watch it again: vtctl job watch {job}   cancel it: vtctl job cancel {job}"
        ));
    }
    end
}

enum Step {
    Stream(Next),
    Answer(Option<String>),
    Pressed,
    Better(Option<Reached>),
    Cancelled(Result<AdminReply, Report>),
    Silence,
    TimedOut,
}

impl Watch<'_> {
    async fn run(&mut self, pressed: &mut Pressed) -> Result<End, Report> {
        let (answer, mut answers) = mpsc::channel::<Option<String>>(1);
        let mut stream: Option<Stream> = None;
        let mut looking: Option<JoinHandle<Option<Reached>>> = None;
        let mut last_item = Instant::now();
        loop {
            if stream.is_none() {
                let (pressed_now, opened) = {
                    let open = open(self.mesh.clone(), self.job);
                    tokio::pin!(open);
                    tokio::select! {
                        opened = &mut open => (false, Some(opened)),
                        () = pressed.next() => (true, None),
                        () = until(self.mesh.until()) => return Ok(End::TimedOut),
                    }
                };
                match opened {
                    Some(Ok((mesh, opened))) => {
                        if self.lost.take().is_some()
                            && let Some(place) = mesh.in_use()
                        {
                            self.progress.note(&format!("goes on with {place}"));
                        }
                        *self.mesh = mesh;
                        stream = Some(opened);
                        last_item = Instant::now();
                    }
                    Some(Err(report)) => self.lost(report).await?,
                    None => {}
                }
                if pressed_now && let Some(end) = self.act(&answer) {
                    return Ok(end);
                }
                continue;
            }
            let asking = self.keys.asking();
            let step = tokio::select! {
                next = next(&mut stream), if !asking || self.held.len() < HELD => Step::Stream(next),
                Some(line) = answers.recv() => Step::Answer(line),
                () = pressed.next() => Step::Pressed,
                better = joined(&mut looking) => Step::Better(better.flatten()),
                done = joined(&mut self.cancelling) => Step::Cancelled(done.unwrap_or(Ok(AdminReply::Done))),
                () = sleep_until(last_item + SILENCE), if looking.is_none() && !asking => Step::Silence,
                () = until(self.mesh.until()) => Step::TimedOut,
            };
            match step {
                Step::TimedOut => return Ok(End::TimedOut),
                Step::Stream(Next::Reply(AdminReply::Watch(item))) => {
                    last_item = Instant::now();
                    self.unknown_until = last_item + LAG;
                    self.progress.item(&item);
                    let updates = self.tracker.take(*item);
                    if asking {
                        self.held.extend(updates);
                    } else {
                        updates.into_iter().for_each(|update| self.progress.update(update));
                    }
                }
                // Something that a newer daemon says besides.
                Step::Stream(Next::Reply(_)) => {}
                Step::Stream(Next::End) => match self.done().await {
                    Some(job) => {
                        if asking {
                            // The question has answered itself.
                            stderr("\n");
                            self.answered();
                        }
                        if self.resumed {
                            self.catch_up().await;
                        }
                        return Ok(End::Done(Box::new(job)));
                    }
                    None => {
                        stream = None;
                        self.lost(
                            Report::new(ErrorCode::Unreachable, "the watch ended before the job did").retryable(),
                        )
                        .await?;
                    }
                },
                Step::Stream(Next::Lost(report) | Next::Refused(report)) => {
                    stream = None;
                    self.lost(report).await?;
                }
                Step::Silence => {
                    last_item = Instant::now();
                    if let Some(reached) = self.mesh.in_use().cloned() {
                        let mesh = self.mesh.clone();
                        looking = Some(tokio::spawn(async move { mesh.better(&reached).await }));
                    }
                }
                Step::Better(Some(reached)) => {
                    self.resumed = true;
                    self.progress.note(&format!("the daemon in use is cut off; goes on with {reached}"));
                    self.mesh.go_on_with(reached);
                    stream = None;
                }
                Step::Better(None) => {}
                Step::Cancelled(Err(report)) if report.code != ErrorCode::CaseClosed => {
                    self.progress.note(&format!("the job is not cancelled: {} ({})", report.title, report.code));
                }
                Step::Cancelled(_) => {
                    self.progress.note("the job is being cancelled; it ends when its hosts are clean");
                }
                Step::Pressed => {
                    if let Some(end) = self.act(&answer) {
                        return Ok(end);
                    }
                }
                Step::Answer(line) => {
                    let action = self.keys.answered(line.as_deref());
                    self.answered();
                    if let Some(end) = self.follow(action, &answer) {
                        return Ok(end);
                    }
                    last_item = Instant::now();
                }
            }
        }
    }

    /// The question is over: what was held back is shown.
    fn answered(&mut self) {
        self.progress.unhide();
        for update in std::mem::take(&mut self.held) {
            self.progress.update(update);
        }
    }

    /// A key was pressed.
    fn act(&mut self, answer: &mpsc::Sender<Option<String>>) -> Option<End> {
        let open = self.keys.asking();
        let action = self.keys.pressed(std::time::Instant::now());
        if open {
            stderr("\n");
        }
        self.follow(action, answer)
    }

    fn follow(&mut self, action: Action, answer: &mpsc::Sender<Option<String>>) -> Option<End> {
        match action {
            Action::Detach => return Some(End::Detached),
            Action::GoOn => {}
            Action::Ask => {
                let answer = answer.clone();
                self.progress.hide();
                stderr("\n[d]etach, [c]ancel the job, or [g]o on? ");
                // Reading a line cannot be given up, so a thread of its own does it; it dies with the process.
                std::thread::spawn(move || {
                    let mut line = String::new();
                    let read = std::io::stdin().lock().read_line(&mut line);
                    let _ = answer.blocking_send(matches!(read, Ok(n) if n > 0).then_some(line));
                });
            }
            Action::Cancel => {
                self.progress.note("cancelling; Ctrl-C again within 2 s leaves at once");
                if self.cancelling.is_none() {
                    let (mut mesh, job) = (self.mesh.clone(), self.job);
                    let cancel = async move { mesh.call(&AdminRequest::JobCancel(job), Need::Decide).await };
                    self.cancelling = Some(tokio::spawn(cancel));
                }
            }
        }
        None
    }

    /// The job, if it is done: as the watch told, or as a daemon says when asked.
    async fn done(&mut self) -> Option<JobView> {
        if let Some(job) = self.tracker.job().filter(|job| job.state == JobState::Done) {
            return Some(job.clone());
        }
        match self.mesh.call(&AdminRequest::JobShow(self.job), Need::Read).await {
            Ok(AdminReply::Job(job)) if job.state == JobState::Done => Some(*job),
            _ => None,
        }
    }

    /// The stream is gone, or did not come up. Waits a moment; an error when it is no use to go on.
    async fn lost(&mut self, report: Report) -> Result<(), Report> {
        let now = Instant::now();
        let first = self.lost.is_none();
        let since = *self.lost.get_or_insert(now);
        let passing = match report.code {
            ErrorCode::UnknownJob => now < self.unknown_until,
            ErrorCode::Unreachable | ErrorCode::DeadlinePassed | ErrorCode::NoQuorum => now < since + LOOK,
            _ => report.retryable && now < since + LOOK,
        };
        if !passing {
            return Err(match report.code {
                ErrorCode::UnknownJob => report,
                _ => report.help(format!("vtctl job watch {}   # the job may go on", self.job)),
            });
        }
        if first && report.code != ErrorCode::UnknownJob {
            self.progress.note("the daemon went away; looking for another one");
        }
        self.resumed = true;
        self.mesh.forget();
        sleep(Duration::from_millis(300)).await;
        Ok(())
    }

    /// Shows what the log has and the watch did not tell.
    async fn catch_up(&mut self) {
        let request = AdminRequest::JobLogs(JobLogs { job: self.job, follow: false });
        let Ok(mut stream) = self.mesh.stream(&request, Need::Read).await else { return };
        while let Ok(Next::Reply(reply)) = timeout_at(self.mesh.by(CATCH_UP), stream.next()).await {
            let AdminReply::Watch(item) = reply else { continue };
            for update in self.tracker.take(*item) {
                // What was under way then is not any more.
                if matches!(update, Update::Line { .. }) {
                    self.progress.update(update);
                }
            }
        }
    }
}

/// Opens the stream with a clone of the mesh, so that it can be given up half-way.
async fn open(mut mesh: Mesh, job: JobId) -> Result<(Mesh, Stream), Report> {
    let stream = mesh.stream(&AdminRequest::JobWatch(job), Need::Read).await?;
    Ok((mesh, stream))
}

async fn next(stream: &mut Option<Stream>) -> Next {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

async fn until(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Waits for a task, once; forever where there is none.
async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        Some(running) => {
            let done = running.await.ok();
            *task = None;
            done
        }
        None => std::future::pending().await,
    }
}
