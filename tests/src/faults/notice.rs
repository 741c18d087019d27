//! How soon the others are told that a party is gone: from its death until a party that waits for it at a barrier has
//! been told, by the words of that party's host.

use std::{fmt, time::Duration};

use super::{
    cell::{Fault, Part},
    ground::{Cast, Ground, HOSTS},
    job::Job,
    watch::now_us,
};

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dies {
    /// The party itself: its daemon sees it at once.
    Party,
    /// The daemon of its host.
    Daemon,
    /// The daemon of its host, which led the cluster.
    Leader,
}

impl fmt::Display for Dies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Party => "party",
            Self::Daemon => "daemon",
            Self::Leader => "leader",
        })
    }
}

/// Until a party waits at a barrier, and until it is told.
const SOON: Duration = Duration::from_secs(60);

impl Dies {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Party, Self::Daemon, Self::Leader];

    /// What is measured.
    pub fn name(self) -> &'static str {
        match self {
            Self::Party => "a party ended by itself",
            Self::Daemon => "kill -9 of the daemon of a party",
            Self::Leader => "kill -9 of the daemon of a party, which led",
        }
    }

    /// The most it may take, ms.
    pub fn floor_ms(self) -> u64 {
        match self {
            Self::Party => 100,
            Self::Daemon => 2500,
            Self::Leader => 4000,
        }
    }
}

/// Lets it die once, and gives how long it took until the other party was told, ms. The lab is whole again afterwards.
///
/// # Errors
/// The other was never told, or the lab does not heal.
pub fn measure(ground: &mut Ground, dies: Dies) -> anyhow::Result<u64> {
    let (fault, leads) = match dies {
        Dies::Party => (Fault::KillParty(Part::Source), Part::Leader),
        Dies::Daemon => (Fault::KillDaemon(Part::Source), Part::Leader),
        Dies::Leader => (Fault::KillDaemon(Part::Source), Part::Source),
    };
    let cast = Cast::new(&ground.leader()?, leads);
    let job = Job::submit(ground, &cast, &[])?;
    // The destination waits while the source boots the guest.
    let barrier = |ground: &Ground, what: &str| {
        let events = ground.events(&cast.destination, &job.attempt);
        let at = events.iter().find(|event| event["what"]["barrier"]["what"] == what)?;
        at["unix_ms"].as_u64()
    };
    ground.wait("a party at a barrier", SOON, || barrier(ground, "arrived").ok_or_else(|| "none".to_owned()))?;
    ground.wait("the party of the source", SOON, || {
        if ground.has(fault, &cast) { Ok(()) } else { Err("it does not run".to_owned()) }
    })?;
    let died_ms = now_us() / 1000;
    ground.make(fault, &cast)?;
    let told =
        ground.wait("the other to be told", SOON, || barrier(ground, "broken").ok_or_else(|| "not yet".to_owned()));
    ground.heal(fault, &cast)?;
    ground.lab().wait_for_live(HOSTS as usize);
    job.ends(ground, SOON)?;
    Ok(told?.saturating_sub(died_ms))
}

/// The value below which `percent` of the values lie: always a measured one.
pub fn percentile(values: &[u64], percent: usize) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (percent * sorted.len()).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_measured_value() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[7], 99), Some(7));
        let twenty: Vec<u64> = (1..=20).rev().collect();
        assert_eq!((percentile(&twenty, 50), percentile(&twenty, 99)), (Some(10), Some(20)));
    }
}
