//! Calls of a party: done once each, whoever asks how often, answered alike.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use vt_protocol::{
    error::{ErrorCode, Report},
    job::Happening,
    party::{Answer, CALLS_MAX, Call, Failure, Finish, LOG_MAX, PAYLOAD_MAX, Reply, Request, Step, Welcome},
    verdict::Consequence,
};

use super::{
    attempt::{Answering, LocalAttempt},
    failure::caused,
};

/// Answers that are kept so that a repetition gets the same.
const KEPT: usize = 2 * CALLS_MAX;
/// Steps that may be open at the same time.
const STEPS_MAX: usize = 64;

impl LocalAttempt {
    /// What a party is told at its hello.
    pub fn welcome(&self) -> Welcome {
        let record = self.record();
        let left = self.until.saturating_duration_since(Instant::now());
        Welcome {
            attempt: self.id,
            epoch: self.epoch,
            scenario: record.scenario,
            case: record.case.name,
            params: record.case.params,
            hosts: self.hosts.iter().map(|(_, name)| name.clone()).collect(),
            place: u32::try_from(self.place).unwrap_or(0),
            remaining_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            keep: record.keep,
            file: record.file,
        }
    }

    /// Answers a call. The work goes on when the asker goes away, and is not done again when it asks again.
    pub async fn answer(self: &Arc<Self>, call: Call) -> Reply {
        let id = call.id;
        let mut reply = match self.begin(call) {
            Ok(reply) => reply,
            Err(failure) => return Reply::new(id, Err(failure)),
        };
        let answered = reply.wait_for(Option::is_some).await.ok().and_then(|reply| reply.clone());
        answered.unwrap_or_else(|| Reply::new(id, Err(Failure::Followed(Consequence::Closed))))
    }

    fn begin(self: &Arc<Self>, call: Call) -> Result<watch::Receiver<Option<Reply>>, Failure> {
        let text = serde_json::to_vec(&call.call).unwrap_or_default();
        let content = *blake3::hash(&text).as_bytes();
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = calls.get(&call.id) {
            if known.content != content {
                let title = format!("call {} was made before with other content", call.id);
                return Err(caused(Report::new(ErrorCode::RequestConflict, title)));
            }
            return Ok(known.reply.clone());
        }
        let open = calls.values().filter(|call| call.reply.borrow().is_none()).count();
        if open >= CALLS_MAX {
            let title = format!("a party makes at most {CALLS_MAX} calls at the same time");
            return Err(caused(Report::new(ErrorCode::TooLarge, title)));
        }
        while calls.len() >= KEPT {
            // The oldest that is answered; there is one, for fewer are open.
            let Some(oldest) = calls.iter().find(|(_, call)| call.reply.borrow().is_some()).map(|(id, _)| *id) else {
                break;
            };
            calls.remove(&oldest);
        }
        let (tell, reply) = watch::channel(None);
        calls.insert(call.id, Answering { content, reply: reply.clone() });
        drop(calls);
        let attempt = self.clone();
        tokio::spawn(async move {
            let id = call.id;
            let result = attempt.perform(call).await;
            tell.send_replace(Some(Reply::new(id, result)));
        });
        Ok(reply)
    }

    async fn perform(self: &Arc<Self>, call: Call) -> Result<Answer, Failure> {
        match call.call {
            Request::Finish(finish) => self.take_finish(finish),
            Request::Hello(_) => Err(caused(Report::new(
                ErrorCode::BadParameter,
                "hello is the first call of a connection, and said once",
            ))),
            Request::Step(step) => {
                let first = match &step {
                    Step::Begin { name } => name.split(' ').next().map(|word| format!("step-{word}")),
                    Step::End { .. } => None,
                };
                let answer = self.step(step)?;
                if let Some(first) = first {
                    self.place(&first).await;
                }
                Ok(answer)
            }
            Request::Keep { name, value } => {
                if serde_json::to_vec(&value).map_or(usize::MAX, |text| text.len()) > PAYLOAD_MAX {
                    let title = format!("what is kept as {name} has more than {PAYLOAD_MAX} bytes");
                    return Err(caused(Report::new(ErrorCode::TooLarge, title)));
                }
                self.evidence.json(&format!("checks/{name}.json"), &value);
                Ok(Answer::Done)
            }
            Request::Log { warn, mut text } => {
                let mut end = text.len().min(LOG_MAX);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                if warn {
                    self.evidence.events.warn(text);
                } else {
                    self.evidence.events.say(text);
                }
                Ok(Answer::Done)
            }
            other => {
                let work = async {
                    match other {
                        Request::Barrier(call) => self.barrier(call).await,
                        Request::StartVm(call) => self.start_vm(call).await,
                        Request::StopVm { vm } => self.stop_vm(&vm).await,
                        Request::PrepareMigration(call) => self.prepare_move(call).await.map(|()| Answer::Done),
                        Request::Migrate(call) => {
                            self.migrate(call).await.map(|migrated| Answer::Migrated(Box::new(migrated)))
                        }
                        Request::Guest(guest) => self.ask_guest(guest, call.repeat).await,
                        Request::Reshape { vm, extra_args } => self.reshape(&vm, extra_args),
                        Request::Cut { planes } => self.cut(&planes).await,
                        Request::Monitor { vm, command, arguments } => self.monitor(&vm, &command, arguments).await,
                        Request::Hello(_)
                        | Request::Step(_)
                        | Request::Keep { .. }
                        | Request::Log { .. }
                        | Request::Finish(_) => Ok(Answer::Done),
                    }
                };
                tokio::select! {
                    result = work => result,
                    () = self.closing.cancelled() => Err(Failure::Followed(Consequence::Closed)),
                }
            }
        }
    }

    fn step(&self, step: Step) -> Result<Answer, Failure> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Begin { name } => {
                if steps.len() >= STEPS_MAX || name.len() > LOG_MAX {
                    let title =
                        format!("at most {STEPS_MAX} steps are open at the same time, with names of {LOG_MAX} bytes");
                    return Err(caused(Report::new(ErrorCode::TooLarge, title)));
                }
                steps.insert(name.clone(), Instant::now());
                self.evidence.events.note(Happening::StepBegan(name));
            }
            Step::End { name, mut note } => {
                let elapsed = steps.remove(&name).map_or(Duration::ZERO, |begun| begun.elapsed());
                let mut end = note.len().min(LOG_MAX);
                while !note.is_char_boundary(end) {
                    end -= 1;
                }
                note.truncate(end);
                let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                self.evidence.events.note(Happening::StepEnded { step: name, ms, note });
            }
        }
        Ok(Answer::Done)
    }

    /// Steps that have begun and not ended, oldest first: where a party was when it ended.
    pub(super) fn open_steps(&self) -> Vec<String> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open: Vec<_> = steps.iter().collect();
        open.sort_by_key(|(_, begun)| **begun);
        open.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn take_finish(&self, finish: Finish) -> Result<Answer, Failure> {
        let mut finish = finish;
        // Figures are for people; a flood of them is cut.
        while finish.metrics.len() > 64 {
            finish.metrics.pop_last();
        }
        self.set_record(|record| record.finish = Some(finish.clone())).map_err(|error| {
            caused(
                Report::new(ErrorCode::StorageFailed, "the outcome of the party could not be kept").caused_by(&error),
            )
        })?;
        self.finish.send_replace(Some(finish));
        Ok(Answer::Done)
    }
}
