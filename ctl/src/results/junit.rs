//! JUnit XML: a suite of the scenario, a testcase per case. Written by hand because it is small, read back by a parser
//! in the tests.

use std::{collections::HashMap, fmt::Write};

use vt_protocol::{
    error::Report,
    ids::Name,
    job::{CaseStateView, CaseView},
    verdict::Verdict,
};

use super::Material;
use crate::{exit, job::views, ui::report};

/// Most paths that are named in one testcase.
const PATHS_MAX: usize = 60;

/// The document.
pub fn xml(material: &Material<'_>) -> String {
    let job = material.job;
    let count = |wanted: &[Verdict]| -> u64 { wanted.iter().map(|verdict| views::count(job, Some(*verdict))).sum() };
    // A case without a verdict is counted as an error: a report must not look better than it is.
    let errors = count(&[Verdict::Error, Verdict::Timeout]) + views::count(job, None);
    let skipped = count(&[Verdict::Skip, Verdict::Cancelled]);
    let (failures, tests) = (count(&[Verdict::Fail]), job.cases.len());
    let seconds = job.cases.iter().filter_map(|case| case.elapsed_ms).fold(0u64, u64::saturating_add) as f64 / 1000.0;
    let scenario = attribute(&job.scenario);
    let stamp = crate::ui::text::rfc3339(job.submitted_unix_ms);
    let stamp = stamp.split('.').next().unwrap_or_default();
    let numbers = format!(
        "tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds:.3}\""
    );
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites name=\"{}\" {numbers}>", attribute(&job.id.to_string()));
    let _ = writeln!(text, "  <testsuite name=\"{scenario}\" timestamp=\"{stamp}\" hostname=\"vtmesh\" {numbers}>");
    text.push_str("    <properties>\n");
    property(&mut text, "      ", "job", &job.id.to_string());
    property(&mut text, "      ", "user", &job.user);
    if let Some(note) = &job.note {
        property(&mut text, "      ", "note", note);
    }
    property(&mut text, "      ", "exit", exit::name(exit::of_job(job)));
    text.push_str("    </properties>\n");
    let mut index = Index::default();
    for case in &job.cases {
        *index.names.entry(&case.name).or_default() += 1;
    }
    for path in material.files {
        if let Some(case) = case_of(path) {
            index.files.entry(case).or_default().push(path);
        }
    }
    job.cases.iter().for_each(|case| testcase(&mut text, material, &index, case));
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// What is looked up for every case, of which there may be thousands.
#[derive(Default)]
struct Index<'a> {
    /// How many cases have a name.
    names: HashMap<&'a str, u32>,
    /// Files by the index of their case.
    files: HashMap<u32, Vec<&'a str>>,
}

/// The index of the case that a file belongs to: it is below `cases/0001-name`.
fn case_of(path: &str) -> Option<u32> {
    path.strip_prefix("cases/")?.split_once('-')?.0.parse().ok()
}

fn testcase(text: &mut String, material: &Material<'_>, index: &Index<'_>, case: &CaseView) {
    let seconds = case.elapsed_ms.unwrap_or(0) as f64 / 1000.0;
    // Variants that run on several groups of hosts share a name; with the hosts each testcase has its own.
    let shared = index.names.get(case.name.as_str()).is_some_and(|cases| *cases > 1);
    let hosts = case.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join(",");
    let name = if shared { format!("{} [{} {hosts}]", case.name, case.id.index) } else { case.name.clone() };
    let _ = writeln!(
        text,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\">",
        attribute(&case.scenario),
        attribute(&name)
    );
    properties(text, material, case, &hosts);
    match &case.state {
        CaseStateView::Done { verdict: Verdict::Pass | Verdict::Warn, .. } => {}
        CaseStateView::Done { verdict: Verdict::Fail, cause } => element(text, "failure", "FAIL", cause.as_ref()),
        CaseStateView::Done { verdict: verdict @ (Verdict::Error | Verdict::Timeout), cause } => {
            element(text, "error", &verdict.to_string(), cause.as_ref());
        }
        CaseStateView::Done { verdict: verdict @ (Verdict::Skip | Verdict::Cancelled), cause } => {
            let why = cause.as_ref().map_or_else(|| verdict.to_string(), |cause| format!("{verdict}: {}", cause.title));
            let _ = writeln!(text, "      <skipped message=\"{}\"/>", attribute(&why));
        }
        CaseStateView::Pending { .. } | CaseStateView::Running { .. } => {
            text.push_str("      <error type=\"NONE\" message=\"the case has no verdict\"/>\n");
        }
    }
    let log = material.logs.of(case.id);
    let of_case = index.files.get(&case.id.index).map_or(&[][..], Vec::as_slice);
    if !log.is_empty() || !of_case.is_empty() {
        let mut out = log;
        if let Some(evidence) = material.evidence {
            for path in of_case.iter().take(PATHS_MAX) {
                let _ = writeln!(out, "{}", evidence.join(path).display());
            }
            if of_case.len() > PATHS_MAX {
                let _ = writeln!(out, "… and {} more files", of_case.len() - PATHS_MAX);
            }
        }
        let _ = writeln!(text, "      <system-out>{}</system-out>", escape(&out));
    }
    text.push_str("    </testcase>\n");
}

fn properties(text: &mut String, material: &Material<'_>, case: &CaseView, hosts: &str) {
    let moved = material.moved.get(&case.id.index);
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    text.push_str("      <properties>\n");
    let lines = [
        ("case", Some(case.id.to_string())),
        ("variant", case.variant.clone()),
        ("hosts", Some(hosts.to_owned())),
        ("attempt", case.attempt.map(|attempt| attempt.number.to_string())),
        ("backend", moved.and_then(|moved| moved.backend.clone())),
        ("qemu.src", moved.and_then(|moved| moved.from.clone())),
        ("qemu.dst", moved.and_then(|moved| moved.to.clone())),
        ("migrations", number(case.migrations)),
        ("downtime_guest_ms", number(case.guest_downtime_ms)),
        ("downtime_qemu_ms", number(case.qemu_downtime_ms)),
        ("total_ms", number(case.elapsed_ms)),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            property(text, "        ", name, &value);
        }
    }
    text.push_str("      </properties>\n");
}

fn element(text: &mut String, name: &str, kind: &str, cause: Option<&Report>) {
    let (code, title) = cause.map_or_else(
        || (kind.to_owned(), "no cause was reported".to_owned()),
        |cause| (cause.code.to_string(), cause.title.clone()),
    );
    let body = cause.map(|cause| report::body(cause, "", true)).unwrap_or_default();
    let (code, title, body) = (attribute(&code), attribute(&title), escape(&body));
    let _ = writeln!(text, "      <{name} type=\"{code}\" message=\"{title}\">{body}</{name}>");
}

fn property(text: &mut String, indent: &str, name: &str, value: &str) {
    let _ = writeln!(text, "{indent}<property name=\"{}\" value=\"{}\"/>", attribute(name), attribute(value));
}

/// Text for an attribute: escaped, in one line.
pub(crate) fn attribute(text: &str) -> String {
    escape(&text.replace(['\n', '\t', '\r'], " "))
}

/// Text without the characters that XML 1.0 cannot hold, and with the others escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + text.len() / 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' | '\t' => safe.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vt_protocol::{
        admin::WatchItem,
        error::ErrorCode,
        job::{Happening, JobState},
    };

    use super::*;
    use crate::{
        job::tracker::tests::{attempt, case, event, failed, job},
        results::{logs::Logs, moved::Moved},
    };

    fn done(verdict: Verdict, title: &str) -> CaseStateView {
        CaseStateView::Done { verdict, cause: Some(Report::new(ErrorCode::QemuDied, title)) }
    }

    #[test]
    fn a_parser_reads_back_what_was_written_whatever_was_in_it() {
        let nasty = "a<b> & \"c\" 'd' ]]> \u{0}\u{1b}[31m\u{fffe}\u{7f} é 🦀\nsecond line";
        let mut cases = vec![
            case(1, CaseStateView::Done { verdict: Verdict::Pass, cause: None }),
            case(2, done(Verdict::Fail, nasty)),
            case(3, done(Verdict::Error, "x")),
            case(4, done(Verdict::Timeout, "x")),
            case(5, done(Verdict::Skip, "one host is left over")),
            case(6, done(Verdict::Cancelled, "x")),
            case(7, done(Verdict::Warn, "x")),
            case(8, CaseStateView::Pending { why: None }),
            case(9, CaseStateView::Done { verdict: Verdict::Error, cause: None }),
        ];
        cases[1].name = nasty.to_owned();
        let job = job(JobState::Done, cases);
        let mut logs = Logs::for_cases(9);
        let what = Happening::Log { level: "info".into(), text: nasty.into() };
        logs.take(&WatchItem::Event { attempt: attempt(2), event: event(1, "host1", what) });
        let files = ["cases/0002-nasty/host1/events.jsonl".to_owned(), "job.json".to_owned()];
        let version = |version: &str| Some(version.to_owned());
        let libvirt = Moved { backend: version("libvirt"), from: version("7.2.22"), to: version("10.0.8") };
        let moved = BTreeMap::from([(1, libvirt)]);
        let material = Material { moved: &moved, ..Material::at_r(&job, &files, &logs) };
        let text = xml(&material);
        let document = roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let suite = document.root_element().first_element_child().unwrap();
        for (key, value) in [("tests", "9"), ("failures", "1"), ("errors", "4"), ("skipped", "2")] {
            assert_eq!(suite.attribute(key), Some(value), "{key}");
            assert_eq!(document.root_element().attribute(key), Some(value), "{key}");
        }
        let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
        let kinds: Vec<Vec<&str>> = cases
            .iter()
            .map(|case| {
                let names = case.children().filter(roxmltree::Node::is_element).map(|node| node.tag_name().name());
                names.filter(|name| !matches!(*name, "properties" | "system-out")).collect()
            })
            .collect();
        assert_eq!(
            kinds,
            [
                vec![],
                vec!["failure"],
                vec!["error"],
                vec!["error"],
                vec!["skipped"],
                vec!["skipped"],
                vec![],
                vec!["error"],
                vec!["error"]
            ]
        );
        let failure = cases[1].children().find(|node| node.has_tag_name("failure")).unwrap();
        assert_eq!(failure.attribute("type"), Some("E0502"));
        assert_eq!(failure.attribute("message"), Some("a<b> & \"c\" 'd' ]]> [31m é 🦀 second line"));
        let out = cases[1].children().find(|node| node.has_tag_name("system-out")).unwrap().text().unwrap();
        assert!(out.contains("second line") && out.ends_with("/r/cases/0002-nasty/host1/events.jsonl\n"), "{out}");
        assert!(
            cases[2].attribute("name").unwrap().starts_with("multihost_migration [3 "),
            "shared names are told apart"
        );
        assert_eq!(cases[0].attribute("time"), Some("8.100"));
        let properties = cases[0].first_element_child().unwrap();
        let find = |name| {
            properties
                .children()
                .find(|node| node.attribute("name") == Some(name))
                .and_then(|node| node.attribute("value"))
        };
        assert_eq!(
            (find("downtime_guest_ms"), find("hosts"), find("backend"), find("qemu.src"), find("qemu.dst")),
            (Some("41"), Some("host1,host2"), Some("libvirt"), Some("7.2.22"), Some("10.0.8"))
        );
        assert_eq!(text.matches("name=\"backend\"").count(), 1, "nobody knows it of a case that moved nothing");
    }

    #[test]
    fn system_out_is_bounded() {
        let job = job(JobState::Done, vec![case(1, failed())]);
        let mut logs = Logs::for_cases(1);
        for seq in 1..3000 {
            let what = Happening::Log { level: "info".into(), text: "x".repeat(200) };
            logs.take(&WatchItem::Event { attempt: attempt(1), event: event(seq, "host1", what) });
        }
        let files: Vec<String> = (0..200).map(|n| format!("cases/0001-multihost_migration/{n}")).collect();
        let text = xml(&Material::at_r(&job, &files, &logs));
        let document = roxmltree::Document::parse(&text).unwrap();
        let out = document.descendants().find(|node| node.has_tag_name("system-out")).unwrap().text().unwrap();
        assert!(out.len() <= 64 << 10 && out.contains("… and 140 more files"), "{}", out.len());
    }
}
