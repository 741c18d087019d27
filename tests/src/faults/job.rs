//! The job on a ground: one guest that moves from its source to its destination and back, its beacon on.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    cell::{Part, Phase},
    ground::{Cast, Ground},
    landing::{Mark, landed, missed},
    watch::now_us,
};
use crate::lab::Ran;

/// Until the guest is up and the migration has come to a phase.
const COMES: Duration = Duration::from_secs(180);

/// Something was written down that cannot have happened while the migration was held before it.
#[derive(Debug)]
pub(super) struct TooEarly(Mark);

impl fmt::Display for TooEarly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} came too early", self.0)
    }
}

impl std::error::Error for TooEarly {}

fn asked(ground: &Ground, cast: &Cast, words: &[&str]) -> Ran {
    let hosts = format!("{},{}", cast.source, cast.destination);
    let mut all = vec!["run", "multihost_migration", "-m", &hosts, "-p", "mem=128M"];
    all.extend(words);
    all.extend(["--detach", "-o", "json"]);
    ground.lab().vtctl(&all)
}

/// A job with one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// The first attempt of its case.
    pub attempt: String,
}

impl Job {
    /// Submits it. `words`: of `vtctl run`, besides.
    ///
    /// # Errors
    /// The answer names no job.
    ///
    /// # Panics
    /// It is refused.
    pub fn submit(ground: &Ground, cast: &Cast, words: &[&str]) -> anyhow::Result<Self> {
        Self::of(&asked(ground, cast, words).expect(0))
    }

    /// The same, as often as it takes: while a host that was cut off is not missed yet, or nobody leads.
    ///
    /// # Errors
    /// It is not taken within `deadline`, or the answer names no job.
    pub fn submit_until_taken(
        ground: &Ground,
        cast: &Cast,
        words: &[&str],
        deadline: Duration,
    ) -> anyhow::Result<Self> {
        let taken = || {
            let ran = asked(ground, cast, words);
            if ran.code == 0 { Ok(ran) } else { Err(ran.stdout + &ran.stderr) }
        };
        Self::of(&ground.wait("the job to be taken", deadline, taken)?)
    }

    fn of(taken: &Ran) -> anyhow::Result<Self> {
        let answer = taken.json();
        let id = answer["id"].as_str().with_context(|| format!("no job in {answer}"))?.to_owned();
        let attempt = format!("{}.1.1", id.strip_prefix("job_").unwrap_or(&id));
        Ok(Self { id, attempt })
    }

    /// Waits until its migration is in that phase, by what the hosts have written down, and `more` holds. `first`: whose vote
    /// comes first.
    ///
    /// # Errors
    /// The phase is over or will not come.
    pub fn comes_to(
        &self,
        ground: &Ground,
        cast: &Cast,
        (phase, first): (Phase, Part),
        more: impl Fn() -> Result<(), String>,
    ) -> anyhow::Result<()> {
        let marks = || ground.marks(cast, &self.attempt);
        let vain = || {
            if let Some(mark) = missed(phase, first, &marks()) {
                return Err(TooEarly(mark).into());
            }
            let ended = ground.has_ended(cast, &self.attempt);
            ended.map_or(Ok(()), |how| Err(anyhow::anyhow!("{}: {how}", self.id)))
        };
        let come = || {
            more()?;
            let now = now_us() / 1000;
            landed(phase, first, &marks(), (now, now))
        };
        ground.wait_or(&format!("the phase {phase}"), COMES, come, vain)
    }

    /// Waits until it has ended, and gives it as `vtctl job show` does.
    ///
    /// # Errors
    /// It has not within `deadline`.
    pub fn ends(&self, ground: &Ground, deadline: Duration) -> anyhow::Result<Value> {
        ground.wait("the job to end", deadline, || {
            let shown = ground.lab().vtctl(&["job", "show", &self.id, "-o", "json"]);
            let shown: Value = serde_json::from_str(&shown.stdout).map_err(|_| shown.stderr.clone())?;
            if shown["state"] == "done" { Ok(shown) } else { Err(shown["cases"][0].to_string()) }
        })
    }

    /// Has its guest ended, which was kept, and waits until it has ended too. One that does not end is cancelled.
    ///
    /// # Errors
    /// It has not ended within `deadline`.
    pub fn released(&self, ground: &Ground, deadline: Duration) -> anyhow::Result<Value> {
        ground.lab().vtctl(&["job", "release", &self.id]);
        self.ends(ground, deadline).inspect_err(|_| {
            ground.lab().vtctl(&["job", "cancel", &self.id, "-y", "--no-wait"]);
        })
    }
}
