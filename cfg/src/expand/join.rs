//! `join`: the product of a node's own walks, one per word.
//!
//! The language evaluates a join lazily and changes the node's list of filters while its walks are suspended; with three or more
//! words, or a join below a join, that is visible in the results. So the list is shared and changed here at the same moments.

use std::cell::RefCell;
use std::rc::Rc;

use crate::diag::Diagnostic;
use crate::expand::assign::error_at;
use crate::expand::draft::Entry;
use crate::expand::file_map::MapEntry;
use crate::expand::names;
use crate::expand::walk::{Shared, Walk, Yield};
use crate::intern::FastMap;
use crate::model::{Loc, Model, NONE};

/// Filters appended to a node while a join walks it.
type Items = Rc<RefCell<Vec<u32>>>;

/// Words of all joins of one node.
const MAX_WORDS: usize = 64;
/// Joins inside each other.
const MAX_DEPTH: u32 = 16;

/// The changing part of a node that has joins.
#[derive(Debug, Clone)]
pub(crate) struct JoinState {
    /// The joins are in the list.
    pub(crate) joins: bool,
    pub(crate) items: Items,
}

impl Default for JoinState {
    fn default() -> Self {
        JoinState { joins: true, items: Items::default() }
    }
}

/// A built combination that is not flattened yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) short: String,
    pub(crate) dep: Vec<String>,
    pub(crate) maps: Vec<MapEntry>,
    /// Nodes from the root to the leaf, of each joined combination.
    pub(crate) paths: Vec<Box<[u32]>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) own: String,
}

/// The lazy product over the words from `at` on.
#[derive(Debug)]
pub(crate) struct Product {
    node: u32,
    loc: Loc,
    /// The position above the node.
    above: Rc<Walk>,
    words: Rc<[u32]>,
    at: usize,
    saved: Items,
    walk: Option<Walk>,
    first: Option<Part>,
    rest: Option<Box<Product>>,
    /// State to restore at the end; only in the outermost product of a join.
    before: Option<JoinState>,
}

impl Product {
    /// The whole product of a node's joins.
    pub(crate) fn start(above: &Walk, node: u32, sh: &mut Shared<'_>) -> Result<Self, Diagnostic> {
        let m = sh.m;
        let words: Rc<[u32]> = m.joins[m.nodes[node as usize].joins.range()].iter().map(|j| j.filter).collect();
        let loc = m.filters[words[0] as usize].loc;
        if words.len() > MAX_WORDS {
            return Err(error_at(m, loc, format!("more than {MAX_WORDS} words joined at one place")));
        }
        if sh.join_depth >= MAX_DEPTH {
            return Err(error_at(m, loc, format!("joins are nested more than {MAX_DEPTH} deep")));
        }
        sh.join_depth += 1;
        let state = sh.joins.entry(node).or_default();
        let before = JoinState { joins: state.joins, items: Rc::new(RefCell::new(state.items.borrow().clone())) };
        *state = JoinState { joins: false, items: before.items.borrow().clone().into_items() };
        let mut p = Product::from_word(Rc::new(above.fork()), node, words, 0, loc);
        p.before = Some(before);
        Ok(p)
    }

    fn from_word(above: Rc<Walk>, node: u32, words: Rc<[u32]>, at: usize, loc: Loc) -> Self {
        Product {
            node,
            loc,
            above,
            words,
            at,
            saved: Items::default(),
            walk: None,
            first: None,
            rest: None,
            before: None,
        }
    }

    /// Restores the node's list.
    pub(crate) fn end(&mut self, sh: &mut Shared<'_>) {
        if let Some(before) = self.before.take() {
            sh.joins.insert(self.node, before);
            sh.join_depth -= 1;
        }
    }

    fn items(&self, sh: &Shared<'_>) -> Items {
        sh.joins.get(&self.node).map(|s| s.items.clone()).unwrap_or_default()
    }

    fn put_items(&self, sh: &mut Shared<'_>, items: Items) {
        sh.joins.entry(self.node).or_default().items = items;
    }

    /// Saves the list, appends this word and begins the walk.
    fn open(&mut self, sh: &mut Shared<'_>) -> Result<Walk, Diagnostic> {
        let items = self.items(sh);
        self.saved = Rc::new(RefCell::new(items.borrow().clone()));
        items.borrow_mut().push(self.words[self.at]);
        let now = items.borrow().clone();
        let mut walk = self.above.fork();
        walk.enter(self.node, sh, Some(&now))?;
        Ok(walk)
    }

    /// The next combination of the product.
    pub(crate) fn next(&mut self, sh: &mut Shared<'_>) -> Result<Option<Part>, Diagnostic> {
        let mut walk = match self.walk.take() {
            Some(w) => w,
            None => self.open(sh)?,
        };
        let out = self.advance(&mut walk, sh);
        self.walk = Some(walk);
        out
    }

    fn advance(&mut self, walk: &mut Walk, sh: &mut Shared<'_>) -> Result<Option<Part>, Diagnostic> {
        loop {
            if let (Some(rest), Some(first)) = (&mut self.rest, &self.first) {
                if let Some(second) = rest.next(sh)? {
                    return merge(sh.m, first, second, self.loc).map(Some);
                }
                self.rest = None;
            }
            let part = match walk.next(sh)? {
                None => return Ok(None),
                Some(Yield::Leaf) => walk.build_part(sh)?,
                Some(Yield::Joined(p)) => *p,
            };
            if self.at + 1 == self.words.len() {
                return Ok(Some(part));
            }
            self.put_items(sh, self.saved.clone());
            self.first = Some(part);
            let rest = Product::from_word(self.above.clone(), self.node, self.words.clone(), self.at + 1, self.loc);
            self.rest = Some(Box::new(rest));
        }
    }

    /// The size of the product, without building anything.
    pub(crate) fn count(&mut self, sh: &mut Shared<'_>) -> Result<u128, Diagnostic> {
        let below = sh.m.children[sh.m.nodes[self.node as usize].children.range()].iter();
        if below.clone().any(|c| sh.p.has_join[*c as usize]) {
            return Err(error_at(sh.m, self.loc, "a join below a join cannot be counted without walking it")
                .with_hint("list the variants instead"));
        }
        self.count_from(sh)
    }

    fn count_from(&mut self, sh: &mut Shared<'_>) -> Result<u128, Diagnostic> {
        let mut walk = self.open(sh)?;
        walk.next(sh)?;
        let firsts = walk.total;
        if self.at + 1 == self.words.len() || firsts == 0 {
            return Ok(firsts);
        }
        // The rest sees a list that the first round changed; after that it stays the same set.
        let mut rest = || -> Result<u128, Diagnostic> {
            self.put_items(sh, self.saved.clone());
            Product::from_word(self.above.clone(), self.node, self.words.clone(), self.at + 1, self.loc).count_from(sh)
        };
        let one = rest()?;
        if firsts == 1 {
            return Ok(one);
        }
        let others = rest()?;
        Ok(one.saturating_add((firsts - 1).saturating_mul(others)))
    }
}

trait IntoItems {
    fn into_items(self) -> Items;
}

impl IntoItems for Vec<u32> {
    fn into_items(self) -> Items {
        Rc::new(RefCell::new(self))
    }
}

/// `first` updated with `second`.
fn merge(m: &Model, first: &Part, second: Part, loc: Loc) -> Result<Part, Diagnostic> {
    let joined = |a: &str, b: &str| names::join(a, b).map_err(|e| error_at(m, loc, e));
    let mut out = first.clone();
    out.name = joined(&first.name, &second.name)?;
    out.short = joined(&first.short, &second.short)?;
    out.dep = second.dep;
    out.paths.extend(second.paths);
    if !second.maps.is_empty() {
        out.maps = second.maps;
    }
    let shift = out.own.len();
    if shift + second.own.len() > super::draft::MAX_TEXT {
        return Err(error_at(m, loc, "the values of one joined combination are too large"));
    }
    out.own.push_str(&second.own);
    let mut place: FastMap<u32, usize> = out.entries.iter().enumerate().map(|(i, e)| (e.key, i)).collect();
    for e in second.entries {
        let e = Entry { val: e.val.moved(shift), ..e };
        debug_assert!(e.key != NONE, "parts hold live entries only");
        match place.get(&e.key) {
            Some(i) => out.entries[*i] = e,
            None => {
                place.insert(e.key, out.entries.len());
                out.entries.push(e);
            }
        }
    }
    Ok(out)
}
