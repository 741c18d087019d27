//! A finished combination as JSON, wherever its parts are kept.

use crate::expand::draft::{Entry, Val};
use crate::expand::file_map::{self, Kind, MapEntry};
use crate::expand::json;
use crate::expand::prepare::Prepared;
use crate::model::{Model, NONE, Span};

/// What the file maps follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MapsOf<'a> {
    /// Nodes from the root to the leaf.
    Nodes(&'a [u32]),
    /// Of a joined combination.
    Given(&'a [MapEntry]),
}

/// A combination with plain keys only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dict<'a> {
    pub(crate) m: &'a Model,
    pub(crate) p: &'a Prepared,
    pub(crate) name: &'a str,
    pub(crate) short: &'a str,
    pub(crate) dep: &'a [String],
    pub(crate) maps: MapsOf<'a>,
    /// Deleted ones are still in it.
    pub(crate) entries: &'a [Entry],
    /// Texts of keys beyond the model's, in `own`.
    pub(crate) extra: &'a [Span],
    pub(crate) own: &'a str,
}

impl<'a> Dict<'a> {
    /// The text of a key.
    pub(crate) fn key(&self, key: u32) -> &'a str {
        match (key as usize).checked_sub(self.m.keys.len()) {
            None => self.m.keys.get(key),
            Some(i) => &self.own[self.extra[i].range()],
        }
    }

    /// Appends one JSON object. `ready` is what dictionaries of the same expansion left behind.
    pub(crate) fn write(&self, ready: Option<&mut Ready>, out: &mut Vec<u8>) {
        out.push(b'{');
        match ready {
            Some(ready) => ready.write(self, out),
            None => self.entries.iter().for_each(|e| self.write_entry(e, out)),
        }
        // Names are made of labels, unless a bound gives them.
        let push_name = if self.p.clean_names && !self.p.bounds_reserved { json::push_clean } else { json::push };
        out.extend_from_slice(b"\"dep\":[");
        for (i, d) in self.dep.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            push_name(d, out);
        }
        out.extend_from_slice(b"],\"name\":");
        push_name(self.name, out);
        out.extend_from_slice(b",\"shortname\":");
        push_name(self.short, out);
        match self.maps {
            MapsOf::Nodes(nodes) => {
                let variants = file_map::variants(self.m, nodes);
                let files = file_map::files(&variants);
                self.write_maps(&files, out, |i, kind, out| {
                    let mut first = true;
                    for (_, labels) in variants.iter().filter(|(file, _)| *file == files[i]) {
                        for l in &self.m.path_labels[labels.range()] {
                            let text = self.p.json_label(*l, kind);
                            out.extend_from_slice(&text[usize::from(first)..]);
                            first = false;
                        }
                        if labels.len() == 0 && !first {
                            // A variant without a name still has its dot.
                            out.push(b'.');
                        }
                        first = false;
                    }
                });
            }
            MapsOf::Given(maps) => {
                let files: Vec<u32> = maps.iter().map(|e| e.file).collect();
                self.write_maps(&files, out, |i, kind, out| {
                    let text = if kind == Kind::Full { &maps[i].full } else { &maps[i].short };
                    json::push_inside(text, out);
                });
            }
        }
        out.push(b'}');
    }

    /// The file maps; `text` writes the entry of the file at a place.
    fn write_maps(&self, files: &[u32], out: &mut Vec<u8>, text: impl Fn(usize, Kind, &mut Vec<u8>)) {
        if files.is_empty() {
            return;
        }
        for (kind, head) in [(Kind::Full, ",\"_name_map_file\":"), (Kind::Short, ",\"_short_name_map_file\":")] {
            out.extend_from_slice(head.as_bytes());
            for (i, file) in files.iter().enumerate() {
                out.push(if i == 0 { b'{' } else { b',' });
                json::push(self.m.base_names.get(*file), out);
                out.extend_from_slice(b":\"");
                text(i, kind, out);
                out.push(b'"');
            }
            out.push(b'}');
        }
    }

    /// `"key":"value",`
    fn write_entry(&self, e: &Entry, out: &mut Vec<u8>) {
        if e.key == NONE {
            return;
        }
        // Keys of the model have their text ready, opening quote of the value included.
        if (e.key as usize) < self.m.keys.len() {
            out.extend_from_slice(self.p.json_key(e.key));
        } else {
            json::push(self.key(e.key), out);
            out.extend_from_slice(b":\"");
        }
        let text = e.val.text(self.m, self.own);
        if e.val.is_clean() {
            out.extend_from_slice(text.as_bytes());
        } else {
            json::push_inside(text, out);
        }
        out.extend_from_slice(b"\",");
    }
}

/// Bytes that are kept ready at most.
const MAX_READY: usize = 64 << 20;

/// Entries as JSON that dictionaries of one expansion have in common: from one to the next little changes.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// The entries every combination begins with.
    base: Vec<Entry>,
    base_text: Vec<u8>,
    /// Where the text of each begins in `base_text`, and where the last one ends.
    base_starts: Vec<u32>,
    /// Per operation that gives the same value each time: where its entry is in `text`; empty until it was written once.
    spans: Vec<Span>,
    text: Vec<u8>,
}

impl Ready {
    /// With the entries that every combination begins with, as the first one has them.
    pub(crate) fn new(first: &Dict<'_>, base: &[Entry]) -> Self {
        let mut out =
            Ready { base: base.to_vec(), spans: vec![Span::default(); first.m.ops.len()], ..Ready::default() };
        for e in base {
            out.base_starts.push(out.base_text.len() as u32);
            first.write_entry(e, &mut out.base_text);
        }
        out.base_starts.push(out.base_text.len() as u32);
        out
    }

    fn write(&mut self, dict: &Dict<'_>, out: &mut Vec<u8>) {
        let mut rest = dict.entries;
        let mut at = 0;
        while at < self.base.len() && !rest.is_empty() {
            let same = self.base[at..].iter().zip(rest).take_while(|(a, b)| a == b).count();
            let text = self.base_starts[at] as usize..self.base_starts[at + same] as usize;
            out.extend_from_slice(&self.base_text[text]);
            (at, rest) = (at + same, &rest[same..]);
            if let [changed, after @ ..] = rest {
                self.write_entry(dict, changed, out);
                (at, rest) = (at + 1, after);
            }
        }
        rest.iter().for_each(|e| self.write_entry(dict, e, out));
    }

    fn write_entry(&mut self, dict: &Dict<'_>, e: &Entry, out: &mut Vec<u8>) {
        let op = &dict.m.ops[e.op as usize];
        if e.key != op.key || e.val != Val::of(op) || self.text.len() > MAX_READY {
            return dict.write_entry(e, out);
        }
        let span = &mut self.spans[e.op as usize];
        if span.len() > 0 {
            return out.extend_from_slice(&self.text[span.range()]);
        }
        let from = out.len();
        dict.write_entry(e, out);
        span.start = self.text.len() as u32;
        self.text.extend_from_slice(&out[from..]);
        span.end = self.text.len() as u32;
    }
}
