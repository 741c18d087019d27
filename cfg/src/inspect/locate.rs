//! Finds the paths of a full name without walking the rest of the graph.

use std::collections::HashSet;

use crate::expand::assign::Subject;
use crate::expand::filter::{Tri, View};
use crate::expand::names;
use crate::model::{Constraint, Model};

/// One way through the graph: nodes from the root to the leaf.
pub(crate) type Path = Vec<u32>;

/// Ways looked at for one name.
const MAX_PATHS: usize = 64;

/// All paths whose labels print as the name, filters not considered.
pub(crate) fn paths(m: &Model, name: &str) -> Vec<Path> {
    let segments: Vec<&str> = if name.is_empty() { Vec::new() } else { name.split('.').collect() };
    let mut found = Vec::new();
    // Node and number of segments used before it, from where the end cannot be reached.
    let mut hopeless: HashSet<(u32, usize)> = HashSet::new();
    let mut path: Path = Vec::new();
    // (node, segments used before it, depth of the path, found before it)
    let mut todo: Vec<(u32, usize, usize, Option<usize>)> = vec![(m.root, 0, 0, None)];
    while let Some((node, used, depth, entered)) = todo.pop() {
        if let Some(before) = entered {
            if found.len() == before {
                hopeless.insert((node, used));
            }
            continue;
        }
        if found.len() >= MAX_PATHS || hopeless.contains(&(node, used)) {
            continue;
        }
        path.truncate(depth);
        let n = &m.nodes[node as usize];
        let labels = &m.path_labels[n.labels.range()];
        let fits = labels.len() <= segments.len() - used
            && labels.iter().zip(&segments[used..]).all(|(l, s)| m.text(m.labels[*l as usize].printed) == *s);
        if !fits {
            hopeless.insert((node, used));
            continue;
        }
        path.push(node);
        let used_here = used + labels.len();
        todo.push((node, used, depth, Some(found.len())));
        if n.children.len() == 0 {
            if used_here == segments.len() {
                found.push(path.clone());
            }
            continue;
        }
        for c in m.children[n.children.range()].iter().rev() {
            todo.push((*c, used_here, depth + 1, None));
        }
    }
    found
}

/// A complete path with everything that filters and values ask about it.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) nodes: Path,
    labels: Vec<u32>,
    counts: Vec<u32>,
    pub(crate) name: String,
    short: String,
    dep: Vec<String>,
}

impl Complete {
    pub(crate) fn new(m: &Model, nodes: Path) -> Self {
        let mut counts = vec![0; m.atoms.len()];
        let mut labels = Vec::new();
        let (mut name, mut short, mut dep) = (String::new(), String::new(), Vec::new());
        for n in &nodes {
            let n = &m.nodes[*n as usize];
            dep.extend(m.deps[n.deps.range()].iter().map(|d| names::dependency(&name, m.text(*d))));
            for l in &m.path_labels[n.labels.range()] {
                labels.push(*l);
                let l = &m.labels[*l as usize];
                for a in l.atoms {
                    if let Some(c) = counts.get_mut(a as usize) {
                        *c += 1;
                    }
                }
                name.push_str(m.text(l.printed));
                name.push('.');
                if !n.quiet {
                    short.push_str(m.names.get(l.name));
                    short.push('.');
                }
            }
        }
        let [name, short] = [name, short].map(|n| names::without_dot(&n).to_owned());
        Complete { nodes, labels, counts, name, short, dep }
    }

    /// The combination, to run its operations.
    pub(crate) fn subject<'a>(&'a self, m: &'a Model) -> Subject<'a> {
        Subject { nodes: &self.nodes, view: self.view(m), name: &self.name, short: &self.short, dep: &self.dep }
    }

    fn view<'a>(&'a self, m: &'a Model) -> View<'a> {
        View { m, path: &self.labels, counts: &self.counts, below: &[] }
    }

    /// The `only` and `no` this path does not pass.
    pub(crate) fn failed<'a>(&'a self, m: &'a Model) -> impl Iterator<Item = &'a Constraint> {
        self.nodes
            .iter()
            .flat_map(|n| &m.constraints[m.nodes[*n as usize].constraints.range()])
            .filter(|c| self.view(m).constraint(c) == Tri::No)
    }
}
