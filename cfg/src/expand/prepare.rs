//! Tables that follow from the finished model and make the walk fast.

use std::collections::HashSet;

use crate::expand::file_map::Kind;
use crate::expand::json;
use crate::intern::FastMap;
use crate::model::{Constraint, Model, NONE};
use crate::parser::Options;

/// What `_min`, `_max` and `_fixed` keys do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoundKind {
    Min,
    Max,
    Fixed,
}

impl BoundKind {
    /// How a key of this kind ends.
    pub(crate) fn text(self) -> &'static str {
        match self {
            BoundKind::Min => "_min",
            BoundKind::Max => "_max",
            BoundKind::Fixed => "_fixed",
        }
    }
}

/// A key that bounds another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) key: u32,
    pub(crate) kind: BoundKind,
    /// The key it bounds.
    pub(crate) base: u32,
}

/// 64-bit words all sets of one kind may take. Nodes beyond get the full set, which costs pruning but no correctness.
const MAX_WORDS: usize = 8 << 20;

/// Derived tables, indexed by node or key number.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// 64-bit words per bit set.
    width: usize,
    sets: Vec<u64>,
    /// Start of each node's set of labels below it.
    below: Vec<u32>,
    /// Start of each node's two sets: atoms that constraints below it mention alone, and in groups with neighbours.
    mentioned: Vec<u32>,
    mentions: Vec<u64>,
    /// Per constraint: its only atom, if it stands under no condition and asks for one label; else [`NONE`].
    pub(crate) single: Vec<u32>,
    /// A join stands at or below the node.
    pub(crate) has_join: Vec<bool>,
    /// Defaults mode does not skip children of this node.
    pub(crate) keep_all: Vec<bool>,
    /// The keys that are bounds.
    pub(crate) bounds: Vec<Bound>,
    /// Per key: `"key":"` as JSON, and where each ends.
    json: Vec<u8>,
    json_ends: Vec<u32>,
    /// Per label, as printed and bare: a dot and the name as JSON, and where each ends.
    labels: Vec<u8>,
    label_ends: Vec<u32>,
    /// Names of variants and sets need no escapes in JSON.
    pub(crate) clean_names: bool,
    /// Some bound concerns a reserved key, so that names depend on operations.
    pub(crate) bounds_reserved: bool,
}

impl Prepared {
    pub(crate) fn new(m: &mut Model, options: &Options) -> Self {
        let mut p = Prepared::default();
        link_labels(m);
        p.find_bounds(m);
        p.clean_names = json::is_clean(m.names.all());
        for l in &m.labels {
            for text in [m.text(l.printed), m.names.get(l.name)] {
                p.labels.push(b'.');
                json::push_inside(text, &mut p.labels);
                p.label_ends.push(p.labels.len() as u32);
            }
        }
        for key in 0..m.keys.len() {
            json::push(m.keys.get(key as u32), &mut p.json);
            p.json.extend_from_slice(b":\"");
            p.json_ends.push(p.json.len() as u32);
        }
        p.single = m.constraints.iter().map(|c| single_atom(m, c).unwrap_or(NONE)).collect();
        p.find_below(m);
        p.find_mentions(m);
        let expand: HashSet<u32> = options.expand.iter().filter_map(|n| m.names.find(n)).collect();
        p.keep_all = m.nodes.iter().map(|n| n.set != NONE && expand.contains(&n.set)).collect();
        p.has_join = Vec::with_capacity(m.nodes.len());
        for n in &m.nodes {
            let below = m.children[n.children.range()].iter().any(|c| p.has_join[*c as usize]);
            p.has_join.push(below || n.joins.len() > 0);
        }
        p
    }

    /// Bit set of the atoms labels below a node may satisfy.
    pub(crate) fn below(&self, node: u32) -> &[u64] {
        let at = self.below[node as usize] as usize * self.width;
        &self.sets[at..at + self.width]
    }

    /// Bit sets of the atoms that constraints of nodes below a node mention: alone, and with neighbours.
    pub(crate) fn mentions(&self, node: u32) -> (&[u64], &[u64]) {
        let at = self.mentioned[node as usize] as usize * self.width * 2;
        self.mentions[at..at + 2 * self.width].split_at(self.width)
    }

    /// `"key":"` as JSON.
    pub(crate) fn json_key(&self, key: u32) -> &[u8] {
        let i = key as usize;
        let from = if i == 0 { 0 } else { self.json_ends[i - 1] as usize };
        &self.json[from..self.json_ends[i] as usize]
    }

    /// A dot and the name of a label as JSON.
    pub(crate) fn json_label(&self, label: u32, kind: Kind) -> &[u8] {
        let i = label as usize * 2 + usize::from(kind == Kind::Short);
        let from = if i == 0 { 0 } else { self.label_ends[i - 1] as usize };
        &self.labels[from..self.label_ends[i] as usize]
    }

    fn find_mentions(&mut self, m: &Model) {
        let double = self.width * 2;
        let mut sets: Vec<u64> = empty_and_full(double);
        let mut with_own: FastMap<u32, u32> = FastMap::default();
        for n in &m.nodes {
            let children = &m.children[n.children.range()];
            if let [only] = children
                && let Some(at) = with_own.get(only)
            {
                self.mentioned.push(*at);
                continue;
            }
            let mut acc = vec![0u64; double];
            let mut last = u32::MAX;
            let mut own = false;
            for c in children {
                let at = self.mentioned[*c as usize];
                if at != last {
                    let from = at as usize * double;
                    acc.iter_mut().zip(&sets[from..from + double]).for_each(|(a, b)| *a |= b);
                    last = at;
                }
                for c in &m.constraints[m.nodes[*c as usize].constraints.range()] {
                    own = true;
                    self.mention(m, c.filter, &mut acc);
                    m.guards[c.guards.range()].iter().for_each(|g| self.mention(m, g.filter, &mut acc));
                }
            }
            let at = match children {
                [] => 0,
                [_] if !own => last,
                _ if sets.len() + double > MAX_WORDS => 1,
                _ => {
                    sets.extend_from_slice(&acc);
                    (sets.len() / double - 1) as u32
                }
            };
            if let [only] = children {
                with_own.insert(*only, at);
            }
            self.mentioned.push(at);
        }
        self.mentions = sets;
    }

    fn mention(&self, m: &Model, filter: u32, acc: &mut [u64]) {
        for w in &m.words[m.filters[filter as usize].words.range()] {
            for g in &m.groups[w.range()] {
                let from = if g.len() > 1 { self.width } else { 0 };
                for a in &m.group_atoms[g.range()] {
                    acc[from + *a as usize / 64] |= 1 << (a % 64);
                }
            }
        }
    }

    fn find_bounds(&mut self, m: &mut Model) {
        let mut key = 0;
        while (key as usize) < m.keys.len() {
            let text = m.keys.get(key);
            let found = [BoundKind::Max, BoundKind::Min, BoundKind::Fixed]
                .into_iter()
                .find(|kind| text.ends_with(kind.text()))
                .and_then(|kind| text.find(kind.text()).map(|i| (kind, text[..i].to_owned())));
            if let Some((kind, base)) = found {
                let base = m.keys.add(&base);
                self.bounds_reserved |= m.is_reserved(base);
                self.bounds.push(Bound { key, kind, base });
            }
            key += 1;
        }
    }

    /// Children come before their parents in the node table, so one pass suffices.
    fn find_below(&mut self, m: &Model) {
        self.width = m.atoms.len().div_ceil(64).max(1);
        let mut sets: Vec<u64> = empty_and_full(self.width);
        // Per node with a single child: the set "the child's labels and what is below it", shared by all its parents.
        let mut with_own: FastMap<u32, u32> = FastMap::default();
        for n in &m.nodes {
            let children = &m.children[n.children.range()];
            let at = match children {
                [] => 0,
                [only] => match with_own.get(only) {
                    Some(at) => *at,
                    None => {
                        let at = self.union(m, &mut sets, std::slice::from_ref(only));
                        with_own.insert(*only, at);
                        at
                    }
                },
                many => self.union(m, &mut sets, many),
            };
            self.below.push(at);
        }
        self.sets = sets;
    }

    fn union(&self, m: &Model, sets: &mut Vec<u64>, children: &[u32]) -> u32 {
        let width = self.width;
        let mut acc = vec![0u64; width];
        let mut last = u32::MAX;
        let mut own = false;
        for c in children {
            let below = self.below[*c as usize];
            if below != last {
                let from = below as usize * width;
                for (a, b) in acc.iter_mut().zip(&sets[from..from + width]) {
                    *a |= b;
                }
                last = below;
            }
            for l in &m.path_labels[m.nodes[*c as usize].labels.range()] {
                for a in m.labels[*l as usize].atoms {
                    if a != NONE {
                        acc[a as usize / 64] |= 1 << (a % 64);
                        own = true;
                    }
                }
            }
        }
        if !own && children.len() == 1 {
            return last;
        }
        if sets.len() + width > MAX_WORDS {
            return 1;
        }
        sets.extend_from_slice(&acc);
        (sets.len() / width - 1) as u32
    }
}

/// The atom of a constraint such as `only a` outside conditions.
fn single_atom(m: &Model, c: &Constraint) -> Option<u32> {
    let f = &m.filters[c.filter as usize];
    let [word] = &m.words[f.words.range()] else { return None };
    let [group] = &m.groups[word.range()] else { return None };
    let [atom] = m.group_atoms[group.range()] else { return None };
    (c.guards.len() == 0 && !f.broken).then_some(atom)
}

/// Set 0 has nothing, set 1 everything.
fn empty_and_full(width: usize) -> Vec<u64> {
    let mut sets = vec![0; width];
    sets.resize(width * 2, u64::MAX);
    sets
}

/// Tells each label which filter atoms it satisfies.
fn link_labels(m: &mut Model) {
    for l in &mut m.labels {
        let find = |set, name| m.atom_numbers.get(&(set, name)).copied().unwrap_or(NONE);
        l.atoms = [find(NONE, l.name), if l.set == NONE { NONE } else { find(l.set, l.name) }];
    }
}
