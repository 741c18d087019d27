//! `results.json`, schema `vtmesh/v1/results`: also what `run -o json` and `job show -o json` print.

use serde_json::{Value, json};
use vt_protocol::job::{JobState, JobView};

use super::{Material, moved::Moved};
use crate::{exit, job::views};

/// The whole document.
pub fn results(material: &Material<'_>) -> Value {
    let mut value = of_job(material.job);
    value["evidence"] = json!(material.evidence);
    value["files"] = json!(material.files);
    let hosts = material.hosts.iter().map(|(name, facts)| {
        json!({
            "name": name,
            "vtd": facts.build,
            "kernel": facts.kernel,
            "os": facts.os,
            "cpu_model": facts.cpu_model,
            "qemu_version": facts.qemus.first().map(|qemu| &qemu.version),
            "accelerator": facts.qemus.first().map(|qemu| qemu.accelerator),
        })
    });
    value["hosts"] = json!(hosts.collect::<Vec<_>>());
    for case in value["cases"].as_array_mut().into_iter().flatten() {
        let index = case["index"].as_u64().and_then(|index| u32::try_from(index).ok());
        case["moved"] = json!(index.and_then(|index| material.moved.get(&index)).map(Moved::json));
    }
    value
}

/// What is known without evidence; its keys are there, and null.
pub fn of_job(job: &JobView) -> Value {
    let mut value = views::job_json(job);
    value["schema"] = json!("vtmesh/v1/results");
    value["cases"] = json!(job.cases.iter().map(views::case_json).collect::<Vec<_>>());
    value["exit"] = if job.state == JobState::Done { exit::json(exit::of_job(job)) } else { Value::Null };
    value["evidence"] = Value::Null;
    value["files"] = Value::Null;
    value["hosts"] = Value::Null;
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::tracker::tests::{case, failed, job},
        results::logs::Logs,
    };

    #[test]
    fn the_document_has_job_cases_exit_and_evidence() {
        let job = job(JobState::Done, vec![case(1, failed())]);
        let files = ["job.json".to_owned()];
        let logs = Logs::default();
        let value = results(&Material::at_r(&job, &files, &logs));
        assert_eq!(value["schema"], "vtmesh/v1/results");
        assert_eq!(value["exit"], json!({"code": 100, "name": "failed"}));
        assert_eq!((&value["evidence"], &value["files"][0]), (&json!("/r"), &json!("job.json")));
        assert_eq!(value["cases"][0]["verdict"], "fail");
        assert_eq!(value["counts"]["fail"], 1);
        for key in ["evidence", "files", "hosts"] {
            assert_eq!(of_job(&job).get(key), Some(&Value::Null), "{key}");
        }
    }
}
