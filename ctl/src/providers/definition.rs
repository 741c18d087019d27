//! One provider: `test-providers.d/NAME.ini`.

use std::path::{Component, Path, PathBuf};

use super::{
    SHARED,
    error::ProviderError,
    ini::{self, Entry, Section},
    perhaps, tree,
};

/// A definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The file's name without its ending; it becomes part of test names.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// Where the tree comes from.
    pub uri: Uri,
    /// Branch, for git.
    pub branch: String,
    /// A commit or tag instead of the branch's end, for git.
    pub reference: Option<String>,
    /// What the tree has, section by section.
    pub offers: Vec<Offer>,
}

/// Where a tree comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// A folder of this machine; it is used where it is.
    Folder(PathBuf),
    /// A git repository; `sync` fetches it.
    Git(String),
}

/// A section other than `[provider]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// A backend, or a name of what is for all of them.
    pub section: String,
    /// Folder of the tree, without a slash at its end.
    pub subdir: String,
    /// Files of `SUBDIR/cfg` that become part of the backend's set.
    pub configs: Vec<String>,
    /// Line of `subdir` in the ini file.
    pub line: u32,
}

impl Definition {
    /// Reads an ini file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub(super) fn read(file: &Path, backends: &[String]) -> Result<Self, ProviderError> {
        let text = tree::text_up_to(file, ini::INI_MAX)?;
        Self::parse(file, &text, backends)
    }

    fn parse(file: &Path, text: &str, backends: &[String]) -> Result<Self, ProviderError> {
        let wrong = |line, what: String| ProviderError::definition(file, line, what);
        let sections = ini::parse(text).map_err(|mistake| wrong(mistake.line, mistake.what))?;
        let Some(provider) = sections.iter().find(|section| section.name == "provider") else {
            return Err(wrong(1, "there is no section [provider] that says where the tests are".to_owned()));
        };
        let Some(uri) = provider.get("uri") else {
            return Err(wrong(provider.line, "[provider] has no uri".to_owned()));
        };
        let uri_of = |entry: &Entry| parse_uri(&entry.value).map_err(|what| wrong(entry.line, what));
        let revision = |key| match provider.get(key) {
            None => Ok(None),
            Some(entry) if is_revision(&entry.value) => Ok(Some(entry.value.clone())),
            Some(entry) => Err(wrong(entry.line, format!("{key} {:?} is no name of a branch or commit", entry.value))),
        };
        let mut offers = Vec::new();
        for section in sections.iter().filter(|section| section.name != "provider") {
            offers.push(offer(file, section, backends)?);
        }
        // A first dot ends the name, as it does in Avocado-VT: names of tests are made of it, and dots part them.
        let stem = file.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: stem.split('.').next().unwrap_or_default().to_owned(),
            file: file.to_owned(),
            uri: uri_of(uri)?,
            branch: revision("branch")?.unwrap_or_else(|| "master".to_owned()),
            reference: revision("ref")?,
            offers,
        })
    }

    /// Whether its tree comes by git.
    pub fn is_git(&self) -> bool {
        matches!(self.uri, Uri::Git(_))
    }

    /// The uri as it was written.
    pub fn uri_text(&self) -> String {
        match &self.uri {
            Uri::Folder(folder) => format!("file://{}", folder.display()),
            Uri::Git(uri) => uri.clone(),
        }
    }

    pub(super) fn tree(&self, trees: &Path) -> PathBuf {
        match &self.uri {
            Uri::Folder(folder) => folder.clone(),
            Uri::Git(_) => trees.join(&self.name),
        }
    }
}

fn offer(file: &Path, section: &Section, backends: &[String]) -> Result<Offer, ProviderError> {
    let name = section.name.as_str();
    let known = || backends.iter().map(String::as_str).chain(SHARED);
    if known().all(|known| known != name) {
        let what = format!("[{name}] is no backend");
        let known: Vec<&str> = known().collect();
        let help = perhaps(name, known.iter().copied()).unwrap_or_else(|| format!("there are {}", known.join(", ")));
        return Err(ProviderError::Definition { file: file.to_owned(), line: section.line, what, help: Some(help) });
    }
    let Some(subdir) = section.get("subdir") else {
        return Err(ProviderError::definition(file, section.line, format!("[{name}] has no subdir")));
    };
    if !is_inside(&subdir.value) {
        let what = format!("subdir {:?} is no folder below the provider's tree", subdir.value);
        return Err(ProviderError::definition(file, subdir.line, what));
    }
    let configs = section.get("configs");
    let names = configs.iter().flat_map(|entry| entry.value.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if let (Some(entry), Some(bad)) = (configs, names.iter().find(|name| !is_inside(name))) {
        return Err(ProviderError::definition(file, entry.line, format!("{bad:?} is no file below SUBDIR/cfg")));
    }
    let subdir_text = subdir.value.trim_end_matches('/').to_owned();
    Ok(Offer { section: name.to_owned(), subdir: subdir_text, configs: names, line: subdir.line })
}

/// Whether a relative path leads nowhere but down.
fn is_inside(path: &str) -> bool {
    let down = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    !path.is_empty() && Path::new(path).components().all(down)
}

fn parse_uri(text: &str) -> Result<Uri, String> {
    if let Some(path) = text.strip_prefix("file://") {
        return if path.starts_with('/') {
            Ok(Uri::Folder(path.into()))
        } else {
            Err(format!("uri {text:?} is no whole path: write file:///folder"))
        };
    }
    // git runs programs for uris such as ext::, and takes a leading dash for an option.
    let by_scheme = ["https://", "http://", "git://", "ssh://"].iter().any(|scheme| text.starts_with(scheme));
    let by_ssh = || {
        let host = text.split_once(':').filter(|(_, path)| !path.starts_with(':')).map(|(host, _)| host);
        host.is_some_and(|host| host.contains('@') && !host.starts_with('-') && !host.contains('/'))
    };
    let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if plain && (by_scheme || by_ssh()) {
        Ok(Uri::Git(text.to_owned()))
    } else {
        Err(format!(
            "uri {text:?} is neither file:///folder nor a git repository (https://, ssh://, git://, user@host:path)"
        ))
    }
}

fn is_revision(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.len() <= 200 && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Definition, String> {
        let backends = ["qemu".to_owned(), "libvirt".to_owned()];
        Definition::parse(Path::new("/p/my-tests.x.ini"), text, &backends).map_err(|error| error.to_string())
    }

    #[test]
    fn a_definition_says_where_tests_are_and_what_for() {
        let text = "[provider]\nuri: https://github.com/autotest/tp-qemu.git\nref: 7831189\n\
                    [generic]\nsubdir: generic/\n[qemu]\nsubdir: qemu/\nconfigs: a.cfg, b.cfg\n";
        let one = parsed(text).unwrap();
        assert_eq!(
            (one.name.as_str(), one.branch.as_str(), one.reference.as_deref()),
            ("my-tests", "master", Some("7831189"))
        );
        assert_eq!(one.uri, Uri::Git("https://github.com/autotest/tp-qemu.git".into()));
        assert_eq!((one.offers[1].subdir.as_str(), one.offers[1].line), ("qemu", 7));
        assert_eq!(one.offers[1].configs, ["a.cfg", "b.cfg"]);
        assert_eq!(one.tree(Path::new("/trees")), Path::new("/trees/my-tests"));
        let one = parsed("[provider]\nuri: file:///srv/tp\n").unwrap();
        assert_eq!(one.tree(Path::new("/trees")), Path::new("/srv/tp"));
        assert_eq!(parsed("[provider]\nuri: git@host:tp.git\n").unwrap().uri, Uri::Git("git@host:tp.git".into()));
    }

    #[test]
    fn each_mistake_names_file_and_line() {
        for (text, says) in [
            ("", "my-tests.x.ini:1: there is no section [provider]"),
            ("uri: x\n", ":1: \"uri: x\" stands in no section"),
            ("[qemu]\nsubdir: qemu\n", ":1: there is no section [provider]"),
            ("[provider]\nbranch: main\n", ":1: [provider] has no uri"),
            ("[provider]\nuri: file://tp\n", ":2: uri \"file://tp\" is no whole path"),
            ("[provider]\nuri: ext::sh -c id\n", ":2: uri"),
            ("[provider]\nuri: --upload-pack=id\n", ":2: uri"),
            ("[provider]\nuri: -x@host:y\n", ":2: uri"),
            ("[provider]\nuri: file:///x\nbranch: --output=x\n", ":3: branch"),
            ("[provider]\nuri: file:///x\n[qmeu]\nsubdir: x\n", ":3: [qmeu] is no backend"),
            ("[provider]\nuri: file:///x\n[qemu]\n", ":3: [qemu] has no subdir"),
            ("[provider]\nuri: file:///x\n[qemu]\nsubdir: ../y\n", ":4: subdir"),
            ("[provider]\nuri: file:///x\n[qemu]\nsubdir: /y\n", ":4: subdir"),
            ("[provider]\nuri: file:///x\n[qemu]\nsubdir: y\nconfigs: ../z.cfg\n", ":5: \"../z.cfg\""),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let error = Definition::parse(Path::new("x.ini"), "[provider]\nuri: file:///x\n[qmeu]\n", &["qemu".into()]);
        assert_eq!(error.unwrap_err().report().help, ["did you mean qemu?"]);
    }
}
