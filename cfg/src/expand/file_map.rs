//! The file maps of a variant: per configuration file, the part of the name that is defined in it.

use crate::model::{Model, NONE, Span};

/// Which of the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `_name_map_file`: labels as the full name prints them.
    Full,
    /// `_short_name_map_file`: bare names.
    Short,
}

/// One entry of both maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapEntry {
    /// In [`Model::base_names`].
    pub(crate) file: u32,
    pub(crate) full: String,
    pub(crate) short: String,
}

/// The variants among some nodes (outermost first): the file and the labels of each.
pub(crate) fn variants(m: &Model, nodes: &[u32]) -> Vec<(u32, Span)> {
    let mut out = Vec::with_capacity(nodes.len());
    let nodes = nodes.iter().map(|n| &m.nodes[*n as usize]);
    out.extend(nodes.filter(|n| n.map_file != NONE).map(|n| (n.map_file, n.labels)));
    out
}

/// The files of some variants, in the order of their first use, which is that of the text.
pub(crate) fn files(variants: &[(u32, Span)]) -> Vec<u32> {
    let mut out = Vec::new();
    for (file, _) in variants.iter().rev() {
        if !out.contains(file) {
            out.push(*file);
        }
    }
    out
}

/// The part of the name that a file defines.
pub(crate) fn entry(m: &Model, variants: &[(u32, Span)], file: u32, kind: Kind) -> String {
    let mut out = String::new();
    for (i, (_, labels)) in variants.iter().filter(|(f, _)| *f == file).enumerate() {
        // A variant without a name still has its dot.
        if i > 0 {
            out.push('.');
        }
        for (j, l) in m.path_labels[labels.range()].iter().enumerate() {
            if j > 0 {
                out.push('.');
            }
            let l = &m.labels[*l as usize];
            out.push_str(match kind {
                Kind::Full => m.text(l.printed),
                Kind::Short => m.names.get(l.name),
            });
        }
    }
    out
}

/// Both maps of some nodes.
pub(crate) fn maps(m: &Model, nodes: &[u32]) -> Vec<MapEntry> {
    let variants = variants(m, nodes);
    let entry = |file, kind| entry(m, &variants, file, kind);
    let both = |file| MapEntry { file, full: entry(file, Kind::Full), short: entry(file, Kind::Short) };
    files(&variants).into_iter().map(both).collect()
}
