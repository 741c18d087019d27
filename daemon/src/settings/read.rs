//! From TOML texts to [`Settings`]: every mistake is found in one pass, with its line and, where a word is near to a
//! known one, the one that was meant. Of several texts the later one wins, key by key.

use std::{
    cell::RefCell,
    net::Ipv4Addr,
    ops::Range,
    path::{Component, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::de::{DeTable, DeValue};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use super::{
    GuestRange, Kind, Settings,
    rules::broken_rules,
    sources::{Layer, Origin},
};
use crate::nearest::nearest;

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file or flag it is in.
    pub origin: Origin,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub text: String,
    /// What was meant, where that can be guessed.
    pub hint: Option<String>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("the settings file {file} cannot be read")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are mistakes in them.
    #[error("the settings have {}", count(.0.len()))]
    Mistakes(Vec<Mistake>),
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 { "a mistake".into() } else { format!("{mistakes} mistakes") }
}

impl Mistake {
    /// Where it is, as an editor takes it.
    fn place(&self) -> String {
        match &self.origin {
            Origin::File(file) => format!("{file}:{}:{}", self.line, self.column),
            Origin::Flag(names) => (*names).to_owned(),
        }
    }
}

impl SettingsError {
    /// As a user is shown it.
    pub fn report(&self) -> Report {
        let report = Report::new(ErrorCode::BadConfig, self.to_string());
        match self {
            Self::Unreadable { source, .. } => report.caused_by(source),
            Self::Mistakes(mistakes) => mistakes
                .iter()
                .fold(report, |report, mistake| {
                    let hint = mistake.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                    report.with(mistake.place(), format!("{}{hint}", mistake.text))
                })
                .help("vtd settings --default prints every key with its default"),
        }
    }
}

/// Reads all settings; a later layer wins over an earlier one, key by key.
pub(super) fn settings(layers: &[Layer]) -> Result<Settings, SettingsError> {
    let mut settings = Settings::default();
    let mut read = Vec::new();
    let mut parsed = true;
    for layer in layers {
        let (document, errors) = DeTable::parse_recoverable(&layer.text);
        let reader = Reader { layer, mistakes: RefCell::default() };
        // What could not be parsed is not there: further complaints would only follow from it.
        if errors.is_empty() {
            read_sections(&reader, document.get_ref(), &mut settings);
        }
        parsed &= errors.is_empty();
        for error in errors {
            reader.mistake(error.span().unwrap_or_default(), error.message().to_owned(), None);
        }
        read.push((reader, document));
    }
    if parsed {
        for rule in broken_rules(&settings) {
            // Where it was set last, or the beginning where nobody set it and something else was set wrong for it.
            let set = read.iter().rev().find_map(|(reader, document)| {
                value_at(document.get_ref(), rule.section, rule.key).map(|place| (reader, place))
            });
            let (reader, place) = match (set, read.first()) {
                (Some(set), _) => set,
                (None, Some((reader, _))) => (reader, 0..0),
                (None, None) => continue,
            };
            reader.mistake(place, rule.text, rule.hint.map(str::to_owned));
        }
    }
    let mut mistakes = Vec::new();
    for (reader, _) in read {
        let mut here = reader.mistakes.into_inner();
        here.sort_by_key(|mistake| (mistake.line, mistake.column));
        here.dedup();
        mistakes.append(&mut here);
    }
    if mistakes.is_empty() { Ok(settings) } else { Err(SettingsError::Mistakes(mistakes)) }
}

/// Where a text sets a key.
fn value_at(document: &DeTable<'_>, section: &str, key: &str) -> Option<Range<usize>> {
    let (_, section) = document.iter().find(|(name, _)| name.get_ref() == section)?;
    let DeValue::Table(table) = section.get_ref() else { return None };
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value.span())
}

fn read_sections(reader: &Reader<'_>, document: &DeTable<'_>, settings: &mut Settings) {
    let root = Section { reader, name: "", table: Some(document), asked: RefCell::default() };

    let host = root.section("host");
    host.parsed("name", "a name (1 to 63 of a-z 0-9 - _ . beginning with a letter or digit)", |name| {
        settings.host.name = Some(name);
    });
    host.parsed("listen", "an address with port such as 0.0.0.0:7465", |it| settings.host.listen = it);
    host.parsed("advertise", "an address with port such as 10.77.0.11:7465", |it| settings.host.advertise = Some(it));
    host.choice("kind", &[("metal", Kind::Metal), ("vm", Kind::Vm), ("namespace", Kind::Namespace)], |kind| {
        settings.host.kind = kind;
    });
    host.finish();

    let paths = root.section("paths");
    paths.directory("data", |path| settings.paths.data = path);
    paths.directory("run", |path| settings.paths.run = path);
    paths.directory("images", |path| settings.paths.images = path);
    paths.directory("disks", |path| settings.paths.disks = path);
    paths.parsed::<CgroupFolder>(
        "cgroup",
        "a folder such as vtmesh/host1, without / in front and without ..",
        |folder| {
            settings.paths.cgroup = folder.0;
        },
    );
    paths.finish();

    let pool = root.section("pool");
    pool.flag("shared", |shared| settings.pool_shared = shared);
    pool.finish();

    let network = root.section("network");
    network.parsed::<Interface>("bridge", "an interface name of 1 to 15 characters", |it| {
        settings.network.bridge = Some(it.0);
    });
    network.parsed::<Interface>("uplink", "an interface name of 1 to 15 characters", |it| {
        settings.network.uplink = Some(it.0);
    });
    network.parsed::<GuestRange>("guests", "a range such as 10.77.0.100-10.77.0.249/24", |range| {
        settings.network.guests = Some(range);
    });
    network.parsed("migration", "an address such as 10.77.0.11", |ip| settings.network.migration = Some(ip));
    network.finish();

    let migration = root.section("migration");
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    migration.number("at_once", 1, 1000, |number| settings.moves.at_once = count(number));
    migration.number("per_link", 1, 1000, |number| settings.moves.per_link = count(number));
    migration.finish();

    let qemu = root.section("qemu");
    qemu.text("binary", |binary| settings.qemus.set_default(binary));
    let binaries = qemu.section("binaries");
    binaries.named("a name that is free (a to z, 0 to 9, - _ .)", |name, path| settings.qemus.add(name, path));
    qemu.finish();

    let libvirt = root.section("libvirt");
    libvirt.text("uri", |uri| settings.libvirt.get_or_insert_default().uri = uri);
    libvirt.text("peer", |peer| settings.libvirt.get_or_insert_default().peer = peer);
    libvirt.directory("certificates", |folder| {
        settings.libvirt.get_or_insert_default().certificates = Some(folder);
    });
    libvirt.finish();

    let session = root.section("session");
    let times = &mut settings.session;
    for (key, time) in [
        ("renew", &mut times.renew),
        ("suspect", &mut times.suspect),
        ("pause", &mut times.pause),
        ("kill", &mut times.kill),
        ("expire", &mut times.expire),
    ] {
        session.number(key, 100, 3_600_000, |ms| *time = Duration::from_millis(ms));
    }
    session.finish();

    let raft = root.section("raft");
    raft.number("heartbeat_ms", 10, 10_000, |ms| settings.raft.heartbeat_ms = ms);
    raft.pair("election_ms", 50, 60_000, |range| settings.raft.election_ms = range);
    raft.number("voter_away_ms", 1_000, 7 * 86_400_000, |ms| settings.voter_away = Duration::from_millis(ms));
    raft.finish();

    let evidence = root.section("evidence");
    evidence.number("keep_days", 1, 36_500, |days| settings.evidence.keep = Duration::from_secs(days * 86_400));
    evidence.number("keep_mib", 1, 1 << 30, |mib| settings.evidence.most_bytes = mib << 20);
    evidence.finish();

    let log = root.section("log");
    log.text("filter", |filter| settings.log.filter = filter);
    log.choice("format", &[("text", false), ("json", true)], |json| settings.log.json = json);
    log.finish();

    root.finish();
}

struct CgroupFolder(PathBuf);

impl FromStr for CgroupFolder {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let path = PathBuf::from(text);
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if inside && !text.is_empty() { Ok(Self(path)) } else { Err(()) }
    }
}

struct Interface(String);

impl FromStr for Interface {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let good = (1..=15).contains(&text.len()) && text.chars().all(plain) && text != "." && text != "..";
        if good { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl FromStr for GuestRange {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (range, prefix) = text.split_once('/').ok_or(())?;
        let (first, last) = range.split_once('-').ok_or(())?;
        let address = |text: &str| text.trim().parse::<Ipv4Addr>().map_err(|_| ());
        let (first, last) = (address(first)?, address(last)?);
        let prefix: u8 = prefix.trim().parse().map_err(|_| ())?;
        if !(8..=30).contains(&prefix) || first > last {
            return Err(());
        }
        let mask = u32::MAX << (32 - prefix);
        let one_network = u32::from(first) & mask == u32::from(last) & mask;
        if one_network { Ok(Self { first, last, prefix }) } else { Err(()) }
    }
}

/// A text with the mistakes found so far.
struct Reader<'t> {
    layer: &'t Layer,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Reader<'_> {
    fn mistake(&self, place: Range<usize>, text: String, hint: Option<String>) {
        let before = self.layer.text.get(..place.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let origin = self.layer.origin.clone();
        self.mistakes.borrow_mut().push(Mistake { origin, line, column, text, hint });
    }
}

/// One section. Keys are known by being asked for; what nobody asked for is unknown.
struct Section<'r, 't, 'd> {
    reader: &'r Reader<'t>,
    name: &'static str,
    table: Option<&'d DeTable<'t>>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'r, 't, 'd> Section<'r, 't, 'd> {
    fn value(&self, key: &'static str) -> Option<(&'d DeValue<'t>, Range<usize>)> {
        self.asked.borrow_mut().push(key);
        let table = self.table?;
        table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| (value.get_ref(), value.span()))
    }

    fn section(&self, key: &'static str) -> Section<'r, 't, 'd> {
        let table = match self.value(key) {
            None => None,
            Some((DeValue::Table(table), _)) => Some(table),
            Some((_, place)) => {
                self.reader.mistake(place, format!("{key} is a section: write [{key}]"), None);
                None
            }
        };
        Section { reader: self.reader, name: key, table, asked: RefCell::default() }
    }

    fn wrong(&self, key: &str, place: Range<usize>, want: &str) {
        let found = self.reader.layer.text.get(place.clone()).unwrap_or_default();
        let found: String = found.chars().take(80).collect();
        self.reader.mistake(place, format!("{key} = {found} is not {want}"), None);
    }

    fn text(&self, key: &'static str, set: impl FnOnce(String)) {
        match self.value(key) {
            None => {}
            Some((DeValue::String(text), _)) if !text.trim().is_empty() => set(text.to_string()),
            Some((_, place)) => self.wrong(key, place, "a text in quotes"),
        }
    }

    /// A section whose keys are names of the user's own, each with a text. `add` says whether a name can be had.
    fn named(self, want: &str, mut add: impl FnMut(Name, String) -> bool) {
        for (key, value) in self.table.into_iter().flatten() {
            let name = key.get_ref();
            match value.get_ref() {
                DeValue::String(text) if !text.trim().is_empty() => {
                    if !name.parse::<Name>().is_ok_and(|free| add(free, text.to_string())) {
                        self.reader.mistake(key.span(), format!("{name} is not {want}"), None);
                    }
                }
                _ => self.wrong(name, value.span(), "a text in quotes"),
            }
        }
    }

    fn parsed<T: FromStr>(&self, key: &'static str, want: &str, set: impl FnOnce(T)) {
        match self.value(key) {
            None => {}
            Some((DeValue::String(text), place)) => match text.parse() {
                Ok(value) => set(value),
                Err(_) => self.wrong(key, place, want),
            },
            Some((_, place)) => self.wrong(key, place, want),
        }
    }

    fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)], set: impl FnOnce(T)) {
        let Some((value, place)) = self.value(key) else { return };
        let text = if let DeValue::String(text) = value { text.as_ref() } else { "" };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return set(*choice);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(key, place, &format!("one of {}", names.join(", ")));
    }

    fn directory(&self, key: &'static str, set: impl FnOnce(PathBuf)) {
        match self.value(key) {
            None => {}
            Some((DeValue::String(text), _)) if text.starts_with('/') && !text.contains('\0') => {
                set(text.as_ref().into());
            }
            Some((_, place)) => self.wrong(key, place, "an absolute path"),
        }
    }

    fn flag(&self, key: &'static str, set: impl FnOnce(bool)) {
        match self.value(key) {
            None => {}
            Some((DeValue::Boolean(flag), _)) => set(*flag),
            Some((_, place)) => self.wrong(key, place, "true or false"),
        }
    }

    fn number(&self, key: &'static str, least: u64, most: u64, set: impl FnOnce(u64)) {
        let Some((value, place)) = self.value(key) else { return };
        match whole(value).filter(|number| (least..=most).contains(number)) {
            Some(number) => set(number),
            None => self.wrong(key, place, &format!("a whole number from {least} to {most}")),
        }
    }

    fn pair(&self, key: &'static str, least: u64, most: u64, set: impl FnOnce((u64, u64))) {
        let Some((value, place)) = self.value(key) else { return };
        if let DeValue::Array(items) = value {
            let numbers: Vec<u64> = items
                .iter()
                .filter_map(|item| whole(item.get_ref()))
                .filter(|number| (least..=most).contains(number))
                .collect();
            if let [low, high] = numbers[..]
                && items.len() == 2
            {
                return set((low, high));
            }
        }
        self.wrong(key, place, &format!("a pair such as [1000, 2000], each from {least} to {most}"));
    }

    /// Complains of the keys that nobody asked for.
    fn finish(self) {
        let asked = self.asked.into_inner();
        for (key, _) in self.table.into_iter().flatten() {
            if asked.iter().any(|known| *known == key.get_ref()) {
                continue;
            }
            let text = if self.name.is_empty() {
                format!("there is no section [{}]", key.get_ref())
            } else {
                format!("there is no key {} in [{}]", key.get_ref(), self.name)
            };
            let meant = nearest(key.get_ref(), asked.iter().copied());
            let hint = meant.map_or_else(|| format!("known: {}", asked.join(", ")), |it| format!("did you mean {it}?"));
            self.reader.mistake(key.span(), text, Some(hint));
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    match value {
        DeValue::Integer(number) => u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::DEFAULT;

    fn mistakes(text: &str) -> Vec<Mistake> {
        match Settings::parse("vtd.toml", text) {
            Err(SettingsError::Mistakes(mistakes)) => mistakes,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_documented_default_is_the_default_and_names_every_key() {
        assert_eq!(Settings::parse("default.toml", DEFAULT).unwrap(), Settings::default());
        // With the machine's keys given too, the reader still knows them all.
        let all: String = DEFAULT
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = Settings::parse("all.toml", &all).unwrap();
        assert_eq!(settings.host.name.unwrap().as_str(), "host1");
        assert_eq!(settings.network.guests.unwrap().count(), 150);
        assert_eq!(settings.network.bridge.as_deref(), Some("br0"));
        assert_eq!(settings.network.uplink.as_deref(), Some("eth1"));
        assert_eq!(settings.network.migration, Some("10.77.0.11".parse().unwrap()));
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_what_was_meant() {
        // text, line, part of the message, part of the hint
        for (text, line, message, hint) in [
            ("[host]\nlisen = \"0.0.0.0:1\"", 2, "no key lisen in [host]", "did you mean listen?"),
            ("[hots]\nname = \"a\"", 1, "no section [hots]", "did you mean host?"),
            ("x = 1", 1, "no section [x]", "known: host"),
            ("host = 1", 1, "write [host]", ""),
            ("[host]\nname = \"Host 1\"", 2, "is not a name", ""),
            ("[host]\nlisten = \"7465\"", 2, "listen = \"7465\" is not an address with port", ""),
            ("[host]\nlisten = 7465", 2, "is not an address with port", ""),
            ("[host]\nkind = \"cloud\"", 2, "one of metal, vm, namespace", ""),
            ("[paths]\n\ndata = \"lib\"", 3, "is not an absolute path", ""),
            (
                "[paths]\nrun = \"/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789\"",
                2,
                "too long",
                "",
            ),
            ("[pool]\nshared = \"yes\"", 2, "true or false", ""),
            ("[qemu.binaries]\nold = 7", 2, "old = 7 is not a text in quotes", ""),
            ("[qemu.binaries]\ndefault = \"/q\"", 2, "default is not a name that is free", ""),
            ("[qemu.binaries]\n\"Old 7\" = \"/q\"", 2, "Old 7 is not a name", ""),
            ("[qemu]\nbinaries = \"/q\"", 2, "write [binaries]", ""),
            ("[network]\nguests = \"10.0.0.9-10.0.0.1/24\"", 2, "is not a range", ""),
            ("[network]\nguests = \"10.0.0.1-10.0.1.1/24\"", 2, "is not a range", ""),
            ("[network]\nbridge = \"a-name-that-is-too-long\"", 2, "interface name", ""),
            ("[session]\nrenew = -1", 2, "whole number from 100", ""),
            ("[session]\npause = 1000", 2, "pause (1000 ms) is not longer than suspect (2000 ms)", "renew < suspect"),
            ("[session]\nrenew = 1500", 1, "suspect (2000 ms) is less than 3000 ms", "suspect >= 2 x renew"),
            ("[session]\nsuspect = 5500", 1, "pause (6000 ms) is less than 6500 ms", "pause >= suspect + renew"),
            ("[session]\npause = 7500", 1, "kill (8000 ms) is less than 8500 ms", "kill >= pause + renew"),
            ("[session]\nexpire = 9000", 2, "expire (9000 ms) is less than 10000 ms", "expire >= kill + 2 x renew"),
            (
                "[raft]\nvoter_away_ms = 12000",
                2,
                "not longer than a session lasts",
                "session.expire < raft.voter_away_ms",
            ),
            ("[raft]\nelection_ms = [500, 400]", 2, "less than three heartbeats", ""),
            ("[raft]\nelection_ms = [2000, 1000]", 2, "from less to more", ""),
            ("[raft]\nelection_ms = [2000]", 2, "a pair such as", ""),
            ("[log]\nformat = \"xml\"", 2, "one of text, json", ""),
            ("[log]\nfilter = \"a=b=c\"", 2, "is not a level", ""),
            ("[host\nname = 1", 1, "", ""),
            ("[host]\nname = \"a\"\nname = \"b\"", 3, "duplicate", ""),
        ] {
            let found = mistakes(text);
            let first = &found[0];
            assert_eq!(first.line, line, "{text}: {found:?}");
            assert!(first.text.contains(message), "{text}: {found:?}");
            assert!(first.hint.clone().unwrap_or_default().contains(hint), "{text}: {found:?}");
        }
    }

    #[test]
    fn all_mistakes_are_shown_at_once_and_in_order() {
        let found = mistakes("[host]\nkind = \"x\"\nnmae = \"a\"\n[pool]\nshared = 1\n");
        assert_eq!(found.iter().map(|mistake| mistake.line).collect::<Vec<_>>(), [2, 3, 5]);
        let report = Settings::parse("f", "[pool]\nshard = true").unwrap_err().report();
        assert_eq!(report.code, ErrorCode::BadConfig);
        assert_eq!(
            report.evidence[0],
            ("f:2:1".into(), "there is no key shard in [pool] (did you mean shared?)".into())
        );
    }

    #[test]
    fn any_text_is_read_or_refused_without_a_panic() {
        for text in ["\0", "[[host]]", "[host.name]\nx=1", "host.name = 3", "é = \"ü\"", "[session]\nrenew = 0x7f_ff"]
        {
            let _ = Settings::parse("f", text);
        }
    }
}
