//! A barrier, as one party meets it: arrive, wait for committed state to say released or broken, break it when the own
//! deadline passes. What the party is told is what came first in the log.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::{HostId, Name},
    job::Happening,
    party::{Answer, Barrier, Failure, PAYLOAD_MAX},
    verdict::Consequence,
};
use vt_sync::{
    Answer as Answered, State,
    command::{Arrive, BreakBarrier},
    state::{Barrier as Record, BarrierKey, BarrierState},
};

use super::{
    attempt::{DECIDES, LocalAttempt},
    failure::caused,
};

/// Longest tag, in bytes.
const TAG_MAX: usize = 128;

impl LocalAttempt {
    /// Meets the others.
    ///
    /// # Errors
    /// The barrier broke, which is a consequence; or the call could not be made.
    pub async fn barrier(&self, call: Barrier) -> Result<Answer, Failure> {
        let wrong = |text: String| caused(Report::new(ErrorCode::BadParameter, text));
        if call.tag.is_empty() || call.tag.len() > TAG_MAX {
            return Err(wrong(format!("the tag of a barrier has 1 to {TAG_MAX} bytes, not {}", call.tag.len())));
        }
        let payload = serde_json::to_vec(&call.payload).map_err(|error| wrong(error.to_string()))?;
        if payload.len() > PAYLOAD_MAX {
            let text = format!("the payload for {} has {} bytes, at most {PAYLOAD_MAX}", call.tag, payload.len());
            return Err(caused(Report::new(ErrorCode::TooLarge, text)));
        }
        let deadline = Instant::now() + Duration::from_millis(call.deadline_ms);
        let parties = call.parties.iter().map(|name| self.host_id(name)).collect::<Result<Vec<_>, _>>()?;
        let key = BarrierKey { tag: call.tag, generation: call.generation };
        let which = key.to_string();
        let arrive = Arrive {
            attempt: self.id,
            epoch: self.epoch,
            host: self.me(),
            barrier: key.clone(),
            parties: parties.clone(),
            payload,
        };
        self.place(&format!("barrier-{}", key.tag)).await;
        let patience = deadline.saturating_duration_since(Instant::now()).max(DECIDES);
        let applied = self.propose("arrive", &which, arrive, patience).await?;
        self.tell(&key, "arrived", &*self.applied(applied.index).await);

        let settled = timeout_at(deadline, self.wait_state(|state| self.settled(&key, state))).await;
        let state = match settled {
            Ok(state) => state?,
            Err(_) => {
                let command = BreakBarrier {
                    attempt: self.id,
                    epoch: self.epoch,
                    host: self.me(),
                    barrier: key.clone(),
                    parties,
                };
                let applied = self.propose("break", &which, command, DECIDES).await?;
                match applied.answer {
                    Answered::Barrier(state) => {
                        self.applied(applied.index).await;
                        state
                    }
                    _ => {
                        return Err(caused(Report::new(ErrorCode::Internal, "a barrier was answered with no barrier")));
                    }
                }
            }
        };
        self.outcome(&key, state).await
    }

    fn meeting<'a>(&self, key: &BarrierKey, state: &'a State) -> Option<&'a Record> {
        Some(state.attempts.get(&self.id)?.barrier(&key.tag, key.generation)?.as_ref())
    }

    fn settled(&self, key: &BarrierKey, state: &State) -> Option<BarrierState> {
        let found = self.meeting(key, state)?.state.clone();
        (found != BarrierState::Open).then_some(found)
    }

    async fn outcome(&self, key: &BarrierKey, settled: BarrierState) -> Result<Answer, Failure> {
        let state = self.cluster.state();
        match settled {
            BarrierState::Released => {
                self.tell(key, "released", &state);
                let Some(record) = self.meeting(key, &state) else {
                    return Err(Failure::Followed(Consequence::Closed));
                };
                let mut payloads = Vec::new();
                for (host, name) in &self.hosts {
                    let Some(bytes) = record.arrived.get(host) else { continue };
                    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
                        let text = format!("what {name} gave at {key} is no JSON");
                        caused(Report::new(ErrorCode::WireVersion, text).caused_by(&error))
                    })?;
                    payloads.push((name.clone(), value));
                }
                Ok(Answer::Released { payloads })
            }
            BarrierState::Broken { why, .. } => {
                self.tell(key, "broken", &state);
                Err(Failure::Followed(Consequence::BarrierBroken(format!("{key}: {why}"))))
            }
            BarrierState::Open => {
                Err(caused(Report::new(ErrorCode::Internal, format!("barrier {key} was left while it was open"))))
            }
        }
    }

    fn tell(&self, key: &BarrierKey, what: &str, state: &State) {
        let record = self.meeting(key, state);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (wanted, missing) = match record {
            Some(record) => (count(record.wanted.len()), record.missing()),
            None => (count(self.hosts.len()), Vec::new()),
        };
        let name =
            |host: &HostId| self.hosts.iter().find(|(id, _)| id == host).map(|(_, name): &(_, Name)| name.clone());
        self.evidence.events.note(Happening::Barrier {
            tag: key.to_string(),
            what: what.to_owned(),
            arrived: (wanted - count(missing.len()).min(wanted), wanted),
            missing: missing.iter().filter_map(name).collect(),
        });
    }
}
