//! Suffixed keys, and what becomes of them in the result.

use crate::expand::draft::{Draft, Entry, KeyBook, Val};
use crate::intern::FastMap;
use crate::model::{Model, NONE};

/// Suffixed keys of one expansion.
const MAX_KEYS: usize = 2 << 20;

/// Every key gets the suffix and moves to the end, in order. The error is a sentence.
pub(crate) fn apply(d: &mut Draft, book: &mut KeyBook, suffix: u32) -> Result<(), String> {
    if book.compounds() + d.entries.len() > MAX_KEYS {
        return Err(format!("more than {MAX_KEYS} suffixed keys"));
    }
    let old: Vec<Entry> = d.live().copied().collect();
    for e in &old {
        d.remove(e.key, book.is_compound(e.key));
    }
    d.entries.retain(|e| e.key != NONE);
    for e in old {
        let key = book.compound(e.key, suffix);
        d.set(key, e.val, e.op, true);
    }
    Ok(())
}

/// The entries with plain keys only: a suffix disappears where it makes no difference.
pub(crate) fn flatten(m: &Model, book: &mut KeyBook, entries: &[Entry], own: &str) -> Vec<Entry> {
    // Per base: its first value, whether all are equal to it, and the value of the plain key.
    let mut by_base: FastMap<u32, (Val, bool, Option<Val>)> = FastMap::default();
    let same = |a: Val, b: Val| a == b || a.text(m, own) == b.text(m, own);
    let live = || entries.iter().filter(|e| e.key != NONE);
    for e in live() {
        let plain = (!book.is_compound(e.key)).then_some(e.val);
        by_base
            .entry(book.base(e.key))
            .and_modify(|(first, equal, p)| {
                *equal = *equal && same(*first, e.val);
                *p = p.or(plain);
            })
            .or_insert((e.val, true, plain));
    }
    let mut out: Vec<Entry> = live().filter(|e| !book.is_compound(e.key)).copied().collect();
    let mut place: FastMap<u32, usize> = out.iter().enumerate().map(|(i, e)| (e.key, i)).collect();
    for e in live().filter(|e| book.is_compound(e.key)).copied().collect::<Vec<_>>() {
        let base = book.base(e.key);
        let Some((_, equal, plain)) = by_base.get(&base).copied() else { continue };
        if plain.is_some_and(|p| same(p, e.val)) {
            continue;
        }
        let key = if equal {
            base
        } else {
            let text = book.printed(m, e.key);
            book.by_text(m, &text)
        };
        match place.get(&key) {
            Some(i) => out[*i] = Entry { key, ..e },
            None => {
                place.insert(key, out.len());
                out.push(Entry { key, ..e });
            }
        }
    }
    out
}
