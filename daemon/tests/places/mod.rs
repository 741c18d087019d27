//! Where the VMs of a test live, and a VM that needs no guest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use vt_daemon::{
    cgroup::Cgroups,
    qemu::{Resolved, VmPlaces, VmSetup, remains},
};
use vt_protocol::{
    ids::{Name, VmId},
    vm::{Accelerator, Backend, VmSpec},
};

/// A folder of its own, gone with everything in it at the end of the test.
pub(crate) struct Places {
    dir: tempfile::TempDir,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("vmt").tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.root().join("run").join(name)
    }

    pub(crate) fn vm(&self, name: &str) -> VmPlaces {
        VmPlaces {
            in_flight: std::time::Duration::from_secs(2),
            run_dir: self.run_dir(name),
            evidence: self.root().join("evidence").join(name),
            vtd: env!("CARGO_BIN_EXE_vtd").into(),
            cgroups: Cgroups::detect("vtmesh-tests".as_ref()).ok(),
        }
    }

    pub(crate) fn inventory(&self) -> BTreeSet<String> {
        remains::inventory(&self.root().join("run"), Cgroups::detect("vtmesh-tests".as_ref()).ok().as_ref())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // A failed test must not leave a QEMU behind.
        for dir in remains::run_dirs(&self.root().join("run")) {
            remains::clear(&dir);
        }
    }
}

/// A PC with 16 MiB, stopped, that boots nothing.
pub(crate) fn setup(name: &str) -> VmSetup {
    VmSetup {
        spec: VmSpec {
            id: VmId { attempt: "7f3k2a.1.1".parse().unwrap(), name: name.parse::<Name>().unwrap() },
            image: "none".parse().unwrap(),
            memory_mib: 32,
            cpus: 1,
            machine: None,
            cpu_model: None,
            accelerator: None,
            nics: vec![],
            extra_args: vec![],
            drives: vec![],
            check_images: false,
            backend: Backend::Qmp,
            io_thread: false,
        },
        resolved: Resolved { machine: "q35".into(), accelerator: Accelerator::Tcg, cpu_model: "qemu64".into() },
        qemu: "qemu-system-x86_64".into(),
        boot: None,
        disk: None,
        drives: vec![],
        cables: vec![],
        bridge: None,
        uplink: None,
        memory_in_file: false,
        incoming: false,
    }
}
