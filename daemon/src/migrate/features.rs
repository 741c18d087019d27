//! What a QEMU can do, asked of a QEMU that runs nothing: version, machine types, CPU models, devices, migration
//! capabilities.
//!
//! Asked once per binary and kept; a binary that was replaced is asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use vt_protocol::error::{ErrorCode, Report};

use crate::qemu::process::resolve_program;

/// QEMU runs nothing here; more than this is a QEMU that hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const QUESTIONS: &str = r#"{"execute":"qmp_capabilities"}
{"execute":"query-version","id":"version"}
{"execute":"query-machines","id":"machines"}
{"execute":"query-cpu-definitions","id":"cpus"}
{"execute":"query-migrate-capabilities","id":"capabilities"}
{"execute":"qom-list-types","arguments":{"implements":"device"},"id":"devices"}
{"execute":"quit"}
"#;

/// What one QEMU can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features {
    /// Its version, `10.0.2`.
    pub version: String,
    /// Machine types: name, and the other name where there is one.
    pub machines: Vec<(String, Option<String>)>,
    /// CPU models.
    pub cpus: Vec<String>,
    /// Migration capabilities.
    pub capabilities: Vec<String>,
    /// Models of devices.
    pub devices: BTreeSet<String>,
}

impl Features {
    /// The versioned name of a machine type; `None` where this QEMU has it under neither name.
    pub fn machine(&self, name: &str) -> Option<&str> {
        machine_in(&self.machines, name)
    }

    /// Whether it has the CPU model of that `-cpu` word, which may carry flags behind a comma.
    pub fn has_cpu(&self, word: &str) -> bool {
        let name = word.split(',').next().unwrap_or(word);
        self.cpus.iter().any(|cpu| cpu == name)
    }
}

/// The versioned name of a machine type among those of a QEMU, each with its other name.
pub(crate) fn machine_in<'m>(machines: &'m [(String, Option<String>)], name: &str) -> Option<&'m str> {
    let by_name = machines.iter().find(|(machine, _)| machine == name);
    let by_alias = || machines.iter().find(|(_, alias)| alias.as_deref() == Some(name));
    by_name.or_else(by_alias).map(|(machine, _)| machine.as_str())
}

type Key = (PathBuf, Option<SystemTime>, u64);

/// Features of the QEMUs asked so far.
#[derive(Debug, Default)]
pub struct FeatureCache {
    known: Mutex<BTreeMap<Key, Arc<Features>>>,
}

impl FeatureCache {
    /// The features of a QEMU, by path or name in `PATH`.
    ///
    /// # Errors
    /// It is not there, cannot be run, or does not answer.
    pub async fn of(&self, qemu: &str) -> Result<Arc<Features>, Report> {
        let path = resolve_program(qemu).ok_or_else(|| missing(qemu))?;
        let meta = std::fs::metadata(&path).map_err(|error| missing(qemu).caused_by(&error))?;
        let key = (path.clone(), meta.modified().ok(), meta.len());
        if let Some(features) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(features.clone());
        }
        let features = Arc::new(ask(&path).await?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(other, ..), _| *other != path);
        known.insert(key, features.clone());
        Ok(features)
    }
}

fn missing(qemu: &str) -> Report {
    Report::new(ErrorCode::QemuMissing, format!("QEMU is not there or cannot be run: {qemu}"))
        .with("binary", qemu)
        .help("apt-get install qemu-system-x86")
        .help("set qemu.binary in the daemon's settings")
}

async fn ask(path: &std::path::Path) -> Result<Features, Report> {
    let name = path.display().to_string();
    let mut child = Command::new(path)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(&name).caused_by(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A QEMU that ended at once is told by its output.
        let _ = stdin.write_all(QUESTIONS.as_bytes()).await;
        // The end of its monitor's input would not end it, but `quit` does.
        drop(stdin);
    }
    let output = match timeout(PATIENCE, child.wait_with_output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(missing(&name).caused_by(&error)),
        Err(_) => {
            return Err(Report::new(ErrorCode::QmpFailed, format!("{name} does not answer on its monitor")).retryable());
        }
    };
    parse(&output.stdout).ok_or_else(|| {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Report::new(ErrorCode::QemuDied, format!("{name} did not say what it can do"))
            .with("stderr", if words.is_empty() { "(nothing)".to_owned() } else { words })
            .with("exit", output.status.to_string())
    })
}

fn parse(bytes: &[u8]) -> Option<Features> {
    let mut answers = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(Value::Object(mut answer)) = serde_json::from_slice::<Value>(line) else { continue };
        if let (Some(Value::String(id)), Some(value)) = (answer.remove("id"), answer.remove("return")) {
            answers.insert(id, value);
        }
    }
    let version = &answers.get("version")?["qemu"];
    let number = |key: &str| version[key].as_u64();
    let names = |id: &str, key: &str| -> Option<Vec<String>> {
        let rows = answers.get(id)?.as_array()?;
        Some(rows.iter().filter_map(|row| row.get(key)?.as_str().map(str::to_owned)).collect())
    };
    let machines = answers.get("machines")?.as_array()?;
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Features {
        version: format!("{}.{}.{}", number("major")?, number("minor")?, number("micro")?),
        machines: machines.iter().filter_map(|row| Some((text(row, "name")?, text(row, "alias")))).collect(),
        // Some machines have no CPU models to list; then the check has nothing to say.
        cpus: names("cpus", "name").unwrap_or_default(),
        capabilities: names("capabilities", "capability")?,
        devices: names("devices", "name").unwrap_or_default().into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_real_qemu_says_what_it_can_do() {
        let cache = FeatureCache::default();
        let features = cache.of("qemu-system-x86_64").await.unwrap();
        assert!(features.version.split('.').count() == 3, "{}", features.version);
        let q35 = features.machine("q35").unwrap();
        assert!(q35.starts_with("pc-q35-"), "{q35}");
        assert_eq!(features.machine(q35), Some(q35));
        assert_eq!(features.machine("no-such-machine"), None);
        assert!(features.has_cpu("qemu64") && features.has_cpu("qemu64,+avx") && !features.has_cpu("no-such-cpu"));
        assert!(features.capabilities.iter().any(|c| c == "late-block-activate"));
        assert!(features.devices.contains("virtio-blk-pci") && !features.devices.contains("no-such-device"));
        assert!(Arc::ptr_eq(&features, &cache.of("qemu-system-x86_64").await.unwrap()), "asked once");
    }

    #[tokio::test]
    async fn what_is_no_qemu_is_an_error_that_names_it() {
        let cache = FeatureCache::default();
        assert_eq!(cache.of("/no/such/qemu").await.unwrap_err().code, ErrorCode::QemuMissing);
        let report = cache.of("/bin/false").await.unwrap_err();
        assert_eq!(report.code, ErrorCode::QemuDied);
        assert!(report.title.contains("/bin/false"), "{}", report.title);
        assert_eq!(cache.of("/bin/cat").await.unwrap_err().code, ErrorCode::QemuDied, "an echo is no answer");
    }

    #[test]
    fn rubbish_is_no_answer() {
        for text in ["", "{}", "[1]\n{\"id\":1}", r#"{"id":"version","return":{"qemu":{"major":"x"}}}"#] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
