//! Jobs, cases and events as JSON and as lines.

use serde_json::{Value, json};
use vt_protocol::{
    admin::WatchItem,
    ids::{AttemptId, Name},
    job::{AttemptEvent, CaseStateView, CaseView, Happening, JobState, JobView},
    verdict::Verdict,
};

use crate::ui::{
    report,
    text::{clock, elapsed, rfc3339, safe},
};

/// A verdict in JSON: lower case.
pub fn verdict(verdict: Verdict) -> String {
    verdict.to_string().to_lowercase()
}

/// The state of a job in JSON and tables.
pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Cancelling => "cancelling",
        JobState::Done => "done",
    }
}

/// A job in lists: without its cases.
pub fn job_json(job: &JobView) -> Value {
    json!({
        "id": job.id.to_string(),
        "scenario": job.scenario,
        "state": state(job.state),
        "user": job.user,
        "note": job.note,
        "submitted_at": rfc3339(job.submitted_unix_ms),
        "counts": counts_json(job),
        "matrix": job.matrix.as_ref().map(
            |matrix| json!({"digest": matrix.digest.to_string(), "variants": matrix.variants}),
        ),
    })
}

/// Number of cases by verdict; every verdict stands there, and `none` for cases without one.
pub fn counts_json(job: &JobView) -> Value {
    let mut counts = serde_json::Map::new();
    for each in Verdict::ALL {
        counts.insert(verdict(each), json!(count(job, Some(each))));
    }
    counts.insert("none".to_owned(), json!(count(job, None)));
    Value::Object(counts)
}

/// Number of cases with this verdict, by the cases where they are known.
pub fn count(job: &JobView, wanted: Option<Verdict>) -> u64 {
    if job.cases.is_empty() {
        return job.counts.iter().filter(|(verdict, _)| *verdict == wanted).map(|(_, n)| u64::from(*n)).sum();
    }
    let of = |case: &CaseView| match case.state {
        CaseStateView::Done { verdict, .. } => Some(verdict),
        _ => None,
    };
    job.cases.iter().filter(|case| of(case) == wanted).count() as u64
}

/// The verdicts that cases of it have, the worst first, each with its number of cases.
pub fn present(job: &JobView) -> impl Iterator<Item = (Verdict, u64)> {
    Verdict::ALL.into_iter().rev().map(|verdict| (verdict, count(job, Some(verdict)))).filter(|(_, n)| *n > 0)
}

/// A case.
pub fn case_json(case: &CaseView) -> Value {
    let (state, why, verdict, cause) = match &case.state {
        CaseStateView::Pending { why } => ("pending", why.clone(), None, None),
        CaseStateView::Running { .. } => ("running", None, None, None),
        CaseStateView::Done { verdict, cause } => ("done", None, Some(self::verdict(*verdict)), cause.as_ref()),
    };
    json!({
        "id": case.id.to_string(),
        "index": case.id.index,
        "name": case.name,
        "variant": case.variant,
        "scenario": case.scenario,
        "hosts": case.hosts,
        "state": state,
        "waits_for": why,
        "verdict": verdict,
        "cause": cause.map(report::object),
        "attempt": case.attempt.map(|attempt| attempt.to_string()),
        "attempts": case.attempt.map(|attempt| attempt.number),
        "elapsed_ms": case.elapsed_ms,
        "guest_downtime_ms": case.guest_downtime_ms,
        "qemu_downtime_ms": case.qemu_downtime_ms,
        "migrations": case.migrations,
    })
}

/// An item of a watch in one object.
pub fn item_json(item: &WatchItem) -> Value {
    match item {
        WatchItem::Job(job) | WatchItem::Changed(job) => {
            let mut value = job_json(job);
            value["kind"] = json!("job");
            value["final"] = json!(job.state == JobState::Done);
            value
        }
        WatchItem::Event { attempt, event } => event_json(*attempt, event),
    }
}

/// An event in one object.
pub fn event_json(attempt: AttemptId, event: &AttemptEvent) -> Value {
    let (what, detail) = match &event.what {
        Happening::StepBegan(step) => ("step_began", json!({"step": step})),
        Happening::StepEnded { step, ms, note } => {
            ("step_ended", json!({"step": step, "elapsed_ms": ms, "note": note}))
        }
        Happening::Barrier { tag, what, arrived, missing } => (
            "barrier",
            json!({"tag": tag, "state": what, "arrived": arrived.0, "parties": arrived.1, "missing": missing}),
        ),
        Happening::Progress { migration, sample } => ("migration", json!({"migration": migration, "sample": sample})),
        Happening::Log { level, text } => ("log", json!({"level": level, "text": text})),
        Happening::PartyEnded { outcome } => ("party_ended", json!({"outcome": outcome})),
    };
    json!({
        "kind": "event",
        "attempt": attempt.to_string(),
        "case": attempt.case.index,
        "host": event.host,
        "seq": event.seq,
        "at": rfc3339(event.unix_ms),
        "event": what,
        "detail": detail,
    })
}

/// An event as a line of a log; none for readings of a migration, which are many.
pub fn event_line(attempt: AttemptId, event: &AttemptEvent) -> Option<String> {
    let text = match &event.what {
        Happening::StepBegan(step) => format!("begins    {step}"),
        Happening::StepEnded { step, ms, note } => format!("done      {step}  {}  {note}", elapsed(*ms)),
        Happening::Barrier { tag, what, arrived: (there, of), missing } => {
            let names: Vec<&str> = missing.iter().map(Name::as_str).collect();
            let missing = if names.is_empty() { String::new() } else { format!("  missing: {}", names.join(" ")) };
            format!("barrier   {tag} {what} ({there}/{of}){missing}")
        }
        Happening::Progress { .. } => return None,
        Happening::Log { level, text } => format!("{level:<9} {text}"),
        Happening::PartyEnded { outcome } => format!("party     {outcome}"),
    };
    let text = safe(&text).replace('\n', "\n    ");
    Some(format!(
        "{}  {}.{}  {}  {}",
        clock(event.unix_ms),
        attempt.case.index,
        attempt.number,
        event.host,
        text.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::{
        super::tracker::tests::{attempt, case, event, failed, job},
        *,
    };

    #[test]
    fn a_case_in_json_has_every_key_and_lower_case_words() {
        let value = case_json(&case(3, failed()));
        assert_eq!(
            value,
            json!({
                "id": "case_7.3", "index": 3, "name": "multihost_migration", "variant": null,
                "scenario": "multihost_migration", "hosts": ["host1", "host2"],
                "state": "done", "waits_for": null, "verdict": "fail",
                "cause": {
                    "code": "E0620", "title": "3 of 262144 pages do not hold what was written",
                    "evidence": {"first": "page 17"}, "help": [], "causes": [], "retryable": false,
                },
                "attempt": "7.3.1", "attempts": 1, "elapsed_ms": 8100, "guest_downtime_ms": 41,
                "qemu_downtime_ms": 31, "migrations": 2,
            })
        );
        let mut waiting = case(1, CaseStateView::Pending { why: None });
        (waiting.attempt, waiting.elapsed_ms) = (None, None);
        let waiting = case_json(&waiting);
        for key in ["verdict", "cause", "attempt", "elapsed_ms", "waits_for"] {
            assert_eq!(waiting.get(key), Some(&Value::Null), "{key}: unknown is null, never absent");
        }
    }

    #[test]
    fn a_job_in_json_counts_every_verdict() {
        let job = job(JobState::Done, vec![case(1, failed())]);
        assert_eq!(
            job_json(&job),
            json!({
                "id": "job_7", "scenario": "multihost_migration", "state": "done", "user": "root", "note": null,
                "submitted_at": "2026-11-23T18:34:29.125Z",
                "counts": {"pass": 0, "warn": 0, "skip": 0, "cancelled": 0, "timeout": 0, "error": 0, "fail": 1, "none": 0},
                "matrix": null,
            })
        );
        assert_eq!(item_json(&WatchItem::Job(job))["final"], true);
    }

    #[test]
    fn events_are_lines_and_objects() {
        let done = event(5, "host1", Happening::StepEnded { step: "boot vm1".into(), ms: 2900, note: "tcg".into() });
        assert_eq!(event_line(attempt(1), &done).unwrap(), "00:00:05.000  1.1  host1  done      boot vm1  2.9 s  tcg");
        assert_eq!(
            event_json(attempt(1), &done),
            json!({
                "kind": "event", "attempt": "7.1.1", "case": 1, "host": "host1", "seq": 5,
                "at": "1970-01-01T00:00:05.000Z", "event": "step_ended",
                "detail": {"step": "boot vm1", "elapsed_ms": 2900, "note": "tcg"},
            })
        );
        let reading = Happening::Progress { migration: "m".into(), sample: vt_protocol::vm::Sample::default() };
        assert_eq!(event_line(attempt(1), &event(1, "host1", reading)), None);
    }
}
