//! The client's own file: clusters that this user reaches from here, and the identity for each.
//!
//! `config.toml` holds contexts; the keys and certificates are beside it, in a folder of their own for each identity. An
//! unknown key is an error, because a misspelt one would be ignored in silence.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vt_protocol::{
    error::{ErrorCode, Report},
    identity::{Identity, store},
    ids::Name,
};

use crate::suggest;

/// Largest file read, in bytes.
const FILE_MAX: u64 = 256 << 10;
/// Most endpoints of a context that are kept.
const ENDPOINTS_MAX: usize = 16;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The context that is meant where nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Name>,
    /// Contexts by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    context: BTreeMap<Name, Context>,
}

/// One cluster as it is reached from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Daemons, `HOST:PORT`, in the order to be asked.
    pub endpoints: Vec<String>,
    /// The folder of the identity, below `identities`.
    pub identity: String,
}

/// The client's file and what is beside it.
#[derive(Debug, Clone)]
pub struct Contexts {
    path: PathBuf,
    file: File,
}

impl Contexts {
    /// Where the file is: `VTCTL_CONFIG`, else below `XDG_CONFIG_HOME` or `HOME`; none where neither is set.
    pub fn path_of(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("VTCTL_CONFIG")
            .or_else(|| set("XDG_CONFIG_HOME").map(|config| config.join("vtctl/config.toml")))
            .or_else(|| set("HOME").map(|home| home.join(".config/vtctl/config.toml")))
    }

    /// Reads the file; one that is not there holds nothing.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let path = path.to_owned();
        let failed = |title: &str| {
            let title = format!("the settings of vtctl {title}");
            Report::new(ErrorCode::BadConfig, title).with("file", path.display().to_string())
        };
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() > FILE_MAX => return Err(failed("are larger than such a file can be")),
            Ok(_) => fs::read_to_string(&path).map_err(|error| failed("cannot be read").caused_by(&error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("cannot be read").caused_by(&error)),
        };
        let file = toml::from_str(&text).map_err(|error| {
            let report = failed("are not understood").with("reason", error.message().to_owned());
            match error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1)) {
                Some(line) => report.with("line", line.to_string()),
                None => report,
            }
        })?;
        Ok(Self { path, file })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Contexts by name.
    pub fn all(&self) -> impl Iterator<Item = (&Name, &Context)> {
        self.file.context.iter()
    }

    /// The context that is meant where nothing else is said.
    pub fn current(&self) -> Option<&Name> {
        self.file.current.as_ref()
    }

    /// A context by its name.
    ///
    /// # Errors
    /// There is none; names that are close are shown.
    pub fn get(&self, name: &Name) -> Result<&Context, Report> {
        self.file.context.get(name).ok_or_else(|| {
            let report = Report::new(ErrorCode::Usage, format!("there is no context called {name}"))
                .with("file", self.path.display().to_string());
            let close = suggest::close(name.as_str(), self.file.context.keys().map(Name::as_str));
            let report = match close.first() {
                Some(close) => report.help(format!("vtctl config use-context {close}")),
                None => report,
            };
            report.help("vtctl config contexts").help("vtctl config use-context --join TOKEN   (a new one)")
        })
    }

    /// The folder with key and certificates of a context.
    pub fn identity_dir(&self, context: &Context) -> PathBuf {
        self.beside("identities").join(&context.identity)
    }

    /// From here on this context is meant where nothing else is said; `None`: none is.
    ///
    /// # Errors
    /// There is no such context, or the file cannot be written.
    pub fn make_current(&mut self, name: Option<&Name>) -> Result<(), Report> {
        if let Some(name) = name {
            self.get(name)?;
        }
        self.file.current = name.cloned();
        self.save()
    }

    /// Keeps an identity and a context that uses it, and makes it the current one. One of the same name is replaced.
    ///
    /// # Errors
    /// A file cannot be written; what is there already stays usable.
    pub fn keep(&mut self, name: &Name, identity: &Identity, who: &Name, endpoints: &[String]) -> Result<(), Report> {
        let endpoints = endpoints.iter().take(ENDPOINTS_MAX).cloned().collect();
        let context = Context { endpoints, identity: format!("{who}@{name}") };
        let dir = self.identity_dir(&context);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| unwritten(&dir, &error))?;
        store::save(&dir, identity).map_err(|error| unwritten(&dir, &error))?;
        self.file.context.insert(name.clone(), context);
        self.file.current = Some(name.clone());
        self.save()
    }

    /// Takes a context away, with its key.
    ///
    /// # Errors
    /// There is no such context, or the file cannot be written.
    pub fn remove(&mut self, name: &Name) -> Result<(), Report> {
        let dir = self.identity_dir(self.get(name)?);
        self.file.context.remove(name);
        if self.file.current.as_ref() == Some(name) {
            self.file.current = None;
        }
        self.save()?;
        let shared = self.file.context.values().any(|other| self.identity_dir(other) == dir);
        // Only a folder that this program made: nothing outside `identities` is ever removed.
        if !shared && dir.parent() == Some(&self.beside("identities")) {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(unwritten(&dir, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or_else(|| Path::new(".")).join(name)
    }

    /// Written beside its place and renamed, so that it is there whole or as it was.
    fn save(&self) -> Result<(), Report> {
        let text = toml::to_string(&self.file).map_err(|error| {
            Report::new(ErrorCode::Internal, "the settings of vtctl cannot be put into words").caused_by(&error)
        })?;
        let part = self.path.with_extension("toml.part");
        let written = (|| {
            if let Some(dir) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &self.path)
        })();
        written.map_err(|error| unwritten(&self.path, &error))
    }
}

fn unwritten(path: &Path, error: &dyn std::error::Error) -> Report {
    Report::new(ErrorCode::StorageFailed, "the settings of vtctl cannot be written")
        .with("file", path.display().to_string())
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn at(dir: &Path, text: &str) -> Result<Contexts, Report> {
        let path = dir.join("config.toml");
        fs::write(&path, text).unwrap();
        Contexts::load(&path)
    }

    #[test]
    fn the_file_is_where_the_environment_says() {
        let path = |set: &'static [(&str, &str)]| {
            Contexts::path_of(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(path(&[("VTCTL_CONFIG", "/a"), ("HOME", "/h")]), Some("/a".into()));
        assert_eq!(path(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]), Some("/x/vtctl/config.toml".into()));
        assert_eq!(path(&[("VTCTL_CONFIG", ""), ("HOME", "/h")]), Some("/h/.config/vtctl/config.toml".into()));
        assert_eq!(path(&[]), None);
    }

    #[test]
    fn contexts_are_chosen_and_an_unknown_one_is_answered_with_a_close_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Contexts::load(&dir.path().join("none")).unwrap().current().is_none());
        let text =
            "current = \"lab-a\"\n[context.lab-a]\nendpoints = [\"10.0.0.1:7465\"]\nidentity = \"alice@lab-a\"\n";
        let mut contexts = at(dir.path(), text).unwrap();
        let known = contexts.get(&name("lab-a")).unwrap().clone();
        assert_eq!(contexts.identity_dir(&known), dir.path().join("identities/alice@lab-a"));
        let report = contexts.make_current(Some(&name("lab-b"))).unwrap_err();
        assert_eq!(report.help[0], "vtctl config use-context lab-a");
        contexts.make_current(None).unwrap();
        let again = Contexts::load(contexts.path()).unwrap();
        assert_eq!((again.current(), again.all().count()), (None, 1));
    }

    #[test]
    fn what_is_misspelt_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "curent = \"a\"\n",
            "[context.a]\nendpoints = []\nidentity = \"x\"\nrole = 1\n",
            "[context.\"A B\"]\nendpoints = []\nidentity = \"x\"\n",
            "\u{0}",
        ] {
            let report = at(dir.path(), text).unwrap_err();
            assert_eq!(report.code, ErrorCode::BadConfig, "{text}");
            assert!(report.evidence.iter().any(|(key, _)| key == "reason"), "{report:?}");
        }
    }

    #[test]
    fn removing_a_context_removes_nothing_outside_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        let mut contexts = at(dir.path(), "[context.a]\nendpoints = []\nidentity = \"../precious\"\n").unwrap();
        contexts.remove(&name("a")).unwrap();
        assert!(precious.exists());
    }
}
