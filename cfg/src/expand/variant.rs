//! A finished combination.

use crate::expand::draft::Val;
use crate::expand::json;
use crate::expand::prepare::Prepared;
use crate::model::{Loc, Model};

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

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) key: KeyText,
    pub(crate) val: Val,
    pub(crate) loc: Loc,
}

/// Text of a key: the configuration's, or the variant's own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyText {
    Known(u32),
    Own(u32, u32),
}

/// One combination with its parameters, in the order they were first set.
#[derive(Debug, Clone)]
pub struct Variant<'c> {
    pub(crate) m: &'c Model,
    pub(crate) p: &'c Prepared,
    pub(crate) name: String,
    pub(crate) short: String,
    pub(crate) dep: Vec<String>,
    /// File base name, full names, bare names.
    pub(crate) maps: Vec<(&'c str, String, String)>,
    pub(crate) slots: Vec<Slot>,
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
    pub fn name_map(&self) -> impl Iterator<Item = (&'c str, &str)> {
        self.maps.iter().map(|(f, full, _)| (*f, full.as_str()))
    }

    /// The same with bare variant names.
    pub fn short_name_map(&self) -> impl Iterator<Item = (&'c str, &str)> {
        self.maps.iter().map(|(f, _, short)| (*f, short.as_str()))
    }

    /// Key, value and place of the assignment that gave it, in the order the keys were first set.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str, Origin<'c>)> {
        self.slots.iter().map(|s| {
            let origin = Origin { file: self.m.file_name(s.loc), line: s.loc.line };
            (self.key_text(s.key), s.val.text(self.m, &self.own), origin)
        })
    }

    /// The value of one key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params().find(|(k, _, _)| *k == key).map(|(_, v, _)| v)
    }

    fn key_text(&self, key: KeyText) -> &str {
        match key {
            KeyText::Known(k) => self.m.keys.get(k),
            KeyText::Own(from, to) => &self.own[from as usize..to as usize],
        }
    }

    /// Appends the variant as one JSON object, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for s in &self.slots {
            match s.key {
                KeyText::Known(k) => out.extend_from_slice(self.p.json_key(k)),
                KeyText::Own(..) => {
                    json::push(self.key_text(s.key), out);
                    out.push(b':');
                }
            }
            let text = s.val.text(self.m, &self.own);
            if s.val.is_clean() {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            } else {
                json::push(text, out);
            }
            out.push(b',');
        }
        out.extend_from_slice(b"\"dep\":[");
        for (i, d) in self.dep.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::push(d, out);
        }
        out.extend_from_slice(b"],\"name\":");
        json::push(&self.name, out);
        out.extend_from_slice(b",\"shortname\":");
        json::push(&self.short, out);
        if !self.maps.is_empty() {
            out.extend_from_slice(b",\"_name_map_file\":");
            json::push_map(self.name_map(), out);
            out.extend_from_slice(b",\"_short_name_map_file\":");
            json::push_map(self.short_name_map(), out);
        }
        out.push(b'}');
    }
}
