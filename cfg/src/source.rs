//! Where the text of configuration files comes from.
//!
//! The parser asks a [`Source`]; it never opens anything itself. [`FsSource`] is the file system behind that trait,
//! [`MemSource`] a set of texts for tests, editors and received matrices.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Why a text is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No regular file of that name.
    #[error("there is no file {0}")]
    Missing(String),
    /// It exists but cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// Bytes that are no UTF-8.
    #[error("{path} is not UTF-8: first bad byte at offset {offset}")]
    NotUtf8 {
        /// The file.
        path: String,
        /// Offset of the first bad byte.
        offset: usize,
    },
}

/// Gives the parser its texts.
pub trait Source {
    /// The whole text of a file.
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError>;

    /// The home folder of a user (`None`: the one running the program), to expand a leading `~`.
    fn home(&self, user: Option<&str>) -> Option<String> {
        let _ = user;
        None
    }
}

/// Texts in memory, by path.
#[derive(Debug, Default, Clone)]
pub struct MemSource {
    files: BTreeMap<String, String>,
}

impl MemSource {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one text.
    pub fn insert(&mut self, path: impl Into<String>, text: impl Into<String>) -> &mut Self {
        self.files.insert(path.into(), text.into());
        self
    }
}

impl Source for MemSource {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        self.files.get(path).map(Into::into).ok_or_else(|| SourceError::Missing(path.to_owned()))
    }
}

/// The file system, with the working folder as the place relative paths start from.
#[derive(Debug, Default, Clone, Copy)]
pub struct FsSource;

/// Largest file that is read; more is no configuration but a mistake.
const MAX_FILE: u64 = 32 << 20;

impl Source for FsSource {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        let unreadable = |reason: String| SourceError::Unreadable { path: path.to_owned(), reason };
        let meta = match std::fs::metadata(path) {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(SourceError::Missing(path.to_owned())),
            Err(e) => return Err(unreadable(e.to_string())),
        };
        if !meta.is_file() {
            return Err(SourceError::Missing(path.to_owned()));
        }
        if meta.len() > MAX_FILE {
            return Err(unreadable(format!("{} bytes are more than the {MAX_FILE} allowed", meta.len())));
        }
        let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(e) => Err(SourceError::NotUtf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() }),
        }
    }

    fn home(&self, user: Option<&str>) -> Option<String> {
        match user {
            None => std::env::var("HOME").ok().filter(|h| !h.is_empty()),
            Some(name) => passwd_home(name),
        }
    }
}

fn passwd_home(user: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|l| {
        let mut fields = l.split(':');
        (fields.next() == Some(user)).then(|| fields.nth(4).map(str::to_owned)).flatten()
    })
}

/// The path an include statement means: `~` expanded, relative to the folder of the including file.
pub(crate) fn include_path(source: &dyn Source, includer: &str, path: &str) -> String {
    let mut path = path.to_owned();
    if let Some(rest) = path.strip_prefix('~') {
        let (user, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if let Some(home) = source.home((!user.is_empty()).then_some(user)) {
            let joined = format!("{}{tail}", home.trim_end_matches('/'));
            path = if joined.is_empty() { "/".to_owned() } else { joined };
        }
    }
    if path.starts_with('/') {
        return path;
    }
    let folder = match includer.rfind('/') {
        None => return path,
        Some(i) => &includer[..=i],
    };
    let trimmed = folder.trim_end_matches('/');
    if trimmed.is_empty() { format!("{folder}{path}") } else { format!("{trimmed}/{path}") }
}

/// Last component of a path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_paths_are_joined_as_text() {
        let s = MemSource::new();
        for (from, path, want) in [
            ("a.cfg", "b.cfg", "b.cfg"),
            ("d/a.cfg", "../b.cfg", "d/../b.cfg"),
            ("d//a.cfg", "b.cfg", "d/b.cfg"),
            ("/a.cfg", "b.cfg", "/b.cfg"),
            ("d/a.cfg", "/b.cfg", "/b.cfg"),
            ("d/a.cfg", "~/b.cfg", "d/~/b.cfg"),
        ] {
            assert_eq!(include_path(&s, from, path), want);
        }
        assert_eq!(base_name("x/y/z.cfg"), "z.cfg");
    }

    #[test]
    fn file_system_reports_missing_and_bad_text() {
        assert!(matches!(FsSource.read("/nonexistent/x.cfg"), Err(SourceError::Missing(_))));
        assert!(matches!(FsSource.read("/"), Err(SourceError::Missing(_))));
        let file = std::env::temp_dir().join(format!("vt-cfg-{}-bad.cfg", std::process::id()));
        std::fs::write(&file, b"a = \xff\n").unwrap();
        let got = FsSource.read(file.to_str().unwrap());
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(got, Err(SourceError::NotUtf8 { offset: 4, .. })), "{got:?}");
    }
}
