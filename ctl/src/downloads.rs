//! Definitions of downloads: `NAME.ini`, as Avocado-VT has them in `shared/downloads`, with an address and a digest.
//!
//! ```text
//! [jeos-27-64]
//! title = JeOS 27 x86_64
//! url = https://example.org/jeos/jeos-27-64.qcow2.xz
//! sha1_url = https://example.org/jeos/SHA1SUM_JEOS_27_64
//! destination = images/jeos-27-64.qcow2.xz
//! destination_uncompressed = images/jeos-27-64.qcow2
//! uncompress_cmd = xz -d
//! ```
//!
//! No command of a definition is run: `uncompress_cmd` only tells which of the known programs it is, and where a file goes
//! is the pool's business. What may not happen here: a definition without a digest, or a key that is ignored in silence.

use std::path::{Path, PathBuf};

use vt_protocol::{
    catalogue::{FetchImage, FetchSum, ImageFormat, Packing},
    error::{ErrorCode, Report},
    ids::Name,
};

use crate::{
    providers::ini::{self, INI_MAX, Section},
    suggest,
};

const KINDS: [&str; 3] = ["sha256", "sha1", "md5"];
/// Keys beside those of digests.
const KEYS: [&str; 6] = ["title", "url", "destination", "destination_uncompressed", "uncompress_cmd", "format"];

/// Folders in which definitions are looked for where none is named: the user's, the machine's, and Avocado-VT's.
pub(crate) fn folders(env: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let user = config.map(|config| config.join("vtctl/downloads"));
    let providers = set("VTCTL_PROVIDERS").map(|folder| folder.join("shared/downloads"));
    user.into_iter().chain([PathBuf::from("/etc/vtmesh/downloads")]).chain(providers).collect()
}

/// The definition of that name in the first folder that has it, as a request.
///
/// # Errors
/// No folder has it, or it cannot be used: the message names file and line.
pub(crate) fn find(name: &Name, folders: &[PathBuf]) -> Result<FetchImage, Report> {
    let file = format!("{name}.ini");
    for folder in folders {
        let path = folder.join(&file);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > INI_MAX => {
                let title = format!("{} is longer than a definition can be", path.display());
                return Err(Report::new(ErrorCode::BadConfig, title));
            }
            Ok(_) => {
                let text = std::fs::read_to_string(&path).map_err(|error| {
                    Report::new(ErrorCode::BadConfig, format!("{} cannot be read", path.display())).caused_by(&error)
                })?;
                return parse(name, &text, &path);
            }
            Err(_) => {}
        }
    }
    let known: Vec<String> = folders.iter().flat_map(|folder| names(folder)).collect();
    let report = Report::new(ErrorCode::UnknownImage, format!("there is no definition {file}"))
        .with("looked in", folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "));
    Err(match suggest::close(name.as_str(), known.iter().map(String::as_str)).first() {
        Some(near) => report.help(format!("did you mean {near}?")),
        None => report.help(format!("vtctl image fetch {name} --url URL --digest sha256:HEX")),
    })
}

/// The names of all definitions of a folder.
fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let stem = |name: String| name.strip_suffix(".ini").map(str::to_owned);
    files.filter_map(|entry| entry.file_name().into_string().ok().and_then(stem)).collect()
}

fn parse(name: &Name, text: &str, file: &Path) -> Result<FetchImage, Report> {
    let wrong = |line: u32, what: String| {
        Report::new(ErrorCode::BadConfig, what).with("where", format!("{}:{line}", file.display()))
    };
    let sections = ini::parse(text).map_err(|mistake| wrong(mistake.line, mistake.what))?;
    let section = match &sections[..] {
        [only] => only,
        sections => sections
            .iter()
            .find(|section| section.name == name.as_str())
            .ok_or_else(|| wrong(1, format!("there is no section [{name}]")))?,
    };
    for entry in &section.entries {
        let digest = KINDS.iter().any(|kind| entry.key.strip_suffix("_url").unwrap_or(&entry.key) == *kind);
        if !digest && !KEYS.contains(&entry.key.as_str()) {
            return Err(wrong(entry.line, format!("{} is no key of a download", entry.key)).help(format!(
                "there are {}, and {} or one of them with _url",
                KEYS.join(", "),
                KINDS.join(", ")
            )));
        }
    }
    let url = section.get("url").ok_or_else(|| wrong(section.line, format!("[{}] has no url", section.name)))?;
    let sum = sum(section).ok_or_else(|| {
        wrong(section.line, format!("[{}] has no digest, so nobody could tell what comes", section.name))
            .help("sha256 = HEX, or sha1_url = URL of a list of digests")
    })?;
    let packing = match section.get("uncompress_cmd") {
        None => packing(&url.value, section),
        Some(command) => {
            let program = command.value.split_whitespace().next().unwrap_or_default();
            let known = [Packing::Xz, Packing::Gzip, Packing::Bzip2, Packing::Zstd];
            Some(known.into_iter().find(|packing| packing.program() == program).ok_or_else(|| {
                let what = format!("uncompress_cmd {:?} is not run: xz, gzip, bzip2 and zstd are known", command.value);
                wrong(command.line, what)
            })?)
        }
    };
    let format = match section.get("format").map(|entry| (entry.line, entry.value.as_str())) {
        None => None,
        Some((_, "qcow2")) => Some(ImageFormat::Qcow2),
        Some((_, "raw")) => Some(ImageFormat::Raw),
        Some((line, other)) => return Err(wrong(line, format!("format {other:?} is neither qcow2 nor raw"))),
    };
    Ok(FetchImage { url: url.value.clone(), name: name.clone(), pool: None, format, sum, packing })
}

/// The best digest that is stated.
fn sum(section: &Section) -> Option<FetchSum> {
    let known = |kind: &&str| section.get(kind).map(|entry| FetchSum::Known((*kind).to_owned(), entry.value.clone()));
    let listed = |kind: &&str| {
        let url = section.get(&format!("{kind}_url"))?.value.clone();
        Some(FetchSum::ListedAt { kind: (*kind).to_owned(), url })
    };
    KINDS.iter().find_map(known).or_else(|| KINDS.iter().find_map(listed))
}

/// Packed, where the address or the file that is kept ends so.
fn packing(url: &str, section: &Section) -> Option<Packing> {
    let kept = section.get("destination").and_then(|entry| Packing::of(&entry.value));
    Packing::of(url).or(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JEOS: &str = "[jeos-27-64]\ntitle = JeOS 27 x86_64\nurl = https://example.org/jeos-27-64.qcow2.xz\n\
        sha1_url = https://example.org/SHA1SUM\ndestination = images/jeos-27-64.qcow2.xz\n\
        destination_uncompressed = images/jeos-27-64.qcow2\nuncompress_cmd = xz -d\n";

    fn read(text: &str) -> Result<FetchImage, Report> {
        parse(&"jeos-27-64".parse().unwrap(), text, Path::new("/d/jeos-27-64.ini"))
    }

    #[test]
    fn an_old_definition_is_taken_as_it_is() {
        let fetch = read(JEOS).unwrap();
        assert_eq!(fetch.url, "https://example.org/jeos-27-64.qcow2.xz");
        assert_eq!(fetch.packing, Some(Packing::Xz));
        let list = FetchSum::ListedAt { kind: "sha1".into(), url: "https://example.org/SHA1SUM".into() };
        assert_eq!(fetch.sum, list);
        let digest = read(&format!("{JEOS}sha256 = {}\nformat = qcow2\n", "0".repeat(64))).unwrap();
        assert_eq!(digest.sum, FetchSum::Known("sha256".into(), "0".repeat(64)), "what is known beats a list");
        assert_eq!(digest.format, Some(ImageFormat::Qcow2));
        let plain = read("[any]\nurl = file:///srv/a.raw\nmd5 = 0\n").unwrap();
        assert_eq!(plain.packing, None, "one section needs no name");
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_line() {
        for (text, line, says) in [
            ("[x]\nurl = file:///a\n", 1, "no digest"),
            ("[x]\nsha1 = 0\n", 1, "no url"),
            ("[x]\nurl = file:///a\nsha1 = 0\nurll = b\n", 4, "urll is no key"),
            ("[x]\nurl = file:///a\nsha1 = 0\nuncompress_cmd = sh -c evil\n", 4, "is not run"),
            ("[x]\nurl = file:///a\nsha1 = 0\nformat = vmdk\n", 4, "neither qcow2 nor raw"),
            ("[x]\nurl = a\n[y]\nurl = b\n", 1, "no section [jeos-27-64]"),
            ("url = a\n", 1, "stands in no section"),
        ] {
            let report = read(text).unwrap_err();
            assert!(report.title.contains(says), "{text:?}: {report:?}");
            assert_eq!(report.evidence[0].1, format!("/d/jeos-27-64.ini:{line}"), "{text:?}");
        }
    }

    #[test]
    fn the_first_folder_that_has_it_counts_and_a_misspelt_name_is_helped() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("mine"), dir.path().join("machine")];
        std::fs::create_dir(&folders[1]).unwrap();
        std::fs::write(folders[1].join("jeos-27-64.ini"), JEOS).unwrap();
        assert!(find(&"jeos-27-64".parse().unwrap(), &folders).is_ok());
        let report = find(&"jeos-27-46".parse().unwrap(), &folders).unwrap_err();
        assert_eq!((report.code, report.help[0].as_str()), (ErrorCode::UnknownImage, "did you mean jeos-27-64?"));
    }
}
