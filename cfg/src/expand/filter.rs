//! Whether a filter matches a path, also a path whose end is not known yet.

use crate::model::{Constraint, Model, NONE, Span};

/// Answer about a path that may still grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tri {
    /// Whatever follows, no.
    No,
    /// Depends on what follows.
    Maybe,
    /// Whatever follows, yes.
    Yes,
}

/// A path so far and the labels that may follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) m: &'a Model,
    /// Label numbers.
    pub(crate) path: &'a [u32],
    /// How often each atom is satisfied by the path.
    pub(crate) counts: &'a [u32],
    /// Bit set of atoms that labels below may satisfy.
    pub(crate) below: &'a [u64],
}

/// What an answer means for `only`, or for `no`.
pub(crate) fn passes(only: bool, matches: Tri) -> Tri {
    match (only, matches) {
        (true, t) => t,
        (false, Tri::Yes) => Tri::No,
        (false, Tri::No) => Tri::Yes,
        (false, Tri::Maybe) => Tri::Maybe,
    }
}

impl View<'_> {
    fn is_below(&self, atom: u32) -> bool {
        self.below.get(atom as usize / 64).is_some_and(|w| w >> (atom % 64) & 1 == 1)
    }

    fn label_is(&self, label: u32, atom: u32) -> bool {
        let a = self.m.labels[label as usize].atoms;
        a[0] == atom || a[1] == atom
    }

    /// The first `atoms.len()` labels from `at` on match.
    fn run_at(&self, at: usize, atoms: &[u32]) -> bool {
        self.path[at..].iter().zip(atoms).all(|(l, a)| self.label_is(*l, *a))
    }

    pub(crate) fn group(&self, group: Span) -> Tri {
        match &self.m.group_atoms[group.range()] {
            [atom] => self.atom(*atom),
            atoms => self.long_group(atoms),
        }
    }

    /// Whether a label for the atom is on the path.
    pub(crate) fn atom(&self, atom: u32) -> Tri {
        if self.counts[atom as usize] > 0 {
            Tri::Yes
        } else if self.is_below(atom) {
            Tri::Maybe
        } else {
            Tri::No
        }
    }

    fn long_group(&self, atoms: &[u32]) -> Tri {
        let n = atoms.len();
        if n <= self.path.len()
            && atoms.iter().all(|a| self.counts[*a as usize] > 0)
            && (0..=self.path.len() - n).any(|i| self.run_at(i, atoms))
        {
            return Tri::Yes;
        }
        if atoms.iter().all(|a| self.is_below(*a)) || self.progress(atoms).next().is_some() {
            return Tri::Maybe;
        }
        Tri::No
    }

    /// How many labels of a group the end of the path already gives, where the others can still follow.
    pub(crate) fn progress<'b>(&'b self, atoms: &'b [u32]) -> impl Iterator<Item = usize> + 'b {
        (1..atoms.len().min(self.path.len() + 1)).rev().filter(move |j| {
            self.is_below(atoms[*j])
                && atoms[*j..].iter().all(|a| self.is_below(*a))
                && self.run_at(self.path.len() - j, &atoms[..*j])
        })
    }

    pub(crate) fn word(&self, word: Span) -> Tri {
        let mut out = Tri::Yes;
        for g in &self.m.groups[word.range()] {
            match self.group(*g) {
                Tri::No => return Tri::No,
                Tri::Maybe => out = Tri::Maybe,
                Tri::Yes => {}
            }
        }
        out
    }

    pub(crate) fn filter(&self, filter: u32) -> Tri {
        let f = &self.m.filters[filter as usize];
        let mut out = Tri::No;
        for w in &self.m.words[f.words.range()] {
            // A word with an empty group never gets an answer; only a word before it that matches makes it irrelevant.
            if f.broken && self.m.groups[w.range()].iter().any(|g| g.len() == 0) {
                return Tri::Maybe;
            }
            match self.word(*w) {
                Tri::Yes => return Tri::Yes,
                Tri::Maybe => out = Tri::Maybe,
                Tri::No => {}
            }
        }
        out
    }

    /// Whether a combination survives a constraint.
    pub(crate) fn constraint(&self, c: &Constraint) -> Tri {
        let main = passes(c.only, self.filter(c.filter));
        if main == Tri::Yes {
            return Tri::Yes;
        }
        let mut out = main;
        for g in &self.m.guards[c.guards.range()] {
            match (self.filter(g.filter), g.negated) {
                (Tri::No, false) | (Tri::Yes, true) => return Tri::Yes,
                (Tri::Maybe, _) => out = Tri::Maybe,
                _ => {}
            }
        }
        out
    }

    /// Appends what the answer to a filter still depends on; equal residues behave equally below.
    pub(crate) fn residue(&self, filter: u32, out: &mut Vec<u32>) {
        let f = &self.m.filters[filter as usize];
        match self.filter(filter) {
            Tri::Yes => return out.push(NONE - 1),
            Tri::No => return out.push(NONE - 2),
            Tri::Maybe => out.push(filter),
        }
        for w in f.words.range() {
            if !f.broken && self.word(self.m.words[w]) == Tri::No {
                continue;
            }
            out.push(w as u32);
            for g in self.m.words[w].range() {
                let span = self.m.groups[g];
                if span.len() == 0 || self.group(span) == Tri::Yes {
                    continue;
                }
                out.push(g as u32);
                if span.len() > 1 {
                    out.extend(self.progress(&self.m.group_atoms[span.range()]).map(|j| NONE - 8 - j as u32));
                }
            }
            out.push(NONE - 3);
        }
        out.push(NONE - 4);
    }
}
