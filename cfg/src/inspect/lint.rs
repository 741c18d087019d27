//! `lint`: what is allowed but probably not meant.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::config::Config;
use crate::diag::{Diagnostic, Severity};
use crate::inspect::adjacent::Adjacent;
use crate::inspect::similar::closest;
use crate::model::{Loc, Model, NONE, OpKind, Piece, Span};

/// What `lint` may assume.
#[derive(Debug, Default, Clone)]
pub struct LintOptions {
    /// Keys that programs read. If given, keys that neither these nor the configuration itself read are reported.
    pub known_keys: Option<Vec<String>>,
    /// Keys that are known to be read by nobody, and why.
    pub without_effect: BTreeMap<String, String>,
}

/// Where a filter is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Only,
    No,
    Condition,
    Join,
}

impl Config {
    /// Probable mistakes, ordered by place.
    pub fn lint(&self, options: &LintOptions) -> Vec<Diagnostic> {
        let mut l = Lint { m: &self.m, out: BTreeMap::new() };
        l.filters();
        l.twins();
        l.references();
        if let Some(known) = &options.known_keys {
            l.unused_keys(known, &options.without_effect);
        }
        let mut out: Vec<Diagnostic> = l.out.into_values().flatten().collect();
        if let Ok(Some(r)) = self.emptied_by() {
            let d = Diagnostic::error(r.file.clone(), r.line, format!("no variant is left after '{}'", r.text));
            out.push(d.with_severity(Severity::Warning).with_hint("everything before this line still leaves variants"));
        }
        out
    }
}

struct Lint<'a> {
    m: &'a Model,
    out: BTreeMap<(u32, u32), Vec<Diagnostic>>,
}

impl Lint<'_> {
    fn report(&mut self, loc: Loc, severity: Severity, message: String, hint: Option<String>) {
        let mut d = Diagnostic::error(self.m.file_name(loc), loc.line, message).with_severity(severity);
        d.hint = hint;
        self.out.entry((loc.file, loc.line)).or_default().push(d);
    }

    fn filters(&mut self) {
        let m = self.m;
        let mut uses: BTreeMap<u32, Use> = BTreeMap::new();
        for c in &m.constraints {
            uses.insert(c.filter, if c.only { Use::Only } else { Use::No });
        }
        uses.extend(m.joins.iter().map(|j| (j.filter, Use::Join)));
        let conditions = m.ops.iter().filter(|o| matches!(o.kind, OpKind::If | OpKind::Unless));
        uses.extend(conditions.map(|o| (o.key, Use::Condition)));
        let exists: HashSet<u32> = m.labels.iter().flat_map(|l| l.atoms).filter(|a| *a != NONE).collect();
        let adjacent = Adjacent::new(m);
        let names = NameTable::new(m.labels.iter().map(|l| m.names.get(l.name)));
        for (filter, usage) in uses {
            let f = m.filters[filter as usize];
            let words: Vec<Span> = m.words[f.words.range()].to_vec();
            let mut dead = Vec::new();
            for w in &words {
                let faults: Vec<(String, Option<String>)> = m.groups[w.range()]
                    .iter()
                    .filter_map(|g| never(m, &m.group_atoms[g.range()], &exists, adjacent.as_ref(), &names))
                    .collect();
                dead.extend(faults.into_iter().next());
            }
            if dead.is_empty() {
                continue;
            }
            let all = dead.len() == words.len();
            let effect = match (all, usage) {
                (true, Use::Only) => ", so this line removes everything it concerns",
                (true, Use::No) => ", so this line removes nothing",
                (true, Use::Condition) => ", so this condition never changes",
                (true, Use::Join) => ", so this join yields nothing",
                (false, _) => "",
            };
            let hint = dead.iter().find_map(|(_, h)| h.clone());
            // Sets are written for many hosts and guests: excluding what is not there is usual, unless it looks misspelt.
            let harmless = usage == Use::No && hint.is_none();
            let severity = if all && !harmless { Severity::Warning } else { Severity::Note };
            let mut messages: Vec<String> = dead.into_iter().map(|(m, _)| m).collect();
            messages.dedup();
            self.report(f.loc, severity, format!("{}{effect}", messages.join("; ")), hint);
        }
    }

    /// Variants of one set with the same name: their results cannot be told apart.
    fn twins(&mut self) {
        let m = self.m;
        for n in m.nodes.iter().filter(|n| n.children.len() > 1) {
            let mut seen: HashMap<Vec<u32>, Loc> = HashMap::new();
            for c in &m.children[n.children.range()] {
                let c = &m.nodes[*c as usize];
                let name: Vec<u32> =
                    m.path_labels[c.labels.range()].iter().map(|l| m.labels[*l as usize].name).collect();
                let shown: Vec<&str> = name.iter().map(|n| m.names.get(*n)).collect();
                let shown = shown.join(".");
                match seen.get(&name) {
                    None => {
                        seen.insert(name, c.loc);
                    }
                    Some(first) => {
                        let message = format!(
                            "the variant {shown} stands twice in its set; {}:{} is shadowed",
                            m.file_name(*first),
                            first.line
                        );
                        self.report(
                            c.loc,
                            Severity::Warning,
                            message,
                            Some("give one of them another name".to_owned()),
                        );
                    }
                }
            }
        }
    }

    /// `${key}` and `del key` of keys that nothing ever sets.
    fn references(&mut self) {
        let m = self.m;
        let assigned = assigned_keys(m);
        let mut made_before: HashMap<u32, bool> = HashMap::new();
        let suffixes: HashSet<&str> =
            m.ops.iter().filter(|o| o.kind == OpKind::Suffix).map(|o| m.names.get(o.key)).collect();
        let mut known = |key: u32| {
            m.is_reserved(key)
                || assigned.contains(&key)
                || *made_before.entry(key).or_insert_with(|| made(m, key, &assigned, &suffixes))
        };
        let names = NameTable::new(assigned.iter().map(|k| m.keys.get(*k)));
        for op in &m.ops {
            if op.kind == OpKind::Delete && !known(op.key) {
                let key = m.keys.get(op.key);
                let hint = names.closest(key).map(|s| format!("{s} exists"));
                self.report(
                    op.loc,
                    Severity::Warning,
                    format!("nothing ever sets {key}, so there is nothing to delete"),
                    hint,
                );
            }
            if !op.template {
                continue;
            }
            for p in &m.pieces[m.templates[op.value.start as usize].range()] {
                let Piece::Key { key, .. } = *p else { continue };
                if known(key) {
                    continue;
                }
                let text = m.keys.get(key);
                let hint = names.closest(text).map(|s| format!("{s} exists"));
                let message = format!("nothing ever sets {text}: ${{{text}}} and all that follows it stay as written");
                self.report(op.loc, Severity::Note, message, hint);
            }
        }
    }

    fn unused_keys(&mut self, known: &[String], without_effect: &BTreeMap<String, String>) {
        let m = self.m;
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let mut read: HashSet<u32> = HashSet::new();
        read.extend(m.pieces.iter().filter_map(|p| match p {
            Piece::Key { key, .. } => Some(*key),
            Piece::Literal(_) => None,
        }));
        let mut reported: HashSet<u32> = HashSet::new();
        for op in
            m.ops.iter().filter(|o| matches!(o.kind, OpKind::Set | OpKind::Append | OpKind::Prepend | OpKind::Default))
        {
            let text = m.keys.get(op.key);
            let bound = ["_min", "_max", "_fixed"].iter().any(|e| text.ends_with(e));
            // `mem_vm1` is read as `mem` by whoever asks for vm1.
            let ends: Vec<usize> = text.rmatch_indices('_').map(|(i, _)| i).collect();
            let why = std::iter::once(&text.len()).chain(&ends).find_map(|i| without_effect.get(&text[..*i]));
            if let Some(why) = why.filter(|_| !known.contains(text) && !read.contains(&op.key)) {
                if reported.insert(op.key) {
                    self.report(op.loc, Severity::Note, format!("nothing reads the key {text}: {why}"), None);
                }
                continue;
            }
            let objects = ends.iter().any(|i| known.contains(&text[..*i]));
            if bound || objects || known.contains(text) || read.contains(&op.key) || !reported.insert(op.key) {
                continue;
            }
            let hint = closest(text, known.iter().copied()).map(|s| format!("{s} is read"));
            let severity = if hint.is_some() { Severity::Warning } else { Severity::Note };
            self.report(op.loc, severity, format!("nothing reads the key {text}"), hint);
        }
    }
}

fn assigned_keys(m: &Model) -> HashSet<u32> {
    let sets = |k: OpKind| matches!(k, OpKind::Set | OpKind::Append | OpKind::Prepend | OpKind::Default);
    m.ops.iter().filter(|o| sets(o.kind)).map(|o| o.key).collect()
}

/// A set key with a suffix behind it, or one that a bound sets.
fn made(m: &Model, key: u32, assigned: &HashSet<u32>, suffixes: &HashSet<&str>) -> bool {
    let text = m.keys.get(key);
    let set = |k: &str| m.keys.find(k).is_some_and(|k| assigned.contains(&k));
    suffixes.iter().any(|s| text.strip_suffix(s).is_some_and(set))
        || ["_min", "_max", "_fixed"].iter().any(|e| set(&format!("{text}{e}")))
}

/// Names of variants, for suggestions.
struct NameTable<'a> {
    names: Vec<&'a str>,
    /// Answers given before: the same mistake is often made in many lines.
    asked: RefCell<HashMap<String, Option<&'a str>>>,
}

impl<'a> NameTable<'a> {
    fn new(names: impl Iterator<Item = &'a str>) -> Self {
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        NameTable { names, asked: RefCell::default() }
    }

    fn closest(&self, wanted: &str) -> Option<&'a str> {
        let compute = || closest(wanted, self.names.iter().copied());
        *self.asked.borrow_mut().entry(wanted.to_owned()).or_insert_with(compute)
    }
}

/// Why a group can match no combination at all, and what may have been meant.
fn never(
    m: &Model,
    atoms: &[u32],
    exists: &HashSet<u32>,
    adjacent: Option<&Adjacent>,
    names: &NameTable<'_>,
) -> Option<(String, Option<String>)> {
    let show = |a: u32| m.show(m.atoms[a as usize].set, m.atoms[a as usize].name);
    if let Some(a) = atoms.iter().find(|a| !exists.contains(a)) {
        let atom = m.atoms[*a as usize];
        let name = m.names.get(atom.name);
        let elsewhere = m.labels.iter().find(|l| l.name == atom.name);
        let hint = match elsewhere {
            Some(l) => Some(format!("there is {}", m.text(l.printed))),
            None => names.closest(name).map(|s| format!("there is {s}")),
        };
        return Some((format!("no variant is called {}", show(*a)), hint));
    }
    let adjacent = adjacent?;
    let pair = atoms.windows(2).find(|p| !adjacent.can(p[0], p[1]))?;
    let hint = if adjacent.can(pair[1], pair[0]) {
        Some(format!("they stand the other way round: {}.{}", show(pair[1]), show(pair[0])))
    } else if m.names.get(m.atoms[pair[1] as usize].name).bytes().all(|b| b.is_ascii_digit()) {
        // A version that this set of guests does not have.
        None
    } else {
        Some(format!("if both shall be in the name anywhere, write {}..{}", show(pair[0]), show(pair[1])))
    };
    Some((format!("{} is never directly followed by {}", show(pair[0]), show(pair[1])), hint))
}
