//! A finished combination.

use crate::expand::dict::{Dict, MapsOf};
use crate::expand::draft::Entry;
use crate::expand::file_map::{MapEntry, maps};
use crate::expand::prepare::Prepared;
use crate::model::{Model, NONE, Span};

/// Where an assignment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'c> {
    /// File as the user or the include statement named it.
    pub file: &'c str,
    /// Line from 1.
    pub line: u32,
}

impl std::fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The file maps, or what they follow from.
#[derive(Debug, Clone)]
pub(crate) enum Maps {
    /// Nodes from the root to the leaf.
    Nodes(Box<[u32]>),
    /// Of a joined variant: the last part's.
    Given(Vec<MapEntry>),
}

/// One combination with its parameters, in the order they were first set.
#[derive(Debug, Clone)]
pub struct Variant<'c> {
    pub(crate) m: &'c Model,
    pub(crate) p: &'c Prepared,
    pub(crate) name: String,
    pub(crate) short: String,
    pub(crate) dep: Vec<String>,
    pub(crate) maps: Maps,
    /// Entries without suffixed keys; deleted ones are still in it.
    pub(crate) entries: Vec<Entry>,
    /// Texts of keys beyond the model's, in `own`.
    pub(crate) extra: Vec<Span>,
    pub(crate) own: String,
}

impl<'c> Variant<'c> {
    /// Full name: all labels, those of named sets as `(set=name)`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name without default variants and without set names.
    pub fn short_name(&self) -> &str {
        &self.short
    }

    /// Names of variants this one depends on, in the order written.
    pub fn dep(&self) -> &[String] {
        &self.dep
    }

    /// Per configuration file (base name): the part of the full name defined in it.
    pub fn name_map(&self) -> Vec<(&'c str, String)> {
        self.file_maps().into_iter().map(|e| (self.m.base_names.get(e.file), e.full)).collect()
    }

    /// The same with bare variant names.
    pub fn short_name_map(&self) -> Vec<(&'c str, String)> {
        self.file_maps().into_iter().map(|e| (self.m.base_names.get(e.file), e.short)).collect()
    }

    fn file_maps(&self) -> Vec<MapEntry> {
        match &self.maps {
            Maps::Nodes(nodes) => maps(self.m, nodes),
            Maps::Given(maps) => maps.clone(),
        }
    }

    /// Key, value and place of the assignment that gave it, in the order the keys were first set.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str, Origin<'c>)> {
        self.entries.iter().filter(|e| e.key != NONE).map(|e| {
            let loc = e.loc(self.m);
            let origin = Origin { file: self.m.file_name(loc), line: loc.line };
            (self.dict().key(e.key), e.val.text(self.m, &self.own), origin)
        })
    }

    /// The value of one key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params().find(|(k, _, _)| *k == key).map(|(_, v, _)| v)
    }

    /// Appends the variant as one JSON object, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.dict().write(None, out);
    }

    fn dict(&self) -> Dict<'_> {
        Dict {
            m: self.m,
            p: self.p,
            name: &self.name,
            short: &self.short,
            dep: &self.dep,
            maps: match &self.maps {
                Maps::Nodes(nodes) => MapsOf::Nodes(nodes),
                Maps::Given(maps) => MapsOf::Given(maps),
            },
            entries: &self.entries,
            extra: &self.extra,
            own: &self.own,
        }
    }
}
