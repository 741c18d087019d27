//! `job list|show|watch|logs|cancel|release|fetch`.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, JobLogs, WatchItem},
    error::{ErrorCode, Exit, Report},
    ids::{AttemptId, JobId},
    job::{AttemptEvent, JobState, JobView},
};

use super::{
    App, Code,
    rerun::rerun,
    run::{self, Collected},
};
use crate::{
    args::{JobVerb, Output, WhichJob},
    client::{Need, Next},
    exit,
    job::{
        summary,
        tracker::Tracker,
        views,
        watch::{End, Pressed, watch},
    },
    results::{self, document},
    ui::{
        report::{unexpected, usage},
        style::Style,
        table::Table,
        text::{age, date, now_ms, safe},
    },
};

/// How long a cancelled job may take to end where `--timeout` says nothing.
const CANCEL: Duration = Duration::from_secs(180);
/// Most events of a log that is shown in order.
const EVENTS_MAX: usize = 1_000_000;
/// How long daemons are looked for in the middle of a log.
const LOOK: Duration = Duration::from_secs(60);

pub(super) async fn job(app: &mut App, verb: JobVerb) -> Result<Code, Report> {
    match verb {
        JobVerb::List => list(app).await,
        JobVerb::Show { job } => {
            let job = id_of(app, job).await?;
            show(app, job).await
        }
        JobVerb::Watch { job } => {
            let job = id_of(app, job).await?;
            follow(app, job).await
        }
        JobVerb::Logs { job, follow } => {
            let job = id_of(app, job).await?;
            logs(app, job, follow).await
        }
        JobVerb::Cancel { job, no_wait } => {
            let job = id_of(app, job).await?;
            cancel(app, job, no_wait).await
        }
        JobVerb::Release { job } => {
            let job = id_of(app, job).await?;
            release(app, job).await
        }
        JobVerb::Rerun(args) => {
            let job = id_of(app, args.job).await?;
            rerun(app, job, args).await
        }
        JobVerb::Fetch(args) => {
            let job = id_of(app, args.job).await?;
            let done = ask(app, job).await?;
            if done.state != JobState::Done {
                return Err(Report::new(
                    ErrorCode::CaseClosed,
                    format!("{} is not done yet: it is {}", done.id, views::state(done.state)),
                )
                .with("wanted", "a job that is done: its evidence is complete then")
                .help(format!("vtctl job watch {}", done.id)));
            }
            let goal = args.results.unwrap_or_else(|| results::default_folder(job));
            let mut pressed = Pressed::catch()?;
            Ok(match run::collect(app, &done, &goal, &args.report, &mut pressed).await {
                Collected::Whole => Exit::Ok,
                Collected::Missing(exit) => exit,
                Collected::Interrupted => Exit::Interrupted,
            }
            .into())
        }
    }
}

/// The id of a job; asks the daemons only for `@latest`.
pub(super) async fn id_of(app: &mut App, job: WhichJob) -> Result<JobId, Report> {
    match job {
        WhichJob::Id(id) => Ok(id),
        WhichJob::Latest => {
            // The list has the newest first, in the order of the log.
            jobs(app).await?.first().map(|job| job.id).ok_or_else(|| {
                Report::new(ErrorCode::UnknownJob, "no job was submitted yet").help("vtctl run multihost_migration")
            })
        }
    }
}

async fn jobs(app: &mut App) -> Result<Vec<JobView>, Report> {
    match app.mesh.call(&AdminRequest::JobList, Need::Read).await? {
        AdminReply::Jobs(jobs) => Ok(jobs),
        other => Err(unexpected("job list", &other)),
    }
}

pub(super) async fn ask(app: &mut App, job: JobId) -> Result<JobView, Report> {
    match app.mesh.call(&AdminRequest::JobShow(job), Need::Read).await? {
        AdminReply::Job(job) => Ok(*job),
        other => Err(unexpected("job show", &other)),
    }
}

async fn list(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let jobs = jobs(app).await?;
    let names = jobs.iter().map(|job| job.id.to_string()).collect();
    app.list("vtmesh/v1/jobs", "jobs", jobs.iter().map(views::job_json).collect(), names, || {
        table(&jobs, app.ui.output == Output::Wide, now_ms(), app.ui.out).render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

fn table(jobs: &[JobView], wide: bool, now_ms: u64, style: Style) -> Table {
    let mut headers = vec!["JOB", "STATE", "SCENARIO", "VERDICTS", "USER", ">AGE", "NOTE"];
    if wide {
        headers.push("SUBMITTED");
    }
    let mut table = Table::new(&headers);
    for job in jobs {
        let mut verdicts: Vec<String> =
            views::present(job).map(|(verdict, n)| format!("{} {n}", style.verdict(verdict, 0))).collect();
        let open = views::count(job, None);
        if open > 0 {
            verdicts.push(format!("open {open}"));
        }
        let mut row =
            vec![job.id.to_string(), views::state(job.state).to_owned(), safe(&job.scenario), verdicts.join("  ")];
        row.push(safe(&job.user));
        row.push(age(now_ms.saturating_sub(job.submitted_unix_ms)));
        row.push(safe(job.note.as_deref().unwrap_or_default()));
        if wide {
            row.push(date(job.submitted_unix_ms));
        }
        table.row(row);
    }
    table
}

async fn show(app: &mut App, id: JobId) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let job = ask(app, id).await?;
    match app.ui.output {
        Output::Table | Output::Wide => {
            let note = job.note.as_deref().map(|note| format!("  note: {}", safe(note))).unwrap_or_default();
            let (scenario, state) = (safe(&job.scenario), views::state(job.state));
            let (user, at) = (safe(&job.user), date(job.submitted_unix_ms));
            app.ui.line(format_args!("{id}  {scenario}  {state}  by {user} at {at}{note}"));
            app.ui.raw(&summary::table(&job.cases, app.ui.out).render(app.ui.width));
            app.ui.raw(&summary::causes(&job, app.ui.out, app.ui.verbose > 0));
            app.ui.line(summary::last_line(&job, None, app.ui.out));
        }
        Output::Json => app.ui.json(&document::of_job(&job)),
        Output::Jsonl => job.cases.iter().for_each(|case| app.ui.json(&views::case_json(case))),
        Output::Name => job.cases.iter().for_each(|case| app.ui.line(case.id)),
    }
    Ok(app.read_from(&reached))
}

async fn follow(app: &mut App, id: JobId) -> Result<Code, Report> {
    let mut pressed = Pressed::catch()?;
    match watch(&mut app.mesh, id, &app.ui, false, &mut pressed).await? {
        End::Done(job) => {
            run::show_summary(app, &job);
            match app.ui.output {
                Output::Json | Output::Jsonl => app.ui.json(&document::of_job(&job)),
                Output::Name => app.ui.line(job.id),
                Output::Table | Output::Wide => {}
            }
            Ok(exit::of_job(&job).into())
        }
        End::Detached => Ok(Exit::Interrupted.into()),
        End::TimedOut => Err(run::timed_out(id)),
    }
}

async fn logs(app: &mut App, id: JobId, follow: bool) -> Result<Code, Report> {
    if follow && app.ui.output == Output::Json {
        return Err(
            usage("a log that goes on is no one document").help(format!("vtctl job logs {id} --follow -o jsonl"))
        );
    }
    let mut seen = Tracker::new(app.ui.out, true);
    let mut events = Vec::new();
    let mut lost: Option<Instant> = None;
    let request = AdminRequest::JobLogs(JobLogs { job: id, follow });
    'daemons: loop {
        let gone = match app.mesh.stream(&request, Need::Read).await {
            Err(report) => report,
            Ok(mut stream) => loop {
                match stream.next().await {
                    Next::Reply(AdminReply::Watch(item)) => {
                        lost = None;
                        let WatchItem::Event { attempt, event } = *item else { continue };
                        if !seen.is_new(attempt, &event) {
                            continue;
                        }
                        if follow {
                            show_event(app, attempt, &event);
                        } else if events.len() < EVENTS_MAX {
                            events.push((attempt, event));
                        }
                    }
                    Next::Reply(_) => {}
                    Next::End => break 'daemons,
                    Next::Refused(report) => return Err(report),
                    Next::Lost(report) => break report,
                }
            },
        };
        let since = *lost.get_or_insert_with(Instant::now);
        if !gone.retryable || since.elapsed() > LOOK || app.mesh.until().is_some_and(|until| Instant::now() >= until) {
            return Err(gone);
        }
        app.mesh.forget();
        sleep(Duration::from_millis(300)).await;
    }
    // What is over can be read in one order: that of the hosts' clocks. Lines of one host stay as they are.
    events.sort_by_key(|(_, event)| event.unix_ms);
    if app.ui.output == Output::Json {
        let events: Vec<_> = events.iter().map(|(attempt, event)| views::event_json(*attempt, event)).collect();
        app.ui.json(&json!({"schema": "vtmesh/v1/job_logs", "id": id.to_string(), "events": events}));
    } else {
        events.iter().for_each(|(attempt, event)| show_event(app, *attempt, event));
    }
    Ok(Exit::Ok.into())
}

fn show_event(app: &App, attempt: AttemptId, event: &AttemptEvent) {
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&views::event_json(attempt, event)),
        _ => views::event_line(attempt, event).iter().for_each(|line| app.ui.line(line)),
    }
}

async fn cancel(app: &mut App, id: JobId, no_wait: bool) -> Result<Code, Report> {
    match app.mesh.call(&AdminRequest::JobCancel(id), Need::Decide).await? {
        AdminReply::Done => {}
        other => return Err(unexpected("job cancel", &other)),
    }
    let until = app.mesh.by(CANCEL);
    let mut state = JobState::Cancelling;
    while !no_wait && state != JobState::Done {
        if Instant::now() >= until {
            return Err(Report::new(ErrorCode::DeadlinePassed, "the job is cancelled, but has not ended yet")
                .with("job", id.to_string())
                .help(format!("vtctl job show {id}")));
        }
        match ask(app, id).await {
            Ok(job) => state = job.state,
            // The daemon that took it may go away; the job is cancelled all the same.
            Err(report) if report.retryable => {}
            Err(report) => return Err(report),
        }
        if state != JobState::Done {
            sleep(Duration::from_millis(200)).await;
        }
    }
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            app.ui
                .json(&json!({"schema": "vtmesh/v1/done", "cancelled": id.to_string(), "state": views::state(state)}));
        }
        Output::Name => app.ui.line(id),
        _ if state == JobState::Done => app.ui.line(format_args!("{id} is cancelled and has ended")),
        _ => app.ui.line(format_args!("{id} is being cancelled")),
    }
    Ok(Exit::Ok.into())
}

async fn release(app: &mut App, id: JobId) -> Result<Code, Report> {
    match app.mesh.call(&AdminRequest::JobRelease(id), Need::Decide).await? {
        AdminReply::Done => {}
        other => return Err(unexpected("job release", &other)),
    }
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            app.ui.json(&json!({"schema": "vtmesh/v1/done", "released": id.to_string()}));
        }
        Output::Name => app.ui.line(id),
        _ => app.ui.line(format_args!("{id} keeps nothing any longer")),
    }
    Ok(Exit::Ok.into())
}

#[cfg(test)]
mod tests {
    use vt_protocol::verdict::Verdict;

    use super::*;
    use crate::job::tracker::tests::{case, failed, job};

    #[test]
    fn the_table_of_jobs() {
        let mut done = job(JobState::Done, vec![case(1, failed())]);
        done.note = Some("nightly".into());
        let mut running = job(JobState::Running, vec![]);
        running.counts = vec![(Some(Verdict::Pass), 3), (None, 2)];
        let now = done.submitted_unix_ms + 192_000;
        assert_eq!(
            table(&[done, running], false, now, Style::default()).render(None),
            "JOB    STATE    SCENARIO             VERDICTS        USER    AGE  NOTE\n\
             job_7  done     multihost_migration  FAIL 1          root  3m12s  nightly\n\
             job_7  running  multihost_migration  PASS 3  open 2  root  3m12s\n"
        );
    }
}
