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

/// The end of what happened, by case.
#[derive(Debug, Default)]
pub struct Logs {
    each_max: usize,
    of: HashMap<CaseId, String>,
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
        let Some(line) = views::event_line(*attempt, event) else { return };
        let text = self.of.entry(attempt.case).or_default();
        text.push_str(&line);
        text.push('\n');
        if text.len() > 2 * self.each_max {
            *text = tail(text, self.each_max).to_owned();
        }
    }

    /// The end of the log of a case.
    pub fn of(&self, case: CaseId) -> &str {
        self.of.get(&case).map_or("", |text| tail(text, self.each_max))
    }
}

/// The last lines that fit into `most` bytes.
fn tail(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let from = (text.len() - most..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let cut = &text[from..];
    cut.split_once('\n').map_or(cut, |(_, rest)| rest)
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
}
