//! The ways in which `migration_matrix` moves a guest: each a name and the parameters that a user would type for it.
//!
//! One way is one cell. What a way says is read by the code that reads what users type, so that every cell can be done
//! again by `multihost_migration` with the same parameters. A way that no spec allows is here too: its rule is shown.

use vt_protocol::{
    params::{Origin, ParamError, Params},
    vm::MigrationSpec,
};

use super::transfer;
use crate::{
    libvirt::{modes::modes, options},
    migrate::rules,
    nearest::nearest,
};

/// A way of moving a VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) params: &'static [(&'static str, &'static str)],
}

/// The few that every change is tested with.
const SAMPLE: &[&str] = &["tcp", "tls", "mesh", "file-mapped-ram", "multifd-zstd", "postcopy-recover"];
/// Every phase in which a transfer can be cancelled, or is broken and recovered.
const CANCELS: &[&str] = &[
    "cancel-setup",
    "cancel-active",
    "cancel-pass-2",
    "cancel-pre-switchover",
    "cancel-device",
    "cancel-postcopy-wait",
    "postcopy-recover",
];

const PROTOCOL: &str = "mig_protocol";
const CAPABILITIES: &str = "capabilities";
const PARAMETERS: &str = "parameters";
const VIRSH: &str = options::KEY;
const OFFLINE: (&str, &str) = ("mig_offline", "yes");
const SLOW: (&str, &str) = ("mig_speed", "24M");
/// Slow enough that pages are missing when the connection breaks.
const SLOW_PAGES: (&str, &str) = (PARAMETERS, "max-postcopy-bandwidth=16777216");

const fn way(name: &'static str, params: &'static [(&'static str, &'static str)]) -> Way {
    Way { name, params }
}

/// Transports in the default mode, modes over tcp, and where they combine.
const WAYS: &[Way] = &[
    way("tcp", &[(PROTOCOL, "tcp")]),
    way("tcp6", &[(PROTOCOL, "tcp6")]),
    way("tls", &[(PROTOCOL, "tls")]),
    way("mesh", &[(PROTOCOL, "mesh")]),
    way("fd", &[(PROTOCOL, "fd")]),
    way("exec", &[(PROTOCOL, "exec")]),
    way("file", &[(PROTOCOL, "file")]),
    way("rdma", &[(PROTOCOL, "rdma")]),
    way("tcp-offline", &[(PROTOCOL, "tcp"), OFFLINE]),
    way("tcp6-offline", &[(PROTOCOL, "tcp6"), OFFLINE]),
    way("tls-offline", &[(PROTOCOL, "tls"), OFFLINE]),
    way("mesh-offline", &[(PROTOCOL, "mesh"), OFFLINE]),
    way("fd-offline", &[(PROTOCOL, "fd"), OFFLINE]),
    way("exec-offline", &[(PROTOCOL, "exec"), OFFLINE]),
    way("file-offline", &[("host_mig_offline", "yes")]),
    way("rdma-offline", &[(PROTOCOL, "rdma"), OFFLINE]),
    way("multifd", &[(CAPABILITIES, "multifd")]),
    way("multifd-4", &[(CAPABILITIES, "multifd"), (PARAMETERS, "multifd-channels=4")]),
    way("multifd-zlib", &[(CAPABILITIES, "multifd"), (PARAMETERS, "multifd-compression=zlib")]),
    way("multifd-zstd", &[(CAPABILITIES, "multifd"), (PARAMETERS, "multifd-compression=zstd")]),
    way("multifd-legacy-zero", &[(CAPABILITIES, "multifd"), (PARAMETERS, "zero-page-detection=legacy")]),
    way("multifd-offline", &[(CAPABILITIES, "multifd"), OFFLINE]),
    way("multifd-zstd-offline", &[(CAPABILITIES, "multifd"), (PARAMETERS, "multifd-compression=zstd"), OFFLINE]),
    way("multifd-tcp6", &[(CAPABILITIES, "multifd"), (PROTOCOL, "tcp6")]),
    way("multifd-tls", &[(CAPABILITIES, "multifd"), (PROTOCOL, "tls")]),
    way("multifd-mesh", &[(CAPABILITIES, "multifd"), (PARAMETERS, "multifd-channels=4"), (PROTOCOL, "mesh")]),
    way("multifd-fd", &[(CAPABILITIES, "multifd"), (PROTOCOL, "fd")]),
    way("multifd-auto-converge", &[(CAPABILITIES, "multifd auto-converge")]),
    way("zero-copy-send", &[(CAPABILITIES, "multifd zero-copy-send")]),
    way("zero-copy-send-tls", &[(CAPABILITIES, "multifd zero-copy-send"), (PROTOCOL, "tls")]),
    way("postcopy", &[("at", "active postcopy"), SLOW]),
    way("postcopy-after-2", &[("at", "pass:2 postcopy"), SLOW]),
    way("postcopy-preempt", &[(CAPABILITIES, "postcopy-ram postcopy-preempt"), ("at", "active postcopy"), SLOW]),
    way("postcopy-recover", &[("at", "active postcopy; postcopy-active break"), SLOW, SLOW_PAGES]),
    way("postcopy-tls", &[("at", "active postcopy"), SLOW, (PROTOCOL, "tls")]),
    way("postcopy-mesh", &[("at", "active postcopy"), SLOW, (PROTOCOL, "mesh")]),
    way(
        "postcopy-recover-mesh",
        &[("at", "active postcopy; postcopy-active break"), SLOW, SLOW_PAGES, (PROTOCOL, "mesh")],
    ),
    way("postcopy-exec", &[("at", "active postcopy"), (PROTOCOL, "exec")]),
    way("xbzrle", &[(CAPABILITIES, "xbzrle"), (PARAMETERS, "xbzrle-cache-size=8388608")]),
    way("xbzrle-mesh", &[(CAPABILITIES, "xbzrle"), (PROTOCOL, "mesh")]),
    way("xbzrle-offline", &[(CAPABILITIES, "xbzrle"), OFFLINE]),
    way("auto-converge", &[(CAPABILITIES, "auto-converge"), (PARAMETERS, "cpu-throttle-initial=30")]),
    way("auto-converge-xbzrle", &[(CAPABILITIES, "auto-converge xbzrle")]),
    way("auto-converge-offline", &[(CAPABILITIES, "auto-converge"), OFFLINE]),
    way("dirty-limit", &[(CAPABILITIES, "dirty-limit")]),
    way("return-path", &[(CAPABILITIES, "return-path")]),
    way("switchover-ack", &[(CAPABILITIES, "return-path switchover-ack")]),
    way("switchover-ack-exec", &[(CAPABILITIES, "return-path switchover-ack"), (PROTOCOL, "exec")]),
    way("pause-before-switchover", &[(CAPABILITIES, "pause-before-switchover")]),
    way("validate-uuid", &[(CAPABILITIES, "validate-uuid")]),
    way("dirty-bitmaps", &[(CAPABILITIES, "dirty-bitmaps")]),
    way("zero-blocks", &[(CAPABILITIES, "zero-blocks")]),
    way("compress", &[(CAPABILITIES, "compress")]),
    way("file-mapped-ram", &[(PROTOCOL, "file"), (CAPABILITIES, "mapped-ram")]),
    way("file-mapped-ram-offline", &[("host_mig_offline", "yes"), (CAPABILITIES, "mapped-ram")]),
    way("file-mapped-ram-multifd", &[(PROTOCOL, "file"), (CAPABILITIES, "mapped-ram multifd")]),
    way("mapped-ram-tcp", &[(CAPABILITIES, "mapped-ram")]),
    way("background-snapshot", &[(CAPABILITIES, "background-snapshot")]),
    way("speed", &[SLOW]),
    way("speed-changed", &[SLOW, ("at", "active max-bandwidth=1000000000")]),
    way("downtime", &[("downtime_limit", "50")]),
    way("downtime-changed", &[("downtime_limit", "50"), ("at", "active downtime-limit=2000")]),
    way("stopped-meanwhile", &[("at", "active stop")]),
    way("everything", &[(CAPABILITIES, "return-path switchover-ack xbzrle auto-converge validate-uuid")]),
    way("managed", &[(VIRSH, "--live")]),
    way("managed-parallel", &[(VIRSH, "--live --parallel --parallel-connections 3")]),
    way("cancel-setup", &[("at", "setup cancel")]),
    way("cancel-active", &[("at", "active cancel"), SLOW]),
    way("cancel-pass-2", &[("at", "pass:2 cancel"), SLOW, ("downtime_limit", "1")]),
    way("cancel-pre-switchover", &[("at", "pre-switchover cancel")]),
    way("cancel-device", &[("at", "device cancel")]),
    way("cancel-postcopy-wait", &[(CAPABILITIES, "postcopy-ram"), ("at", "active cancel"), SLOW]),
    way("cancel-postcopy-active", &[("at", "active postcopy; postcopy-active cancel"), SLOW]),
    way("cancel-mesh", &[("at", "active cancel"), SLOW, (PROTOCOL, "mesh")]),
    way("cancel-tls", &[("at", "active cancel"), SLOW, (PROTOCOL, "tls")]),
];

/// The ways that a case is to go: its `ways`.
pub(super) fn chosen(params: &Params) -> Result<Vec<&'static Way>, ParamError> {
    let named = |name: &&str| WAYS.iter().find(|way| way.name == *name);
    let known = |name: &&str| named(name).ok_or_else(|| params.error("ways", known_ways(name)));
    match &params.list("ways", None)[..] {
        [] | ["all"] => Ok(WAYS.iter().collect()),
        ["sample"] => Ok(SAMPLE.iter().filter_map(named).collect()),
        ["cancels"] => Ok(CANCELS.iter().filter_map(named).collect()),
        ["modes"] => Ok(WAYS.iter().filter(|way| way.is_mode()).collect()),
        names => names.iter().map(known).collect(),
    }
}

fn known_ways(name: &str) -> String {
    let near = nearest(name, WAYS.iter().map(|way| way.name));
    let near = near.map(|near| format!("; did you mean {near}")).unwrap_or_default();
    format!("all, modes, sample, cancels, or names of ways ({name} is none{near})")
}

impl Way {
    /// Whether it is a transport as it is, or a mode over tcp.
    fn is_mode(&self) -> bool {
        let (carried, other): (Vec<_>, Vec<_>) = self.params.iter().partition(|(key, _)| *key == PROTOCOL);
        let paused = other.iter().any(|(key, _)| key.ends_with("mig_offline"));
        !paused && (carried.is_empty() || other.is_empty()) && !self.name.starts_with("cancel-")
    }

    /// As it would be typed.
    pub(super) fn typed(&self) -> String {
        let words = self.params.iter().map(|(key, value)| {
            let word = format!("{key}={value}");
            if word.contains(' ') { format!("-p \"{word}\"") } else { format!("-p {word}") }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// What it means, upon what is set for all.
    ///
    /// # Errors
    /// The rule that it breaks, of ours or, where libvirt is to move the VM, of what is done through that.
    pub(super) fn spec(&self, all: &Params) -> Result<MigrationSpec, String> {
        let mut params = all.clone();
        for (key, value) in self.params {
            params.set(*key, *value, Origin { file: self.name.to_owned(), line: 0 });
        }
        let spec = transfer::read_any(&params).map_err(|error| error.to_string())?;
        let by_libvirt = params.text("vm_type").is_some_and(|kind| kind.trim() == "libvirt");
        match rules::broken(&spec) {
            Some(rule) => Err(rule),
            None if by_libvirt => modes(&spec).map(|_| spec),
            None => Ok(spec),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_way_has_a_name_of_its_own_and_is_a_spec_or_breaks_a_rule() {
        let names: BTreeSet<&str> = WAYS.iter().map(|way| way.name).collect();
        assert_eq!(names.len(), WAYS.len());
        let modes: Vec<&str> = WAYS.iter().filter(|way| way.is_mode()).map(|way| way.name).collect();
        assert_eq!(modes[..9], ["tcp", "tcp6", "tls", "mesh", "fd", "exec", "file", "rdma", "multifd"]);
        assert!(modes.contains(&"speed") && !modes.contains(&"multifd-tls") && modes.len() > 30, "{modes:?}");
        assert!(SAMPLE.iter().chain(CANCELS).all(|name| names.contains(name)));
        let none = Params::new();
        let mut by_libvirt = Params::new();
        by_libvirt.set("vm_type", "libvirt", Origin { file: "-p".into(), line: 0 });
        let fd = WAYS.iter().find(|way| way.name == "fd").unwrap();
        assert!(fd.spec(&none).is_ok() && fd.spec(&by_libvirt).unwrap_err().contains("through libvirt"));
        let barred: Vec<&str> = WAYS.iter().filter(|way| way.spec(&none).is_err()).map(|way| way.name).collect();
        let want = [
            "multifd-fd",
            "zero-copy-send-tls",
            "postcopy-exec",
            "switchover-ack-exec",
            "mapped-ram-tcp",
            "background-snapshot",
            "managed",
            "managed-parallel",
            "cancel-postcopy-active",
        ];
        assert_eq!(barred, want);
    }

    #[test]
    fn ways_are_chosen_by_name_and_stand_upon_what_is_set_for_all() {
        let set = |pairs: &[(&str, &str)]| {
            let mut params = Params::new();
            for (key, value) in pairs {
                params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
            }
            params
        };
        let names =
            |text| chosen(&set(&[("ways", text)])).map(|ways| ways.iter().map(|way| way.name).collect::<Vec<_>>());
        assert_eq!(names("tls  tcp").unwrap(), ["tls", "tcp"]);
        assert_eq!(names("cancels").unwrap(), CANCELS);
        assert_eq!(names("").unwrap().len(), WAYS.len());
        assert!(names("mulltifd").unwrap_err().want.contains("did you mean multifd"));
        let slow = chosen(&set(&[("ways", "speed tcp")])).unwrap();
        let all = set(&[("mig_speed", "1M"), ("mig_timeout", "9")]);
        let bandwidth = |way: &Way| way.spec(&all).unwrap().parameters["max-bandwidth"];
        assert_eq!((bandwidth(slow[0]), bandwidth(slow[1])), (24 << 20, 1 << 20));
        assert_eq!(slow[0].spec(&all).unwrap().timeout_ms, 9000);
    }
}
