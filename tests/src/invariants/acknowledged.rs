//! What was acknowledged is in the log, took effect once, and every repetition is told the same.
//!
//! An answer is a promise (design 4): the entry is on enough disks before anybody is told. Losing it would let a host act
//! on a right that the cluster does not remember giving. The simulator also compares each host's state with the log's,
//! entry by entry, so a host that lost an acknowledged entry cannot hide it.

use std::collections::BTreeMap;

use vt_protocol::ids::RequestId;
use vt_sync::Answer;

use super::{Invariant, Seen};

/// The rule, with what took effect where.
#[derive(Debug, Default)]
pub struct Acknowledged {
    effects: BTreeMap<RequestId, (u64, Answer)>,
}

impl Invariant for Acknowledged {
    fn rule(&self) -> &'static str {
        "no acknowledged entry is lost, and none takes effect twice"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Entry { request, outcome: Ok(applied), .. } => {
                let effect = (applied.index, applied.answer.clone());
                let first = self.effects.entry(request.id).or_insert_with(|| effect.clone());
                if *first != effect {
                    let name = request.command.name();
                    return Err(format!("{name} took effect at entry {} and again at {}", first.0, effect.0));
                }
                Ok(())
            }
            Seen::Acknowledged { id, index, answer } => match self.effects.get(id) {
                Some((at, gave)) if at == index && gave == *answer => Ok(()),
                Some((at, gave)) => {
                    Err(format!("{id:?} gave {gave:?} at entry {at} and was answered {answer:?} at {index}"))
                }
                None => Err(format!("{id:?} was acknowledged at entry {index} and is not in the log")),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use vt_sync::{Applied, Request, command::SetSetting};

    #[test]
    fn an_answer_that_the_log_does_not_have_is_noticed() {
        let mut rule = Acknowledged::default();
        let request = Request::new(SetSetting { key: "a".into(), value: None });
        let told = |index| Seen::Acknowledged { id: request.id, index, answer: &Answer::Done };
        assert!(rule.see(&told(7)).unwrap_err().contains("not in the log"));
        let state = owned_by(1);
        let mut takes_effect = |index| {
            let outcome = Ok(Applied { index, answer: Answer::Done, effects: vec![] });
            rule.see(&Seen::Entry { before: &state, request: &request, outcome: &outcome, after: &state })
        };
        assert_eq!(takes_effect(7), Ok(()));
        assert_eq!(takes_effect(7), Ok(()), "a repetition that is answered as the first time");
        assert!(takes_effect(8).unwrap_err().contains("again"));
        assert_eq!(rule.see(&told(7)), Ok(()));
        assert!(rule.see(&told(8)).is_err());
    }
}
