//! The walk from the root to the leaf that enumerates combinations.
//!
//! An explicit stack, so that the depth of a configuration costs no call stack and the walk can stop between any two results. A
//! subtree is left as soon as no combination in it can survive its `only` and `no`, and nodes that yielded nothing are remembered
//! together with what that depended on.

use std::rc::Rc;

use crate::diag::Diagnostic;
use crate::expand::assign::{Machine, Silent, Subject, broken};
use crate::expand::file_map::maps;
use crate::expand::filter::{Tri, View, passes};
use crate::expand::join::{JoinState, Part, Product};
use crate::expand::names;
use crate::expand::prepare::Prepared;
use crate::intern::FastMap;
use crate::model::{Constraint, Model, NONE, Node, Span};

/// An active constraint number at or above this is "only filter N − this".
pub(crate) const WORD: u32 = 1 << 31;
/// Nodes remembered as fruitless; beyond it nothing new is remembered.
const MAX_FAILED: usize = 200_000;
/// Numbers in all remembered keys together.
const MAX_FAILED_SIZE: usize = 16 << 20;
/// Judgements a count may make before it gives up.
const MAX_COUNT_STEPS: u64 = 20_000_000;
/// Judgements in a row that may lead to no combination.
const MAX_FRUITLESS_STEPS: u64 = 1_000_000_000;
/// Bytes of dependency names of one combination.
const MAX_DEPS: usize = 16 << 20;

/// Everything the walks of one expansion share.
#[derive(Debug)]
pub(crate) struct Shared<'c> {
    pub(crate) m: &'c Model,
    pub(crate) p: &'c Prepared,
    pub(crate) machine: Machine,
    pub(crate) joins: FastMap<u32, JoinState>,
    /// Joins being walked, one inside the other.
    pub(crate) join_depth: u32,
    /// Nodes that may be in `fruitless`.
    has_failed: Vec<bool>,
    fruitless: FastMap<Box<[u32]>, u128>,
    pub(crate) counting: bool,
    /// Constraints that are ignored, by number; empty means none.
    pub(crate) off: Vec<bool>,
    /// Numbers in all keys of `fruitless`.
    remembered: usize,
    /// Judgements since the last combination, or all of a count.
    steps: u64,
}

impl<'c> Shared<'c> {
    pub(crate) fn new(m: &'c Model, p: &'c Prepared) -> Self {
        Shared {
            m,
            p,
            machine: Machine::new(m),
            joins: FastMap::default(),
            join_depth: 0,
            has_failed: vec![false; m.nodes.len()],
            fruitless: FastMap::default(),
            counting: false,
            off: Vec::new(),
            remembered: 0,
            steps: 0,
        }
    }
}

/// One node on the way.
#[derive(Debug)]
struct Frame {
    node: u32,
    /// Next child to enter; for the leaf 1 once it was yielded.
    next: u32,
    /// Lengths to cut back to.
    path: usize,
    name: usize,
    short: usize,
    deps: usize,
    active: usize,
    /// `active_from` of the frame below.
    outer_from: usize,
    /// The constraint that refused a child last: probably refuses the next one.
    hint: usize,
    /// Combinations found below.
    count: u128,
    product: Option<Box<Product>>,
}

/// What a walk found.
#[derive(Debug)]
pub(crate) enum Yield {
    /// The walk stands at the leaf; nothing is built yet.
    Leaf,
    /// A joined combination.
    Joined(Box<Part>),
}

/// A position in the graph.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Label numbers from the root on.
    pub(crate) path: Vec<u32>,
    pub(crate) counts: Vec<u32>,
    pub(crate) nodes: Vec<u32>,
    /// Undecided constraints, frame upon frame.
    active: Vec<u32>,
    active_from: usize,
    /// With a trailing dot after each label.
    name: String,
    short: String,
    pub(crate) deps: Vec<String>,
    /// Bytes in `deps`.
    deps_size: usize,
    frames: Vec<Frame>,
    /// The key of `fruitless` made last.
    key: Vec<u32>,
    /// Combinations counted at the bottom of the stack.
    pub(crate) total: u128,
}

impl Walk {
    /// At the root of a configuration.
    pub(crate) fn start(sh: &mut Shared<'_>) -> Result<Self, Diagnostic> {
        let mut w = Walk { counts: vec![0; sh.m.atoms.len()], ..Walk::default() };
        w.enter(sh.m.root, sh, None)?;
        Ok(w)
    }

    /// The same position with an empty stack, for a join's own walk.
    pub(crate) fn fork(&self) -> Walk {
        Walk {
            path: self.path.clone(),
            counts: self.counts.clone(),
            nodes: self.nodes.clone(),
            active: self.active[self.active_from..].to_vec(),
            active_from: 0,
            name: self.name.clone(),
            short: self.short.clone(),
            deps: self.deps.clone(),
            deps_size: self.deps_size,
            frames: Vec::new(),
            key: Vec::new(),
            total: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        names::without_dot(&self.name)
    }

    pub(crate) fn short_name(&self) -> &str {
        names::without_dot(&self.short)
    }

    /// The combination at the leaf.
    pub(crate) fn subject<'a>(&'a self, m: &'a Model) -> Subject<'a> {
        Subject {
            nodes: &self.nodes,
            view: View { m, path: &self.path, counts: &self.counts, below: &[] },
            name: self.name(),
            short: self.short_name(),
            dep: &self.deps,
        }
    }

    /// Builds the combination at the leaf as a part of a join.
    pub(crate) fn build_part(&self, sh: &mut Shared<'_>) -> Result<Part, Diagnostic> {
        sh.machine.run(sh.m, &self.subject(sh.m), &mut Silent)?;
        let (mut name, mut short) = (self.name().to_owned(), self.short_name().to_owned());
        sh.machine.finish(sh.m, sh.p, &mut name, &mut short)?;
        Ok(Part {
            name,
            short,
            dep: self.deps.clone(),
            maps: maps(sh.m, &self.nodes),
            paths: vec![self.nodes.as_slice().into()],
            entries: sh.machine.draft.live().copied().collect(),
            own: sh.machine.draft.own.clone(),
        })
    }

    /// The next combination.
    pub(crate) fn next(&mut self, sh: &mut Shared<'_>) -> Result<Option<Yield>, Diagnostic> {
        loop {
            let Some(top) = self.frames.last_mut() else { return Ok(None) };
            if let Some(product) = &mut top.product {
                match product.next(sh)? {
                    Some(part) => {
                        top.count += 1;
                        return Ok(Some(Yield::Joined(Box::new(part))));
                    }
                    None => {
                        product.end(sh);
                        self.pop(sh);
                        continue;
                    }
                }
            }
            let node = &sh.m.nodes[top.node as usize];
            let children = &sh.m.children[node.children.range()];
            if children.is_empty() {
                if top.next == 0 {
                    top.next = 1;
                    top.count = 1;
                    if sh.counting {
                        continue;
                    }
                    sh.steps = 0;
                    return Ok(Some(Yield::Leaf));
                }
                self.pop(sh);
                continue;
            }
            let i = top.next as usize;
            let satisfied = i > 0
                && top.count > 0
                && sh.m.nodes[children[i - 1] as usize].chosen
                && !sh.p.keep_all[top.node as usize];
            if i == children.len() || satisfied {
                self.pop(sh);
                continue;
            }
            top.next += 1;
            self.enter(children[i], sh, None)?;
        }
    }

    /// Goes to a node below, unless nothing can come of it. `words` are the filters of a join's walk.
    pub(crate) fn enter(&mut self, node: u32, sh: &mut Shared<'_>, words: Option<&[u32]>) -> Result<(), Diagnostic> {
        let m = sh.m;
        let n = &m.nodes[node as usize];
        let mut frame = Frame {
            node,
            next: 0,
            path: self.path.len(),
            name: self.name.len(),
            short: self.short.len(),
            deps: self.deps.len(),
            active: self.active.len(),
            outer_from: self.active_from,
            hint: usize::MAX,
            count: 0,
            product: None,
        };
        let mut appended: Rc<Vec<u32>> = Rc::default();
        if n.joins.len() > 0 && words.is_none() {
            let state = sh.joins.entry(node).or_default();
            if state.joins {
                return self.enter_join(frame, sh);
            }
            appended = Rc::new(state.items.borrow().clone());
        }
        let words = words.unwrap_or(&appended);
        for l in &m.path_labels[n.labels.range()] {
            let label = &m.labels[*l as usize];
            self.path.push(*l);
            for a in label.atoms {
                if a != u32::MAX {
                    self.counts[a as usize] += 1;
                }
            }
        }
        self.nodes.push(node);
        self.charge(n, sh)?;
        if !self.survives(node, words, sh)? {
            self.leave(m, &frame);
            return Ok(());
        }
        for d in &m.deps[n.deps.range()] {
            if self.deps_size + self.name.len() > MAX_DEPS {
                return Err(Diagnostic::error(
                    m.file_name(n.loc),
                    n.loc.line,
                    "the dependencies of one combination are too large",
                ));
            }
            let dep = names::dependency(&self.name, m.text(*d));
            self.deps_size += dep.len();
            self.deps.push(dep);
        }
        for l in &m.path_labels[n.labels.range()] {
            let label = &m.labels[*l as usize];
            self.name.push_str(m.text(label.printed));
            self.name.push('.');
            if !n.quiet {
                self.short.push_str(m.names.get(label.name));
                self.short.push('.');
            }
        }
        if n.children.len() > 1 && !sh.p.has_join[node as usize] && (sh.counting || sh.has_failed[node as usize]) {
            self.find_residue(node, frame.active, sh);
            if let Some(known) = sh.fruitless.get(self.key.as_slice()).copied() {
                self.leave(m, &frame);
                self.add(known);
                return Ok(());
            }
        }
        self.active_from = frame.active;
        frame.next = 0;
        self.frames.push(frame);
        Ok(())
    }

    /// Pays for the judgements at a node.
    fn charge(&self, n: &Node, sh: &mut Shared<'_>) -> Result<(), Diagnostic> {
        let judged = self.active.len() - self.active_from + n.constraints.len();
        sh.steps += 1 + (judged * (1 + self.path.len() / 64)) as u64;
        let (limit, what) = if sh.counting {
            (MAX_COUNT_STEPS, "the combinations are too entangled to be counted")
        } else {
            (MAX_FRUITLESS_STEPS, "the search for a combination that passes all filters takes too long")
        };
        if sh.steps <= limit {
            return Ok(());
        }
        Err(Diagnostic::error(sh.m.file_name(n.loc), n.loc.line, what)
            .with_hint("narrow the selection with only and no, as far out as possible"))
    }

    fn add(&mut self, count: u128) {
        match self.frames.last_mut() {
            Some(f) => f.count = f.count.saturating_add(count),
            None => self.total = self.total.saturating_add(count),
        }
    }

    fn enter_join(&mut self, mut frame: Frame, sh: &mut Shared<'_>) -> Result<(), Diagnostic> {
        let mut product = Product::start(self, frame.node, sh)?;
        if sh.counting {
            let count = product.count(sh)?;
            product.end(sh);
            self.add(count);
            return Ok(());
        }
        self.active_from = frame.active;
        // Nothing was pushed for this frame: the product walks the node itself.
        frame.product = Some(Box::new(product));
        self.frames.push(frame);
        Ok(())
    }

    /// Judges all constraints at a new node and keeps the undecided ones.
    fn survives(&mut self, node: u32, words: &[u32], sh: &Shared<'_>) -> Result<bool, Diagnostic> {
        let m = sh.m;
        let view = View { m, path: &self.path, counts: &self.counts, below: sh.p.below(node) };
        let leaf = m.nodes[node as usize].children.len() == 0;
        let (from, to) = (self.active_from, self.active.len());
        let hint = self.frames.last().map_or(usize::MAX, |f| f.hint);
        if (from..to).contains(&hint) && judge(&view, sh.p, self.active[hint]) == Tri::No {
            return Ok(false);
        }
        for i in from..to {
            let code = self.active[i];
            match judge(&view, sh.p, code) {
                Tri::Yes => {}
                Tri::Maybe if leaf => return Err(undecidable(m, code)),
                Tri::Maybe => self.active.push(code),
                Tri::No => {
                    if let Some(f) = self.frames.last_mut() {
                        f.hint = i;
                    }
                    return Ok(false);
                }
            }
        }
        let own = m.nodes[node as usize].constraints;
        let on = |c: &u32| !sh.off.get(*c as usize).is_some_and(|off| *off);
        for code in (own.start..own.end).filter(on).chain(words.iter().map(|f| WORD | f)) {
            match judge(&view, sh.p, code) {
                Tri::Yes => {}
                Tri::Maybe if leaf => return Err(undecidable(m, code)),
                Tri::Maybe => self.active.push(code),
                Tri::No => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes down what the outcome below a node depends on.
    fn find_residue(&mut self, node: u32, active_from: usize, sh: &Shared<'_>) {
        let view = View { m: sh.m, path: &self.path, counts: &self.counts, below: sh.p.below(node) };
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        key.push(node);
        for code in &self.active[active_from..] {
            if code & WORD != 0 {
                view.residue(code & !WORD, &mut key);
                continue;
            }
            let c = &sh.m.constraints[*code as usize];
            key.push(*code);
            view.residue(c.filter, &mut key);
            for g in &sh.m.guards[c.guards.range()] {
                view.residue(g.filter, &mut key);
            }
        }
        self.projection(node, sh, &mut key);
        self.key = key;
    }

    /// The path as constraints further down can tell it from others.
    fn projection(&self, node: u32, sh: &Shared<'_>, key: &mut Vec<u32>) {
        let (alone, neighbours) = sh.p.mentions(node);
        let has = |set: &[u64], a: u32| set.get(a as usize / 64).is_some_and(|w| w >> (a % 64) & 1 == 1);
        let mut gap = false;
        let from = key.len();
        for l in &self.path {
            let atoms = sh.m.labels[*l as usize].atoms;
            let kept = atoms.map(|a| if has(neighbours, a) { a } else { NONE });
            if kept != [NONE; 2] {
                key.extend(kept);
                gap = false;
            } else if !gap && key.len() > from {
                key.push(NONE - 5);
                gap = true;
            }
        }
        key.push(NONE - 6);
        let from = key.len();
        key.extend(self.path.iter().flat_map(|l| sh.m.labels[*l as usize].atoms).filter(|a| has(alone, *a)));
        key[from..].sort_unstable();
        let mut last = NONE;
        let mut kept = from;
        for i in from..key.len() {
            if key[i] != last {
                last = key[i];
                key[kept] = last;
                kept += 1;
            }
        }
        key.truncate(kept);
    }

    fn pop(&mut self, sh: &mut Shared<'_>) {
        let Some(frame) = self.frames.pop() else { return };
        if frame.product.is_none() {
            let n = &sh.m.nodes[frame.node as usize];
            if n.children.len() > 1
                && (sh.counting || frame.count == 0)
                && !sh.p.has_join[frame.node as usize]
                && sh.fruitless.len() < MAX_FAILED
                && sh.remembered < MAX_FAILED_SIZE
            {
                self.find_residue(frame.node, frame.active, sh);
                sh.remembered += self.key.len();
                sh.fruitless.insert(self.key.as_slice().into(), frame.count);
                sh.has_failed[frame.node as usize] = true;
            }
            self.leave(sh.m, &frame);
        }
        self.active_from = frame.outer_from;
        self.add(frame.count);
    }

    /// Takes back what entering the frame's node pushed.
    fn leave(&mut self, m: &Model, frame: &Frame) {
        for l in self.path.drain(frame.path..) {
            for a in m.labels[l as usize].atoms {
                if a != u32::MAX {
                    self.counts[a as usize] -= 1;
                }
            }
        }
        self.nodes.pop();
        self.name.truncate(frame.name);
        self.short.truncate(frame.short);
        for d in self.deps.drain(frame.deps..) {
            self.deps_size -= d.len();
        }
        self.active.truncate(frame.active);
    }
}

fn judge(view: &View<'_>, p: &Prepared, code: u32) -> Tri {
    if code & WORD != 0 {
        return view.filter(code & !WORD);
    }
    let c = &view.m.constraints[code as usize];
    match p.single[code as usize] {
        NONE => view.constraint(c),
        atom => passes(c.only, view.atom(atom)),
    }
}

fn undecidable(m: &Model, code: u32) -> Diagnostic {
    let filters: Vec<u32> = if code & WORD != 0 {
        vec![code & !WORD]
    } else {
        let c: &Constraint = &m.constraints[code as usize];
        let guards: &[_] = &m.guards[Span::range(c.guards)];
        std::iter::once(c.filter).chain(guards.iter().map(|g| g.filter)).collect()
    };
    let bad = filters.iter().copied().find(|f| m.filters[*f as usize].broken).unwrap_or(filters[0]);
    broken(m, &m.filters[bad as usize])
}
