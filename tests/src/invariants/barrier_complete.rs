//! A barrier is released once at most, and never before everybody who has to arrive has arrived.
//!
//! What follows a barrier relies on what the others did before it: a destination that listens, a guest that runs. So an
//! open barrier is released only by the arrival that completes it, a released or broken one never changes again, and
//! no arrival is lost or altered (design 6.5).

use vt_sync::state::BarrierState;

use super::{Invariant, Seen};

/// The rule.
#[derive(Debug)]
pub struct BarrierComplete;

impl Invariant for BarrierComplete {
    fn rule(&self) -> &'static str {
        "a barrier is released once at most and never before all have arrived"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Entry { before, after, .. } = seen else { return Ok(()) };
        for (id, attempt) in &after.attempts {
            let old_attempt = before.attempts.get(id);
            for (key, barrier) in &attempt.barriers {
                let missing = barrier.wanted.iter().find(|host| !barrier.arrived.contains_key(host));
                if let (BarrierState::Released, Some(missing)) = (&barrier.state, missing) {
                    return Err(format!("{id} {key} was released before {missing} arrived"));
                }
                let Some(old) = old_attempt.and_then(|attempt| attempt.barriers.get(key)) else {
                    let passed = old_attempt.and_then(|attempt| attempt.passed.get(&key.tag));
                    if passed.is_some_and(|passed| key.generation <= *passed) {
                        return Err(format!("{id} {key} was passed by all and is there again"));
                    }
                    continue;
                };
                if old.state != BarrierState::Open && old.state != barrier.state {
                    return Err(format!("{id} {key} was {:?} and is {:?}", old.state, barrier.state));
                }
                if old.wanted != barrier.wanted {
                    return Err(format!("{id} {key}: who has to arrive changed"));
                }
                if old.arrived.iter().any(|(host, payload)| barrier.arrived.get(host) != Some(payload)) {
                    return Err(format!("{id} {key}: an arrival was lost or altered"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn an_early_release_and_a_second_ending_are_noticed() {
        let open = meeting(&[1], BarrierState::Open);
        assert_eq!(entry(&mut BarrierComplete, &open, &meeting(&[1, 2], BarrierState::Released)), Ok(()));
        let early = meeting(&[1], BarrierState::Released);
        assert!(entry(&mut BarrierComplete, &open, &early).unwrap_err().contains("before hst_2 arrived"));
        let broken = meeting(&[1], BarrierState::Broken { missing: vec![host(2)], why: "x".into() });
        let late = meeting(&[1, 2], BarrierState::Released);
        assert!(entry(&mut BarrierComplete, &broken, &late).unwrap_err().contains("was Broken"));
        assert!(entry(&mut BarrierComplete, &late, &open).is_err());
        let forgotten = meeting(&[], BarrierState::Open);
        assert!(entry(&mut BarrierComplete, &open, &forgotten).unwrap_err().contains("lost or altered"));
    }
}
