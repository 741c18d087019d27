//! `early_boot`: a guest is moved while it boots; it comes up at the destination.

use std::time::Duration;

use vt_protocol::{
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Documented, Scenario,
    journey::{Journey, SLACK, taken},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, Settings, UNCHANGED, VM_PARAMS},
};
use crate::party::Party;

/// How long to wait before something is done to a guest that boots.
pub(super) const PAUSE_PARAMS: &[Documented] = &[
    ("min_random_timeout", "1", "least time until the next step, seconds; drawn anew, the same for the same attempt"),
    ("max_random_timeout", "5", "most time until the next step, seconds"),
];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "early_boot",
    summary: "moves a guest while it boots",
    about: "PASS: the transfer completes while the guest has not finished booting or just has; the guest comes up at the \
            destination, lets in on its console, and a move back, with its probes on, leaves it whole. How long it boots before \
            it moves is drawn between min_random_timeout and max_random_timeout. Avocado-VT's test is content with a login at \
            the destination; here what came up there must be whole after a move of its own.",
    hosts: (2, 2),
    params: &[VM_PARAMS, MOVE_PARAMS, PAUSE_PARAMS],
    aliases: &[ALIASES],
    types: &[Called { kind: "migration_multi_host", when: &[("paused_after_start_vm", "yes")] }],
    limits: &[LIMITS, UNCHANGED],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// Bounds of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    least_ms: u64,
    most_ms: u64,
}

impl Pause {
    pub(super) fn read(params: &Params) -> Result<Self, ParamError> {
        let seconds = |key, default| params.number(key, 0..=600).map(|seconds| seconds.unwrap_or(default));
        let (least, most) = (seconds("min_random_timeout", 1)?, seconds("max_random_timeout", 5)?);
        if least > most {
            return Err(params.error("max_random_timeout", "at least min_random_timeout"));
        }
        Ok(Self { least_ms: least * 1000, most_ms: most * 1000 })
    }

    /// The pause with this number of an attempt.
    pub(super) fn draw(self, party: &Party, number: u32) -> Duration {
        let words = format!("{}.{number}", party.welcome().attempt);
        let [a, b, c, d, ..] = *blake3::hash(words.as_bytes()).as_bytes();
        let drawn = u64::from(u32::from_le_bytes([a, b, c, d]));
        Duration::from_millis(self.least_ms + drawn % (self.most_ms - self.least_ms + 1))
    }
}

fn read(params: &Params) -> Result<(Settings, Pause), ParamError> {
    Ok((Settings::read(params)?, Pause::read(params)?))
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, pause) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::start(party, settings, false).await?;
    if journey.is_here() {
        let step = party.step("let it boot").await?;
        let pause = pause.draw(party, 1);
        tokio::time::sleep(pause).await;
        step.done(format!("for {:.1} s", pause.as_secs_f64())).await?;
    }
    journey.carry("while it boots", &spec).await?;
    if journey.is_here() {
        journey.awaken().await?;
    }
    party.barrier("awake", journey.settings.vm.login_timeout + SLACK).await?;
    journey.go("back", &spec).await?;
    journey.end(None).await
}
