//! Which filter labels can stand side by side in some name.

use std::collections::{HashMap, HashSet};

use crate::model::{Model, NONE};

/// Answers about pairs of atoms that filters put side by side.
#[derive(Debug, Default)]
pub(crate) struct Adjacent {
    pairs: HashSet<(u32, u32)>,
}

/// 64-bit words all sets may take; a larger configuration is not judged.
const MAX_WORDS: usize = 16 << 20;

impl Adjacent {
    /// Judges every neighbouring pair of every filter, and its reverse; `None` if the configuration is too large.
    pub(crate) fn new(m: &Model) -> Option<Self> {
        let mut wanted: HashMap<u32, Vec<u32>> = HashMap::new();
        for g in &m.groups {
            for pair in m.group_atoms[g.range()].windows(2) {
                for (a, b) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                    wanted.entry(a).or_default().push(b);
                }
            }
        }
        let width = m.atoms.len().div_ceil(64).max(1);
        // Per node: atoms of the first label met from it on; 0 is the empty set.
        let mut sets: Vec<u64> = vec![0; width];
        let mut first: Vec<u32> = Vec::with_capacity(m.nodes.len());
        let mut out = Adjacent::default();
        for n in &m.nodes {
            let children = &m.children[n.children.range()];
            let next = match children {
                [] => 0,
                [one] => first[*one as usize],
                many => {
                    let mut acc = vec![0u64; width];
                    for c in many {
                        let from = first[*c as usize] as usize * width;
                        acc.iter_mut().zip(&sets[from..from + width]).for_each(|(a, b)| *a |= b);
                    }
                    push(&mut sets, &acc)?
                }
            };
            let labels = &m.path_labels[n.labels.range()];
            let atoms = |l: &u32| m.labels[*l as usize].atoms.into_iter().filter(|a| *a != NONE);
            for pair in labels.windows(2) {
                for a in atoms(&pair[0]) {
                    out.pairs.extend(atoms(&pair[1]).map(|b| (a, b)));
                }
            }
            if let Some(last) = labels.last() {
                let from = next as usize * width;
                for a in atoms(last) {
                    for b in wanted.get(&a).into_iter().flatten() {
                        if sets[from + *b as usize / 64] >> (b % 64) & 1 == 1 {
                            out.pairs.insert((a, *b));
                        }
                    }
                }
            }
            first.push(match labels.first() {
                None => next,
                Some(l) => {
                    let mut acc = vec![0u64; width];
                    let mut any = false;
                    for a in atoms(l) {
                        acc[a as usize / 64] |= 1 << (a % 64);
                        any = true;
                    }
                    if any { push(&mut sets, &acc)? } else { 0 }
                }
            });
        }
        Some(out)
    }

    /// `a` can directly precede `b`.
    pub(crate) fn can(&self, a: u32, b: u32) -> bool {
        self.pairs.contains(&(a, b))
    }
}

fn push(sets: &mut Vec<u64>, acc: &[u64]) -> Option<u32> {
    if sets.len() + acc.len() > MAX_WORDS {
        return None;
    }
    sets.extend_from_slice(acc);
    Some((sets.len() / acc.len() - 1) as u32)
}
