//! Where in the journal each entry of the log is. Pure.

use std::collections::VecDeque;

/// Where a record is: the sector it begins in, how far into its content, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) position: u64,
    pub(super) skip: usize,
    pub(super) length: usize,
}

/// The last index that an entry may have.
const LAST: u64 = u64::MAX >> 1;

/// The spots of the entries there are: one after the other.
#[derive(Debug, Default)]
pub(super) struct Index {
    first: u64,
    spots: VecDeque<Spot>,
}

impl Index {
    /// Index of the first entry and its spot.
    pub(super) fn first(&self) -> Option<(u64, Spot)> {
        Some((self.first, *self.spots.front()?))
    }

    /// Index of the last entry.
    pub(super) fn last(&self) -> Option<u64> {
        (self.first + self.spots.len() as u64).checked_sub(1).filter(|_| !self.spots.is_empty())
    }

    pub(super) fn get(&self, index: u64) -> Option<Spot> {
        self.spots.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// Adds an entry. No log gets to [`LAST`]. It follows the last one, or entries up to `purged`, which stand in a snapshot.
    pub(super) fn push(&mut self, index: u64, spot: Spot, purged: Option<u64>) -> Result<(), String> {
        match self.last() {
            _ if index > LAST => return Err(format!("entry {index} is behind every log")),
            Some(last) if index == last + 1 => {}
            Some(last) if index <= last || index.checked_sub(1) > purged => {
                return Err(format!("entry {index} does not follow {last}"));
            }
            _ => *self = Self { first: index, spots: VecDeque::new() },
        }
        self.spots.push_back(spot);
        Ok(())
    }

    /// Forgets entries from `first` on.
    pub(super) fn truncate(&mut self, first: u64) {
        let keep = first.saturating_sub(self.first);
        self.spots.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    }

    /// Forgets entries up to and with `upto`.
    pub(super) fn purge(&mut self, upto: u64) {
        while !self.spots.is_empty() && self.first <= upto {
            self.spots.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(position: u64) -> Spot {
        Spot { position, skip: 0, length: 1 }
    }

    #[test]
    fn entries_follow_each_other_or_a_snapshot() {
        let mut index = Index::default();
        assert_eq!((index.first(), index.last()), (None, None));
        for entry in 5..9 {
            index.push(entry, spot(entry), None).unwrap();
        }
        assert!(index.push(8, spot(1), Some(20)).is_err() && index.push(10, spot(1), Some(8)).is_err());
        index.truncate(7);
        assert_eq!((index.last(), index.get(6), index.get(7)), (Some(6), Some(spot(6)), None));
        index.push(7, spot(70), None).unwrap();
        index.purge(5);
        assert_eq!((index.first(), index.get(5), index.get(7)), (Some((6, spot(6))), None, Some(spot(70))));
        index.push(21, spot(210), Some(20)).unwrap();
        assert_eq!((index.first(), index.last()), (Some((21, spot(210))), Some(21)));
        index.purge(30);
        assert_eq!((index.first(), index.last()), (None, None));
        assert!(index.push(u64::MAX, spot(1), Some(u64::MAX - 1)).is_err());
        index.push(31, spot(310), Some(30)).unwrap();
        index.truncate(2);
        assert_eq!(index.last(), None);
    }
}
