//! Which line emptied a result.

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::any_without;
use crate::inspect::explain::{Removal, removal};

impl Config {
    /// If no variant is left: the first `only` or `no` in text order after which none is.
    ///
    /// # Errors
    /// A search that takes too long.
    pub fn emptied_by(&self) -> Result<Option<Removal>, Diagnostic> {
        if any_without(self, Vec::new())? {
            return Ok(None);
        }
        // Filters are numbered in the order they were read.
        let mut order: Vec<u32> = (0..self.m.constraints.len() as u32).collect();
        order.sort_by_key(|c| self.m.constraints[*c as usize].filter);
        let left_with = |kept: usize| -> Result<bool, Diagnostic> {
            let mut off = vec![false; order.len()];
            order[kept..].iter().for_each(|c| off[*c as usize] = true);
            any_without(self, off)
        };
        if !left_with(0)? {
            return Ok(None);
        }
        let (mut some, mut none) = (0, order.len());
        while none - some > 1 {
            let middle = some + (none - some) / 2;
            if left_with(middle)? { some = middle } else { none = middle }
        }
        Ok(Some(removal(&self.m, &self.m.constraints[order[some] as usize])))
    }
}
