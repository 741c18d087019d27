//! From items of a watch to what is worth showing. Pure: it remembers what was shown, so that a watch that was resumed
//! elsewhere, and begins again with the first item, shows nothing twice and loses nothing.

use std::collections::{HashMap, HashSet};

use vt_protocol::{
    admin::WatchItem,
    ids::{AttemptId, Name},
    job::{AttemptEvent, CaseStateView, CaseView, Happening, JobState, JobView},
    verdict::Verdict,
    vm::Sample,
};

use crate::ui::{
    style::{Style, Symbol},
    text::{bit_rate, bytes, elapsed, safe},
};

/// Most characters of a note behind a step.
const NOTE_MAX: usize = 130;

/// Something to show.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A line that stays.
    Line {
        /// Index of its case; none where it is about the job.
        case: Option<u32>,
        /// The symbol in front.
        symbol: Symbol,
        /// The text, in one line.
        text: String,
    },
    /// A step is under way.
    Step {
        /// Index of its case.
        case: u32,
        /// The host.
        host: Name,
        /// Which; none: it ended.
        step: Option<String>,
    },
    /// A migration is under way.
    Migration {
        /// Index of its case.
        case: u32,
        /// Text form of its id.
        id: String,
        /// Who moves from where to where.
        label: String,
        /// The reading.
        sample: Box<Sample>,
        /// By the source's clock: ms since 1970.
        unix_ms: u64,
    },
    /// A case came to its end, and so did everything under way in it.
    CaseOver {
        /// Its index.
        case: u32,
    },
}

/// How far the showing of a case is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Waiting(Option<String>),
    Running(AttemptId),
    Done,
}

/// What was seen of a job.
#[derive(Debug)]
pub struct Tracker {
    style: Style,
    verbose: bool,
    job: Option<JobView>,
    seen: HashMap<(AttemptId, Name), u64>,
    broken: HashSet<(AttemptId, Name, String)>,
    shown: HashMap<u32, Shown>,
}

impl Tracker {
    /// `verbose` shows log lines of level `info` as well.
    pub fn new(style: Style, verbose: bool) -> Self {
        Self { style, verbose, job: None, seen: HashMap::new(), broken: HashSet::new(), shown: HashMap::new() }
    }

    /// The newest view of the job.
    pub fn job(&self) -> Option<&JobView> {
        self.job.as_ref()
    }

    /// Whether this event is new; remembers it.
    pub fn is_new(&mut self, attempt: AttemptId, event: &AttemptEvent) -> bool {
        let seen = self.seen.entry((attempt, event.host.clone())).or_insert(0);
        let new = event.seq > *seen;
        *seen = event.seq.max(*seen);
        new
    }

    /// Takes an item and tells what it changes.
    pub fn take(&mut self, item: WatchItem) -> Vec<Update> {
        match item {
            WatchItem::Job(job) => self.take_job(job),
            WatchItem::Changed(changed) => self.take_changed(changed),
            WatchItem::Event { attempt, event } => {
                if self.is_new(attempt, &event) {
                    self.take_event(attempt, event)
                } else {
                    Vec::new()
                }
            }
        }
    }

    fn take_job(&mut self, job: JobView) -> Vec<Update> {
        // A follower that lags behind must not bring back what is over.
        if self.job.as_ref().is_some_and(|known| known.state == JobState::Done && job.state != JobState::Done) {
            return Vec::new();
        }
        let updates = self.tell(&job.cases, job.cases.len() == 1);
        self.job = Some(job);
        updates
    }

    fn take_changed(&mut self, changed: JobView) -> Vec<Update> {
        // Without a first view, or after the last one, there is nothing it could change.
        let Some(mut job) = self.job.take_if(|known| known.state != JobState::Done) else { return Vec::new() };
        let updates = self.tell(&changed.cases, job.cases.len() == 1);
        job.take(changed);
        self.job = Some(job);
        updates
    }

    /// What is worth telling of cases; `alone`: the job has no others.
    fn tell(&mut self, cases: &[CaseView], alone: bool) -> Vec<Update> {
        let mut updates = Vec::new();
        for case in cases {
            let index = case.id.index;
            let next = match &case.state {
                CaseStateView::Pending { why } => Shown::Waiting(why.clone()),
                CaseStateView::Running { attempt } => Shown::Running(*attempt),
                CaseStateView::Done { .. } => Shown::Done,
            };
            let known = self.shown.get(&index);
            let back = matches!((known, &next), (Some(Shown::Running(_) | Shown::Done), Shown::Waiting(_)))
                || matches!((known, &next), (Some(Shown::Done), Shown::Running(_)));
            if back || known == Some(&next) {
                continue;
            }
            let mut line = |symbol, text| updates.push(Update::Line { case: (!alone).then_some(index), symbol, text });
            match (&case.state, &next) {
                (_, Shown::Waiting(Some(why))) => line(Symbol::Dot, format!("waits: {}", safe(why))),
                (_, Shown::Running(attempt)) if attempt.number > 1 => {
                    line(Symbol::Warn, format!("attempt {} on {}", attempt.number, hosts(case)));
                }
                (_, Shown::Running(_)) if !alone => {
                    line(Symbol::Dot, format!("{} on {}", safe(&case.name), hosts(case)));
                }
                (CaseStateView::Done { verdict, .. }, _) => {
                    if !alone {
                        let took = case.elapsed_ms.map(|ms| format!("  {}", elapsed(ms))).unwrap_or_default();
                        let word = self.style.verdict(*verdict, 0);
                        line(of_verdict(*verdict), format!("{word}  {}  {}{took}", safe(&case.name), hosts(case)));
                    }
                    updates.push(Update::CaseOver { case: index });
                }
                _ => {}
            }
            self.shown.insert(index, next);
        }
        updates
    }

    fn take_event(&mut self, attempt: AttemptId, event: AttemptEvent) -> Vec<Update> {
        let case = attempt.case.index;
        let host = event.host;
        let alone = self.job.as_ref().is_none_or(|job| job.cases.len() == 1);
        let line = |symbol, text| Update::Line { case: (!alone).then_some(case), symbol, text };
        match event.what {
            Happening::StepBegan(step) => vec![Update::Step { case, host, step: Some(one_line(&step)) }],
            Happening::StepEnded { step, ms, note } => {
                let (step, mut note) = (one_line(&step), one_line(&note));
                if !self.verbose && note.chars().count() > NOTE_MAX {
                    // The whole of it stands in the log and in the reports.
                    note = note.chars().take(NOTE_MAX - 1).chain(['…']).collect();
                }
                let text = format!("{host}  {step:<34} {:>8}  {note}", elapsed(ms));
                let over = Update::Step { case, host, step: None };
                vec![over, line(Symbol::Done, text.trim_end().to_owned())]
            }
            Happening::Barrier { tag, what, arrived: (there, of), missing } => {
                let tag = one_line(&tag);
                // Every party tells of it; one line is enough.
                let key = (attempt, host.clone(), tag.clone());
                match what.as_str() {
                    "released" if self.first_to_tell(attempt, &host) => {
                        vec![line(Symbol::Done, format!("barrier {tag} ({there}/{of})"))]
                    }
                    "broken" if self.broken.insert(key) => {
                        let names: Vec<&str> = missing.iter().map(Name::as_str).collect();
                        let names =
                            if names.is_empty() { String::new() } else { format!(", missing: {}", names.join(" ")) };
                        vec![line(Symbol::Bad, format!("{host}  barrier {tag} is broken ({there}/{of}){names}"))]
                    }
                    _ => Vec::new(),
                }
            }
            Happening::Progress { migration, sample } => {
                let label = self.label(attempt, &migration, &host);
                vec![Update::Migration { case, id: migration, label, sample: Box::new(sample), unix_ms: event.unix_ms }]
            }
            Happening::Log { level, text } => {
                let warn = level == "warn";
                if !warn && !self.verbose {
                    return Vec::new();
                }
                let symbol = if warn { Symbol::Warn } else { Symbol::Dot };
                vec![line(symbol, format!("{host}  {}", one_line(&text)))]
            }
            Happening::PartyEnded { outcome } => {
                let over = Update::Step { case, host: host.clone(), step: None };
                if outcome == "passed" {
                    vec![over]
                } else {
                    vec![over, line(Symbol::Bad, format!("{host}  {}", one_line(&outcome)))]
                }
            }
        }
    }

    fn case(&self, attempt: AttemptId) -> Option<&CaseView> {
        self.job.as_ref()?.cases.iter().find(|case| case.id == attempt.case)
    }

    /// Whether this host is the case's first: the one whose word on a barrier is shown.
    fn first_to_tell(&self, attempt: AttemptId, host: &Name) -> bool {
        match self.case(attempt).and_then(|case| case.hosts.first()) {
            Some(first) => first == host,
            None => true,
        }
    }

    /// `vm1  host1 → host2`, as far as it is known. The host that tells of progress is the source.
    fn label(&self, attempt: AttemptId, migration: &str, source: &Name) -> String {
        let vm = migration.rsplit('.').nth(1).unwrap_or("vm");
        let others: Vec<&Name> = self
            .case(attempt)
            .map(|case| case.hosts.iter().filter(|host| *host != source).collect())
            .unwrap_or_default();
        match others[..] {
            [only] => format!("{vm} {source} {} {only}", self.style.arrow()),
            _ => format!("{vm} from {source}"),
        }
    }
}

fn hosts(case: &CaseView) -> String {
    case.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join(",")
}

fn of_verdict(verdict: Verdict) -> Symbol {
    match verdict {
        Verdict::Pass => Symbol::Done,
        Verdict::Warn | Verdict::Skip | Verdict::Cancelled => Symbol::Warn,
        Verdict::Timeout | Verdict::Error | Verdict::Fail => Symbol::Bad,
    }
}

fn one_line(text: &str) -> String {
    safe(text).replace(['\n', '\t'], " ")
}

/// How much of a guest's RAM is on the other side, percent.
pub fn percent(sample: &Sample) -> u64 {
    let total = sample.ram_total_bytes;
    if total == 0 {
        return 0;
    }
    let there = u128::from(total.saturating_sub(sample.ram_remaining_bytes));
    u64::try_from(there * 100 / u128::from(total)).unwrap_or(100)
}

/// A reading in words: `RAM left 12.1/32.0 GiB · 61.0 Gb/s · dirty 3.2 GiB/s · iter 3`.
pub fn reading(sample: &Sample, style: Style) -> String {
    let dot = style.dot();
    let mut text = format!("RAM left {} of {}", bytes(sample.ram_remaining_bytes), bytes(sample.ram_total_bytes));
    if sample.xfer_bytes_s > 0 {
        text.push_str(&format!("{dot} {}", bit_rate(sample.xfer_bytes_s)));
    }
    if sample.dirty_rate_bytes_s > 0 {
        text.push_str(&format!("{dot} dirty {}/s", bytes(sample.dirty_rate_bytes_s)));
    }
    if sample.dirty_sync_count > 1 {
        text.push_str(&format!("{dot} iter {}", sample.dirty_sync_count));
    }
    if sample.cpu_throttle_pct > 0 {
        text.push_str(&format!("{dot} guest slowed {} %", sample.cpu_throttle_pct));
    }
    if sample.stalled {
        text.push_str(&format!("{dot} stalled"));
    }
    text
}

/// Lets through one reading of a migration for each ten percent or ten seconds, whichever is later, and at least one in
/// half a minute: logs stay short, and a migration that makes no headway is still seen.
#[derive(Debug, Default)]
pub struct Throttle {
    last: HashMap<String, (u64, u64)>,
}

impl Throttle {
    /// Whether this reading is to be shown as a line.
    pub fn lets(&mut self, id: &str, percent: u64, unix_ms: u64) -> bool {
        let Some((shown, at)) = self.last.get(id).copied() else {
            self.last.insert(id.to_owned(), (percent, unix_ms));
            return false;
        };
        let ms = unix_ms.saturating_sub(at);
        let lets = (ms >= 10_000 && percent.abs_diff(shown) >= 10) || ms >= 30_000;
        if lets {
            self.last.insert(id.to_owned(), (percent, unix_ms));
        }
        lets
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vt_protocol::{
        error::{ErrorCode, Report},
        ids::{CaseId, JobId},
    };

    use super::*;

    pub(crate) fn case(index: u32, state: CaseStateView) -> CaseView {
        CaseView {
            id: CaseId { job: JobId(7), index },
            name: "multihost_migration".into(),
            scenario: "multihost_migration".into(),
            hosts: vec!["host1".parse().unwrap(), "host2".parse().unwrap()],
            state,
            attempt: Some(attempt(index)),
            elapsed_ms: Some(8100),
            guest_downtime_ms: Some(41),
            qemu_downtime_ms: Some(31),
            migrations: Some(2),
            variant: None,
        }
    }

    pub(crate) fn attempt(index: u32) -> AttemptId {
        AttemptId { case: CaseId { job: JobId(7), index }, number: 1 }
    }

    pub(crate) fn job(state: JobState, cases: Vec<CaseView>) -> JobView {
        JobView {
            id: JobId(7),
            scenario: "multihost_migration".into(),
            state,
            user: "root".into(),
            note: None,
            counts: vec![],
            cases,
            submitted_unix_ms: 1_795_458_869_125,
            matrix: None,
        }
    }

    pub(crate) fn failed() -> CaseStateView {
        let cause = Report::new(ErrorCode::MemoryDamaged, "3 of 262144 pages do not hold what was written")
            .with("first", "page 17");
        CaseStateView::Done { verdict: Verdict::Fail, cause: Some(cause) }
    }

    pub(crate) fn event(seq: u64, host: &str, what: Happening) -> AttemptEvent {
        AttemptEvent { seq, unix_ms: 1000 * seq, host: host.parse().unwrap(), what }
    }

    fn step(seq: u64, host: &str) -> WatchItem {
        let what = Happening::StepEnded { step: "boot vm1".into(), ms: 2900, note: String::new() };
        WatchItem::Event { attempt: attempt(1), event: event(seq, host, what) }
    }

    fn lines(updates: &[Update]) -> Vec<String> {
        let line = |update: &Update| match update {
            Update::Line { text, .. } => Some(text.clone()),
            _ => None,
        };
        updates.iter().filter_map(line).collect()
    }

    fn tracker() -> Tracker {
        let mut tracker = Tracker::new(Style::default(), false);
        tracker.take(WatchItem::Job(job(
            JobState::Running,
            vec![case(1, CaseStateView::Running { attempt: attempt(1) })],
        )));
        tracker
    }

    #[test]
    fn a_watch_that_begins_again_shows_nothing_twice_and_loses_nothing() {
        let mut tracker = tracker();
        let mut shown = 0;
        // The first watch breaks after three events of host1 and one of host2; the second begins from the start.
        let first = [step(1, "host1"), step(2, "host1"), step(1, "host2"), step(3, "host1")];
        let second = [
            step(1, "host1"),
            step(1, "host2"),
            step(2, "host1"),
            step(2, "host2"),
            step(3, "host1"),
            step(4, "host1"),
        ];
        for item in first.into_iter().chain(second) {
            shown += lines(&tracker.take(item)).len();
        }
        assert_eq!(shown, 6, "host1 1 to 4 and host2 1 to 2, each once");
    }

    #[test]
    fn a_barrier_is_told_once_by_the_first_host_and_each_time_it_is_passed() {
        let mut tracker = tracker();
        let mut released = Vec::new();
        for (seq, host) in [(1, "host1"), (1, "host2"), (2, "host1"), (2, "host2")] {
            let what =
                Happening::Barrier { tag: "loaded".into(), what: "released".into(), arrived: (2, 2), missing: vec![] };
            let item = WatchItem::Event { attempt: attempt(1), event: event(seq, host, what) };
            released.extend(lines(&tracker.take(item)));
        }
        assert_eq!(released, ["barrier loaded (2/2)", "barrier loaded (2/2)"]);
        let what = Happening::Barrier {
            tag: "x".into(),
            what: "broken".into(),
            arrived: (1, 2),
            missing: vec!["host2".parse().unwrap()],
        };
        let item = WatchItem::Event { attempt: attempt(1), event: event(3, "host1", what) };
        assert_eq!(lines(&tracker.take(item)), ["host1  barrier x is broken (1/2), missing: host2"]);
    }

    #[test]
    fn states_of_cases_are_told_when_they_change_and_never_go_back() {
        let mut tracker = Tracker::new(Style::default(), false);
        let pending = |why: &str| CaseStateView::Pending { why: Some(why.into()) };
        let running = || CaseStateView::Running { attempt: attempt(1) };
        let mut told = Vec::new();
        for (state, first) in [
            (JobState::Queued, pending("host1 is busy")),
            (JobState::Queued, pending("host1 is busy")),
            (JobState::Running, running()),
            (JobState::Queued, pending("host1 is busy")),
            (JobState::Running, failed()),
            (JobState::Running, running()),
        ] {
            let second = case(2, CaseStateView::Pending { why: None });
            told.extend(lines(&tracker.take(WatchItem::Job(job(state, vec![case(1, first), second])))));
        }
        assert_eq!(
            told,
            [
                "waits: host1 is busy",
                "multihost_migration on host1,host2",
                "FAIL  multihost_migration  host1,host2  8.1 s"
            ]
        );
        let change =
            job(JobState::Running, vec![case(2, CaseStateView::Pending { why: Some("host1 is down".into()) })]);
        assert_eq!(lines(&tracker.take(WatchItem::Changed(change.clone()))), ["waits: host1 is down"]);
        assert_eq!(tracker.job().unwrap().cases.len(), 2, "what did not change is still there");
        tracker.take(WatchItem::Job(job(JobState::Done, vec![case(1, failed())])));
        tracker.take(WatchItem::Job(job(JobState::Running, vec![])));
        assert!(lines(&tracker.take(WatchItem::Changed(change))).is_empty());
        assert_eq!(tracker.job().unwrap().state, JobState::Done, "a lagging follower brings nothing back");
    }

    #[test]
    fn text_of_a_guest_stays_in_its_line() {
        let mut tracker = tracker();
        let what = Happening::Log { level: "warn".into(), text: "a\nb\x1b[2J".into() };
        let updates = tracker.take(WatchItem::Event { attempt: attempt(1), event: event(1, "host1", what) });
        assert_eq!(lines(&updates), ["host1  a b[2J"]);
    }

    #[test]
    fn a_migration_is_told_with_source_and_destination() {
        let sample = Sample {
            ram_total_bytes: 1 << 30,
            ram_remaining_bytes: 1 << 28,
            xfer_bytes_s: 775_000_000,
            ..Sample::default()
        };
        assert_eq!(percent(&sample), 75);
        assert_eq!(reading(&sample, Style::default()), "RAM left 256 MiB of 1.0 GiB · 6.2 Gb/s");
        let stalled = Sample { stalled: true, ..sample.clone() };
        assert!(reading(&stalled, Style::default()).ends_with(" · stalled"));
        assert_eq!(percent(&Sample::default()), 0);
        let what = Happening::Progress { migration: "mig_7.1.1.vm1.2".into(), sample };
        let updates = tracker().take(WatchItem::Event { attempt: attempt(1), event: event(1, "host2", what) });
        let Update::Migration { label, .. } = &updates[0] else { panic!("{updates:?}") };
        assert_eq!(label, "vm1 host2 → host1");
    }

    #[test]
    fn lines_of_progress_are_few_and_a_stall_is_still_seen() {
        let mut throttle = Throttle::default();
        // 100 s at ten readings a second, one percent a second.
        let shown = (0..1000u64).filter(|i| throttle.lets("m", i / 10, i * 100)).count();
        assert_eq!(shown, 9);
        let stalled = (0..1000u64).filter(|i| throttle.lets("s", 60, i * 100)).count();
        assert_eq!(stalled, 3);
        assert!(!throttle.lets("short", 0, 0) && !throttle.lets("short", 90, 1900), "the end of its step tells");
    }
}
