//! Runs of simple assignments, folded while reading.
//!
//! Assignments without `$` that follow each other become one entry per key. This is visible: an operation on a key of the run is
//! executed on the run alone.

use crate::expand::pattern::Pattern;
use crate::lexer::Fault;
use crate::model::{Folded, Loc, Model, NONE, Op, OpKind, Span};
use crate::parser::{Cursor, Limits, Parser};

#[derive(Debug)]
struct Entry {
    key: u32,
    value: Span,
    loc: Loc,
    history: Vec<Folded>,
}

/// The open run.
#[derive(Debug, Default)]
pub(crate) struct Local {
    entries: Vec<Entry>,
    /// Per key: 1 + position in `entries`, valid if the entry there has the key.
    place: Vec<u32>,
}

impl Local {
    fn find(&self, key: u32) -> Option<usize> {
        let at = *self.place.get(key as usize)? as usize;
        (at > 0 && self.entries.get(at - 1).is_some_and(|e| e.key == key)).then(|| at - 1)
    }

    fn insert(&mut self, key: u32, value: Span, loc: Loc) {
        if self.place.len() <= key as usize {
            self.place.resize((key as usize + 1).next_power_of_two(), 0);
        }
        self.entries.push(Entry { key, value, loc, history: Vec::new() });
        self.place[key as usize] = self.entries.len() as u32;
    }
}

impl Entry {
    fn assign(&mut self, m: &mut Model, kind: OpKind, operand: Span, loc: Loc) {
        let result = match kind {
            OpKind::Append | OpKind::EachAppend => concat(m, self.value, operand),
            OpKind::Prepend | OpKind::EachPrepend => concat(m, operand, self.value),
            OpKind::Default => self.value,
            _ => operand,
        };
        if self.history.is_empty() {
            self.history.push(Folded { kind: OpKind::Set, result: self.value, loc: self.loc });
        }
        self.history.push(Folded { kind, result, loc });
        self.value = result;
        self.loc = loc;
    }
}

fn concat(m: &mut Model, a: Span, b: Span) -> Span {
    let joined = format!("{}{}", m.text(a), m.text(b));
    m.store(&joined)
}

impl Parser<'_> {
    /// An assignment: into the run if the language folds it, else as an operation of its own.
    pub(crate) fn assign(&mut self, cur: &Cursor, key: &str, kind: OpKind, value: &str, loc: Loc) -> Result<(), Fault> {
        let each = matches!(kind, OpKind::EachSet | OpKind::EachAppend | OpKind::EachPrepend);
        let simple = !value.contains('$');
        if self.m.text.len() + value.len() > u32::MAX as usize / 2 {
            return Err(Fault::new(0, key.len(), "the configuration's values are too large"));
        }
        if simple && kind == OpKind::Set {
            let key = self.m.keys.add(key);
            let value = self.m.store(value);
            match self.local.find(key) {
                Some(i) => self.local.entries[i].assign(&mut self.m, kind, value, loc),
                None => self.local.insert(key, value, loc),
            }
            return Ok(());
        }
        if simple && let Some(i) = self.m.keys.find(key).and_then(|k| self.local.find(k)) {
            let value = self.m.store(value);
            if !each {
                self.local.entries[i].assign(&mut self.m, kind, value, loc);
                return Ok(());
            }
            let pattern = Pattern::compile(key).map_err(|e| Fault::new(0, key.len(), e))?;
            for e in &mut self.local.entries {
                if !self.m.is_reserved(e.key)
                    && pattern.matches(self.m.keys.get(e.key)).map_err(|e| Fault::new(0, key.len(), e))?
                {
                    e.assign(&mut self.m, kind, value, loc);
                }
            }
            return Ok(());
        }
        self.close_local(cur);
        if each && self.m.patterns.len() >= Limits::PATTERNS && self.m.patterns.find(key).is_none() {
            return Err(Fault::new(0, key.len(), format!("more than {} different key patterns", Limits::PATTERNS)));
        }
        let key = if each { self.m.patterns.add(key) } else { self.m.keys.add(key) };
        if !each && self.m.is_reserved(key) {
            return Ok(());
        }
        let value = self.m.store(value);
        let at = self.emit(cur, kind, key, value, loc);
        if !simple && let Some(t) = super::value::template(&mut self.m, value) {
            self.m.ops[at].template = true;
            self.m.ops[at].value = Span { start: t, end: t };
        }
        Ok(())
    }

    /// Emits the run.
    pub(crate) fn close_local(&mut self, _cur: &Cursor) {
        for e in self.local.entries.drain(..) {
            if self.m.is_reserved(e.key) {
                continue;
            }
            let history = if e.history.is_empty() {
                NONE
            } else {
                self.m.folded.push(e.history);
                self.m.folded.len() as u32 - 1
            };
            let clean = crate::expand::json::is_clean(self.m.text(e.value));
            self.m.ops.push(Op {
                clean,
                kind: OpKind::Set,
                template: false,
                key: e.key,
                value: e.value,
                loc: e.loc,
                history,
            });
        }
    }
}
