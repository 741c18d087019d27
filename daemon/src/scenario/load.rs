//! What keeps a guest busy besides its probes: programs in it, which go with its memory. That they still run, and get on, is
//! asked inside.

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Documented,
    journey::{ASK, Journey, product},
};
use crate::party::Guest;

/// What a load takes.
pub(super) const LOAD_PARAMS: &[Documented] = &[
    ("stress_cpu", "2", "busy loops in the guest"),
    ("stress_disk", "1", "programs in the guest that read the beginning of its disk over and over, past the cache"),
];

/// Process ids of the programs, one a line, in the guest.
const LIST: &str = "/tmp/load";

/// Programs that keep a guest busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) loops: u64,
    pub(super) readers: u64,
}

impl Load {
    pub(super) fn read(params: &Params) -> Result<Self, ParamError> {
        let count = |key, default| params.number(key, 0..=16).map(|count| count.unwrap_or(default));
        Ok(Self { loops: count("stress_cpu", 2)?, readers: count("stress_disk", 1)? })
    }

    /// Starts it, and waits until all of it runs. For the party whose host has the guest.
    pub(super) async fn start(self, journey: &Journey<'_>) -> Result<(), Failure> {
        let step = journey.party.step("load on").await?;
        let one =
            |work: &str| format!("(sh -c 'echo $$ >>{LIST}; while :; do {work}; done' >/dev/null 2>&1 </dev/null &); ");
        let loops = one(":").repeat(self.loops as usize);
        // Past the cache, and in pieces: a program's time counts once it has ended.
        let readers = one("echo 1 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k count=128");
        let readers = readers.repeat(self.readers as usize);
        let all = self.loops + self.readers;
        let wait = format!(
            "n=0; while [ $(wc -l <{LIST}) -lt {all} ]; do n=$((n+1)); [ $n -lt 300 ] || break; sleep 0.1; done; \
             [ $(wc -l <{LIST}) = {all} ]"
        );
        run(&journey.guest(), &format!(": >{LIST}; echo 0 >{LIST}.ran; {loops}{readers}{wait}")).await?;
        step.done(format!("{} busy loops, {} readers of the disk", self.loops, self.readers)).await
    }

    /// Checks that all of it runs and has got on since the last look.
    pub(super) async fn check(self, journey: &Journey<'_>) -> Result<(), Failure> {
        let step = journey.party.step("load goes on").await?;
        // State and times of each program, and of what it has waited for, in ticks.
        let look = format!(
            "( all=0; for p in $(cat {LIST}); do set -- $(cut -d' ' -f3,14-17 /proc/$p/stat 2>/dev/null); \
             [ $# = 5 ] && [ $1 != Z ] || {{ echo $p is gone; exit 1; }}; all=$((all+$2+$3+$4+$5)); done; \
             read -r was <{LIST}.ran; echo $all >{LIST}.ran; echo $((all-was)) ticks; [ $all -gt $was ] )"
        );
        let ran = run(&journey.guest(), &look).await?;
        step.done(format!("it ran for {}", ran.trim())).await
    }

    /// Ends it.
    pub(super) async fn stop(self, journey: &Journey<'_>) -> Result<(), Failure> {
        let step = journey.party.step("load off").await?;
        run(&journey.guest(), &format!("kill -9 $(cat {LIST}); : >{LIST}")).await?;
        step.done("").await
    }
}

/// Runs a line in the guest that must succeed, and returns what it printed.
pub(super) async fn run(guest: &Guest<'_>, command: &str) -> Result<String, Failure> {
    let (status, output) = guest.run(command, ASK).await?;
    if status == 0 {
        return Ok(output);
    }
    let report = Report::new(ErrorCode::GuestStopped, "what ran in the guest does not go on, or could not be done");
    let command: String = command.chars().take(200).collect();
    Err(product(report.with("command", command).with("status", status.to_string()).with("output", output)))
}
