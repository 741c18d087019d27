//! The dictionary of one combination while its operations run.

use crate::intern::{FastMap, Interner};
use crate::model::{Loc, Model, NONE, Op};

/// A value: in the model's text, or in the draft's own buffer (high bit of `start`). The high bit of `len` says that JSON needs no
/// escapes for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Val {
    start: u32,
    len: u32,
}

const HIGH: u32 = 1 << 31;

impl Val {
    /// The operand of an operation, which is no template.
    pub(crate) fn of(op: &Op) -> Self {
        Val { start: op.value.start, len: (op.value.end - op.value.start) | if op.clean { HIGH } else { 0 } }
    }

    pub(crate) fn own(start: usize, end: usize, clean: bool) -> Self {
        Val { start: start as u32 | HIGH, len: (end - start) as u32 | if clean { HIGH } else { 0 } }
    }

    pub(crate) fn text<'a>(self, m: &'a Model, own: &'a str) -> &'a str {
        let from = self.from();
        let all = if self.is_own() { own } else { m.text.as_str() };
        &all[from..from + self.len()]
    }

    /// The same value after its buffer was put behind `by` bytes of another one.
    pub(crate) fn moved(self, by: usize) -> Self {
        if self.is_own() { Val { start: self.start + by as u32, ..self } } else { self }
    }

    /// Known to need no escapes.
    pub(crate) fn is_clean(self) -> bool {
        self.len & HIGH != 0
    }

    fn is_own(self) -> bool {
        self.start & HIGH != 0
    }

    fn from(self) -> usize {
        (self.start & !HIGH) as usize
    }

    fn len(self) -> usize {
        (self.len & !HIGH) as usize
    }

    /// Ends exactly where the own buffer ends.
    fn is_tail_of(self, own: &str) -> bool {
        self.is_own() && self.from() + self.len() == own.len()
    }
}

/// One key with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Key number, [`NONE`] once deleted.
    pub(crate) key: u32,
    pub(crate) val: Val,
    /// The operation that gave the value, in [`Model::ops`].
    pub(crate) op: u32,
}

impl Entry {
    /// Where the assignment stands that gave the value.
    pub(crate) fn loc(&self, m: &Model) -> Loc {
        m.ops[self.op as usize].loc
    }
}

/// Keys that exist only during expansion: suffixed ones, and texts that flattening makes.
///
/// Numbers: the model's keys first, then compounds (odd offsets), then texts (even offsets).
#[derive(Debug, Default)]
pub(crate) struct KeyBook {
    first: u32,
    compounds: Vec<(u32, u32)>,
    numbers: FastMap<(u32, u32), u32>,
    texts: Interner,
}

impl KeyBook {
    pub(crate) fn new(m: &Model) -> Self {
        KeyBook { first: m.keys.len() as u32, ..KeyBook::default() }
    }

    pub(crate) fn is_compound(&self, key: u32) -> bool {
        key >= self.first && (key - self.first) % 2 == 1
    }

    /// The key with one more suffix.
    pub(crate) fn compound(&mut self, key: u32, suffix: u32) -> u32 {
        let next = self.first + 2 * self.compounds.len() as u32 + 1;
        let n = *self.numbers.entry((key, suffix)).or_insert(next);
        if n == next {
            self.compounds.push((key, suffix));
        }
        n
    }

    /// Number of suffixed keys.
    pub(crate) fn compounds(&self) -> usize {
        self.compounds.len()
    }

    fn parts(&self, key: u32) -> (u32, u32) {
        self.compounds[((key - self.first) / 2) as usize]
    }

    /// The plain key under all suffixes.
    pub(crate) fn base(&self, mut key: u32) -> u32 {
        while self.is_compound(key) {
            key = self.parts(key).0;
        }
        key
    }

    /// A key by its text.
    pub(crate) fn by_text(&mut self, m: &Model, text: &str) -> u32 {
        m.keys.find(text).unwrap_or_else(|| self.first + 2 * self.texts.add(text))
    }

    /// Text of a key that is no compound.
    pub(crate) fn plain_text<'a>(&'a self, m: &'a Model, key: u32) -> &'a str {
        if key < self.first { m.keys.get(key) } else { self.texts.get((key - self.first) / 2) }
    }

    /// Base and suffixes in order of application, as patterns see a key.
    pub(crate) fn joined(&self, m: &Model, key: u32) -> String {
        let (base, suffixes) = self.split(key);
        let mut out = m.keys.get(base).to_owned();
        suffixes.iter().rev().for_each(|s| out.push_str(m.names.get(*s)));
        out
    }

    /// Base and suffixes in reverse order, as the result prints a key.
    pub(crate) fn printed(&self, m: &Model, key: u32) -> String {
        let (base, suffixes) = self.split(key);
        let mut out = m.keys.get(base).to_owned();
        suffixes.iter().for_each(|s| out.push_str(m.names.get(*s)));
        out
    }

    /// The base and the suffixes, last applied first.
    fn split(&self, mut key: u32) -> (u32, Vec<u32>) {
        let mut suffixes = Vec::new();
        while self.is_compound(key) {
            let (inner, suffix) = self.parts(key);
            suffixes.push(suffix);
            key = inner;
        }
        (key, suffixes)
    }
}

/// Own text a combination may produce; more is a runaway substitution.
pub(crate) const MAX_TEXT: usize = 64 << 20;

/// Keys in insertion order with lookup by number.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) entries: Vec<Entry>,
    /// Per key number: position + 1.
    slots: Vec<u32>,
    pub(crate) own: String,
    /// Live entries with suffixes.
    pub(crate) compounds: u32,
    /// Changes whenever an entry does.
    pub(crate) version: u64,
    /// What every combination begins with: entries without suffixes, and the length of their own text.
    base: Vec<Entry>,
    base_own: usize,
    /// An entry of the base was removed, so that positions are no longer those of the base.
    moved: bool,
}

impl Draft {
    /// Empty, without a base.
    pub(crate) fn clear(&mut self) {
        self.base.clear();
        self.base_own = 0;
        self.moved = true;
        self.rewind();
    }

    /// Makes the present state the one to begin every combination with. Nothing was removed or suffixed yet.
    pub(crate) fn keep_as_base(&mut self) {
        debug_assert!(self.compounds == 0 && self.entries.iter().all(|e| e.key != NONE), "only plain assignments ran");
        self.base.clone_from(&self.entries);
        self.base_own = self.own.len();
        self.moved = false;
    }

    /// The entries every combination begins with.
    pub(crate) fn base(&self) -> &[Entry] {
        &self.base
    }

    /// Back to the base.
    pub(crate) fn rewind(&mut self) {
        let kept = if self.moved { 0 } else { self.base.len() };
        for e in self.entries[kept..].iter().filter(|e| e.key != NONE) {
            self.slots[e.key as usize] = 0;
        }
        self.entries.clear();
        self.entries.extend_from_slice(&self.base);
        if self.moved {
            for (i, e) in self.base.iter().enumerate() {
                self.slots[e.key as usize] = i as u32 + 1;
            }
        }
        self.moved = false;
        self.own.truncate(self.base_own);
        self.compounds = 0;
        self.version += 1;
    }

    /// Index of a key in the entries.
    pub(crate) fn position(&self, key: u32) -> Option<usize> {
        match self.slots.get(key as usize) {
            Some(n) if *n > 0 => Some(*n as usize - 1),
            _ => None,
        }
    }

    pub(crate) fn get(&self, key: u32) -> Option<Val> {
        self.position(key).map(|i| self.entries[i].val)
    }

    /// Sets a key; `op` is the operation that does.
    pub(crate) fn set(&mut self, key: u32, val: Val, op: u32, compound: bool) {
        self.version += 1;
        if let Some(i) = self.position(key) {
            self.entries[i].val = val;
            self.entries[i].op = op;
            return;
        }
        if self.slots.len() <= key as usize {
            self.slots.resize((key as usize + 1).next_power_of_two(), 0);
        }
        self.entries.push(Entry { key, val, op });
        self.slots[key as usize] = self.entries.len() as u32;
        self.compounds += u32::from(compound);
    }

    pub(crate) fn remove(&mut self, key: u32, compound: bool) {
        if let Some(i) = self.position(key) {
            self.version += 1;
            self.entries[i].key = NONE;
            self.slots[key as usize] = 0;
            self.moved |= i < self.base.len();
            self.compounds -= u32::from(compound);
        }
    }

    /// `a` followed by `b` as a new value.
    pub(crate) fn concat(&mut self, m: &Model, a: Val, b: Val) -> Val {
        if a.len() == 0 {
            return b;
        }
        if b.len() == 0 {
            return a;
        }
        let start = if a.is_tail_of(&self.own) {
            a.from()
        } else {
            let start = self.own.len();
            self.copy(m, a);
            start
        };
        self.copy(m, b);
        Val::own(start, self.own.len(), a.is_clean() && b.is_clean())
    }

    /// Appends a value's text to the own buffer.
    pub(crate) fn copy(&mut self, m: &Model, v: Val) {
        let range = v.from()..v.from() + v.len();
        if v.is_own() {
            self.own.extend_from_within(range);
        } else {
            self.own.push_str(&m.text[range]);
        }
    }

    /// Live entries in insertion order.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.key != NONE)
    }
}
