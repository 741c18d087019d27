//! `doctor`: what daemons find on their hosts, and what is found around this client; shown, written, mended.

use std::{
    fmt::Write as _,
    io::{BufRead, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    doctor::{Checks, Document, Examine, Finding, Group, Severity},
    error::{ErrorCode, Report},
};

use super::{App, Code};
use crate::{
    args::{DoctorArgs, Output},
    client::Need,
    exit, lab,
    results::junit::{attribute, escape},
    ui::{
        report::{unexpected, usage},
        style::{Style, Symbol},
        text::safe,
    },
};

const LABS: &str = "D-HYG-02";
const IN_PATH: &str = "D-HYG-03";
const DAEMON: &str = "D-CLU-07";

pub(super) async fn doctor(app: &mut App, args: DoctorArgs) -> Result<Code, Report> {
    let checks = Checks { only: args.only, skip: args.skip };
    let examine = Examine { all: args.all, repair: false, checks };
    let mut document = examined(app, &examine).await?;
    if document.findings.is_empty() {
        return Err(Report::new(ErrorCode::Usage, "no check of that id says anything here")
            .help("vtctl doctor --all -o json   (ids of all that do)"));
    }
    if args.fix && agreed(app, &document)? {
        let broken = document.findings.iter().filter(|finding| finding.repairable);
        let only = broken.map(|finding| finding.check.clone()).collect();
        let checks = Checks { only, skip: Vec::new() };
        examined(app, &Examine { all: args.all, repair: true, checks }).await?;
        document = examined(app, &examine).await?;
    }
    if let Some(file) = &args.junit {
        std::fs::write(file, xml(&document)).map_err(|error| {
            Report::new(ErrorCode::ResultsWrite, format!("{} cannot be written", file.display())).caused_by(&error)
        })?;
    }
    match app.ui.output {
        Output::Table | Output::Wide => app.ui.raw(&text(&document, app.ui.out, app.ui.verbose > 0)),
        Output::Json => {
            let mut value = json!(document);
            value["exit"] = exit::json(document.exit());
            app.ui.json(&value);
        }
        Output::Jsonl => document.findings.iter().for_each(|finding| app.ui.json(&json!(finding))),
        Output::Name => {
            let bad = document.findings.iter().filter(|finding| finding.severity > Severity::Note);
            bad.for_each(|finding| app.ui.line(&finding.check));
        }
    }
    Ok(document.exit().into())
}

/// What daemons find, or `vtd doctor` where none answers; and what is found here.
async fn examined(app: &mut App, examine: &Examine) -> Result<Document, Report> {
    let asked = app.mesh.call(&AdminRequest::Doctor(examine.clone()), Need::Read).await;
    let mut findings = match asked {
        Ok(AdminReply::Findings(findings)) => findings,
        Ok(other) => return Err(unexpected("doctor", &other)),
        Err(report) if matches!(report.code, ErrorCode::Unreachable | ErrorCode::Unclaimed) => {
            let mut findings = without_daemon(examine).ok_or_else(|| report.clone())?;
            findings.push(no_daemon(&report));
            findings
        }
        Err(report) => return Err(report),
    };
    findings.extend(here(examine.repair && examine.checks.wants(LABS))?);
    findings.retain(|finding| examine.checks.wants(&finding.check));
    Ok(Document::of(findings))
}

/// What `vtd doctor` finds on this machine; `None` where there is no such program.
fn without_daemon(examine: &Examine) -> Option<Vec<Finding>> {
    let vtd = lab::find_vtd(None).ok()?;
    let mut command = Command::new(vtd);
    command.args(["doctor", "--json"]).stdin(Stdio::null()).stderr(Stdio::null());
    for (flag, ids) in [("--check", &examine.checks.only), ("--skip", &examine.checks.skip)] {
        if !ids.is_empty() {
            command.args([flag, &ids.join(",")]);
        }
    }
    if examine.repair {
        command.arg("--fix");
    }
    let output = command.output().ok()?;
    // Where no check of it is wanted it says so, in words.
    let document: Option<Document> = serde_json::from_slice(&output.stdout).ok();
    Some(document.map(|document| document.findings).unwrap_or_default())
}

fn no_daemon(report: &Report) -> Finding {
    let unclaimed = report.code == ErrorCode::Unclaimed;
    let evidence = report.evidence.iter().map(|(key, value)| format!("{key} {value}"));
    Finding {
        found: std::iter::once(report.title.clone()).chain(evidence).collect::<Vec<_>>().join(", "),
        fix: if unclaimed { report.help.clone() } else { vec!["systemctl start vtd, or vtctl lab up".to_owned()] },
        ..found(DAEMON, "daemon", if unclaimed { Severity::Note } else { Severity::Fail })
    }
}

fn found(check: &str, title: &str, severity: Severity) -> Finding {
    let group = if check == DAEMON { Group::Cluster } else { Group::Hygiene };
    Finding {
        check: check.to_owned(),
        group,
        title: title.to_owned(),
        host: None,
        other: None,
        severity,
        found: String::new(),
        fix: Vec::new(),
        repairable: false,
    }
}

/// What is found around this client: labs that are left over, and which `vtctl` a shell finds.
fn here(repair: bool) -> Result<Vec<Finding>, Report> {
    let mut left = lab::left_over();
    if repair {
        for (name, _) in &left {
            lab::down(name, &mut |_| {})?;
        }
        left = lab::left_over();
    }
    let mut findings: Vec<Finding> = left
        .into_iter()
        .map(|(name, what)| Finding {
            found: format!("lab {name}: {what}"),
            fix: vec![format!("vtctl lab down --lab {name}")],
            repairable: true,
            ..found(LABS, "labs that are left over", Severity::Warn)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding { found: "none".into(), ..found(LABS, "labs that are left over", Severity::Ok) });
    }
    findings.extend(in_path(std::env::current_exe().ok(), lab::find_in_path("vtctl")));
    Ok(findings)
}

/// Another product has a `vtctl`, too.
fn in_path(running: Option<PathBuf>, first: Option<PathBuf>) -> Option<Finding> {
    let (running, first) = (running?, first?);
    let same = first.canonicalize().ok()? == running.canonicalize().ok()?;
    let (severity, what) = if same { (Severity::Ok, "this one") } else { (Severity::Note, "another one than this") };
    Some(Finding {
        found: format!("{}: {what}", first.display()),
        fix: if same { Vec::new() } else { vec![format!("{} version   (which one it is)", first.display())] },
        ..found(IN_PATH, "vtctl that a shell finds", severity)
    })
}

/// Shows what would be done, and asks. Without a terminal there is nobody to ask.
fn agreed(app: &App, document: &Document) -> Result<bool, Report> {
    let safe_ones: Vec<&Finding> = document.findings.iter().filter(|finding| finding.repairable).collect();
    if safe_ones.is_empty() {
        app.ui.note("nothing was found that is safe to mend by itself");
        return Ok(false);
    }
    for finding in &safe_ones {
        let host = finding.host.as_ref().map(|host| format!("{host}: ")).unwrap_or_default();
        finding.fix.iter().for_each(|line| app.ui.note(format_args!("  {host}{}", safe(line))));
    }
    if app.globals.yes {
        return Ok(true);
    }
    if !app.ui.interactive {
        return Err(usage("shall this be done?").help("vtctl doctor --fix --yes"));
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "do this? [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn symbol(severity: Severity) -> Symbol {
    match severity {
        Severity::Ok => Symbol::Done,
        Severity::Note => Symbol::Dot,
        Severity::Warn => Symbol::Warn,
        Severity::Fail => Symbol::Bad,
    }
}

/// Where it was seen: `host1`, `host1→host2`.
fn place(finding: &Finding, style: Style) -> String {
    match (&finding.host, &finding.other) {
        (Some(host), Some(other)) => format!(" {host}{}{other}", style.arrow()),
        (Some(host), None) => format!(" {host}"),
        _ => String::new(),
    }
}

/// Findings with where they were seen. What is said of several hosts alike stands there once, with all their names.
fn merged(findings: &[Finding], style: Style) -> Vec<(String, &Finding)> {
    let mut lines: Vec<(String, &Finding)> = Vec::new();
    for finding in findings {
        let alike = |(_, other): &&mut (String, &Finding)| {
            let key =
                |it: &Finding| (it.check.clone(), it.severity, it.other.clone(), it.found.clone(), it.fix.clone());
            finding.other.is_none() && key(finding) == key(other)
        };
        match lines.iter_mut().find(alike) {
            Some((places, _)) => places.push_str(&place(finding, style)),
            None => lines.push((place(finding, style), finding)),
        }
    }
    lines
}

fn text(document: &Document, style: Style, everything: bool) -> String {
    let mut text = String::new();
    for findings in document.findings.chunk_by(|a, b| a.group == b.group) {
        let good = findings.iter().filter(|finding| finding.severity == Severity::Ok).count();
        let _ = writeln!(text, "{:<10} {good} of {} ok", findings[0].group.as_str(), findings.len());
        for (places, finding) in merged(findings, style) {
            if finding.severity == Severity::Ok && !everything {
                continue;
            }
            let symbol = style.symbol(symbol(finding.severity));
            let _ = writeln!(text, "  {symbol} {}{places}  {}: {}", finding.check, finding.title, safe(&finding.found));
            for (number, line) in finding.fix.iter().enumerate() {
                let _ = writeln!(text, "      {:<3}  {}", if number == 0 { "fix" } else { "" }, safe(line));
            }
        }
    }
    let _ = writeln!(text, "\n{}", document.summary());
    text
}

/// JUnit XML: a testcase a finding. A warning and a note pass, and say so.
fn xml(document: &Document) -> String {
    let (tests, failures) = (document.findings.len(), document.count(Severity::Fail));
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuite name=\"doctor\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\">"
    );
    for finding in &document.findings {
        let name = format!("{}{} {}", finding.check, place(finding, Style::default()), finding.title);
        let (class, name) = (finding.group.as_str(), attribute(&name));
        let _ = writeln!(text, "  <testcase classname=\"doctor.{class}\" name=\"{name}\">");
        let body = escape(&finding.to_string());
        if finding.severity == Severity::Fail {
            let found = attribute(&finding.found);
            let _ = writeln!(text, "    <failure type=\"{}\" message=\"{found}\">{body}</failure>", finding.check);
        } else {
            let _ = writeln!(text, "    <system-out>{body}</system-out>");
        }
        text.push_str("  </testcase>\n");
    }
    text.push_str("</testsuite>\n");
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn document() -> Document {
        let full = Finding {
            host: Some("host1".parse().unwrap()),
            found: "12 MiB & \"less\" are\x1b[2J free".into(),
            fix: vec!["vtctl image gc".into(), "or a larger disk".into()],
            ..found("D-STO-04", "free space", Severity::Fail)
        };
        let far = Finding {
            other: Some("host2".parse().unwrap()),
            found: "0.2 ms".into(),
            fix: Vec::new(),
            ..Finding { severity: Severity::Ok, check: "D-NET-01".into(), title: "decisions".into(), ..full.clone() }
        };
        Document::of(vec![full, far])
    }

    #[test]
    fn what_is_well_is_counted_and_shown_only_when_asked_for() {
        let shown = text(&document(), Style::default(), false);
        assert_eq!(
            shown,
            "hygiene    1 of 2 ok\n\
             \x20 ✗ D-STO-04 host1  free space: 12 MiB & \"less\" are[2J free\n\
             \x20     fix  vtctl image gc\n\
             \x20          or a larger disk\n\
             \n1 fail, 1 ok\n"
        );
        let mut both = document();
        both.findings.insert(1, Finding { host: Some("host2".parse().unwrap()), ..both.findings[0].clone() });
        let shown = text(&both, Style::default(), false);
        assert!(shown.contains("✗ D-STO-04 host1 host2  free space") && shown.contains("2 fail, 1 ok"), "{shown}");
        let everything = text(&document(), Style::default(), true);
        assert!(everything.contains("  ✓ D-NET-01 host1→host2  decisions: 0.2 ms\n"), "{everything}");
    }

    #[test]
    fn a_parser_reads_the_report_back() {
        let text = xml(&document());
        let parsed = roxmltree::Document::parse(&text).unwrap();
        let suite = parsed.root_element();
        assert_eq!((suite.attribute("tests"), suite.attribute("failures")), (Some("2"), Some("1")));
        let failure = parsed.descendants().find(|node| node.has_tag_name("failure")).unwrap();
        assert!(failure.attribute("message").unwrap().starts_with("12 MiB & \"less\""));
        assert!(failure.text().unwrap().contains("vtctl image gc"));
    }

    #[test]
    fn another_vtctl_in_the_path_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| dir.path().join(name));
        std::fs::write(&ours, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let said = |first: &Path| in_path(Some(ours.clone()), Some(first.to_owned())).unwrap().severity;
        assert_eq!((said(&ours), said(&other)), (Severity::Ok, Severity::Note));
        assert_eq!(in_path(Some(ours.clone()), None), None);
    }
}
