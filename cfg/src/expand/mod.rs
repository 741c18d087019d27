//! From the model to variants.

pub(crate) mod assign;
mod dict;
pub(crate) mod draft;
mod file_map;
pub(crate) mod filter;
mod finish;
mod join;
pub(crate) mod json;
pub(crate) mod names;
pub(crate) mod pattern;
pub(crate) mod prepare;
mod suffix;
pub(crate) mod variant;
pub(crate) mod walk;

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::assign::{Silent, Subject};
use crate::expand::dict::{Dict, MapsOf, Ready};
use crate::expand::draft::{Entry, KeyBook};
use crate::expand::join::Part;
use crate::expand::prepare::Prepared;
use crate::expand::variant::{Maps, Variant};
use crate::expand::walk::{Shared, Walk, Yield};
use crate::model::{Model, Span};

/// Streams the variants of a configuration, in order. After an error it ends.
#[derive(Debug)]
pub struct Variants<'c> {
    sh: Shared<'c>,
    walk: Option<Walk>,
    started: bool,
    /// Names of the combination that was built last.
    name: String,
    short: String,
    /// JSON that is the same in many variants.
    ready: Option<Ready>,
}

impl<'c> Variants<'c> {
    pub(crate) fn new(c: &'c Config) -> Self {
        Variants {
            sh: Shared::new(&c.m, &c.p),
            walk: None,
            started: false,
            name: String::new(),
            short: String::new(),
            ready: None,
        }
    }

    fn advance(&mut self) -> Result<Option<Yield>, Diagnostic> {
        if !self.started {
            self.started = true;
            self.walk = Some(Walk::start(&mut self.sh)?);
        }
        match &mut self.walk {
            Some(w) => w.next(&mut self.sh),
            None => Ok(None),
        }
    }

    fn build(&mut self, found: Yield) -> Result<Variant<'c>, Diagnostic> {
        match found {
            Yield::Joined(part) => Ok(self.joined(*part)),
            Yield::Leaf => {
                self.run()?;
                Ok(self.built())
            }
        }
    }

    fn joined(&mut self, part: Part) -> Variant<'c> {
        let head = Head { name: part.name, short: part.short, dep: part.dep, maps: Maps::Given(part.maps) };
        self.flat_variant(head, &part.entries, part.own)
    }

    /// Runs the operations of the combination at the leaf.
    fn run(&mut self) -> Result<(), Diagnostic> {
        let (m, w) = (self.sh.m, at_leaf(&self.walk));
        self.name.clear();
        self.name.push_str(w.name());
        self.short.clear();
        self.short.push_str(w.short_name());
        self.sh.machine.run(m, &w.subject(m), &mut Silent)?;
        self.sh.machine.finish(m, self.sh.p, &mut self.name, &mut self.short)
    }

    /// The combination at the leaf, which was run.
    fn built(&mut self) -> Variant<'c> {
        let w = at_leaf(&self.walk);
        let maps = Maps::Nodes(w.nodes.as_slice().into());
        let head = Head { name: self.name.clone(), short: self.short.clone(), dep: w.deps.clone(), maps };
        self.variant(head)
    }

    /// What the machine has built.
    fn variant(&mut self, head: Head) -> Variant<'c> {
        let draft = &self.sh.machine.draft;
        let (entries, own) = (draft.entries.clone(), draft.own.clone());
        if draft.compounds == 0 {
            head.finish(self.sh.p, self.sh.m, entries, Vec::new(), own)
        } else {
            self.flat_variant(head, &entries, own)
        }
    }

    /// Appends the next variant as one JSON object, without building it where that can be helped. `None` at the end.
    pub(crate) fn write_next(&mut self, out: &mut Vec<u8>) -> Option<Result<(), Diagnostic>> {
        let written = match self.advance() {
            Ok(None) => None,
            Ok(Some(Yield::Leaf)) => Some(self.run().map(|()| self.write(out))),
            Ok(Some(joined)) => Some(self.build(joined).map(|v| v.write_json(out))),
            Err(e) => Some(Err(e)),
        };
        self.end_unless(matches!(written, Some(Ok(()))));
        written
    }

    /// Writes the combination at the leaf, which was run.
    fn write(&mut self, out: &mut Vec<u8>) {
        let draft = &self.sh.machine.draft;
        if draft.compounds > 0 {
            return self.built().write_json(out);
        }
        let w = at_leaf(&self.walk);
        let dict = Dict {
            m: self.sh.m,
            p: self.sh.p,
            name: &self.name,
            short: &self.short,
            dep: &w.deps,
            maps: MapsOf::Nodes(&w.nodes),
            entries: &draft.entries,
            extra: &[],
            own: &draft.own,
        };
        let ready = self.ready.get_or_insert_with(|| Ready::new(&dict, draft.base()));
        dict.write(Some(ready), out);
    }

    fn end_unless(&mut self, goes_on: bool) {
        if !goes_on {
            self.walk = None;
        }
    }

    /// Replaces suffixed keys.
    fn flat_variant(&mut self, head: Head, entries: &[Entry], mut own: String) -> Variant<'c> {
        let m = self.sh.m;
        let book = &mut self.sh.machine.book;
        let mut flat = suffix::flatten(m, book, entries, &own);
        let mut extra = Vec::new();
        // A suffixed key may read like a reserved one; that one is already given.
        flat.retain(|e| !m.is_reserved(e.key));
        for e in &mut flat {
            if e.key as usize >= m.keys.len() {
                let start = own.len() as u32;
                own.push_str(book.plain_text(m, e.key));
                e.key = (m.keys.len() + extra.len()) as u32;
                extra.push(Span { start, end: own.len() as u32 });
            }
        }
        head.finish(self.sh.p, m, flat, extra, own)
    }
}

/// The walk that found a leaf.
fn at_leaf(walk: &Option<Walk>) -> &Walk {
    let Some(w) = walk else { unreachable!("a leaf is found by a walk") };
    w
}

/// What a variant has besides parameters.
struct Head {
    name: String,
    short: String,
    dep: Vec<String>,
    maps: Maps,
}

impl Head {
    fn finish<'c>(
        self,
        p: &'c Prepared,
        m: &'c Model,
        entries: Vec<Entry>,
        extra: Vec<Span>,
        own: String,
    ) -> Variant<'c> {
        Variant { m, p, name: self.name, short: self.short, dep: self.dep, maps: self.maps, entries, extra, own }
    }
}

impl<'c> Iterator for Variants<'c> {
    type Item = Result<Variant<'c>, Diagnostic>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.advance() {
            Ok(None) => None,
            Ok(Some(found)) => Some(self.build(found)),
            Err(e) => Some(Err(e)),
        };
        self.end_unless(matches!(found, Some(Ok(_))));
        found
    }
}

/// Streams full names only; nothing is assigned unless names depend on it.
#[derive(Debug)]
pub struct Names<'c>(pub(crate) Variants<'c>);

impl Iterator for Names<'_> {
    type Item = Result<String, Diagnostic>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.sh.p.bounds_reserved {
            return self.0.next().map(|v| v.map(|v| v.name));
        }
        let found = match self.0.advance() {
            Ok(None) => None,
            Ok(Some(Yield::Joined(p))) => Some(Ok(p.name)),
            Ok(Some(Yield::Leaf)) => self.0.walk.as_ref().map(|w| Ok(w.name().to_owned())),
            Err(e) => Some(Err(e)),
        };
        self.0.end_unless(matches!(found, Some(Ok(_))));
        found
    }
}

/// The variant of a complete path.
pub(crate) fn build_at<'c>(c: &'c Config, s: &Subject<'_>) -> Result<Variant<'c>, Diagnostic> {
    let mut v = Variants::new(c);
    let (mut name, mut short) = (s.name.to_owned(), s.short.to_owned());
    v.sh.machine.run(&c.m, s, &mut Silent)?;
    v.sh.machine.finish(&c.m, &c.p, &mut name, &mut short)?;
    let head = Head { name, short, dep: s.dep.to_vec(), maps: Maps::Nodes(s.nodes.into()) };
    Ok(v.variant(head))
}

/// What a walk finds under a name.
#[derive(Debug)]
pub(crate) enum Found<'c> {
    /// Nodes from the root to the leaf.
    Path(Box<[u32]>),
    /// A joined variant, and the path of each of its parts.
    Joined(Box<Variant<'c>>, Vec<Box<[u32]>>),
}

/// Walks up to `limit` combinations for one of that name.
pub(crate) fn walk_to<'c>(c: &'c Config, name: &str, limit: usize) -> Result<Option<Found<'c>>, Diagnostic> {
    let mut v = Variants::new(c);
    for _ in 0..limit {
        match v.advance()? {
            None => break,
            Some(Yield::Joined(part)) if part.name == name => {
                let paths = part.paths.clone();
                return Ok(Some(Found::Joined(Box::new(v.joined(*part)), paths)));
            }
            Some(Yield::Joined(_)) => {}
            Some(Yield::Leaf) => {
                if c.p.bounds_reserved {
                    v.run()?;
                }
                let w = at_leaf(&v.walk);
                let reached = if c.p.bounds_reserved { v.name.as_str() } else { w.name() };
                if reached == name {
                    return Ok(Some(Found::Path(w.nodes.as_slice().into())));
                }
            }
        }
    }
    Ok(None)
}

/// Number of variants, without building any.
pub(crate) fn count(c: &Config) -> Result<u128, Diagnostic> {
    let mut sh = Shared::new(&c.m, &c.p);
    sh.counting = true;
    let mut walk = Walk::start(&mut sh)?;
    while walk.next(&mut sh)?.is_some() {}
    Ok(walk.total)
}

/// Whether any variant is left with some constraints switched off (`true` in the list, by number).
pub(crate) fn any_without(c: &Config, off: Vec<bool>) -> Result<bool, Diagnostic> {
    let mut sh = Shared::new(&c.m, &c.p);
    sh.off = off;
    let mut walk = Walk::start(&mut sh)?;
    Ok(walk.next(&mut sh)?.is_some())
}

/// Entries without suffixed keys, as the result shows them.
pub(crate) fn flatten(m: &Model, book: &mut KeyBook, entries: &[Entry], own: &str) -> Vec<Entry> {
    suffix::flatten(m, book, entries, own)
}
