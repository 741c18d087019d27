//! `explain`: each assignment of a variant in order, or what removed it.

use std::collections::HashMap;

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::Found;
use crate::expand::assign::{Machine, Trace};
use crate::expand::draft::{Entry, KeyBook};
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
    /// Of a joined variant: the name of the part it was made in.
    pub part: Option<String>,
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
        match self.named(name)? {
            Some(Found::Path(nodes)) => return self.history(Complete::new(m, nodes.into())).map(Explanation::Present),
            Some(Found::Joined(_, paths)) => return self.joined_history(paths).map(Explanation::Present),
            None => {}
        }
        let candidates = paths(m, name).into_iter().map(|p| Complete::new(m, p));
        let removals: Vec<Removal> =
            candidates.flat_map(|c| c.failed(m).map(|f| removal(m, f)).collect::<Vec<_>>()).collect();
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

    fn history(&self, c: Complete) -> Result<Vec<KeyHistory>, Diagnostic> {
        let mut machine = Machine::new(&self.m);
        let recorded = self.record(&mut machine, &c, None)?;
        let entries: Vec<Entry> = machine.draft.live().copied().collect();
        Ok(self.histories(&mut machine.book, &[recorded], &entries, &machine.draft.own))
    }

    /// Of a joined variant: the steps of every part, in the order of the parts, because the later ones win.
    fn joined_history(&self, paths: Vec<Box<[u32]>>) -> Result<Vec<KeyHistory>, Diagnostic> {
        let m = &self.m;
        let mut machine = Machine::new(m);
        let complete = paths.into_iter().map(|nodes| Complete::new(m, nodes.into()));
        let recorded: Vec<Recorded<'_>> =
            complete.map(|c| self.record(&mut machine, &c, Some(&c.name))).collect::<Result<_, _>>()?;
        // Numbers of suffixed keys belong to the machine that gave them, so what was joined is joined again here.
        let mut entries: Vec<Entry> = Vec::new();
        let mut place: HashMap<u32, usize> = HashMap::new();
        let mut own = String::new();
        for r in &recorded {
            for e in &r.entries {
                let e = Entry { val: e.val.moved(own.len()), ..*e };
                let at = *place.entry(e.key).or_insert(entries.len());
                if at < entries.len() {
                    entries[at] = e;
                } else {
                    entries.push(e);
                }
            }
            own.push_str(&r.own);
        }
        Ok(self.histories(&mut machine.book, &recorded, &entries, &own))
    }

    /// Runs one combination and writes down what happens.
    fn record(&self, machine: &mut Machine, c: &Complete, part: Option<&str>) -> Result<Recorded<'_>, Diagnostic> {
        let m = &self.m;
        let mut out = Recorded {
            m,
            part: part.map(str::to_owned),
            order: Vec::new(),
            steps: HashMap::new(),
            entries: Vec::new(),
            own: String::new(),
        };
        let subject = c.subject(m);
        let (mut name, mut short) = (subject.name.to_owned(), subject.short.to_owned());
        machine.run(m, &subject, &mut out)?;
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
                let step = Step { operator, value: Some(value.to_owned()), ..out.step(e.loc(m)) };
                out.push(&key, step);
            }
        }
        out.entries = machine.draft.live().copied().collect();
        out.own.clone_from(&machine.draft.own);
        Ok(out)
    }

    /// The keys of the result with their steps. `entries` are those of all parts together.
    fn histories(&self, book: &mut KeyBook, parts: &[Recorded<'_>], entries: &[Entry], own: &str) -> Vec<KeyHistory> {
        let m = &self.m;
        // Printed keys and the key their history is kept under.
        let base: HashMap<String, u32> = entries.iter().map(|e| (book.printed(m, e.key), book.base(e.key))).collect();
        let mut out = Vec::new();
        for e in crate::expand::flatten(m, book, entries, own) {
            let key = book.plain_text(m, e.key).to_owned();
            let from = base.get(&key).copied().unwrap_or(e.key);
            let from_text = book.plain_text(m, from);
            // A suffix that is still to be seen tells the parts that have it; without one all parts had a say.
            let concerned = |p: &&Recorded<'_>| {
                from == e.key || p.entries.iter().any(|o| book.base(o.key) == from && book.printed(m, o.key) == key)
            };
            let steps =
                parts.iter().filter(concerned).flat_map(|p| p.steps.get(from_text).cloned().unwrap_or_default());
            out.push(KeyHistory {
                key: key.clone(),
                value: Some(e.val.text(m, own).to_owned()),
                steps: steps.collect(),
            });
        }
        for part in parts {
            for key in &part.order {
                let gone = part.steps.get(key).filter(|s| s.last().is_some_and(|l| l.value.is_none()));
                if let Some(steps) = gone
                    && !out.iter().any(|k| k.key == *key)
                {
                    out.push(KeyHistory { key: key.clone(), value: None, steps: steps.clone() });
                }
            }
        }
        out
    }
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

/// What happened to the keys of one combination.
struct Recorded<'a> {
    m: &'a Model,
    /// Its name, if it is a part of a joined variant.
    part: Option<String>,
    /// Keys in the order of their first step.
    order: Vec<String>,
    steps: HashMap<String, Vec<Step>>,
    /// What there is in the end, not flattened.
    entries: Vec<Entry>,
    own: String,
}

impl Recorded<'_> {
    fn push(&mut self, key: &str, step: Step) {
        if let Some(s) = self.steps.get_mut(key) {
            s.push(step);
            return;
        }
        self.order.push(key.to_owned());
        self.steps.insert(key.to_owned(), vec![step]);
    }

    /// A step at a place, still without effect.
    fn step(&self, loc: Loc) -> Step {
        Step {
            operator: "=",
            value: None,
            file: self.m.file_name(loc).to_owned(),
            line: loc.line,
            conditions: Vec::new(),
            part: self.part.clone(),
        }
    }
}

impl Trace for Recorded<'_> {
    const ON: bool = true;

    fn changed(&mut self, key: &str, op: &Op, value: Option<&str>, conditions: &[(Op, usize)]) {
        let m = self.m;
        let conditions: Vec<Condition> = conditions.iter().map(|(c, _)| condition(m, c.key)).collect();
        if op.history != NONE {
            for f in &m.folded[op.history as usize] {
                let value = Some(m.text(f.result).to_owned());
                let s = Step { operator: operator(f.kind), value, conditions: conditions.clone(), ..self.step(f.loc) };
                self.push(key, s);
            }
            return;
        }
        let value = value.map(str::to_owned);
        self.push(key, Step { operator: operator(op.kind), value, conditions, ..self.step(op.loc) });
    }
}
