//! What this host says of itself, gathered when the daemon starts.
//!
//! Only reading: /proc, /etc/os-release and the directory of images. The QEMU probe runs guests and is given from
//! outside. A fact that cannot be read is shown as unknown; facts never stop a daemon.

use std::{fs, path::Path, sync::Arc};

use tokio::sync::watch;
use vt_protocol::{
    facts::{HostFacts, PoolFacts, QemuFacts},
    hello::BUILD,
    image::RECORD_FILE,
};

use crate::settings::Settings;

/// Most images that are listed.
const IMAGES_MAX: usize = 256;

/// The facts as they are known so far: the QEMU probe may take a while under emulation.
#[derive(Debug)]
pub struct Facts {
    known: watch::Sender<HostFacts>,
    settings: Arc<Settings>,
}

impl Facts {
    /// Gathers all but the QEMU probe.
    pub fn new(settings: Arc<Settings>) -> Arc<Self> {
        Arc::new(Self { known: watch::Sender::new(gather(&settings)), settings })
    }

    /// Adds what the probe found of all QEMUs, the default first.
    pub fn set_qemus(&self, qemus: Vec<QemuFacts>) {
        self.known.send_modify(|facts| facts.qemus = qemus);
    }

    /// The facts, with the pool as it is at this moment.
    pub fn now(&self) -> HostFacts {
        let mut facts = self.known.borrow().clone();
        facts.pool = pool(&self.settings.paths.images, self.settings.pool_shared);
        facts
    }

    /// The facts that stay as they are while the daemon runs, told when more is known.
    pub fn watch(&self) -> watch::Receiver<HostFacts> {
        self.known.subscribe()
    }
}

/// Gathers the facts but those of QEMU.
pub fn gather(settings: &Settings) -> HostFacts {
    let unknown = || "unknown".to_owned();
    let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_else(|_| unknown());
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    HostFacts {
        build: BUILD.to_owned(),
        kernel: line("/proc/sys/kernel/osrelease"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        os: field(&os, "PRETTY_NAME", '=').map_or_else(unknown, |name| name.trim_matches('"').to_owned()),
        cpu_model: field(&cpuinfo, "model name", ':').map_or_else(unknown, str::to_owned),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: field(&meminfo, "MemTotal", ':').and_then(kibibytes).unwrap_or(0),
        qemus: Vec::new(),
        kind: settings.host.kind.as_str().to_owned(),
        pool: pool(&settings.paths.images, settings.pool_shared),
        times_ms: settings.times().map(|(name, time)| (name.to_owned(), time.as_millis() as u64)).collect(),
        hypervisor: hypervisor(&cpuinfo),
        cpu_virtualisation: cpu_virtualisation(&cpuinfo).unwrap_or("none").to_owned(),
    }
}

/// Whether the first CPU has this flag.
pub(crate) fn cpu_has(cpuinfo: &str, flag: &str) -> bool {
    field(cpuinfo, "flags", ':').unwrap_or_default().split_whitespace().any(|word| word == flag)
}

/// What the CPU has for VMs.
pub(crate) fn cpu_virtualisation(cpuinfo: &str) -> Option<&'static str> {
    ["vmx", "svm"].into_iter().find(|flag| cpu_has(cpuinfo, flag))
}

fn hypervisor(cpuinfo: &str) -> String {
    if !cpu_has(cpuinfo, "hypervisor") {
        return "none".to_owned();
    }
    let dmi = |name: &str| fs::read_to_string(format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
    let maker = [dmi("sys_vendor"), dmi("product_name")].map(|text| text.trim().to_owned()).join(" ");
    if maker.trim().is_empty() { "unknown".to_owned() } else { maker.trim().to_owned() }
}

/// The pool as it is now: images come and go while the daemon runs.
pub fn pool(images: &Path, shared: bool) -> PoolFacts {
    let entries = fs::read_dir(images).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join(RECORD_FILE).is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .take(IMAGES_MAX)
        .collect();
    names.sort();
    PoolFacts { path: images.display().to_string(), shared, images: names }
}

pub(crate) fn field<'t>(text: &'t str, name: &str, between: char) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(between)?;
        (key.trim() == name).then(|| value.trim())
    })
}

pub(crate) fn kibibytes(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_host_has_facts() {
        let facts = gather(&Settings::default());
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(facts.memory_bytes > 1 << 24 && facts.cpus > 0, "{facts:?}");
        assert_eq!(facts.kind, "metal");
        assert!(!facts.hypervisor.is_empty(), "{facts:?}");
    }

    #[test]
    fn what_a_cpu_has_for_vms_is_a_whole_word_of_its_flags() {
        let cpu = |flags: &str| format!("processor : 0\nmodel name : svm\nflags\t\t: {flags}\n");
        assert_eq!(cpu_virtualisation(&cpu("fpu vme svm")), Some("svm"));
        assert_eq!(cpu_virtualisation(&cpu("fpu vmx ept")), Some("vmx"));
        assert_eq!(cpu_virtualisation(&cpu("fpu svm_lock")), None);
        assert_eq!(hypervisor(&cpu("fpu svm")), "none");
    }

    #[test]
    fn an_image_is_a_folder_with_a_record() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b", "a", "half"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        for name in ["b", "a"] {
            fs::write(directory.path().join(name).join(RECORD_FILE), "{}").unwrap();
        }
        assert_eq!(pool(directory.path(), true).images, ["a", "b"]);
        assert!(pool(Path::new("/nowhere"), false).images.is_empty());
    }
}
