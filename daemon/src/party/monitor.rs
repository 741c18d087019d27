//! What a scenario may have a VM's QEMU do: what a person would at the machine, and questions. Never what touches who may
//! run the VM, or where: that is decided by the cluster.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::{Answer, Failure},
};

use super::{attempt::LocalAttempt, failure::caused, local_vm::LocalVm};

/// Commands that change something.
const ALLOWED: &[&str] = &[
    "system_reset",
    "system_wakeup",
    "system_powerdown",
    "send-key",
    "device_add",
    "device_del",
    "blockdev-add",
    "blockdev-del",
    "blockdev-open-tray",
    "blockdev-close-tray",
    "blockdev-remove-medium",
    "blockdev-insert-medium",
];
/// What a block device may be made of: nothing that is a file of the host.
const BLOCK_DRIVERS: &[&str] = &["null-co"];
/// Most words a VM can be reshaped with, and the longest of them, bytes.
const WORDS_MAX: (usize, usize) = (64, 1024);
/// How long QEMU may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a scenario may give this command.
pub(crate) fn is_allowed(command: &str) -> bool {
    let plain = command.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'-' | b'_'));
    plain && command.len() <= 64 && (command.starts_with("query-") || ALLOWED.contains(&command))
}

impl LocalAttempt {
    /// Passes a command on to the QEMU of a VM on this host.
    ///
    /// # Errors
    /// The VM is not here, a scenario may not give that command, or QEMU refuses it.
    pub(super) async fn monitor(&self, name: &Name, command: &str, arguments: Value) -> Result<Answer, Failure> {
        if !is_allowed(command) {
            let command: String = command.chars().take(64).collect();
            let title = format!("a scenario may not tell QEMU {command:?}");
            let allowed = format!("query-…, {}", ALLOWED.join(", "));
            return Err(caused(Report::new(ErrorCode::BadParameter, title).with("allowed", allowed)));
        }
        let driver = arguments.get("driver").and_then(Value::as_str).unwrap_or_default();
        if command == "blockdev-add" && !BLOCK_DRIVERS.contains(&driver) {
            let title = format!("a scenario may not add a block device of driver {driver:?}");
            let allowed = BLOCK_DRIVERS.join(", ");
            return Err(caused(Report::new(ErrorCode::BadParameter, title).with("allowed", allowed)));
        }
        match self.vm_here(name)?.qemu.qmp().execute(command, arguments, PATIENCE).await {
            Ok(value) => Ok(Answer::Monitor(value)),
            Err(error) => Err(caused(error.report())),
        }
    }

    /// Notes how a VM's devices have changed.
    ///
    /// # Errors
    /// The VM is not here, there are too many words, or they could not be kept.
    pub(super) fn reshape(&self, name: &Name, words: Vec<String>) -> Result<Answer, Failure> {
        let (most, longest) = WORDS_MAX;
        if words.len() > most || words.iter().any(|word| word.len() > longest) {
            let title = format!("a VM is reshaped with at most {most} words of at most {longest} bytes");
            return Err(caused(Report::new(ErrorCode::TooLarge, title)));
        }
        self.vm_here(name)?.reshape(words).map(|()| Answer::Done).map_err(|error| {
            let title = format!("the devices of {name} could not be noted");
            caused(Report::new(ErrorCode::StorageFailed, title).caused_by(&error))
        })
    }

    fn vm_here(&self, name: &Name) -> Result<Arc<LocalVm>, Failure> {
        self.vm(name).ok_or_else(|| {
            let title = format!("{name} is not on {}", self.name_of(self.me()));
            caused(Report::new(ErrorCode::NotOwner, title))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_decides_where_a_vm_runs_is_passed_on() {
        for good in ["system_reset", "system_wakeup", "query-status", "query-migrate-capabilities"] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "cont",
            "stop",
            "quit",
            "migrate",
            "migrate-continue",
            "",
            "QUERY-status",
            "query-x;quit",
            "human-monitor-command",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
