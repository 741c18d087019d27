//! Runs the operations of a finished combination, in text order, into a [`Draft`].

use crate::diag::Diagnostic;
use crate::expand::draft::{Draft, Entry, KeyBook, MAX_TEXT, Val};
use crate::expand::file_map::Kind;
use crate::expand::filter::{Tri, View};
use crate::expand::names::quoted;
use crate::expand::pattern::Pattern;
use crate::expand::prepare::{Bound, Prepared};
use crate::expand::{file_map, finish, suffix};
use crate::intern::FastMap;
use crate::model::{Filter, Loc, Model, NONE, Op, OpKind, Piece, RESERVED};

/// Watches operations run; `explain` records them.
pub(crate) trait Trace {
    /// Called after an operation changed a key (`None`: deleted) under the given conditions.
    fn changed(&mut self, key: &str, op: &Op, value: Option<&str>, conditions: &[(Op, usize)]);
    /// Whether anything is recorded.
    const ON: bool;
}

/// Records nothing.
pub(crate) struct Silent;

impl Trace for Silent {
    fn changed(&mut self, _: &str, _: &Op, _: Option<&str>, _: &[(Op, usize)]) {}
    const ON: bool = false;
}

/// A regular expression with its answers so far.
#[derive(Debug, Default)]
struct Cached {
    pattern: Option<Pattern>,
    /// Per key number: 0 unknown, 1 no, 2 yes.
    answers: Vec<u8>,
}

/// What stays between combinations.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) draft: Draft,
    pub(crate) book: KeyBook,
    patterns: Vec<Cached>,
    /// Flattened view for substitution, by key number, and the draft version it shows.
    flat: FastMap<u32, Val>,
    flat_version: u64,
    /// Operations of the leaf node whose effect is the base of the draft, once the first combination has run.
    base_ops: Option<usize>,
}

/// The combination whose operations run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Nodes from the root to the leaf.
    pub(crate) nodes: &'a [u32],
    pub(crate) view: View<'a>,
    pub(crate) name: &'a str,
    pub(crate) short: &'a str,
    pub(crate) dep: &'a [String],
}

pub(crate) fn error_at(m: &Model, loc: Loc, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(m.file_name(loc), loc.line, message)
}

pub(crate) fn broken(m: &Model, f: &Filter) -> Diagnostic {
    error_at(m, f.loc, format!("the filter {:?} has a word that begins with a dot", m.text(f.written)))
        .with_hint("write the dot directly between two names, without white space or a comma before it")
}

impl Machine {
    pub(crate) fn new(m: &Model) -> Self {
        let mut patterns = Vec::new();
        patterns.resize_with(m.patterns.len(), Cached::default);
        Machine {
            draft: Draft::default(),
            book: KeyBook::new(m),
            patterns,
            flat: FastMap::default(),
            flat_version: 0,
            base_ops: None,
        }
    }

    /// Runs everything; the draft then holds the combination's keys.
    pub(crate) fn run<T: Trace>(&mut self, m: &Model, s: &Subject<'_>, trace: &mut T) -> Result<(), Diagnostic> {
        let mut done = if T::ON { self.begin_traced() } else { self.begin(m, s)? };
        let mut conditions: Vec<(Op, usize)> = Vec::new();
        for (i, node) in s.nodes.iter().enumerate().rev() {
            let range = m.nodes[*node as usize].ops.range();
            let mut at = range.start + std::mem::take(&mut done);
            while at < range.end {
                let op = &m.ops[at];
                if !T::ON && op.kind == OpKind::Set && !op.template {
                    // Most operations are this one.
                    self.draft.set(op.key, Val::of(op), at as u32, false);
                    at += 1;
                    continue;
                }
                if T::ON {
                    conditions.retain(|(_, end)| at < *end);
                }
                at += 1;
                if matches!(op.kind, OpKind::If | OpKind::Unless) {
                    let holds = match s.view.filter(op.key) {
                        Tri::Yes => true,
                        Tri::No => false,
                        Tri::Maybe => return Err(broken(m, &m.filters[op.key as usize])),
                    };
                    let skip = op.value.start as usize;
                    if holds == (op.kind == OpKind::Unless) {
                        at += skip;
                    } else if T::ON {
                        conditions.push((*op, at + skip));
                    }
                    continue;
                }
                self.operation(m, s, i, at as u32 - 1, trace, &conditions)?;
            }
        }
        Ok(())
    }

    /// Nothing was run yet, and every operation will be seen.
    fn begin_traced(&mut self) -> usize {
        self.draft.clear();
        self.base_ops = None;
        0
    }

    /// Sets what every combination sets first: the plain assignments with which the text begins. Tells how many they are.
    fn begin(&mut self, m: &Model, s: &Subject<'_>) -> Result<usize, Diagnostic> {
        if let Some(done) = self.base_ops {
            self.draft.rewind();
            return Ok(done);
        }
        self.draft.clear();
        let leaf = m.nodes[m.leaf as usize].ops;
        let plain = |op: &Op| {
            matches!(op.kind, OpKind::Set | OpKind::Append | OpKind::Prepend | OpKind::Default)
                && !(op.template && mentions_reserved(m, op))
        };
        let done = m.ops[leaf.range()].iter().take_while(|op| plain(op)).count();
        for at in leaf.start..leaf.start + done as u32 {
            self.operation(m, s, s.nodes.len() - 1, at, &mut Silent, &[])?;
        }
        self.draft.keep_as_base();
        self.base_ops = Some(done);
        Ok(done)
    }

    /// Runs the operation of that number.
    fn operation<T: Trace>(
        &mut self,
        m: &Model,
        s: &Subject<'_>,
        at_node: usize,
        number: u32,
        trace: &mut T,
        conditions: &[(Op, usize)],
    ) -> Result<(), Diagnostic> {
        let op = &m.ops[number as usize];
        match op.kind {
            OpKind::Set | OpKind::Append | OpKind::Prepend | OpKind::Default => {
                let old = if op.kind == OpKind::Set { None } else { self.draft.get(op.key) };
                if op.kind == OpKind::Default && old.is_some() {
                    return Ok(());
                }
                let operand = self.value(m, s, at_node, op)?;
                let val = self.combine(m, op.kind, old, operand);
                self.draft.set(op.key, val, number, false);
                if T::ON {
                    trace.changed(m.keys.get(op.key), op, Some(val.text(m, &self.draft.own)), conditions);
                }
            }
            OpKind::EachSet | OpKind::EachAppend | OpKind::EachPrepend => {
                let operand = self.value(m, s, at_node, op)?;
                let cached = &mut self.patterns[op.key as usize];
                if cached.pattern.is_none() {
                    let p = Pattern::compile(m.patterns.get(op.key)).map_err(|e| error_at(m, op.loc, e))?;
                    cached.pattern = Some(p);
                }
                for i in 0..self.draft.entries.len() {
                    let Entry { key, val, .. } = self.draft.entries[i];
                    if key == NONE || !self.hit(m, op, key)? {
                        continue;
                    }
                    let val = self.combine(m, op.kind, Some(val), operand);
                    self.draft.entries[i].val = val;
                    self.draft.entries[i].op = number;
                    self.draft.version += 1;
                    if T::ON {
                        trace.changed(&self.book.joined(m, key), op, Some(val.text(m, &self.draft.own)), conditions);
                    }
                }
            }
            OpKind::Delete => self.delete(m, op, trace, conditions),
            OpKind::Suffix => {
                suffix::apply(&mut self.draft, &mut self.book, op.key).map_err(|e| error_at(m, op.loc, e))?;
            }
            OpKind::Join => {
                return Err(error_at(m, op.loc, "a join inside a condition that holds")
                    .with_hint("join belongs at the level of the variants it joins, outside conditions"));
            }
            OpKind::If | OpKind::Unless => {}
        }
        if self.draft.own.len() > MAX_TEXT {
            return Err(error_at(m, op.loc, format!("the values of one combination exceed {MAX_TEXT} bytes")));
        }
        Ok(())
    }

    fn delete<T: Trace>(&mut self, m: &Model, op: &Op, trace: &mut T, conditions: &[(Op, usize)]) {
        if m.is_reserved(op.key) {
            return;
        }
        if self.draft.get(op.key).is_some() {
            self.draft.remove(op.key, false);
            if T::ON {
                trace.changed(m.keys.get(op.key), op, None, conditions);
            }
        }
        if self.draft.compounds > 0 {
            let wanted = m.keys.get(op.key);
            let hits: Vec<u32> = self
                .draft
                .live()
                .map(|e| e.key)
                .filter(|k| self.book.is_compound(*k) && self.book.joined(m, *k) == wanted)
                .collect();
            hits.into_iter().for_each(|k| self.draft.remove(k, true));
        }
    }

    fn combine(&mut self, m: &Model, kind: OpKind, old: Option<Val>, operand: Val) -> Val {
        match (kind, old) {
            (OpKind::Append | OpKind::EachAppend, Some(old)) => self.draft.concat(m, old, operand),
            (OpKind::Prepend | OpKind::EachPrepend, Some(old)) => self.draft.concat(m, operand, old),
            _ => operand,
        }
    }

    fn hit(&mut self, m: &Model, op: &Op, key: u32) -> Result<bool, Diagnostic> {
        let c = &mut self.patterns[op.key as usize];
        if let Some(1..) = c.answers.get(key as usize) {
            return Ok(c.answers[key as usize] == 2);
        }
        let Some(pattern) = &c.pattern else { unreachable!("compiled before the first key is tried") };
        let hit = if self.book.is_compound(key) {
            pattern.matches(&self.book.joined(m, key))
        } else {
            pattern.matches(self.book.plain_text(m, key))
        }
        .map_err(|e| error_at(m, op.loc, e))?;
        if c.answers.len() <= key as usize {
            c.answers.resize((key as usize + 1).next_power_of_two(), 0);
        }
        c.answers[key as usize] = if hit { 2 } else { 1 };
        Ok(hit)
    }

    /// The operand, with `${…}` replaced as things stand now.
    fn value(&mut self, m: &Model, s: &Subject<'_>, at_node: usize, op: &Op) -> Result<Val, Diagnostic> {
        if !op.template {
            return Ok(Val::of(op));
        }
        let pieces = &m.pieces[m.templates[op.value.start as usize].range()];
        let start = self.draft.own.len();
        // What stands around the references is known; what they insert knows itself.
        let mut clean = op.clean;
        for p in pieces {
            match *p {
                Piece::Literal(t) => self.draft.own.push_str(m.text(t)),
                Piece::Key { key, rest } => match self.insert(m, s, at_node, key) {
                    Some(inserted) => clean &= inserted,
                    None => {
                        self.draft.own.push_str(m.text(rest));
                        break;
                    }
                },
            }
            if self.draft.own.len() > MAX_TEXT {
                return Err(error_at(m, op.loc, format!("the values of one combination exceed {MAX_TEXT} bytes")));
            }
        }
        Ok(Val::own(start, self.draft.own.len(), clean))
    }

    /// Appends a key's value to the own text and tells whether it is clean; `None` if there is no such key.
    fn insert(&mut self, m: &Model, s: &Subject<'_>, at_node: usize, key: u32) -> Option<bool> {
        if m.is_reserved(key) {
            return self.insert_reserved(m, s, at_node, RESERVED[key as usize]);
        }
        let val = if self.draft.compounds == 0 {
            self.draft.get(key)
        } else {
            if self.flat_version != self.draft.version {
                let flat = suffix::flatten(m, &mut self.book, &self.draft.entries, &self.draft.own);
                self.flat = flat.iter().map(|e| (e.key, e.val)).collect();
                self.flat_version = self.draft.version;
            }
            self.flat.get(&key).copied()
        };
        let val = val?;
        self.draft.copy(m, val);
        Some(val.is_clean())
    }

    fn insert_reserved(&mut self, m: &Model, s: &Subject<'_>, at_node: usize, key: &str) -> Option<bool> {
        let own = &mut self.draft.own;
        match key {
            "name" => own.push_str(s.name),
            "shortname" => own.push_str(s.short),
            "dep" => {
                own.push('[');
                for (i, d) in s.dep.iter().enumerate() {
                    if i > 0 {
                        own.push_str(", ");
                    }
                    quoted(d, own);
                }
                own.push(']');
            }
            map => {
                // The node at hand has not run its own hidden operation yet.
                let done = file_map::variants(m, &s.nodes[at_node + 1..]);
                let kind = if map == "_name_map_file" { Kind::Full } else { Kind::Short };
                let files = file_map::files(&done);
                if files.is_empty() {
                    return None;
                }
                own.push('{');
                for (i, file) in files.into_iter().enumerate() {
                    if i > 0 {
                        own.push_str(", ");
                    }
                    quoted(m.base_names.get(file), own);
                    own.push_str(": ");
                    quoted(&file_map::entry(m, &done, file, kind), own);
                }
                own.push('}');
            }
        }
        // Names hold no quotes; the texts of lists and maps may.
        Some(matches!(key, "name" | "shortname"))
    }

    /// `_min`, `_max`, `_fixed`; the names they concern, if they do.
    pub(crate) fn finish(
        &mut self,
        m: &Model,
        p: &Prepared,
        name: &mut String,
        short: &mut String,
    ) -> Result<(), Diagnostic> {
        // In the order the keys were first set.
        let mut given: Vec<(usize, Bound)> =
            p.bounds.iter().filter_map(|b| self.draft.position(b.key).map(|i| (i, *b))).collect();
        given.sort_unstable_by_key(|(i, _)| *i);
        let mut pending: Vec<(u32, Entry)> = Vec::new();
        for (i, bound) in given {
            let e = self.draft.entries[i];
            let limit = e.val.text(m, &self.draft.own);
            let current = match (m.is_reserved(bound.base), bound.base) {
                (true, 0) => Some(name.as_str()),
                (true, 1) => Some(short.as_str()),
                (true, _) => {
                    let message = format!("{:?} bounds a key that holds no text", m.keys.get(e.key));
                    return Err(error_at(m, e.loc(m), message));
                }
                (false, base) => self.draft.get(base).map(|v| v.text(m, &self.draft.own)),
            };
            let replaces = finish::replaces(bound.kind, current, limit).map_err(|text| {
                error_at(m, e.loc(m), format!("{} cannot be compared: {text}", m.keys.get(e.key)))
                    .with_hint("_min and _max need integers, or sizes such as 512M")
            })?;
            if replaces {
                pending.push((bound.base, e));
            }
        }
        for (base, e) in pending {
            match base {
                0 => *name = e.val.text(m, &self.draft.own).to_owned(),
                1 => *short = e.val.text(m, &self.draft.own).to_owned(),
                _ => self.draft.set(base, e.val, e.op, false),
            }
        }
        Ok(())
    }
}

/// A value that is not the same in every combination.
fn mentions_reserved(m: &Model, op: &Op) -> bool {
    let pieces = &m.pieces[m.templates[op.value.start as usize].range()];
    pieces.iter().any(|p| matches!(p, Piece::Key { key, .. } if m.is_reserved(*key)))
}
