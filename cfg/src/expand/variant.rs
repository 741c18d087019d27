//! A finished combination.

use crate::expand::draft::Val;
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
            push_string(self.key_text(s.key), out);
            out.push(b':');
            push_string(s.val.text(self.m, &self.own), out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"dep\":[");
        for (i, d) in self.dep.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            push_string(d, out);
        }
        out.extend_from_slice(b"],\"name\":");
        push_string(&self.name, out);
        out.extend_from_slice(b",\"shortname\":");
        push_string(&self.short, out);
        if !self.maps.is_empty() {
            out.extend_from_slice(b",\"_name_map_file\":");
            push_map(self.name_map(), out);
            out.extend_from_slice(b",\"_short_name_map_file\":");
            push_map(self.short_name_map(), out);
        }
        out.push(b'}');
    }
}

fn push_map<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (k, v)) in entries.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        push_string(k, out);
        out.push(b':');
        push_string(v, out);
    }
    out.push(b'}');
}

/// A JSON string; only what must be escaped is.
fn push_string(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = s.as_bytes();
    if bytes.iter().all(|b| plain(*b)) {
        out.extend_from_slice(bytes);
    } else {
        for b in bytes {
            match b {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(b >> 4)]);
                    out.push(HEX[usize::from(b & 15)]);
                }
                b => out.push(*b),
            }
        }
    }
    out.push(b'"');
}

fn plain(b: u8) -> bool {
    b >= 0x20 && b != b'"' && b != b'\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_escape_what_they_must() {
        let mut out = Vec::new();
        push_string("a\"b\\c\u{1}\té", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"b\\\\c\\u0001\\té\"");
    }
}
