//! `job.json`: a job with its verdicts, migrations and checks on one page, made from its view and its evidence. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vt_protocol::{
    ids::AttemptId,
    job::{CaseStateView, CaseView, JobView},
    params::COMMAND_LINE,
    verdict::Verdict,
};

use crate::{plan::OpenPlan, scenario};

/// A file of evidence that is looked into.
pub(super) struct Document {
    /// Of which attempt.
    pub(super) attempt: AttemptId,
    /// Of which host.
    pub(super) host: String,
    /// Its path there.
    pub(super) path: String,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// Whether a file of evidence is looked into.
pub(super) fn wants(path: &str) -> bool {
    let within = |folder: &str| path.starts_with(folder) && path.ends_with(".json");
    path == "outcome.json" || path == "events.jsonl" || within("migrations/") || within("checks/")
}

/// The file beside it that holds the matrix, as every host of the job has it.
pub(super) const MATRIX_FILE: &str = "matrix.bin";

/// The document, with its cases as [`case`] makes them.
pub(super) fn job(
    view: &JobView,
    plan: &OpenPlan,
    cases: Vec<Value>,
    missing: &[(AttemptId, String, String)],
) -> Value {
    let counts: BTreeMap<String, u32> =
        view.counts.iter().map(|(verdict, count)| (verdict.map_or_else(|| "none".to_owned(), lower), *count)).collect();
    let missing: Vec<Value> = missing
        .iter()
        .map(|(attempt, host, why)| json!({"attempt": attempt.to_string(), "host": host, "why": why}))
        .collect();
    let matrix = view
        .matrix
        .as_ref()
        .map(|matrix| json!({"file": MATRIX_FILE, "digest": matrix.digest.to_string(), "variants": matrix.variants}));
    json!({
        "schema": "vtmesh/v1/job",
        "id": view.id.to_string(),
        "scenario": view.scenario,
        "user": view.user,
        "note": view.note,
        "submitted_unix_ms": view.submitted_unix_ms,
        "case_timeout_ms": plan.plan().case_timeout_ms,
        "matrix": matrix,
        "scenario_file": plan.plan().file,
        "ignored_keys": scenario::ignored_keys(plan),
        "counts": counts,
        "cases": cases,
        "missing_evidence": missing,
    })
}

/// Words of JSON are in lower case, as in the other documents.
fn lower(verdict: Verdict) -> String {
    verdict.to_string().to_ascii_lowercase()
}

/// One case. Of the parameters those that were typed: what files say is in `params.json` of each host, and in the matrix.
pub(super) fn case(case: &CaseView, plan: &OpenPlan, documents: &[Document]) -> Value {
    let (verdict, cause) = match &case.state {
        CaseStateView::Done { verdict, cause } => (Some(lower(*verdict)), cause.as_ref()),
        CaseStateView::Pending { .. } | CaseStateView::Running { .. } => (None, None),
    };
    let params = plan.case(case.id.index).map(|(planned, _)| plan.params(planned)).unwrap_or_default();
    let typed = params.iter().filter(|(_, param)| param.origin.file == COMMAND_LINE);
    let params: BTreeMap<&str, &str> = typed.map(|(key, param)| (key, param.value.as_str())).collect();
    let of_attempt: Vec<&Document> =
        documents.iter().filter(|document| Some(document.attempt) == case.attempt).collect();
    json!({
        "index": case.id.index,
        "id": case.id.to_string(),
        "name": case.name,
        "variant": case.variant,
        "scenario": case.scenario,
        "folder": case.folder(),
        "hosts": case.hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>(),
        "verdict": verdict,
        "cause": cause,
        "attempt": case.attempt.map(|attempt| attempt.to_string()),
        "elapsed_ms": case.elapsed_ms,
        "guest_downtime_ms": case.guest_downtime_ms,
        "qemu_downtime_ms": case.qemu_downtime_ms,
        "params": params,
        "migrations": migrations(&of_attempt),
        "steps": steps(&of_attempt),
        "checks": named(&of_attempt, "checks/"),
        "outcomes": outcomes(&of_attempt),
    })
}

/// Results of migrations without their samples, which are in the CSV beside; in the order they happened.
fn migrations(documents: &[&Document]) -> Vec<Value> {
    let mut found: Vec<(u64, Value)> = Vec::new();
    for document in documents.iter().filter(|document| document.path.starts_with("migrations/")) {
        let Ok(mut value) = serde_json::from_slice::<Value>(&document.bytes) else { continue };
        let number = value["id"]["number"].as_u64().unwrap_or(u64::MAX);
        if let Some(object) = value.as_object_mut() {
            let samples = object.remove("samples").and_then(|samples| samples.as_array().map(Vec::len)).unwrap_or(0);
            object.insert("samples".to_owned(), json!(samples));
            object.insert("recorded_by".to_owned(), json!(document.host));
            object.insert("file".to_owned(), json!(format!("{}/{}", document.host, document.path)));
        }
        found.push((number, value));
    }
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, value)| value).collect()
}

/// Steps that ended well, with what they say of themselves: the figures of the probes among them.
fn steps(documents: &[&Document]) -> Vec<Value> {
    let mut found: Vec<(u64, Value)> = Vec::new();
    for document in documents.iter().filter(|document| document.path == "events.jsonl") {
        for line in document.bytes.split(|byte| *byte == b'\n') {
            let Ok(event) = serde_json::from_slice::<Value>(line) else { continue };
            let ended = &event["what"]["step_ended"];
            if ended.is_object() {
                let step = json!({
                    "host": document.host,
                    "step": ended["step"],
                    "ms": ended["ms"],
                    "note": ended["note"],
                });
                found.push((event["unix_ms"].as_u64().unwrap_or(0), step));
            }
        }
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, step)| step).collect()
}

fn named(documents: &[&Document], folder: &str) -> BTreeMap<String, Value> {
    let wanted = documents.iter().filter(|document| document.path.starts_with(folder));
    let parsed = wanted.filter_map(|document| {
        let value = serde_json::from_slice(&document.bytes).ok()?;
        Some((format!("{}/{}", document.host, document.path), value))
    });
    parsed.collect()
}

fn outcomes(documents: &[&Document]) -> BTreeMap<String, Value> {
    let wanted = documents.iter().filter(|document| document.path == "outcome.json");
    wanted.filter_map(|document| Some((document.host.clone(), serde_json::from_slice(&document.bytes).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use vt_protocol::{
        ids::{CaseId, JobId},
        job::{JobState, Plan, PlannedCase},
        params::{Origin, Params},
        verdict::Verdict,
    };

    use super::*;

    const ATTEMPT: AttemptId = AttemptId { case: CaseId { job: JobId(5), index: 1 }, number: 1 };

    fn document(host: &str, path: &str, text: &str) -> Document {
        Document { attempt: ATTEMPT, host: host.into(), path: path.into(), bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_job_shows_its_migrations_in_order_and_what_its_steps_found() {
        let hosts = vec!["host1".parse().unwrap(), "host2".parse().unwrap()];
        let mut params = Params::new();
        params.set("mem", "512", Origin { file: "-p".into(), line: 0 });
        let plan = Plan {
            scenario: "s".into(),
            cases: vec![PlannedCase { name: "s".into(), hosts: hosts.clone(), params, ..PlannedCase::default() }],
            ..Plan::default()
        };
        let plan = OpenPlan::new(plan).unwrap();
        let shown = CaseView {
            id: ATTEMPT.case,
            name: "s".into(),
            scenario: "s".into(),
            hosts,
            state: CaseStateView::Done { verdict: Verdict::Pass, cause: None },
            attempt: Some(ATTEMPT),
            elapsed_ms: Some(3),
            guest_downtime_ms: None,
            qemu_downtime_ms: None,
            migrations: Some(2),
            variant: None,
        };
        let view = JobView {
            id: JobId(5),
            scenario: "s".into(),
            state: JobState::Done,
            user: "me".into(),
            note: None,
            cases: vec![shown.clone()],
            counts: vec![(Some(Verdict::Pass), 1)],
            submitted_unix_ms: 1,
            matrix: None,
        };
        let documents = [
            document("host2", "migrations/vm1-2.json", r#"{"id":{"number":2},"normal_pages":7,"samples":[1,2]}"#),
            document("host1", "migrations/vm1-1.json", r#"{"id":{"number":1},"samples":[]}"#),
            document("host1", "migrations/vm1-9.json", "not json"),
            document(
                "host1",
                "events.jsonl",
                "{\"seq\":1,\"unix_ms\":9,\"what\":{\"step_ended\":{\"step\":\"check\",\"ms\":4,\"note\":\"86 records\"}}}\ntorn",
            ),
            document("host2", "outcome.json", r#"{"outcome":"passed"}"#),
        ];
        let value = job(&view, &plan, vec![case(&shown, &plan, &documents)], &[]);
        let case = &value["cases"][0];
        assert_eq!(case["migrations"][0]["id"]["number"], 1);
        assert_eq!(case["migrations"][1]["samples"], 2, "a count, the samples are in the CSV");
        assert_eq!(case["migrations"][1]["recorded_by"], "host2");
        assert_eq!(case["migrations"].as_array().unwrap().len(), 2);
        assert_eq!(case["steps"][0]["note"], "86 records");
        assert_eq!(case["params"]["mem"], "512");
        assert_eq!(case["outcomes"]["host2"]["outcome"], "passed");
        assert_eq!((&value["counts"]["pass"], &case["verdict"]), (&json!(1), &json!("pass")));
    }
}
