//! `explain`: each assignment of a variant in order, or what removed it.

use std::collections::HashMap;

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::assign::{Machine, Subject, Trace};
use crate::inspect::locate::{Complete, paths};
use crate::inspect::similar::closest;
use crate::model::{Constraint, Loc, Model, NONE, Op, OpKind};

/// A condition around an assignment or a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// As written, with `!` if negated.
    pub text: String,
    /// File of the condition.
    pub file: String,
    /// Its line.
    pub line: u32,
}

/// One assignment that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `=`, `+=`, `del`, …; `_max` and its kin for the last adjustment.
    pub operator: &'static str,
    /// The key's value after it; `None` if it was deleted.
    pub value: Option<String>,
    /// File of the assignment.
    pub file: String,
    /// Its line.
    pub line: u32,
    /// Conditional blocks it stands in, outermost first.
    pub conditions: Vec<Condition>,
}

/// What happened to one key; the last step won.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHistory {
    /// The key as the result prints it.
    pub key: String,
    /// Final value; `None` if the key is gone.
    pub value: Option<String>,
    /// In the order they ran.
    pub steps: Vec<Step>,
}

/// A line that removed a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// `only …` or `no …` as written.
    pub text: String,
    /// File of the line.
    pub file: String,
    /// The line.
    pub line: u32,
    /// Conditions it stands under, outermost first.
    pub conditions: Vec<Condition>,
}

/// The answer for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// The variant exists; its keys in the order they were first set.
    Present(Vec<KeyHistory>),
    /// The name is possible, but these lines removed it.
    Removed(Vec<Removal>),
    /// No combination has this name.
    Unknown {
        /// The first part of the name that no variant is called, if there is one.
        part: Option<String>,
        /// A name that was probably meant instead of it.
        suggestion: Option<String>,
    },
}

impl Config {
    /// Explains a full name.
    ///
    /// # Errors
    /// What expanding the variant itself would report.
    pub fn explain(&self, name: &str) -> Result<Explanation, Diagnostic> {
        let m = &self.m;
        let candidates: Vec<Complete> = paths(m, name).into_iter().map(|p| Complete::new(m, p)).collect();
        let mut removals = Vec::new();
        for c in &candidates {
            let failed: Vec<Removal> = c.failed(m).map(|f| removal(m, f)).collect();
            if failed.is_empty() && !joined(m, c) {
                return self.history(c, name).map(Explanation::Present);
            }
            removals.extend(failed);
        }
        if m.joins.is_empty() && candidates.is_empty() {
            return Ok(self.unknown(name));
        }
        // A joined name is no single path: walk.
        if !m.joins.is_empty() {
            for v in self.variants().take(MAX_WALK) {
                let v = v?;
                if v.name() == name {
                    return Ok(Explanation::Present(last_steps(&v)));
                }
            }
        }
        if removals.is_empty() { Ok(self.unknown(name)) } else { Ok(Explanation::Removed(removals)) }
    }

    fn unknown(&self, name: &str) -> Explanation {
        let m = &self.m;
        let known = |text: &str| m.labels.iter().any(|l| m.text(l.printed) == text);
        let part = name.split('.').find(|s| !known(s)).map(str::to_owned);
        let suggestion =
            part.as_ref().and_then(|p| closest(p, m.labels.iter().map(|l| m.text(l.printed)))).map(str::to_owned);
        Explanation::Unknown { part, suggestion }
    }

    fn history(&self, c: &Complete, name: &str) -> Result<Vec<KeyHistory>, Diagnostic> {
        let m = &self.m;
        let mut machine = Machine::new(m);
        let mut recorder = Recorder { m, order: Vec::new(), steps: HashMap::new() };
        let (dep, mut name, mut short) = (c.dep(m), name.to_owned(), c.short_name(m));
        let (full, quiet) = (name.clone(), short.clone());
        let subject = Subject { nodes: &c.nodes, view: c.view(m), name: &full, short: &quiet, dep: &dep };
        machine.run(m, &subject, &mut recorder)?;
        let before: HashMap<u32, String> =
            machine.draft.live().map(|e| (e.key, e.val.text(m, &machine.draft.own).to_owned())).collect();
        machine.finish(m, &self.p, &mut name, &mut short)?;
        for e in machine.draft.live() {
            let value = e.val.text(m, &machine.draft.own);
            if before.get(&e.key).map(String::as_str) != Some(value) {
                let key = machine.book.joined(m, e.key);
                let bound = self.p.bounds.iter().find(|b| {
                    let given = machine.draft.position(b.key).map(|i| machine.draft.entries[i]);
                    b.base == e.key && given.is_some_and(|g| g.op == e.op && g.val == e.val)
                });
                let operator = bound.map_or("=", |b| b.kind.text());
                let step = Step { operator, value: Some(value.to_owned()), ..step(m, e.loc(m)) };
                recorder.push(&key, step);
            }
        }
        // Printed keys and the key their history is kept under.
        let entries: Vec<_> = machine.draft.live().copied().collect();
        let mut base: HashMap<String, String> = HashMap::new();
        for e in &entries {
            base.insert(machine.book.printed(m, e.key), machine.book.base_text(m, e.key));
        }
        let flat = crate::expand::flatten(m, &mut machine.book, &entries, &machine.draft.own);
        let mut out = Vec::new();
        for e in flat {
            let key = machine.book.plain_text(m, e.key).to_owned();
            let from = base.get(&key).unwrap_or(&key);
            let steps = recorder.steps.get(from).cloned().unwrap_or_default();
            out.push(KeyHistory { key, value: Some(e.val.text(m, &machine.draft.own).to_owned()), steps });
        }
        for key in &recorder.order {
            let gone = recorder.steps.get(key).filter(|s| s.last().is_some_and(|l| l.value.is_none()));
            if let Some(steps) = gone
                && !out.iter().any(|k| k.key == *key)
            {
                out.push(KeyHistory { key: key.clone(), value: None, steps: steps.clone() });
            }
        }
        Ok(out)
    }
}

/// Variants walked to find a joined name.
pub(crate) const MAX_WALK: usize = 1_000_000;

pub(crate) fn joined(m: &Model, c: &Complete) -> bool {
    c.nodes.iter().any(|n| m.nodes[*n as usize].joins.len() > 0)
}

/// Of a joined variant only the winning assignments are known.
fn last_steps(v: &crate::expand::variant::Variant<'_>) -> Vec<KeyHistory> {
    v.params()
        .map(|(key, value, origin)| KeyHistory {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            steps: vec![Step {
                operator: "=",
                value: Some(value.to_owned()),
                file: origin.file.to_owned(),
                line: origin.line,
                conditions: Vec::new(),
            }],
        })
        .collect()
}

fn step(m: &Model, loc: Loc) -> Step {
    Step { operator: "=", value: None, file: m.file_name(loc).to_owned(), line: loc.line, conditions: Vec::new() }
}

pub(crate) fn removal(m: &Model, c: &Constraint) -> Removal {
    let f = &m.filters[c.filter as usize];
    Removal {
        text: format!("{} {}", if c.only { "only" } else { "no" }, m.text(f.written)),
        file: m.file_name(f.loc).to_owned(),
        line: f.loc.line,
        conditions: m.guards[c.guards.range()].iter().map(|g| condition(m, g.filter)).collect(),
    }
}

fn condition(m: &Model, filter: u32) -> Condition {
    let f = &m.filters[filter as usize];
    Condition { text: m.text(f.written).to_owned(), file: m.file_name(f.loc).to_owned(), line: f.loc.line }
}

fn operator(kind: OpKind) -> &'static str {
    match kind {
        OpKind::Append => "+=",
        OpKind::Prepend => "<=",
        OpKind::Default => "~=",
        OpKind::EachSet => "?=",
        OpKind::EachAppend => "?+=",
        OpKind::EachPrepend => "?<=",
        OpKind::Delete => "del",
        OpKind::Suffix => "suffix",
        OpKind::Set | OpKind::If | OpKind::Unless | OpKind::Join => "=",
    }
}

struct Recorder<'a> {
    m: &'a Model,
    order: Vec<String>,
    steps: HashMap<String, Vec<Step>>,
}

impl Recorder<'_> {
    fn push(&mut self, key: &str, step: Step) {
        if let Some(s) = self.steps.get_mut(key) {
            s.push(step);
            return;
        }
        self.order.push(key.to_owned());
        self.steps.insert(key.to_owned(), vec![step]);
    }
}

impl Trace for Recorder<'_> {
    const ON: bool = true;

    fn changed(&mut self, key: &str, op: &Op, value: Option<&str>, conditions: &[(Op, usize)]) {
        let m = self.m;
        let conditions: Vec<Condition> = conditions.iter().map(|(c, _)| condition(m, c.key)).collect();
        if op.history != NONE {
            for f in &m.folded[op.history as usize] {
                let value = Some(m.text(f.result).to_owned());
                let s = Step { operator: operator(f.kind), value, conditions: conditions.clone(), ..step(m, f.loc) };
                self.push(key, s);
            }
            return;
        }
        let value = value.map(str::to_owned);
        self.push(key, Step { operator: operator(op.kind), value, conditions, ..step(m, op.loc) });
    }
}
