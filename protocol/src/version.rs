//! Which generations of the protocol a build speaks, and how two builds agree on one.
//!
//! A range, not a number: during an upgrade both generations are live. ALPN names the generation of a service; this
//! range is about the messages inside it.

use serde::{Deserialize, Serialize};

/// The generations this build speaks.
pub const SPOKEN: VersionRange = VersionRange { oldest: 1, newest: 1 };

/// A closed range of protocol generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest generation still spoken.
    pub oldest: u16,
    /// Newest generation spoken.
    pub newest: u16,
}

impl VersionRange {
    /// The newest generation both sides speak; none when the ranges do not meet or one is inverted.
    pub fn negotiate(self, other: VersionRange) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        let oldest = self.oldest.max(other.oldest);
        (oldest <= newest).then_some(newest)
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest { self.newest.fmt(f) } else { write!(f, "{}–{}", self.oldest, self.newest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(oldest: u16, newest: u16) -> VersionRange {
        VersionRange { oldest, newest }
    }

    #[test]
    fn the_newest_common_generation_wins() {
        assert_eq!(range(1, 3).negotiate(range(2, 5)), Some(3));
        assert_eq!(range(2, 2).negotiate(range(1, 9)), Some(2));
    }

    #[test]
    fn ranges_that_do_not_meet_have_none() {
        assert_eq!(range(1, 2).negotiate(range(3, 4)), None);
        assert_eq!(range(5, 1).negotiate(range(1, 5)), None, "an inverted range is nobody's");
    }
}
