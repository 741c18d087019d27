//! The log of a job by case, as reports quote it: the end of it, bounded.

use std::{collections::HashMap, time::Duration};

use vt_protocol::{
    admin::{AdminReply, AdminRequest, JobLogs, WatchItem},
    ids::CaseId,
    job::JobView,
};

use crate::{
    client::{Mesh, Need, Next},
    job::views,
};

/// Most bytes that are kept of one case.
const CASE_MAX: usize = 56 << 10;
/// Most bytes that are kept of all cases.
const ALL_MAX: usize = 64 << 20;
/// How long the next item may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The end of what happened, by case, in order of the hosts' clocks.
#[derive(Debug, Default)]
pub struct Logs {
    each_max: usize,
    of: HashMap<CaseId, Lines>,
}

/// Lines with their times: ms since 1970.
#[derive(Debug, Default)]
struct Lines {
    lines: Vec<(u64, String)>,
    bytes: usize,
}

impl Lines {
    /// Keeps the latest lines that fit into `most` bytes. Lines of one host stay in their order: the sort is stable.
    fn cut(&mut self, most: usize) {
        self.lines.sort_by_key(|(unix_ms, _)| *unix_ms);
        let mut drop = 0;
        while self.bytes > most && drop < self.lines.len() {
            self.bytes -= self.lines[drop].1.len();
            drop += 1;
        }
        self.lines.drain(..drop);
    }
}

impl Logs {
    /// Asks for the log of a job that is done. What came until a daemon went away is kept: a report quotes, and does not
    /// decide.
    pub async fn fetch(mesh: &mut Mesh, job: &JobView) -> Option<Self> {
        let mut logs = Self::for_cases(job.cases.len());
        let request = AdminRequest::JobLogs(JobLogs { job: job.id, follow: false });
        let mut stream = mesh.stream(&request, Need::Read).await.ok()?;
        while let Ok(Next::Reply(reply)) = tokio::time::timeout_at(mesh.by(PATIENCE), stream.next()).await {
            if let AdminReply::Watch(item) = reply {
                logs.take(&item);
            }
        }
        Some(logs)
    }

    /// Room for this many cases.
    pub fn for_cases(cases: usize) -> Self {
        Self { each_max: (ALL_MAX / cases.max(1)).clamp(1 << 10, CASE_MAX), of: HashMap::new() }
    }

    /// Adds an item.
    pub fn take(&mut self, item: &WatchItem) {
        let WatchItem::Event { attempt, event } = item else { return };
        let Some(mut line) = views::event_line(*attempt, event) else { return };
        line.push('\n');
        let each_max = self.each_max;
        let kept = self.of.entry(attempt.case).or_default();
        kept.bytes += line.len();
        kept.lines.push((event.unix_ms, line));
        if kept.bytes > 2 * each_max {
            kept.cut(each_max);
        }
    }

    /// The end of the log of a case: the latest lines that fit.
    pub fn of(&self, case: CaseId) -> String {
        let Some(kept) = self.of.get(&case) else { return String::new() };
        let mut lines: Vec<&(u64, String)> = kept.lines.iter().collect();
        lines.sort_by_key(|(unix_ms, _)| *unix_ms);
        let mut room = self.each_max;
        let fits = |line: &&&(u64, String)| {
            let fits = line.1.len() <= room;
            room = room.saturating_sub(line.1.len());
            fits
        };
        let from = lines.len() - lines.iter().rev().take_while(fits).count();
        lines[from..].iter().map(|(_, line)| line.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::job::Happening;

    use super::*;
    use crate::job::tracker::tests::{attempt, event};

    #[test]
    fn the_end_of_a_long_log_is_kept_in_whole_lines() {
        let mut logs = Logs::for_cases(1);
        for seq in 1..=5000 {
            let what = Happening::Log { level: "info".into(), text: format!("line {seq} é") };
            logs.take(&WatchItem::Event { attempt: attempt(1), event: event(seq, "host1", what) });
        }
        let text = logs.of(attempt(1).case);
        assert!(text.len() <= CASE_MAX && text.len() > CASE_MAX / 2);
        assert!(text.ends_with("line 5000 é\n") && text.starts_with(|c: char| c.is_ascii_digit()), "{}", &text[..40]);
        assert_eq!(logs.of(attempt(2).case), "");
    }

    #[test]
    fn lines_of_hosts_are_in_the_order_of_their_times() {
        let mut logs = Logs::for_cases(1);
        for (seq, host) in [(1, "host1"), (3, "host1"), (2, "host2"), (3, "host2")] {
            let what = Happening::Log { level: "info".into(), text: "x".into() };
            logs.take(&WatchItem::Event { attempt: attempt(1), event: event(seq, host, what) });
        }
        let text = logs.of(attempt(1).case);
        let hosts: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
        assert_eq!(hosts, ["host1", "host2", "host1", "host2"]);
    }
}
