//! Where settings come from: a file, the drop-ins beside it, then flags, each of which has a variable of the environment.
//! The later wins. What a flag sets goes through the same reader as what a file sets.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{DEFAULT_FILE, SettingsError};

/// Most bytes of a settings file.
const FILE_MAX: u64 = 1 << 20;
/// Most drop-ins.
const DROP_INS_MAX: usize = 100;

/// A text of settings and where it is from.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    pub(super) text: String,
}

/// Where a text of settings is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, by its path.
    File(String),
    /// A flag or its variable: both names.
    Flag(&'static str),
}

/// Settings that have a flag and a variable. They are texts here: what they may be is the reader's to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Where to keep identity, log, blobs and bundles
    #[arg(long, global = true, value_name = "DIR", env = "VTD_DATA_DIR")]
    pub data_dir: Option<String>,
    /// Where to listen
    #[arg(long, global = true, value_name = "ADDR:PORT", env = "VTD_LISTEN")]
    pub listen: Option<String>,
    /// Where other hosts reach this one
    #[arg(long, global = true, value_name = "ADDR:PORT", env = "VTD_ADVERTISE")]
    pub advertise: Option<String>,
    /// What to log, as in RUST_LOG
    #[arg(long, global = true, value_name = "FILTER", env = "VTD_LOG")]
    pub log: Option<String>,
    /// How to log: text or json
    #[arg(long, global = true, value_name = "FORMAT", env = "VTD_LOG_FORMAT")]
    pub log_format: Option<String>,
}

impl Flags {
    /// A layer for each that is given.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let flags = [
            ("--data-dir or VTD_DATA_DIR", "paths", "data", &self.data_dir),
            ("--listen or VTD_LISTEN", "host", "listen", &self.listen),
            ("--advertise or VTD_ADVERTISE", "host", "advertise", &self.advertise),
            ("--log or VTD_LOG", "log", "filter", &self.log),
            ("--log-format or VTD_LOG_FORMAT", "log", "format", &self.log_format),
        ];
        let given = flags.into_iter().filter_map(|(names, section, key, value)| {
            let value = toml::Value::from(value.as_deref()?);
            Some(Layer { origin: Origin::Flag(names), text: format!("[{section}]\n{key} = {value}\n") })
        });
        given.collect()
    }
}

/// `file` and its drop-ins, `FILE.d/*.toml` in order of their names. Without a file [`DEFAULT_FILE`], which may be absent.
pub(super) fn files(file: Option<&Path>) -> Result<Vec<Layer>, SettingsError> {
    let path = file.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    let mut layers = Vec::new();
    match layer(path) {
        Err(SettingsError::Unreadable { source, .. }) if file.is_none() && source.kind() == io::ErrorKind::NotFound => {
        }
        read => layers.push(read?),
    }
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    for drop_in in drop_ins(Path::new(&folder))? {
        layers.push(layer(&drop_in)?);
    }
    Ok(layers)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(unreadable(folder, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| unreadable(folder, source))?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            found.push(path);
        }
        if found.len() > DROP_INS_MAX {
            return Err(unreadable(folder, io::Error::other(format!("more than {DROP_INS_MAX} drop-ins"))));
        }
    }
    found.sort();
    Ok(found)
}

fn layer(path: &Path) -> Result<Layer, SettingsError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text))
        .and_then(|read| if read as u64 > FILE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) })
        .map_err(|source| unreadable(path, source))?;
    Ok(Layer { origin: Origin::File(path.display().to_string()), text })
}

fn unreadable(path: &Path, source: io::Error) -> SettingsError {
    SettingsError::Unreadable { file: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::settings::Settings;

    fn written(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vtd.toml.d")).unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        let file = dir.path().join("vtd.toml");
        (dir, file)
    }

    #[test]
    fn drop_ins_win_over_the_file_by_name_and_flags_over_all() {
        let (_dir, file) = written(&[
            ("vtd.toml", "[host]\nname = \"a\"\nlisten = \"0.0.0.0:1\"\n[log]\nfilter = \"warn\""),
            ("vtd.toml.d/20-b.toml", "[host]\nname = \"c\""),
            ("vtd.toml.d/10-a.toml", "[host]\nname = \"b\"\nlisten = \"0.0.0.0:2\""),
            ("vtd.toml.d/README", "no TOML"),
        ]);
        let settings = Settings::load(Some(&file), &Flags::default()).unwrap();
        assert_eq!(settings.host.name.as_ref().unwrap().as_str(), "c");
        assert_eq!((settings.host.listen.port(), settings.log.filter.as_str()), (2, "warn"));
        let flags = Flags { listen: Some("0.0.0.0:3".into()), log: Some("a=b=c".into()), ..Flags::default() };
        let report = Settings::load(Some(&file), &flags).unwrap_err().report();
        assert_eq!(report.evidence[0].0, "--log or VTD_LOG");
        let flags = Flags { log: Some("a\"b".into()), ..flags };
        let settings = Settings::load(Some(&file), &flags).unwrap();
        assert_eq!((settings.host.listen.port(), settings.log.filter.as_str()), (3, "a\"b"));
    }

    #[test]
    fn a_rule_is_looked_at_when_all_is_read_and_blames_who_set_the_key_last() {
        let (_dir, file) = written(&[
            ("vtd.toml", "[session]\npause = 7500"),
            ("vtd.toml.d/10-kill.toml", "[session]\nkill = 8500\nexpire = 10500"),
        ]);
        Settings::load(Some(&file), &Flags::default()).unwrap();
        fs::write(file.with_file_name("vtd.toml.d/20-kill.toml"), "# later\n[session]\nkill = 8000").unwrap();
        let report = Settings::load(Some(&file), &Flags::default()).unwrap_err().report();
        let (place, text) = &report.evidence[0];
        assert!(place.ends_with("vtd.toml.d/20-kill.toml:3:8"), "{place}");
        assert!(text.contains("kill (8000 ms) is less than 8500 ms"), "{text}");
    }

    #[test]
    fn a_mistake_is_told_with_its_file_and_a_named_file_has_to_be_there() {
        let (dir, file) = written(&[("vtd.toml", ""), ("vtd.toml.d/a.toml", "\n[pool]\nshard = true")]);
        let report = Settings::load(Some(&file), &Flags::default()).unwrap_err().report();
        assert!(report.evidence[0].0.ends_with("vtd.toml.d/a.toml:3:1"), "{report:?}");
        assert!(report.evidence[0].1.contains("did you mean shared?"), "{report:?}");
        let absent = Settings::load(Some(&dir.path().join("none.toml")), &Flags::default());
        assert!(matches!(absent, Err(SettingsError::Unreadable { .. })));
        fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(Settings::load(Some(&file), &Flags::default()), Err(SettingsError::Unreadable { .. })));
    }
}
