//! Strings to small numbers and back.
//!
//! Keys and names are compared millions of times during an expansion; here they become integers. Entries are never removed.

use std::hash::Hasher;

/// A multiplicative hasher: the tables hold text of the user's own files, so speed counts and flooding does not.
#[derive(Default, Clone, Copy)]
pub(crate) struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, x: u64) {
        self.0 = (self.0.rotate_left(5) ^ x).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for c in &mut chunks {
            self.mix(u64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut last = [0u8; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last) ^ ((rest.len() as u64) << 56));
        }
    }
    fn write_u32(&mut self, x: u32) {
        self.mix(u64::from(x));
    }
    fn write_u64(&mut self, x: u64) {
        self.mix(x);
    }
    fn write_usize(&mut self, x: usize) {
        self.mix(x as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

/// Builds [`FastHasher`]s.
pub(crate) type FastState = std::hash::BuildHasherDefault<FastHasher>;
/// A map with the fast hasher.
pub(crate) type FastMap<K, V> = std::collections::HashMap<K, V, FastState>;

/// Interned strings, numbered from 0.
#[derive(Debug, Default, Clone)]
pub(crate) struct Interner {
    text: String,
    /// End of each string in `text`; it starts where the one before ends.
    ends: Vec<u32>,
    /// Open addressing; 0 is free, else number + 1. The length is a power of two, at most half full.
    slots: Vec<u32>,
}

impl Interner {
    fn hash(s: &str) -> usize {
        let mut h = FastHasher::default();
        h.write(s.as_bytes());
        h.finish() as usize
    }

    /// The string behind a number.
    pub(crate) fn get(&self, id: u32) -> &str {
        let i = id as usize;
        let from = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.text[from..self.ends[i] as usize]
    }

    /// All strings, one behind the other.
    pub(crate) fn all(&self) -> &str {
        &self.text
    }

    /// Number of strings.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of a string that is already known.
    pub(crate) fn find(&self, s: &str) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = Self::hash(s) & mask;
        loop {
            match self.slots[at] {
                0 => return None,
                n if self.get(n - 1) == s => return Some(n - 1),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The number of a string, new or known.
    pub(crate) fn add(&mut self, s: &str) -> u32 {
        if (self.ends.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = Self::hash(s) & mask;
        loop {
            match self.slots[at] {
                0 => break,
                n if self.get(n - 1) == s => return n - 1,
                _ => at = (at + 1) & mask,
            }
        }
        let id = self.ends.len() as u32;
        self.text.push_str(s);
        self.ends.push(self.text.len() as u32);
        self.slots[at] = id + 1;
        id
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(64);
        let mut slots = vec![0u32; size];
        for id in 0..self.ends.len() as u32 {
            let mut at = Self::hash(self.get(id)) & (size - 1);
            while slots[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            slots[at] = id + 1;
        }
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_reversible() {
        let mut t = Interner::default();
        let ids: Vec<u32> = (0..1000).map(|i| t.add(&format!("key{i}"))).collect();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(t.get(*id), format!("key{i}"));
            assert_eq!(t.find(&format!("key{i}")), Some(*id));
            assert_eq!(t.add(&format!("key{i}")), *id);
        }
        assert_eq!(t.find("absent"), None);
        assert_eq!(t.len(), 1000);
        let empty = t.add("");
        assert_eq!(t.get(empty), "");
    }
}
