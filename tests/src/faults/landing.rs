//! The proof that a fault fell into its phase: what the hosts had written down when it came, and what they had not.
//!
//! A host's words are its event log (which votes are in the log of the cluster, which barrier was passed, which step
//! began) and the transcripts of its QEMUs' monitors (what QEMU was told, what it said). All hosts of a lab share one clock.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::Value;

use super::cell::{Part, Phase};

/// Something that happens once in a migration, as a host writes it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The source arrived at the barrier before the migration.
    SourceArrived,
    /// That barrier was released.
    Released,
    /// The destination's QEMU was told to listen.
    Listens,
    /// The source's QEMU was told to migrate.
    Told,
    /// The source's QEMU said that memory is on its way.
    Active,
    /// The source's QEMU said that it has completed.
    Completed,
    /// The vote of the source is in the log.
    SourceVoted,
    /// The vote of the destination is in the log.
    DestinationVoted,
    /// The source has read the decision.
    Decided,
    /// The destination's QEMU was told to let the guest run.
    Continued,
    /// The destination's QEMU said that the guest runs.
    Runs,
    /// The destination's party began to check the guest.
    Checking,
    /// It has checked it.
    Checked,
    /// The source's QEMU said that the guest runs elsewhere while it sends the rest.
    PostcopyBegan,
    /// The source's QEMU said that the connection is broken.
    PostcopyBroke,
    /// The source's QEMU was told to go on over a new connection.
    Recovers,
}

/// When what happened, ms since 1970.
pub type Marks = BTreeMap<Mark, u64>;

/// What has to be written down in a phase, and what must not be yet. `first`: whose vote comes first.
fn wanted(phase: Phase, first: Part) -> (&'static [Mark], &'static [Mark]) {
    use Mark::*;
    match (phase, first) {
        (Phase::Barrier, _) => (&[SourceArrived], &[Released, Told]),
        (Phase::Prepared, _) => (&[Released, Listens], &[Told]),
        (Phase::Transferring, _) => (&[Told, Active], &[Completed, SourceVoted]),
        (Phase::SourceStopped, _) => (&[Completed], &[SourceVoted, DestinationVoted, Continued]),
        (Phase::VotedByOne, Part::Destination) => (&[Completed, DestinationVoted], &[SourceVoted, Decided, Continued]),
        (Phase::VotedByOne, _) => (&[Completed, SourceVoted], &[DestinationVoted, Decided, Continued]),
        (Phase::VotedByBoth, _) => (&[SourceVoted, DestinationVoted], &[Decided, Continued]),
        (Phase::Moved, _) => (&[SourceVoted, DestinationVoted, Decided], &[Continued]),
        (Phase::Resumed, _) => (&[Decided, Continued, Runs], &[Checking]),
        (Phase::Verifying, _) => (&[Runs, Checking], &[Checked]),
        (Phase::PostcopyActive, _) => (&[Decided, Runs, PostcopyBegan], &[PostcopyBroke, Completed]),
        (Phase::PostcopyPaused, _) => (&[Runs, PostcopyBegan, PostcopyBroke], &[Recovers, Completed]),
    }
}

/// Whether a fault that came between these moments (ms since 1970) fell into the phase; what speaks against it if not.
///
/// # Errors
/// A mark that is missing, or was there too early.
pub fn landed(phase: Phase, first: Part, marks: &Marks, fault: (u64, u64)) -> Result<(), String> {
    let (before, after) = wanted(phase, first);
    for mark in before {
        match marks.get(mark) {
            None => return Err(format!("{mark:?} is written down nowhere")),
            Some(at) if *at > fault.0 => return Err(format!("{mark:?} came {} ms after the fault", at - fault.0)),
            Some(_) => {}
        }
    }
    for mark in after {
        if let Some(at) = marks.get(mark).filter(|at| **at < fault.1) {
            return Err(format!("{mark:?} came {} ms before the fault was done", fault.1 - at));
        }
    }
    Ok(())
}

/// What is written down already and must not be, in a phase that is waited for: it will not come any more.
pub fn missed(phase: Phase, first: Part, marks: &Marks) -> Option<Mark> {
    wanted(phase, first).1.iter().copied().find(|mark| marks.contains_key(mark))
}

/// How long one vote stands alone in [`Phase::VotedByOne`]: longer than the migration may take, as it is submitted.
pub const ALONE: Duration = Duration::from_secs(6);
/// How long after a decision a host may take to write down that its vote is in the log: a daemon that was just stopped, or a
/// busy machine, is late. A vote that was not there at all comes after [`ALONE`], or never.
const VOTE_SAID: Duration = Duration::from_secs(5);

/// Whether the destination was let run on anything but two votes. What `mute` did is not known: it could write nothing down.
pub fn run_too_early(marks: &Marks, mute: Option<Part>) -> Option<String> {
    let run = *marks.get(&Mark::Continued)?;
    let said = Duration::from_millis(run) + VOTE_SAID;
    let late = |mark: &Mark| marks.get(mark).is_none_or(|at| Duration::from_millis(*at) > said);
    let votes = [(Part::Source, Mark::SourceVoted), (Part::Destination, Mark::DestinationVoted)];
    let (_, without) = votes.into_iter().find(|(side, vote)| mute != Some(*side) && late(vote))?;
    Some(format!("the destination was let run without {without:?}"))
}

/// Whether a barrier was released before all had arrived, by the events of a host.
pub fn released_too_early(events: &[Value]) -> Option<String> {
    let barriers = events.iter().map(|event| &event["what"]["barrier"]);
    let mut early = barriers.filter(|barrier| {
        barrier["what"] == "released" && barrier["missing"].as_array().is_some_and(|missing| !missing.is_empty())
    });
    early.next().map(|barrier| format!("barrier {} was released without {}", barrier["tag"], barrier["missing"]))
}

/// Reads the marks of the first migration of an attempt, from the evidence directories of both sides.
pub fn marks(source: &Path, destination: &Path) -> Marks {
    let mut marks = Marks::new();
    let mut note = |mark: Mark, at: u64| {
        marks.entry(mark).and_modify(|first| *first = at.min(*first)).or_insert(at);
    };
    for line in events(source) {
        event(&line, Part::Source).into_iter().for_each(|(mark, at)| note(mark, at));
    }
    for line in events(destination) {
        event(&line, Part::Destination).into_iter().for_each(|(mark, at)| note(mark, at));
    }
    for line in lines(&source.join("vm1/start/qmp.jsonl")) {
        message(&line, Part::Source).into_iter().for_each(|(mark, at)| note(mark, at));
    }
    for line in lines(&destination.join("vm1/in-1/qmp.jsonl")) {
        message(&line, Part::Destination).into_iter().for_each(|(mark, at)| note(mark, at));
    }
    marks
}

/// What a host wrote into the event log of an attempt, from its evidence directory.
pub fn events(dir: &Path) -> Vec<Value> {
    lines(&dir.join("events.jsonl"))
}

/// Whole lines of a file; one that was torn by a crash is left out.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read(path).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn event(line: &Value, side: Part) -> Option<(Mark, u64)> {
    let (at, what) = (line["unix_ms"].as_u64()?, &line["what"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (barrier, log) = (&what["barrier"], text(&what["log"]["text"]));
    let (begun, ended) = (text(&what["step_began"]), text(&what["step_ended"]["step"]));
    let mark = match side {
        Part::Source if text(&barrier["tag"]).starts_with("before") => match barrier["what"].as_str()? {
            "arrived" => Mark::SourceArrived,
            "released" => Mark::Released,
            _ => return None,
        },
        Part::Source if log.ends_with("the vote of the source is in the log") => Mark::SourceVoted,
        Part::Source if log.contains("decided: the VM is owned by") => Mark::Decided,
        Part::Destination if log.ends_with("the vote of the destination is in the log") => Mark::DestinationVoted,
        Part::Destination if begun.starts_with("check ") => Mark::Checking,
        Part::Destination if ended.starts_with("check ") => Mark::Checked,
        _ => return None,
    };
    Some((mark, at))
}

fn message(line: &Value, side: Part) -> Option<(Mark, u64)> {
    let (at, message) = (line["t_ms"].as_u64()?, &line["msg"]);
    let told = message["execute"].as_str().unwrap_or_default();
    let said = message["event"].as_str().unwrap_or_default();
    let status = message["data"]["status"].as_str().unwrap_or_default();
    let again = message["arguments"]["resume"] == true;
    let mark = match (side, told, said, status) {
        (Part::Source, "migrate", ..) if again => Mark::Recovers,
        (Part::Source, "migrate", ..) => Mark::Told,
        (Part::Source, _, "MIGRATION", "active") => Mark::Active,
        (Part::Source, _, "MIGRATION", "completed") => Mark::Completed,
        (Part::Source, _, "MIGRATION", "postcopy-active") => Mark::PostcopyBegan,
        (Part::Source, _, "MIGRATION", "postcopy-paused") => Mark::PostcopyBroke,
        (Part::Destination, "migrate-incoming", ..) => Mark::Listens,
        (Part::Destination, "cont", ..) => Mark::Continued,
        (Part::Destination, _, "RESUME", _) => Mark::Runs,
        _ => return None,
    };
    Some((mark, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, lines: &[&str]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, lines.join("\n")).unwrap();
    }

    #[test]
    fn marks_are_read_from_what_hosts_write_and_the_first_of_a_kind_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (source, destination) = (dir.path().join("s"), dir.path().join("d"));
        write(
            &source,
            "events.jsonl",
            &[
                r#"{"seq":1,"unix_ms":10,"host":"host1","what":{"barrier":{"tag":"before#1","what":"arrived","arrived":[1,2],"missing":["host2"]}}}"#,
                r#"{"seq":2,"unix_ms":50,"host":"host1","what":{"log":{"level":"info","text":"mig_x.1: the vote of the source is in the log"}}}"#,
                r#"{"seq":3,"unix_ms":60,"ho"#,
            ],
        );
        write(
            &source,
            "vm1/start/qmp.jsonl",
            &[
                r#"{"t_ms":20,"mono_ns":1,"dir":"out","msg":{"execute":"migrate","arguments":{"uri":"tcp:x"}}}"#,
                r#"{"t_ms":21,"mono_ns":1,"dir":"in","msg":{"event":"MIGRATION","data":{"status":"active"}}}"#,
                r#"{"t_ms":40,"mono_ns":1,"dir":"in","msg":{"event":"MIGRATION","data":{"status":"completed"}}}"#,
                r#"{"t_ms":41,"mono_ns":1,"dir":"out","msg":{"execute":"migrate","arguments":{"uri":"tcp:y","resume":true}}}"#,
                r#"{"t_ms":90,"mono_ns":1,"dir":"in","msg":{"event":"MIGRATION","data":{"status":"completed"}}}"#,
            ],
        );
        write(&destination, "vm1/in-1/qmp.jsonl", &[r#"{"t_ms":15,"dir":"out","msg":{"execute":"migrate-incoming"}}"#]);
        let marks = marks(&source, &destination);
        let wanted = [
            (Mark::SourceArrived, 10),
            (Mark::Listens, 15),
            (Mark::Told, 20),
            (Mark::Active, 21),
            (Mark::Completed, 40),
            (Mark::SourceVoted, 50),
            (Mark::Recovers, 41),
        ];
        assert_eq!(marks, Marks::from(wanted));
    }

    #[test]
    fn a_barrier_is_released_when_nobody_is_missing() {
        let event = |what: &str, missing: &[&str]| serde_json::json!({"what": {"barrier": {"tag": "before#1", "what": what, "missing": missing}}});
        let good = [event("arrived", &["host2"]), event("released", &[]), event("broken", &["host2"])];
        assert_eq!(released_too_early(&good), None);
        assert!(released_too_early(&[event("released", &["host2"])]).unwrap().contains("host2"));
    }

    #[test]
    fn to_be_let_run_takes_two_votes() {
        let both = [(Mark::SourceVoted, 50), (Mark::DestinationVoted, 80)];
        let with = |marks: &[(Mark, u64)]| run_too_early(&marks.iter().copied().collect(), None);
        assert_eq!(with(&both), None, "it was not let run at all");
        assert_eq!(with(&[both[0], both[1], (Mark::Continued, 79)]), None, "said a moment later");
        assert!(with(&[both[0], (Mark::Continued, 90)]).unwrap().contains("DestinationVoted"));
        let only_source = Marks::from([both[0], (Mark::Continued, 90)]);
        assert_eq!(run_too_early(&only_source, Some(Part::Destination)), None, "its disk was full");
        assert!(run_too_early(&only_source, Some(Part::Source)).is_some());
        let alone = 90 + u64::try_from(ALONE.as_millis()).unwrap();
        assert!(with(&[both[1], (Mark::SourceVoted, alone), (Mark::Continued, 90)]).unwrap().contains("SourceVoted"));
    }

    #[test]
    fn a_fault_counts_only_between_what_was_and_what_was_not_yet() {
        let marks = Marks::from([(Mark::Completed, 40), (Mark::SourceVoted, 50), (Mark::DestinationVoted, 80)]);
        let by_source = |at| landed(Phase::VotedByOne, Part::Source, &marks, (at, at + 1));
        assert_eq!(by_source(60), Ok(()));
        assert!(by_source(45).unwrap_err().contains("SourceVoted came 5 ms after"));
        assert!(by_source(81).unwrap_err().contains("DestinationVoted"));
        assert!(landed(Phase::VotedByOne, Part::Destination, &marks, (60, 61)).is_err());
        assert!(landed(Phase::SourceStopped, Part::Source, &marks, (45, 46)).is_ok());
        assert!(landed(Phase::Transferring, Part::Source, &marks, (30, 31)).unwrap_err().contains("nowhere"));
        assert_eq!(missed(Phase::VotedByOne, Part::Source, &marks), Some(Mark::DestinationVoted));
        assert_eq!(missed(Phase::Moved, Part::Source, &marks), None);
    }
}
