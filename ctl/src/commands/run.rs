//! `run`: hosts and parameters become a plan, the plan a job, the job is watched and its evidence fetched.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, RunSubmit},
    error::{ErrorCode, Exit, Report},
    ids::{JobId, Name, RequestId},
    job::{JobView, Plan},
    params::Params,
};

use super::{
    App, Code,
    chosen::{self, Chosen},
    domain_file, host, scenario, scenario_file,
};
use crate::{
    args::{Outcome, Output, ReportFile, RunArgs},
    client::Need,
    exit,
    job::{
        plan, summary,
        watch::{End, Pressed, watch},
    },
    results::{self, bundle::check_goal, document},
    ui::{
        report::{self, unexpected},
        stderr,
        style::Symbol,
        text::count,
    },
};

/// Most bytes of a file of hosts.
const HOSTS_FILE_MAX: u64 = 1 << 20;

pub(super) async fn run(app: &mut App, mut args: RunArgs) -> Result<Code, Report> {
    match args.matrix.set.backend.as_str() {
        "qmp" => args.matrix.set.backend = "qemu".to_owned(),
        // As old configurations say it.
        "libvirt" => args.matrix.params.push(("vm_type".to_owned(), "libvirt".to_owned())),
        _ => {}
    }
    // What can be wrong without asking anybody comes first.
    let with_matrix = args.has_matrix();
    domain_file::read_into(&mut args.matrix.params, with_matrix)?;
    let hosts = hosts(&args)?;
    if let Some(goal) = args.outcome.goal() {
        check_goal(goal)?;
    }
    let file = args.scenario.as_deref().filter(|word| scenario_file::is_file(word));
    let file = file.map(scenario_file::read).transpose()?;
    let expanded = if args.has_matrix() { Some(chosen::expand(&app.ui, &args.matrix)?) } else { None };
    let reached = app.mesh.reach(Need::Decide).await?;
    let mut scenarios = scenario::all(&mut app.mesh).await?;
    if let Some(text) = &file {
        // With a configuration every variant has its own parameters: they are checked when the job is taken.
        let params = if expanded.is_none() { plan::params(&args.matrix.params) } else { Params::new() };
        let checked = scenario_file::checked(app, text, params, 0).await?;
        args.case_timeout = args.case_timeout.or_else(|| checked.timeout_ms.map(Duration::from_millis));
        args.scenario = checked.info.as_ref().map(|info| info.name.clone());
        scenarios.extend(checked.info);
    }
    if let Some(status) = &reached.status
        && let Some(unknown) = hosts.iter().find(|host| !status.hosts.iter().any(|known| known.name == **host))
    {
        return Err(host::unknown(unknown.as_str(), &status.hosts));
    }
    let chosen = Chosen::new(&args, expanded, &scenarios)?;
    chosen.tell(&app.ui, &args)?;
    let plan = Plan { file, ..chosen.plan(&args, &hosts)? };
    submitted(app, plan, &chosen.label(), args.outcome).await
}

/// Submits a plan, watches the job and fetches its evidence.
pub(super) async fn submitted(app: &mut App, plan: Plan, label: &str, outcome: Outcome) -> Result<Code, Report> {
    let cases = plan.cases.len();
    let mut hosts: Vec<&str> = Vec::new();
    for host in plan.cases.iter().flat_map(|case| &case.hosts) {
        if !hosts.contains(&host.as_str()) {
            hosts.push(host.as_str());
        }
    }
    let line = format!("{label}  {}  {}", hosts.join(","), count(cases, "case"));
    let job = submit(app, plan).await?;
    if outcome.detach {
        detached(app, job);
        return Ok(Exit::Ok.into());
    }
    app.ui.note(format_args!("{job}  {line}"));
    let mut pressed = Pressed::catch()?;
    let done = match watch(&mut app.mesh, job, &app.ui, true, &mut pressed).await? {
        End::Done(done) => *done,
        End::Detached => return Ok(Exit::Interrupted.into()),
        End::TimedOut => return Err(timed_out(job)),
    };
    show_summary(app, &done);
    let goal = outcome.results.unwrap_or_else(|| results::default_folder(job));
    let verdicts = exit::of_job(&done);
    Ok(match collect(app, &done, &goal, &outcome.report, &mut pressed).await {
        // The verdicts tell more than evidence that is missing.
        Collected::Missing(exit) if verdicts == Exit::Ok => exit,
        Collected::Missing(_) | Collected::Whole => verdicts,
        Collected::Interrupted => Exit::Interrupted,
    }
    .into())
}

/// The list of hosts, from flags and file.
fn hosts(args: &RunArgs) -> Result<Vec<Name>, Report> {
    let mut hosts = plan::hosts_of_flags(&args.hosts)?;
    if let Some(file) = &args.hosts_file {
        let (shown, text) = (file.display().to_string(), read_hosts(file)?);
        hosts.extend(plan::hosts_of_file(&shown, &text)?);
    }
    plan::unique(hosts)
}

fn read_hosts(file: &Path) -> Result<String, Report> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(HOSTS_FILE_MAX + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(HOSTS_FILE_MAX + 1).read_to_end(&mut text))
    };
    let bad = |why: String| {
        Report::new(ErrorCode::BadHostsFile, format!("the hosts file {} cannot be used", file.display()))
            .with("reason", why)
    };
    match read {
        Err(error) => Err(bad(error.to_string())),
        Ok(_) if text.len() as u64 > HOSTS_FILE_MAX => Err(bad(format!("it is longer than {HOSTS_FILE_MAX} bytes"))),
        Ok(_) => String::from_utf8(text).map_err(|_| bad("it is not text in UTF-8".to_owned())),
    }
}

/// Who asks, as this machine knows them.
pub(super) fn user() -> String {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = set("SUDO_USER").or_else(|| set("USER")).unwrap_or_else(|| format!("uid {}", nix::unistd::getuid()));
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

async fn submit(app: &mut App, plan: Plan) -> Result<JobId, Report> {
    // Said here, before all of it is sent.
    plan.encode()?;
    let request = AdminRequest::RunSubmit(RunSubmit { request: RequestId::random(), plan });
    let answer = app.mesh.call(&request, Need::Decide).await.map_err(|report| match report.code {
        ErrorCode::DeadlinePassed => report.help("vtctl job list   (whether it was taken all the same)"),
        _ => report,
    });
    match answer? {
        AdminReply::Submitted(job) => Ok(job),
        other => Err(unexpected("run", &other)),
    }
}

fn detached(app: &App, job: JobId) {
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            app.ui.json(&json!({"schema": "vtmesh/v1/submitted", "id": job.to_string()}));
        }
        _ => {
            app.ui.line(job);
            app.ui.note(format_args!("watch it: vtctl job watch {job}"));
        }
    }
}

/// `--timeout` passed before the job's end.
pub(super) fn timed_out(job: JobId) -> Report {
    Report::new(ErrorCode::DeadlinePassed, "the job did not end within --timeout; it goes on")
        .with("job", job.to_string())
        .help(format!("vtctl job watch {job}"))
        .help(format!("vtctl job cancel {job}"))
}

/// The table, the causes and the last line, for people.
pub(super) fn show_summary(app: &App, job: &JobView) {
    if !app.ui.human() {
        return;
    }
    let style = app.ui.out;
    if !app.ui.quiet {
        app.ui.raw(&summary::table(&job.cases, style).render(app.ui.width));
        app.ui.raw(&summary::causes(job, style, app.ui.verbose > 0));
    }
    let took = crate::ui::text::now_ms().checked_sub(job.submitted_unix_ms);
    // The time is that of the host that took the job; where clocks differ much, none is better than a wrong one.
    app.ui.line(summary::last_line(job, took.filter(|ms| *ms < 7 * 86_400_000), style));
}

/// What became of the evidence.
#[derive(Debug)]
pub(super) enum Collected {
    /// It is there, and the reports with it.
    Whole,
    /// It is not; that was shown.
    Missing(Exit),
    /// The user left; that was said.
    Interrupted,
}

/// Fetches the evidence, writes the reports, and prints the document where JSON was asked for.
pub(super) async fn collect(
    app: &mut App,
    job: &JobView,
    goal: &Path,
    also: &[ReportFile],
    pressed: &mut Pressed,
) -> Collected {
    let collected = tokio::select! {
        collected = results::collect(&mut app.mesh, job, goal, also) => collected,
        () = pressed.next() => {
            app.ui.note(format_args!("\nthe evidence was not fetched. Later: vtctl job fetch {}", job.id));
            return Collected::Interrupted;
        }
    };
    let kept = collected.as_ref().ok().map(|_| absolute(goal));
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            let mut value = document::of_job(job);
            value["evidence"] = json!(kept);
            app.ui.json(&value);
        }
        Output::Name => app.ui.line(job.id),
        Output::Table | Output::Wide => {}
    }
    match collected {
        Ok(files) => {
            let (dot, files) = (app.ui.err.symbol(Symbol::Dot), count(files, "file"));
            app.ui.note(format_args!("  {dot} evidence: {files} in {}", absolute(goal).display()));
            Collected::Whole
        }
        Err(report) => {
            // On stderr in any form of output: stdout holds one document, and that tells the verdicts.
            stderr(&report::text(&report, app.ui.err, app.ui.verbose > 0));
            Collected::Missing(report.code.exit())
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Command};

    fn args(words: &[&str]) -> RunArgs {
        let line = ["vtctl", "run", "s"].iter().chain(words);
        match args::parse(line).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hosts_of_flags_and_file_are_one_list_and_a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        let path = file.to_str().unwrap();
        std::fs::write(&file, "# lab\nhost2\n").unwrap();
        assert_eq!(hosts(&args(&["-m", "host1", "-M", path])).unwrap().len(), 2);
        for bad in ["bad name\n".as_bytes(), &[0xff, 0xfe], &vec![b'#'; (HOSTS_FILE_MAX + 1) as usize]] {
            std::fs::write(&file, bad).unwrap();
            let report = hosts(&args(&["-M", path])).unwrap_err();
            assert_eq!(report.code, ErrorCode::BadHostsFile);
            assert!(report.title.contains(path), "{}", report.title);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(hosts(&args(&["-M", path])).unwrap_err().code, ErrorCode::BadHostsFile);
    }
}
