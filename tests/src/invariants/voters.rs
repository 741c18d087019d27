//! One, three or five hosts vote; never two, never four.
//!
//! Two voters stop when either is lost, so they are worse than one; four bear no more than three (design 4). The number
//! changes as one joint change, so no set in between is ever in force.

use super::{Invariant, Seen};

/// The rule.
#[derive(Debug)]
pub struct Voters;

impl Invariant for Voters {
    fn rule(&self) -> &'static str {
        "one, three or five voters"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Voters(voters) if ![1, 3, 5].contains(&voters.len()) => Err(format!("{} hosts vote", voters.len())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn two_and_four_are_noticed() {
        for (count, holds) in [(0, false), (1, true), (2, false), (3, true), (4, false), (5, true)] {
            let voters = (1..=count).map(host).collect();
            assert_eq!(Voters.see(&Seen::Voters(&voters)).is_ok(), holds, "{count}");
        }
    }
}
