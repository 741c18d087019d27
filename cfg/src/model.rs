//! A parsed configuration: one graph of nodes, with everything in flat tables.
//!
//! The walk from the end of the text to its beginning is a walk from the root node to the leaf node. Nothing here evaluates;
//! nothing here is changed once parsing has ended.

use crate::intern::{FastMap, Interner};

/// "None" in tables of numbers.
pub(crate) const NONE: u32 = u32::MAX;

/// A half-open range of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Loc {
    /// Index into [`Model::files`].
    pub(crate) file: u32,
    /// Line from 1.
    pub(crate) line: u32,
}

/// A filter label: a name, and the set it must belong to (or [`NONE`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Atom {
    pub(crate) set: u32,
    pub(crate) name: u32,
}

/// A label of a variant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label {
    /// Set name in [`Model::names`] or [`NONE`].
    pub(crate) set: u32,
    /// Name in [`Model::names`].
    pub(crate) name: u32,
    /// As `name` prints it, in [`Model::text`].
    pub(crate) printed: Span,
    /// Filter atoms it satisfies: by name, by set and name; [`NONE`] if no filter asks.
    pub(crate) atoms: [u32; 2],
}

/// `,`-separated words of `..`-separated groups of `.`-separated labels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter {
    /// Into [`Model::words`].
    pub(crate) words: Span,
    pub(crate) loc: Loc,
    /// A word has an empty group (`a .b`): evaluating it is an error.
    pub(crate) broken: bool,
    /// The filter as written, in [`Model::text`].
    pub(crate) written: Span,
}

/// An `only` or `no`, with the conditions it stands under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constraint {
    /// `only`, not `no`.
    pub(crate) only: bool,
    pub(crate) filter: u32,
    /// Into [`Model::guards`].
    pub(crate) guards: Span,
}

/// A condition: it holds if the filter's result differs from `negated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) filter: u32,
    pub(crate) negated: bool,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpKind {
    /// `=`
    Set,
    /// `+=`
    Append,
    /// `<=`
    Prepend,
    /// `~=`
    Default,
    /// `?=`; `key` is a pattern.
    EachSet,
    /// `?+=`
    EachAppend,
    /// `?<=`
    EachPrepend,
    /// `del`
    Delete,
    /// The effect of `suffix`; `key` is in [`Model::names`].
    Suffix,
    /// `FILTER:`; `key` is a filter, `value.start` the number of operations that follow and belong to it.
    If,
    /// `!FILTER:`
    Unless,
    /// `join` in a condition: an error if reached.
    Join,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub(crate) kind: OpKind,
    /// `value.start` is a template number, not text.
    pub(crate) template: bool,
    /// The value needs no escapes in JSON.
    pub(crate) clean: bool,
    /// Key, pattern, filter or suffix number.
    pub(crate) key: u32,
    /// In [`Model::text`].
    pub(crate) value: Span,
    pub(crate) loc: Loc,
    /// Into [`Model::folded`]: what was merged into this operation at parse time, or [`NONE`].
    pub(crate) history: u32,
}

/// An assignment that was merged into a later one of the same run of lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folded {
    pub(crate) kind: OpKind,
    /// Value after it.
    pub(crate) result: Span,
    pub(crate) loc: Loc,
}

/// A piece of a value with `${…}`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece {
    /// Text as it is.
    Literal(Span),
    /// The value of a key; if there is none, `rest` ends the value.
    Key { key: u32, rest: Span },
}

/// One node of the graph.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// Into [`Model::path_labels`].
    pub(crate) labels: Span,
    /// Into [`Model::deps`].
    pub(crate) deps: Span,
    /// Into [`Model::children`].
    pub(crate) children: Span,
    /// Into [`Model::ops`].
    pub(crate) ops: Span,
    /// Into [`Model::constraints`]; they hold for the whole chain of nodes below that every path through this node passes.
    pub(crate) constraints: Span,
    /// Into [`Model::joins`].
    pub(crate) joins: Span,
    /// Base name of the file of the variant line in [`Model::base_names`], or [`NONE`] if this is no variant.
    pub(crate) map_file: u32,
    /// The set this variant belongs to, in [`Model::names`], or [`NONE`].
    pub(crate) set: u32,
    /// Left out of `shortname`.
    pub(crate) quiet: bool,
    /// First default of its set, in defaults mode.
    pub(crate) chosen: bool,
    /// The variant line; of a container, the header.
    pub(crate) loc: Loc,
}

/// A `default` of a set, kept for `lint`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JoinWord {
    /// A filter with this one word.
    pub(crate) filter: u32,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// All text that lives as long as the configuration.
    pub(crate) text: String,
    /// File names, `<string>` for extra statements.
    pub(crate) files: Vec<String>,
    pub(crate) base_names: Interner,
    pub(crate) keys: Interner,
    /// Variant, set and suffix names.
    pub(crate) names: Interner,
    pub(crate) labels: Vec<Label>,
    /// Runs of label numbers, one run per variant.
    pub(crate) path_labels: Vec<u32>,
    pub(crate) atoms: Vec<Atom>,
    pub(crate) atom_numbers: FastMap<(u32, u32), u32>,
    pub(crate) filters: Vec<Filter>,
    /// Ranges of `groups`.
    pub(crate) words: Vec<Span>,
    /// Ranges of `group_atoms`.
    pub(crate) groups: Vec<Span>,
    pub(crate) group_atoms: Vec<u32>,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) guards: Vec<Guard>,
    pub(crate) deps: Vec<Span>,
    pub(crate) ops: Vec<Op>,
    pub(crate) folded: Vec<Vec<Folded>>,
    pub(crate) templates: Vec<Span>,
    pub(crate) pieces: Vec<Piece>,
    /// Regular expressions of `?=` and its kin.
    pub(crate) patterns: Interner,
    pub(crate) nodes: Vec<Node>,
    pub(crate) children: Vec<u32>,
    pub(crate) joins: Vec<JoinWord>,
    pub(crate) root: u32,
    pub(crate) leaf: u32,
    /// Keys the result reserves: `name`, `shortname`, `dep` and the two maps.
    pub(crate) reserved: [u32; 5],
}

/// The reserved keys, in the order of [`Model::reserved`].
pub(crate) const RESERVED: [&str; 5] = ["name", "shortname", "dep", "_name_map_file", "_short_name_map_file"];

impl Model {
    pub(crate) fn new() -> Self {
        let mut m = Model::default();
        for (i, k) in RESERVED.iter().enumerate() {
            m.reserved[i] = m.keys.add(k);
        }
        m
    }

    pub(crate) fn text(&self, s: Span) -> &str {
        &self.text[s.range()]
    }

    /// Stores a text; the caller bounds the total (see `Limits`), so that 32 bits suffice.
    pub(crate) fn store(&mut self, s: &str) -> Span {
        let start = self.text.len() as u32;
        self.text.push_str(s);
        Span { start, end: self.text.len() as u32 }
    }

    pub(crate) fn is_reserved(&self, key: u32) -> bool {
        // They were interned first, in this order.
        (key as usize) < RESERVED.len()
    }

    pub(crate) fn atom(&mut self, set: u32, name: u32) -> u32 {
        let next = self.atoms.len() as u32;
        let n = *self.atom_numbers.entry((set, name)).or_insert(next);
        if n == next {
            self.atoms.push(Atom { set, name });
        }
        n
    }

    pub(crate) fn file_name(&self, loc: Loc) -> &str {
        self.files.get(loc.file as usize).map_or("", String::as_str)
    }

    /// `(set=name)` or the bare name.
    pub(crate) fn show(&self, set: u32, name: u32) -> String {
        let n = self.names.get(name);
        if set == NONE { n.to_owned() } else { format!("({}={n})", self.names.get(set)) }
    }
}
