//! The file maps of a variant: per configuration file, the part of the name that is defined in it.

use crate::model::{Model, NONE};

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

/// The files of some nodes (outermost first), in the order of their first use.
pub(crate) fn files(m: &Model, nodes: &[u32]) -> Vec<u32> {
    let mut out = Vec::new();
    for n in nodes.iter().rev() {
        let file = m.nodes[*n as usize].map_file;
        if file != NONE && !out.contains(&file) {
            out.push(file);
        }
    }
    out
}

/// The part of the name that a file defines, piece by piece.
pub(crate) fn pieces(m: &Model, nodes: &[u32], file: u32, kind: Kind, mut push: impl FnMut(&str)) {
    let inside = nodes.iter().map(|n| &m.nodes[*n as usize]).filter(|n| n.map_file == file);
    for (i, n) in inside.enumerate() {
        // A variant without a name still has its dot.
        if i > 0 {
            push(".");
        }
        for (j, l) in m.path_labels[n.labels.range()].iter().enumerate() {
            if j > 0 {
                push(".");
            }
            let l = &m.labels[*l as usize];
            push(match kind {
                Kind::Full => m.text(l.printed),
                Kind::Short => m.names.get(l.name),
            });
        }
    }
}

/// The same as one text.
pub(crate) fn entry(m: &Model, nodes: &[u32], file: u32, kind: Kind) -> String {
    let mut out = String::new();
    pieces(m, nodes, file, kind, |p| out.push_str(p));
    out
}

/// Both maps of some nodes.
pub(crate) fn maps(m: &Model, nodes: &[u32]) -> Vec<MapEntry> {
    let entry = |file, kind| entry(m, nodes, file, kind);
    let both = |file| MapEntry { file, full: entry(file, Kind::Full), short: entry(file, Kind::Short) };
    files(m, nodes).into_iter().map(both).collect()
}
