//! Through what each case moved its VM, and between which QEMUs: read from `job.json`, where the hosts that moved it have
//! said so. A case that moved nothing says nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A case's first move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// `qmp` or `libvirt`.
    pub backend: Option<String>,
    /// Version of the QEMU that it left.
    pub from: Option<String>,
    /// Version of the QEMU that it came to.
    pub to: Option<String>,
}

impl Moved {
    /// Of every case that moved something, by its index.
    pub fn of_job(job: &Value) -> BTreeMap<u32, Self> {
        let cases = job["cases"].as_array().into_iter().flatten();
        let of_case = |case: &Value| {
            let first = case["migrations"].as_array()?.first()?;
            let text = |key: &str| first[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
            let index = u32::try_from(case["index"].as_u64()?).ok()?;
            Some((index, Self { backend: text("backend"), from: text("source_qemu"), to: text("destination_qemu") }))
        };
        cases.filter_map(of_case).collect()
    }

    /// As it stands in a case of `results.json`.
    pub(super) fn json(&self) -> Value {
        json!({"backend": self.backend, "source_qemu": self.from, "destination_qemu": self.to})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_move_of_each_case_counts_and_what_is_not_said_is_not_made_up() {
        let job = json!({"cases": [
            {"index": 1, "migrations": [
                {"backend": "libvirt", "source_qemu": "7.2.22", "destination_qemu": "10.0.8"},
                {"backend": "libvirt", "source_qemu": "10.0.8", "destination_qemu": "7.2.22"},
            ]},
            {"index": 2, "migrations": []},
            {"index": 3, "migrations": [{"backend": "qmp", "source_qemu": ""}]},
            {"index": "4"},
        ]});
        let text = |text: &str| Some(text.to_owned());
        let moved = Moved::of_job(&job);
        assert_eq!(moved[&1], Moved { backend: text("libvirt"), from: text("7.2.22"), to: text("10.0.8") });
        assert_eq!(moved[&3], Moved { backend: text("qmp"), from: None, to: None });
        assert_eq!(moved.len(), 2);
        assert!(Moved::of_job(&json!("nothing")).is_empty());
    }
}
