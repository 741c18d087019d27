//! Released or broken: every party of a barrier is told the same.
//!
//! If one party goes on and another gives up, the first waits for a peer that is not coming, and the verdict blames the
//! wrong one. Release or break is whatever came first in the log (design 6.5), so a party may only be told what the
//! log has, however late it asks and whoever answers.

use std::collections::BTreeMap;

use vt_protocol::ids::{AttemptId, HostId};
use vt_sync::state::{BarrierKey, BarrierState};

use super::{Invariant, Seen};

/// The rule, with who was told what and what the log has.
#[derive(Debug, Default)]
pub struct BarrierAlike {
    told: BTreeMap<(AttemptId, BarrierKey), (HostId, bool)>,
    ended: BTreeMap<(AttemptId, BarrierKey), bool>,
}

fn word(released: bool) -> &'static str {
    if released { "released" } else { "broken" }
}

impl Invariant for BarrierAlike {
    fn rule(&self) -> &'static str {
        "released or broken alike for everyone"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Entry { after, .. } => {
                for (id, attempt) in &after.attempts {
                    for (key, barrier) in &attempt.barriers {
                        if barrier.state != BarrierState::Open {
                            let released = barrier.state == BarrierState::Released;
                            self.ended.entry((*id, key.clone())).or_insert(released);
                        }
                    }
                }
                Ok(())
            }
            Seen::Told { host, attempt, barrier, released } => {
                let which = (*attempt, (*barrier).clone());
                match self.ended.get(&which) {
                    Some(has) if has == released => {}
                    Some(has) => {
                        let (told, has) = (word(*released), word(*has));
                        return Err(format!("{host} was told that {attempt} {barrier} is {told}; it is {has}"));
                    }
                    None => return Err(format!("{host} was told how {attempt} {barrier} ended, and it is open")),
                }
                let (first, before) = *self.told.entry(which).or_insert((*host, *released));
                if before != *released {
                    return Err(format!("{first} was told {}, {host} {}", word(before), word(*released)));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn a_party_that_is_told_otherwise_is_noticed() {
        let mut rule = BarrierAlike::default();
        let barrier = key("go");
        let told = |id, released| Seen::Told { host: host(id), attempt: attempt(), barrier: &barrier, released };
        assert!(rule.see(&told(1, true)).unwrap_err().contains("it is open"));
        let open = meeting(&[1], BarrierState::Open);
        entry(&mut rule, &open, &meeting(&[1, 2], BarrierState::Released)).unwrap();
        assert_eq!(rule.see(&told(1, true)), Ok(()));
        assert!(rule.see(&told(2, false)).unwrap_err().contains("is broken; it is released"));
    }
}
