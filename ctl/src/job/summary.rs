//! What a job came to: a table, the causes, the last line.

use vt_protocol::{
    error::Report,
    ids::Name,
    job::{CaseStateView, CaseView, JobState, JobView},
    verdict::Verdict,
};

use super::views;
use crate::ui::{
    report,
    style::Style,
    table::Table,
    text::{elapsed, safe},
};

/// Most causes that are shown whole; the reports hold all.
const CAUSES_MAX: usize = 10;

/// Cases as a table.
pub fn table(cases: &[CaseView], style: Style) -> Table {
    let several_hosts = cases.windows(2).any(|pair| pair[0].hosts != pair[1].hosts);
    let mut headers = vec![">#", "VARIANT"];
    if several_hosts {
        headers.push("HOSTS");
    }
    headers.extend(["VERDICT", ">TIME", ">GUEST DOWN", ">QEMU DOWN", "NOTE"]);
    let mut table = Table::new(&headers);
    let unknown = || style.unknown().to_owned();
    let ms = |ms: Option<u64>| ms.map_or_else(unknown, |ms| format!("{ms} ms"));
    for case in cases {
        let (word, note) = match &case.state {
            CaseStateView::Pending { why } => ("waits".to_owned(), why.clone().unwrap_or_default()),
            CaseStateView::Running { attempt } => (
                "running".to_owned(),
                if attempt.number > 1 { format!("attempt {}", attempt.number) } else { String::new() },
            ),
            CaseStateView::Done { verdict, cause } => (style.verdict(*verdict, 0), note(case, cause.as_ref())),
        };
        let mut row = vec![case.id.index.to_string(), safe(&case.name)];
        if several_hosts {
            row.push(hosts(case));
        }
        row.extend([
            word,
            case.elapsed_ms.map_or_else(unknown, elapsed),
            ms(case.guest_downtime_ms),
            ms(case.qemu_downtime_ms),
            safe(&note),
        ]);
        table.row(row);
    }
    table
}

fn note(case: &CaseView, cause: Option<&Report>) -> String {
    match (cause, case.migrations) {
        (Some(cause), _) => format!("{}: {}", cause.code, cause.title),
        (None, Some(1)) => "1 migration".to_owned(),
        (None, Some(n)) if n > 1 => format!("{n} migrations"),
        _ => String::new(),
    }
}

fn hosts(case: &CaseView) -> String {
    case.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join(",")
}

/// The causes of cases that did not pass, each whole.
pub fn causes(job: &JobView, style: Style, verbose: bool) -> String {
    let mut text = String::new();
    let caused = job.cases.iter().filter_map(|case| match &case.state {
        CaseStateView::Done { verdict, cause: Some(cause) } => Some((case, *verdict, cause)),
        _ => None,
    });
    let mut left = 0;
    for (shown, (case, verdict, cause)) in caused.enumerate() {
        if shown >= CAUSES_MAX {
            left += 1;
            continue;
        }
        let word = style.verdict(verdict, 0);
        let title = safe(&cause.title).replace('\n', " ");
        text.push_str(&format!("\n{word} {} {} on {}: {title}\n", case.id.index, safe(&case.name), hosts(case)));
        text.push_str(&report::body(cause, "   ", verbose));
    }
    if left > 0 {
        text.push_str(&format!("\n{left} more did not pass: see results.json or vtctl job show {}\n", job.id));
    }
    text
}

/// The last line: `PASS  1 of 1  in 7.4 s`, or what there is of each verdict.
pub fn last_line(job: &JobView, took_ms: Option<u64>, style: Style) -> String {
    let total = job.cases.len();
    let present: Vec<(Verdict, u64)> = views::present(job).collect();
    let mut text = match present[..] {
        [] => "no case has a verdict".to_owned(),
        [(verdict, n)] => format!("{}  {n} of {total}", style.verdict(verdict, 0)),
        _ => {
            let each: Vec<String> =
                present.iter().map(|(verdict, n)| format!("{} {n}", style.verdict(*verdict, 0))).collect();
            format!("{} of {total}", each.join("  "))
        }
    };
    if job.state != JobState::Done {
        text = format!("{}  {text}", views::state(job.state));
    }
    if let Some(ms) = took_ms {
        text.push_str(&format!("  in {}", elapsed(ms)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::tracker::tests::{case, failed, job},
        *,
    };

    fn passed() -> CaseStateView {
        CaseStateView::Done { verdict: Verdict::Pass, cause: None }
    }

    #[test]
    fn the_table_has_verdict_time_and_both_downtimes() {
        let mut waiting = case(3, CaseStateView::Pending { why: Some("host1 is busy".into()) });
        (waiting.elapsed_ms, waiting.guest_downtime_ms, waiting.qemu_downtime_ms) = (None, None, None);
        let cases = [case(1, passed()), case(2, failed()), waiting];
        assert_eq!(
            table(&cases, Style::default()).render(None),
            "#  VARIANT              VERDICT   TIME  GUEST DOWN  QEMU DOWN  NOTE\n\
             1  multihost_migration  PASS     8.1 s       41 ms      31 ms  2 migrations\n\
             2  multihost_migration  FAIL     8.1 s       41 ms      31 ms  E0620: 3 of 262144 pages do not hold what was written\n\
             3  multihost_migration  waits        —           —          —  host1 is busy\n"
        );
    }

    #[test]
    fn causes_are_whole_and_bounded() {
        let cases = (1..=12).map(|index| case(index, failed())).collect();
        let text = causes(&job(JobState::Done, cases), Style::default(), false);
        assert!(
            text.starts_with(
                "\nFAIL 1 multihost_migration on host1,host2: 3 of 262144 pages do not hold what was written\n   \
             first page 17\n   more  vtctl explain E0620\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("\n2 more did not pass: see results.json or vtctl job show job_7\n"), "{text}");
    }

    #[test]
    fn the_last_line_counts() {
        let one = job(JobState::Done, vec![case(1, passed())]);
        assert_eq!(last_line(&one, Some(7400), Style::default()), "PASS  1 of 1  in 7.4 s");
        let two = job(JobState::Done, vec![case(1, passed()), case(2, failed())]);
        assert_eq!(last_line(&two, None, Style::default()), "FAIL 1  PASS 1 of 2");
        let running = job(JobState::Running, vec![case(1, CaseStateView::Pending { why: None })]);
        assert_eq!(last_line(&running, None, Style::default()), "running  no case has a verdict");
    }
}
