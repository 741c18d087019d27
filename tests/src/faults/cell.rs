//! A cell of the table: which fault, in which phase, and what has to come of it.

use std::{fmt, time::Duration};

/// A host by the part it plays in the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Runs the guest at first.
    Source,
    /// Is to run it afterwards.
    Destination,
    /// Takes no part in the migration, and leads the cluster.
    Leader,
}

/// What is done to the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `kill -9` of the daemon; it is started again to heal.
    KillDaemon(Part),
    /// `kill -9` of the party.
    KillParty(Part),
    /// `kill -9` of the QEMU.
    KillQemu(Part),
    /// `kill -9` of every guard of the VM, on both sides.
    KillGuards,
    /// SIGSTOP of the daemon; SIGCONT heals.
    StopDaemon(Part),
    /// The host's port on the switch forwards nothing.
    CutHost(Part),
    /// Between the two sides the ports of migrations are dropped, everything else goes through.
    CutMigrations,
    /// Not a byte is left on the file system of the daemon's data.
    FillDisk(Part),
}

/// Where the migration is when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The source waits at a barrier that the destination has not reached.
    Barrier,
    /// The destination listens, and the source has not begun to send.
    Prepared,
    /// Guest memory is on its way.
    Transferring,
    /// QEMU has completed at the source, and neither side has voted.
    SourceStopped,
    /// The vote of one side is in the log; see [`Cell::first_vote`].
    VotedByOne,
    /// Both votes are in the log, and neither side has acted on them.
    VotedByBoth,
    /// The source knows that the VM has moved; the destination has not let it run.
    Moved,
    /// The guest runs at the destination, which has told nobody.
    Resumed,
    /// The destination's party checks the guest.
    Verifying,
    /// The guest runs at the destination, and pages of it are at the source still.
    PostcopyActive,
    /// The same, and the connection they came over is broken.
    PostcopyPaused,
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Length {
    /// Longer than it takes to be suspected, shorter than a guard waits.
    Short,
    /// Longer than it takes until a session ends.
    Long,
}

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Exactly one copy runs in the end.
    Lives,
    /// It was the victim, or its owner's session ended and the guard stopped it: none runs.
    Ends,
    /// It lives or ends, by who is sooner. Completed at a source that is silent: it votes when it is heard again, unless its
    /// session has ended before.
    Either,
}

/// Every phase, in the order they come.
pub const PHASES: [Phase; 11] = [
    Phase::Barrier,
    Phase::Prepared,
    Phase::Transferring,
    Phase::SourceStopped,
    Phase::VotedByOne,
    Phase::VotedByBoth,
    Phase::Moved,
    Phase::Resumed,
    Phase::Verifying,
    Phase::PostcopyActive,
    Phase::PostcopyPaused,
];

/// Every fault.
pub const FAULTS: [Fault; 16] = [
    Fault::KillDaemon(Part::Source),
    Fault::KillDaemon(Part::Destination),
    Fault::KillDaemon(Part::Leader),
    Fault::KillParty(Part::Source),
    Fault::KillParty(Part::Destination),
    Fault::KillQemu(Part::Source),
    Fault::KillQemu(Part::Destination),
    Fault::KillGuards,
    Fault::StopDaemon(Part::Source),
    Fault::StopDaemon(Part::Destination),
    Fault::CutHost(Part::Source),
    Fault::CutHost(Part::Destination),
    Fault::CutHost(Part::Leader),
    Fault::CutMigrations,
    Fault::FillDisk(Part::Source),
    Fault::FillDisk(Part::Destination),
];

impl Phase {
    /// Whether pages are missing where the guest runs.
    pub fn is_postcopy(self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused)
    }
}

/// One cell of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// What is done.
    pub fault: Fault,
    /// When.
    pub phase: Phase,
}

/// A number that differs for every cell and seed, and is the same on every run.
fn mix(seed: u64, words: &str) -> u64 {
    let digest = blake3::hash(format!("{seed} {words}").as_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

impl Cell {
    /// All cells of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        let cells = FAULTS.into_iter().flat_map(|fault| PHASES.into_iter().map(move |phase| Self { fault, phase }));
        cells.filter(|cell| cell.can_be())
    }

    fn can_be(&self) -> bool {
        match (self.fault, self.phase) {
            // There is none yet, or none any more.
            (Fault::KillQemu(Part::Destination), Phase::Barrier)
            | (Fault::KillQemu(Part::Source), Phase::Verifying) => false,
            // What missing pages depend on, and who leads. What befalls a party or a disk is the same as before it.
            (fault, phase) if phase.is_postcopy() => match fault {
                Fault::KillDaemon(_) | Fault::KillQemu(_) | Fault::KillGuards | Fault::CutMigrations => true,
                Fault::CutHost(part) => part != Part::Leader,
                Fault::KillParty(_) | Fault::StopDaemon(_) | Fault::FillDisk(_) => false,
            },
            _ => true,
        }
    }

    /// The cell of this name, `kill-source-vtd/voted-by-one`.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|cell| cell.to_string() == name)
    }

    /// How long the fault lasts under this seed. One that cannot be undone has no length.
    pub fn length(&self, seed: u64) -> Length {
        match self.fault {
            // Longer, and its guard ends the guest whatever the next daemon could mend, as in the cell of its partition.
            Fault::KillDaemon(Part::Destination) if self.phase == Phase::PostcopyPaused => Length::Short,
            Fault::KillDaemon(_) | Fault::StopDaemon(_) | Fault::CutHost(_) | Fault::CutMigrations => {
                if mix(seed, &format!("length {self}")).is_multiple_of(3) { Length::Long } else { Length::Short }
            }
            _ => Length::Short,
        }
    }

    /// That length in time.
    pub fn lasts(&self, seed: u64) -> Duration {
        match (self.length(seed), self.fault) {
            // TCP sends again within as long as it was cut off, which a guest that misses pages waits for.
            (Length::Long, Fault::CutMigrations) if self.phase.is_postcopy() => Duration::from_secs(10),
            (Length::Long, _) => Duration::from_secs(14),
            // A daemon takes its time to start.
            (Length::Short, Fault::KillDaemon(_)) => Duration::from_millis(1000),
            (Length::Short, Fault::KillParty(_) | Fault::KillQemu(_) | Fault::KillGuards) => Duration::ZERO,
            (Length::Short, _) => Duration::from_millis(2800),
        }
    }

    /// Which side's vote comes first in [`Phase::VotedByOne`].
    pub fn first_vote(&self, seed: u64) -> Part {
        if mix(seed, &format!("vote {self}")).is_multiple_of(2) { Part::Source } else { Part::Destination }
    }

    /// Which part the leader plays beside; [`Part::Leader`]: none.
    pub fn leads(&self, seed: u64) -> Part {
        match self.fault {
            Fault::KillDaemon(Part::Leader) | Fault::CutHost(Part::Leader) => Part::Leader,
            _ => [Part::Leader, Part::Source, Part::Destination][(mix(seed, &format!("leads {self}")) % 3) as usize],
        }
    }

    /// How long after the transfer, or the post-copy, began the fault comes.
    pub fn into_transfer(&self, seed: u64) -> Duration {
        Duration::from_millis(100 + mix(seed, &format!("into {self}")) % 900)
    }

    /// Whether the host of that part is cut off from the others by the fault, and so cannot renew its session.
    fn silences(&self, part: Part) -> bool {
        match self.fault {
            Fault::KillDaemon(at) | Fault::StopDaemon(at) | Fault::CutHost(at) => at == part,
            _ => false,
        }
    }

    /// The part whose session certainly ends under this seed: its host is cut off for long enough, and who counts is not.
    pub fn ends_session(&self, seed: u64) -> Option<Part> {
        let Fault::CutHost(part) = self.fault else { return None };
        (self.length(seed) == Length::Long && part != Part::Leader && self.leads(seed) != part).then_some(part)
    }

    /// The part that can write nothing down while the fault lasts.
    pub fn mute(&self) -> Option<Part> {
        match self.fault {
            Fault::FillDisk(part) => Some(part),
            _ => None,
        }
    }

    /// The side of a post-copy that the fault ends, and the guest with it.
    pub fn loses(&self) -> Option<Part> {
        match self.fault {
            Fault::KillQemu(part) if self.phase.is_postcopy() => Some(part),
            _ => None,
        }
    }

    /// What has to become of the guest.
    pub fn fate(&self, seed: u64) -> Fate {
        let long = self.length(seed) == Length::Long;
        let one = self.phase == Phase::VotedByOne;
        let voted = |part: Part| self.phase > Phase::VotedByOne || one && self.first_vote(seed) == part;
        let (source, destination) = (Part::Source, Part::Destination);
        let ends = match self.fault {
            // Either side has pages that the other has not, and a silent host's guard ends its side.
            Fault::KillQemu(_) if self.phase.is_postcopy() => true,
            _ if self.phase.is_postcopy() => long && (self.silences(source) || self.silences(destination)),
            // What it had was not sent, or not all of it.
            Fault::KillQemu(Part::Source) => self.phase < Phase::SourceStopped,
            // Loaded and voted for: the source has nothing to go back to.
            Fault::KillQemu(_) => voted(destination),
            // The owner's session ends and its guard stops the guest, unless the other side takes it over: a destination
            // can where the source has voted.
            _ if long && self.silences(source) && !voted(source) && self.phase >= Phase::SourceStopped => {
                return Fate::Either;
            }
            _ if long && self.silences(source) => !voted(source),
            // What a destination has voted for may be its own before it is heard again; what it has not, the source keeps.
            _ if long && self.silences(destination) => voted(destination),
            _ => false,
        };
        if ends { Fate::Ends } else { Fate::Lives }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Leader => "leader",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillDaemon(part) => write!(f, "kill-{part}-vtd"),
            Self::KillParty(part) => write!(f, "kill-{part}-party"),
            Self::KillQemu(part) => write!(f, "kill-{part}-qemu"),
            Self::KillGuards => f.write_str("kill-guards"),
            Self::StopDaemon(part) => write!(f, "stop-{part}-vtd"),
            Self::CutHost(part) => write!(f, "partition-{part}"),
            Self::CutMigrations => f.write_str("partition-migrations"),
            Self::FillDisk(part) => write!(f, "full-{part}-disk"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "barrier",
            Self::Prepared => "prepared",
            Self::Transferring => "transferring",
            Self::SourceStopped => "source-stopped",
            Self::VotedByOne => "voted-by-one",
            Self::VotedByBoth => "voted-by-both",
            Self::Moved => "moved",
            Self::Resumed => "resumed",
            Self::Verifying => "verifying",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
        })
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Long { "long" } else { "short" })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.fault, self.phase)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_lead_back_and_there_are_at_least_a_hundred_and_fifty() {
        let names: BTreeSet<String> = Cell::all().map(|cell| cell.to_string()).collect();
        assert_eq!(names.len(), Cell::all().count());
        assert!(names.len() >= 150, "{}", names.len());
        for cell in Cell::all() {
            assert_eq!(Cell::named(&cell.to_string()), Some(cell));
        }
        assert_eq!(Cell::named("kill-source-qemu/verifying"), None);
    }

    #[test]
    fn both_lengths_both_first_votes_and_every_place_of_the_leader_are_in_the_table() {
        let seed = 1;
        let of = |f: fn(&Cell, u64) -> String| Cell::all().map(|cell| f(&cell, seed)).collect::<BTreeSet<_>>().len();
        assert_eq!(of(|cell, seed| cell.length(seed).to_string()), 2);
        assert_eq!(of(|cell, seed| cell.first_vote(seed).to_string()), 2);
        assert_eq!(of(|cell, seed| cell.leads(seed).to_string()), 3);
    }

    #[test]
    fn the_guest_ends_only_as_a_victim_or_by_a_guard() {
        let fate = |name: &str, length: Length| {
            let cell = Cell::named(name).unwrap();
            let seed = (0..).find(|seed| cell.length(*seed) == length).unwrap();
            cell.fate(seed)
        };
        assert_eq!(fate("kill-source-qemu/transferring", Length::Short), Fate::Ends);
        assert_eq!(fate("kill-source-qemu/source-stopped", Length::Short), Fate::Lives);
        assert_eq!(fate("kill-destination-qemu/source-stopped", Length::Short), Fate::Lives);
        assert_eq!(fate("kill-destination-qemu/moved", Length::Short), Fate::Ends);
        assert_eq!(fate("partition-source/transferring", Length::Short), Fate::Lives);
        assert_eq!(fate("partition-source/transferring", Length::Long), Fate::Ends);
        assert_eq!(fate("partition-source/moved", Length::Long), Fate::Lives);
        assert_eq!(fate("partition-destination/source-stopped", Length::Long), Fate::Lives);
        assert_eq!(fate("partition-destination/resumed", Length::Long), Fate::Ends);
        assert_eq!(fate("partition-leader/resumed", Length::Long), Fate::Lives);
        assert_eq!(fate("partition-source/source-stopped", Length::Long), Fate::Either);
        assert_eq!(fate("kill-source-qemu/postcopy-active", Length::Short), Fate::Ends);
        assert_eq!(fate("kill-destination-qemu/postcopy-paused", Length::Short), Fate::Ends);
        assert_eq!(fate("kill-source-vtd/postcopy-active", Length::Short), Fate::Lives);
        assert_eq!(fate("kill-source-vtd/postcopy-active", Length::Long), Fate::Ends);
        assert_eq!(fate("kill-source-vtd/postcopy-paused", Length::Short), Fate::Lives);
        assert_eq!(fate("kill-destination-vtd/postcopy-active", Length::Short), Fate::Lives);
        assert_eq!(fate("kill-destination-vtd/postcopy-paused", Length::Short), Fate::Lives);
        assert_eq!(fate("partition-migrations/postcopy-paused", Length::Long), Fate::Lives);
    }
}
