//! `summary.md`: for the summary of a CI job.

use std::fmt::Write;

use vt_protocol::{
    ids::Name,
    job::{CaseStateView, CaseView},
    verdict::Verdict,
};

use super::Material;
use crate::{
    job::{summary, views},
    ui::{style::Style, text::elapsed},
};

/// Most rows of the table of cases that did not pass.
const ROWS_MAX: usize = 200;
/// How many of the slowest cases are named.
const SLOWEST: usize = 5;

/// The document.
pub fn text(material: &Material<'_>) -> String {
    let job = material.job;
    let total: u64 = job.cases.iter().filter_map(|case| case.elapsed_ms).fold(0, u64::saturating_add);
    let mut text = format!("# {} · {}\n\n", cell(&job.scenario), job.id);
    let _ = writeln!(text, "{}", summary::last_line(job, Some(total), Style::default()));
    if let Some(note) = &job.note {
        let _ = writeln!(text, "\n> {}", cell(note));
    }
    text.push_str("\n| verdict | cases |\n|---|---:|\n");
    for (verdict, n) in views::present(job) {
        let _ = writeln!(text, "| {verdict} | {n} |");
    }
    let bad: Vec<&CaseView> = job
        .cases
        .iter()
        .filter(|case| !matches!(case.state, CaseStateView::Done { verdict: Verdict::Pass, .. }))
        .collect();
    if !bad.is_empty() {
        text.push_str("\n## Not passed\n\n| # | variant | hosts | verdict | why |\n|---:|---|---|---|---|\n");
        for case in bad.iter().take(ROWS_MAX) {
            let (verdict, why) = match &case.state {
                CaseStateView::Done { verdict, cause } => {
                    let why = cause.as_ref().map(|cause| format!("{}: {}", cause.code, cause.title));
                    (verdict.to_string(), why.unwrap_or_default())
                }
                _ => ("none".to_owned(), "it has no verdict".to_owned()),
            };
            let hosts = case.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join(",");
            let _ =
                writeln!(text, "| {} | {} | {hosts} | {verdict} | {} |", case.id.index, cell(&case.name), cell(&why));
        }
        if bad.len() > ROWS_MAX {
            let _ = writeln!(text, "\n{} more: see results.json.", bad.len() - ROWS_MAX);
        }
    }
    let mut slow: Vec<&CaseView> = job.cases.iter().filter(|case| case.elapsed_ms.is_some()).collect();
    slow.sort_by_key(|case| std::cmp::Reverse(case.elapsed_ms));
    if !slow.is_empty() {
        text.push_str(
            "\n## Slowest\n\n| # | variant | time | guest downtime | QEMU downtime |\n|---:|---|---:|---:|---:|\n",
        );
        let ms = |ms: Option<u64>| ms.map_or_else(|| "—".to_owned(), |ms| format!("{ms} ms"));
        for case in slow.into_iter().take(SLOWEST) {
            let time = case.elapsed_ms.map(elapsed).unwrap_or_default();
            let (guest, qemu) = (ms(case.guest_downtime_ms), ms(case.qemu_downtime_ms));
            let _ = writeln!(text, "| {} | {} | {time} | {guest} | {qemu} |", case.id.index, cell(&case.name));
        }
    }
    text
}

/// Text for a cell: one line, without what would be markup.
fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if matches!(c, '|' | '`' | '*' | '<' | '>' | '[' | ']' | '\\') {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

#[cfg(test)]
mod tests {
    use vt_protocol::job::JobState;

    use super::*;
    use crate::{
        job::tracker::tests::{case, failed, job},
        results::logs::Logs,
    };

    #[test]
    fn the_summary_has_totals_what_did_not_pass_and_the_slowest() {
        let mut cases = vec![case(1, CaseStateView::Done { verdict: Verdict::Pass, cause: None }), case(2, failed())];
        cases[1].name = "a|b\nc".into();
        let job = job(JobState::Done, cases);
        let logs = Logs::default();
        let text = text(&Material { evidence: None, ..Material::at_r(&job, &[], &logs) });
        assert_eq!(
            text,
            "# multihost_migration · job_7\n\nFAIL 1  PASS 1 of 2  in 16.2 s\n\n\
             | verdict | cases |\n|---|---:|\n| FAIL | 1 |\n| PASS | 1 |\n\n\
             ## Not passed\n\n| # | variant | hosts | verdict | why |\n|---:|---|---|---|---|\n\
             | 2 | a\\|b c | host1,host2 | FAIL | E0620: 3 of 262144 pages do not hold what was written |\n\n\
             ## Slowest\n\n| # | variant | time | guest downtime | QEMU downtime |\n|---:|---|---:|---:|---:|\n\
             | 1 | multihost_migration | 8.1 s | 41 ms | 31 ms |\n| 2 | a\\|b c | 8.1 s | 41 ms | 31 ms |\n"
        );
    }
}
