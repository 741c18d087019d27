//! Finds the paths of a full name without walking the rest of the graph.

use std::collections::HashSet;

use crate::expand::filter::{Tri, View};
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

/// A complete path with everything a filter asks about it.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) nodes: Path,
    labels: Vec<u32>,
    counts: Vec<u32>,
}

impl Complete {
    pub(crate) fn new(m: &Model, nodes: Path) -> Self {
        let mut counts = vec![0; m.atoms.len()];
        let mut labels = Vec::new();
        for n in &nodes {
            for l in &m.path_labels[m.nodes[*n as usize].labels.range()] {
                labels.push(*l);
                for a in m.labels[*l as usize].atoms {
                    if let Some(c) = counts.get_mut(a as usize) {
                        *c += 1;
                    }
                }
            }
        }
        Complete { nodes, labels, counts }
    }

    pub(crate) fn view<'a>(&'a self, m: &'a Model) -> View<'a> {
        View { m, path: &self.labels, counts: &self.counts, below: &[] }
    }

    /// The `only` and `no` this path does not pass.
    pub(crate) fn failed<'a>(&'a self, m: &'a Model) -> impl Iterator<Item = &'a Constraint> {
        self.nodes
            .iter()
            .flat_map(|n| &m.constraints[m.nodes[*n as usize].constraints.range()])
            .filter(|c| self.view(m).constraint(c) == Tri::No)
    }

    /// `shortname` of the path.
    pub(crate) fn short_name(&self, m: &Model) -> String {
        let quiet = |n: &&u32| !m.nodes[**n as usize].quiet;
        let labels = self.nodes.iter().filter(quiet).flat_map(|n| &m.path_labels[m.nodes[*n as usize].labels.range()]);
        labels.map(|l| m.names.get(m.labels[*l as usize].name)).collect::<Vec<_>>().join(".")
    }

    /// `dep` of the path.
    pub(crate) fn dep(&self, m: &Model) -> Vec<String> {
        let mut name = String::new();
        let mut out = Vec::new();
        for n in &self.nodes {
            let n = &m.nodes[*n as usize];
            out.extend(m.deps[n.deps.range()].iter().map(|d| format!("{name}{}", m.text(*d))));
            for l in &m.path_labels[n.labels.range()] {
                name.push_str(m.text(m.labels[*l as usize].printed));
                name.push('.');
            }
        }
        out
    }
}
