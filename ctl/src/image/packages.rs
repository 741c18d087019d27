//! Packages of the distribution, through this machine's own apt: which versions, which libraries they need, their
//! files. Nothing is installed.
//!
//! apt checks the signatures of its lists; every file, fresh or from the cache, is checked against the lists' SHA-256.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use vt_protocol::image::ImagePackage;

use super::{Event, error::ImageError, program::run};

/// Most packages in one image: a bound on following dependencies.
const PACKAGES_MAX: usize = 160;

/// What apt's lists say about the version it would install.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    name: String,
    version: String,
    architecture: String,
    section: String,
    sha256: String,
    bytes: u64,
    depends: Vec<Vec<String>>,
}

/// A package whose file is in the cache.
#[derive(Debug, Clone)]
pub(super) struct Package {
    pub(super) identity: ImagePackage,
    pub(super) file: PathBuf,
}

/// This machine's architecture, in dpkg's words.
pub(super) fn architecture(folder: &Path) -> Result<String, ImageError> {
    let said = run("dpkg", ["--print-architecture"], "asking for the architecture", folder)?;
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

/// The package that a meta package such as `linux-image-cloud-amd64` stands for: its first dependency.
pub(super) fn behind(meta: &str, cache: &Path) -> Result<String, ImageError> {
    let record = show(&[meta.to_owned()], cache)?.pop().ok_or_else(|| ImageError::NoPackage(meta.into()))?;
    let first = record.depends.first().and_then(|alternatives| alternatives.first()).cloned();
    first.ok_or_else(|| ImageError::PackageRecord { package: meta.into(), field: "Depends" })
}

/// Fetches packages into `cache`: `with_libraries` and the libraries they depend on, and `alone` without any.
/// `work` is for what is half done.
pub(super) fn fetch(
    with_libraries: &[&str],
    alone: &str,
    cache: &Path,
    work: &Path,
    progress: &mut dyn FnMut(Event),
) -> Result<Vec<Package>, ImageError> {
    let records = closure(with_libraries, alone, cache)?;
    let count = records.len();
    let mut missing = Vec::new();
    for record in records.values() {
        if !is_there(record, &cache.join(record.file_name()), work)? {
            missing.push(record);
        }
    }
    if !missing.is_empty() {
        progress(Event::Download { count: missing.len(), bytes: missing.iter().map(|record| record.bytes).sum() });
        download(&missing, cache, work)?;
    }
    let mut packages = Vec::new();
    for (index, record) in records.into_values().enumerate() {
        let file = cache.join(record.file_name());
        progress(Event::Package {
            name: record.name.clone(),
            version: record.version.clone(),
            index: index + 1,
            count,
        });
        let identity = ImagePackage { name: record.name, version: record.version, sha256: record.sha256 };
        packages.push(Package { identity, file });
    }
    Ok(packages)
}

/// Records of the packages and of the libraries they depend on, one breadth after the other.
fn closure(with_libraries: &[&str], alone: &str, cache: &Path) -> Result<BTreeMap<String, Record>, ImageError> {
    let mut records = BTreeMap::new();
    let mut asked: BTreeSet<String> = with_libraries.iter().copied().chain([alone]).map(str::to_owned).collect();
    let mut asking: Vec<String> = asked.iter().cloned().collect();
    while !asking.is_empty() {
        let mut depends = Vec::new();
        for record in show(&asking, cache)? {
            let named = with_libraries.contains(&record.name.as_str());
            // What is no library (a program, a mere name) is not for the guest.
            if !(named || record.name == alone || record.section.ends_with("libs")) {
                continue;
            }
            if record.name != alone {
                depends.extend(record.depends.iter().flatten().cloned());
            }
            records.insert(record.name.clone(), record);
        }
        asking = depends.into_iter().filter(|name| asked.len() < PACKAGES_MAX && asked.insert(name.clone())).collect();
    }
    match with_libraries.iter().chain([&alone]).find(|name| !records.contains_key(**name)) {
        Some(missing) => Err(ImageError::NoPackage((*missing).to_owned())),
        None => Ok(records),
    }
}

/// Unpacks a package's files below `folder`.
pub(super) fn unpack(package: &Package, folder: &Path) -> Result<(), ImageError> {
    let step = format!("unpacking {}", package.identity.name);
    run("dpkg-deb", [OsString::from("-x"), package.file.clone().into(), folder.into()], &step, folder).map(drop)
}

/// What the lists say of these packages; of those they do not know, nothing.
fn show(names: &[String], cache: &Path) -> Result<Vec<Record>, ImageError> {
    let step = format!("looking up {}", names.join(", "));
    // apt's own index may not be kept, or not be writable by this user; without one each look-up takes a second.
    let index = format!("Dir::Cache::pkgcache={}", cache.join("apt-index.bin").display());
    let mut found = Vec::new();
    let mut show = |names: &[String]| -> Result<bool, ImageError> {
        let arguments = ["-o", &index, "-o", "Dir::Cache::srcpkgcache=", "show", "--no-all-versions"];
        match run("apt-cache", arguments.into_iter().chain(names.iter().map(String::as_str)), &step, cache) {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
                    found.push(parse(stanza)?);
                }
                Ok(true)
            }
            // It ends with an error when it does not know one of the names.
            Err(ImageError::ProgramFailed { said, .. })
                if said.contains("No packages found") || said.contains("Unable to locate package") =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    };
    if !show(names)? && names.len() > 1 {
        for name in names {
            show(std::slice::from_ref(name))?;
        }
    }
    Ok(found)
}

/// Reads one stanza of `apt-cache show`.
fn parse(stanza: &str) -> Result<Record, ImageError> {
    let name = stanza.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or_default().trim().to_owned();
    let field = |field: &'static str| {
        let value = stanza.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        let value = value.map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned);
        value.ok_or_else(|| ImageError::PackageRecord { package: name.clone(), field })
    };
    let listed = |name: &'static str| field(name).unwrap_or_default();
    let depends = [listed("Pre-Depends"), listed("Depends")];
    let depends = depends.iter().flat_map(|list| list.split(',')).map(alternatives);
    Ok(Record {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        section: listed("Section"),
        sha256: field("SHA256")?,
        bytes: listed("Size").parse().unwrap_or(0),
        depends: depends.filter(|names| !names.is_empty()).collect(),
    })
}

impl Record {
    /// As apt names a package's file.
    fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.architecture)
    }
}

fn alternatives(dependency: &str) -> Vec<String> {
    let names = dependency.split('|').map(|one| one.trim().split([' ', '(', ':']).next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn is_there(record: &Record, file: &Path, work: &Path) -> Result<bool, ImageError> {
    Ok(file.exists() && sha256(file, work)? == record.sha256)
}

/// Downloads files of packages, and puts those into the cache that are what the lists say.
fn download(records: &[&Record], cache: &Path, work: &Path) -> Result<(), ImageError> {
    let folder = work.join("download");
    fs::create_dir(&folder).map_err(ImageError::io(&folder))?;
    let wanted: Vec<_> = records.iter().map(|record| format!("{}={}", record.name, record.version)).collect();
    // As root apt would change to a user that cannot write here.
    let sandbox = if nix::unistd::geteuid().is_root() { "APT::Sandbox::User=root" } else { "APT::Sandbox::User=" };
    let arguments = ["-q", "-o", sandbox, "download"].into_iter().chain(wanted.iter().map(String::as_str));
    run("apt-get", arguments, "downloading packages", &folder)?;
    for record in records {
        let (found, place) = (folder.join(record.file_name()), cache.join(record.file_name()));
        if !found.exists() {
            return Err(ImageError::Missing(format!("a download of {}", record.file_name())));
        }
        let sum = sha256(&found, work)?;
        if sum != record.sha256 {
            let (package, wanted) = (record.name.clone(), record.sha256.clone());
            return Err(ImageError::PackageDamaged { package, wanted, found: sum });
        }
        fs::rename(&found, &place).map_err(ImageError::io(&place))?;
    }
    Ok(())
}

fn sha256(file: &Path, folder: &Path) -> Result<String, ImageError> {
    let said = run("sha256sum", [OsStr::new("--"), file.as_os_str()], "checking a package", folder)?;
    Ok(String::from_utf8_lossy(&said).split_whitespace().next().unwrap_or_default().trim_start_matches('\\').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: qemu-guest-agent\nSource: qemu\nVersion: 1:7.2+dfsg-7\nArchitecture: amd64\n\
        Pre-Depends: init-system-helpers (>= 1.54~)\nDepends: libc6 (>= 2.34), libfoo1 (= 1) | libbar:any, libudev1\n\
        Description: x\n more: text\nSection: otherosfs\nSize: 99\nSHA256: ab12\n";

    #[test]
    fn what_apt_shows_is_read() {
        let record = parse(SHOWN).unwrap();
        assert_eq!(record.file_name(), "qemu-guest-agent_1%3a7.2+dfsg-7_amd64.deb");
        assert_eq!((record.section.as_str(), record.bytes), ("otherosfs", 99));
        let depends = [vec!["init-system-helpers"], vec!["libc6"], vec!["libfoo1", "libbar"], vec!["libudev1"]];
        assert_eq!(record.depends, depends);
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "\n\n", "E: no", "Package: \n", "Package: a\nVersion: 1\n"] {
            assert!(matches!(parse(text), Err(ImageError::PackageRecord { .. })), "{text:?}");
        }
        assert!(alternatives(" | (").is_empty());
    }
}
