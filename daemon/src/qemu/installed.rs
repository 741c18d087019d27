//! The QEMU that is installed: its version, its machine types, and what accelerator works with it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};
use vt_protocol::facts::QemuFacts;

use super::{binaries::Binary, probe, process::resolve_program, qmp::Machine, vm::VmError};

const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// Looks at a QEMU. `cache`: a folder where the probe's result is kept.
pub async fn examine(qemu: Binary<'_>, cache: Option<&Path>) -> Result<QemuFacts, VmError> {
    let path = find(qemu.path)?;
    let version = version(&path).await?;
    let found = match cache {
        Some(folder) => probe::probe_cached(&path, &version, folder).await,
        None => probe::probe(&path).await,
    };
    Ok(QemuFacts {
        name: qemu.name.to_owned(),
        path: path.to_string_lossy().into_owned(),
        version,
        accelerator: found.accelerator,
        accelerator_reason: found.reason,
    })
}

/// Its path.
pub fn find(qemu: &str) -> Result<PathBuf, VmError> {
    resolve_program(qemu).ok_or_else(|| VmError::Missing(qemu.to_owned()))
}

/// Its version as it says it, e.g. `10.0.2 (Debian 1:10.0.2+ds-2)`.
pub async fn version(qemu: &Path) -> Result<String, VmError> {
    let text = ask(qemu, &["--version"]).await?;
    let first = text.lines().next().unwrap_or_default();
    Ok(first.strip_prefix("QEMU emulator version ").unwrap_or(first).chars().take(100).collect())
}

/// Its machine types.
pub async fn machines(qemu: &Path) -> Result<Vec<Machine>, VmError> {
    Ok(parse_machines(&ask(qemu, &["-machine", "help"]).await?))
}

/// Whether it was built with TLS.
pub async fn has_tls(qemu: &Path) -> Result<bool, VmError> {
    Ok(ask(qemu, &["-object", "help"]).await?.contains("tls-creds-x509"))
}

/// The versioned type that `wanted` (a type or its alias) stands for; `None` if this QEMU lacks it.
pub fn versioned<'m>(machines: &'m [Machine], wanted: &str) -> Option<&'m str> {
    let found = machines.iter().find(|m| m.alias.as_deref() == Some(wanted) || m.name == wanted)?;
    Some(&found.name)
}

async fn ask(qemu: &Path, words: &[&str]) -> Result<String, VmError> {
    let missing = |why: String| VmError::Missing(format!("{}: {why}", qemu.display()));
    let output = Command::new(qemu).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(ASK_TIMEOUT, output).await {
        Ok(output) => output.map_err(|error| missing(error.to_string()))?,
        Err(_) => return Err(missing(format!("{words:?} is not answered within {} s", ASK_TIMEOUT.as_secs()))),
    };
    if !output.status.success() {
        let words_said = String::from_utf8_lossy(&output.stderr);
        return Err(missing(format!("{}: {}", output.status, words_said.lines().last().unwrap_or_default())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines such as `pc-q35-10.0   Standard PC (Q35 + ICH9, 2009)`, and for an alias
/// `q35   Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)`.
fn parse_machines(text: &str) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    let mut aliases = Vec::new();
    for line in text.lines().skip(1) {
        let Some((name, about)) = line.split_once(' ') else { continue };
        match about.split_once("(alias of ").and_then(|(_, rest)| rest.split_once(')')) {
            Some((real, _)) => aliases.push((name, real)),
            None => machines.push(Machine {
                name: name.to_owned(),
                alias: None,
                deprecated: about.contains("(deprecated)"),
            }),
        }
    }
    for (alias, real) in aliases {
        if let Some(machine) = machines.iter_mut().find(|machine| machine.name == real) {
            machine.alias = Some(alias.to_owned());
        }
    }
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_leads_to_its_versioned_type() {
        let text = "Supported machines are:\n\
                    pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n\
                    pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)\n\
                    pc-i440fx-2.12       Standard PC (i440FX + PIIX, 1996) (deprecated)\n\
                    q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n\
                    pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)\n\
                    rubbish\n";
        let machines = parse_machines(text);
        assert_eq!(machines.len(), 3);
        assert_eq!(versioned(&machines, "q35"), Some("pc-q35-10.0"));
        assert_eq!(versioned(&machines, "pc-i440fx-2.12"), Some("pc-i440fx-2.12"));
        assert_eq!(versioned(&machines, "virt"), None);
        assert!(machines[1].deprecated && !machines[0].deprecated);
    }
}
