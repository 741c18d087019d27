//! `host.cfg`: what the machine is, as variants that configurations can ask for.
//!
//! Family and model of the CPU are left out: their names come from tables of Avocado, and no known configuration asks for them. A
//! `host.cfg` beside a backend's own files stands in for this one, to tell of other machines than the one vtctl runs on.

use std::path::Path;

use super::written::Written;

/// A machine, in the words of the configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOs {
    /// `RHEL`, `Fedora`, or `Host_` and the distribution's id.
    pub distribution: String,
    /// `m` and the first number of its version.
    pub version: String,
    /// `u` and the second one, 0 where there is none.
    pub release: String,
    /// `Host_arch_` and the machine's architecture.
    pub arch: String,
    /// `intel` or `amd`, where it is one of them.
    pub cpu_vendor: Option<String>,
}

impl HostOs {
    /// This machine, as far as it can be told.
    pub fn here() -> Self {
        let read = |path| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self::of(&read("/etc/os-release"), &read("/proc/cpuinfo"), std::env::consts::ARCH)
    }

    fn of(os_release: &str, cpuinfo: &str, arch: &str) -> Self {
        let field = |name: &str| {
            let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim().trim_matches('"').to_owned()).unwrap_or_default()
        };
        let version = field("VERSION_ID");
        let (version, release) = version.split_once('.').unwrap_or((&version, "0"));
        let distribution = match field("ID").as_str() {
            "rhel" => "RHEL".to_owned(),
            "fedora" => "Fedora".to_owned(),
            id => format!("Host_{}", word(id)),
        };
        let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id")?.split_once(':'));
        let vendor = match vendor.map(|(_, vendor)| vendor.trim()) {
            Some("GenuineIntel") => Some("intel".to_owned()),
            Some("AuthenticAMD") => Some("amd".to_owned()),
            _ => None,
        };
        Self {
            distribution,
            version: format!("m{}", word(version)),
            release: format!("u{}", word(release)),
            arch: format!("Host_arch_{}", word(arch)),
            cpu_vendor: vendor,
        }
    }

    pub(super) fn write(&self) -> Written {
        let mut written = Written::default();
        let nested = |written: &mut Written, names: &[&str]| {
            for (depth, name) in names.iter().enumerate() {
                written.line(8 * depth, "variants:");
                written.line(8 * depth + 4, &format!("- @{name}:"));
            }
        };
        nested(&mut written, &["Host", &self.distribution, &self.version, &self.release, &self.arch]);
        if let Some(vendor) = &self.cpu_vendor {
            nested(&mut written, &["HostCpuVendor", vendor]);
        }
        written
    }
}

/// What else than letters, digits, `_` and `-` cannot be in a name of one part.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_as_configurations_ask_for_it() {
        let rhel =
            HostOs::of("NAME=\"Red Hat\"\nID=\"rhel\"\nVERSION_ID=\"9.4\"\n", "vendor_id\t: GenuineIntel\n", "x86_64");
        let want = "\
variants:
    - @Host:
        variants:
            - @RHEL:
                variants:
                    - @m9:
                        variants:
                            - @u4:
                                variants:
                                    - @Host_arch_x86_64:
variants:
    - @HostCpuVendor:
        variants:
            - @intel:
";
        assert_eq!(rhel.write().text(), want);
        let debian = HostOs::of("ID=debian\nVERSION_ID=\"13\"\n", "", "aarch64");
        assert_eq!((debian.distribution.as_str(), debian.version.as_str()), ("Host_debian", "m13"));
        assert_eq!((debian.release.as_str(), debian.cpu_vendor), ("u0", None));
    }
}
