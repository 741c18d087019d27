//! What the watcher saw of a guest, and what it means.
//!
//! The guest sends its boot id and a sequence number every 10 ms. A copy of a guest is made by a migration and goes on with the
//! number it was made with. So two copies that both ran, at the same time or one after the other, have sent the same number
//! twice: of one boot id the number that arrives has to be greater than every one before, whichever host it comes from.
//! That is what *at every instant at most one source* means here. It is stronger than to look for two hosts in the same
//! window of time, because it also catches a copy that wakes after the other has stopped; and it is all that can be seen from
//! outside: a copy that stops before it sends anything has done nothing to anybody.
//!
//! At a hand-over the network card of the source may have taken over a datagram that the destination sends again, and the two
//! hosts' links have their own queues. [`IN_FLIGHT`] numbers may therefore be repeated, once in a migration.

/// How many numbers may be repeated at a hand-over.
pub const IN_FLIGHT: u64 = 2;
/// So much of one source, and nothing of another, is *exactly one*, µs.
const STEADY_US: u64 = 300_000;
/// Datagrams in that time: a third of what is sent, for an emulated guest on busy cores is late at times.
const STEADY_COUNT: usize = 10;
/// Clocks that run at slightly different speeds grow apart by less between two datagrams, µs.
const JUMP_US: u64 = 5_000;
/// Jumps so many datagrams apart are one stop.
const APART: usize = 5;
/// A silence that breaks a run of datagrams, µs.
const BREAK_US: u64 = 1_000_000;

/// One datagram that came from one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// When the kernel took it, µs since 1970.
    pub at_us: u64,
    /// Number of the host it came from.
    pub host: u32,
    /// The guest's boot id.
    pub boot: u128,
    /// Its sequence number.
    pub sequence: u64,
    /// The guest's clock when it was sent, µs. It stands while the guest is paused or on its way.
    pub guest_us: u64,
}

/// A number that a second copy of the guest has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Double {
    /// When it came.
    pub at_us: u64,
    /// From which host.
    pub host: u32,
    /// The number.
    pub sequence: u64,
    /// The greatest number before, and the host it came from.
    pub before: (u64, u32),
}

/// Numbers that a second copy has sent, in the order they came.
pub fn doubles(seen: &[Sighting]) -> Vec<Double> {
    let mut greatest = std::collections::BTreeMap::<u128, (u64, u32)>::new();
    let mut repeated = std::collections::BTreeMap::<u128, (u32, u64)>::new();
    let mut found = Vec::new();
    for now in seen {
        let before = greatest.entry(now.boot).or_insert((0, now.host));
        if now.sequence > before.0 {
            *before = (now.sequence, now.host);
            continue;
        }
        let (host, count) = repeated.entry(now.boot).or_insert((now.host, 0));
        // Another hand-over.
        if *host != now.host {
            (*host, *count) = (now.host, 0);
        }
        *count += 1;
        let late = now.host != before.1 && before.0 - now.sequence < IN_FLIGHT && *count <= IN_FLIGHT;
        if !late {
            found.push(Double { at_us: now.at_us, host: now.host, sequence: now.sequence, before: *before });
        }
    }
    found
}

/// Since when exactly one host has been the source, and which; `None` where it is not so at `now_us`.
pub fn steady(seen: &[Sighting], now_us: u64) -> Option<(u32, u64)> {
    let past = || seen.iter().rev().skip_while(|sighting| sighting.at_us > now_us);
    let recent = past().take_while(|sighting| sighting.at_us + STEADY_US > now_us);
    let (mut count, mut hosts) = (0, std::collections::BTreeSet::new());
    for sighting in recent {
        count += 1;
        hosts.insert(sighting.host);
    }
    let host = hosts.first().copied().filter(|_| hosts.len() == 1 && count >= STEADY_COUNT)?;
    let mut since = now_us;
    for sighting in past() {
        if sighting.host != host || sighting.at_us + BREAK_US < since {
            break;
        }
        since = sighting.at_us;
    }
    Some((host, since))
}

/// The longest silence between two datagrams at or after `from_us`, µs.
pub fn longest_gap(seen: &[Sighting], from_us: u64) -> u64 {
    let pairs = seen.iter().zip(seen.iter().skip(1)).filter(|(_, next)| next.at_us >= from_us);
    pairs.map(|(one, next)| next.at_us.saturating_sub(one.at_us)).max().unwrap_or(0)
}

/// The guest stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// When the last datagram before it came.
    pub at_us: u64,
    /// The host that it came from, and the one from which the guest was heard on time again.
    pub hosts: (u32, u32),
    /// How long it stood, µs.
    pub stood_us: u64,
}

/// Where the clock of the one guest that was seen stood still for at least `least_us`, in the order it happened.
///
/// A silence alone does not tell: on busy cores a guest or its datagrams are late, and on time again later. Time that its clock
/// has lost it never makes up. So what counts is by how much the world is ahead of the guest at least from now on, and where
/// that grows. What was in flight at the stop makes it grow twice: a few datagrams apart is one stop.
pub fn stops(seen: &[Sighting], least_us: u64) -> Vec<Stop> {
    let ahead = |sighting: &Sighting| i128::from(sighting.at_us) - i128::from(sighting.guest_us);
    let Some(last) = seen.last() else { return Vec::new() };
    let (mut from_now_on, mut on_time) = (ahead(last), last.host);
    // The last one first, each with the place where it begins.
    let mut found: Vec<(usize, Stop)> = Vec::new();
    for (place, before) in seen.iter().enumerate().rev().skip(1) {
        let stood_us = u64::try_from(from_now_on - ahead(before)).unwrap_or(0);
        if stood_us >= JUMP_US {
            match found.last_mut() {
                Some((begins, stop)) if *begins <= place + APART => {
                    *begins = place;
                    *stop = Stop {
                        at_us: before.at_us,
                        hosts: (before.host, stop.hosts.1),
                        stood_us: stop.stood_us + stood_us,
                    };
                }
                _ => found.push((place, Stop { at_us: before.at_us, hosts: (before.host, on_time), stood_us })),
            }
        }
        if ahead(before) <= from_now_on {
            (from_now_on, on_time) = (ahead(before), before.host);
        }
    }
    let stops = found.into_iter().rev().map(|(_, stop)| stop);
    stops.filter(|stop| stop.stood_us >= least_us).collect()
}

/// How many guests there were: one that rebooted counts twice.
pub fn boots(seen: &[Sighting]) -> usize {
    seen.iter().map(|sighting| sighting.boot).collect::<std::collections::BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Datagrams of one copy: from which host, from when in ms, which numbers.
    fn copy(host: u32, from_ms: u64, numbers: std::ops::Range<u64>) -> Vec<Sighting> {
        let first = numbers.start;
        let at = |sequence: u64| (from_ms + (sequence - first) * 10) * 1000;
        let guest = |sequence: u64| sequence * 10_000;
        numbers
            .map(|sequence| Sighting { at_us: at(sequence), host, boot: 7, sequence, guest_us: guest(sequence) })
            .collect()
    }

    fn seen(copies: &[Vec<Sighting>]) -> Vec<Sighting> {
        let mut all = copies.concat();
        all.sort_by_key(|sighting| sighting.at_us);
        all
    }

    #[test]
    fn a_guest_that_moves_there_and_back_is_one() {
        let seen = seen(&[copy(1, 0, 1..100), copy(2, 1500, 100..200), copy(1, 3000, 200..300)]);
        assert_eq!(doubles(&seen), []);
    }

    #[test]
    fn a_datagram_in_flight_at_the_hand_over_is_no_second_copy_and_three_are() {
        assert_eq!(doubles(&seen(&[copy(1, 0, 1..100), copy(2, 1500, 98..200)])).len(), 0);
        assert!(!doubles(&seen(&[copy(1, 0, 1..100), copy(2, 1500, 96..200)])).is_empty());
        let sent_again = seen(&[copy(1, 0, 1..100), copy(1, 1500, 99..200)]);
        assert_eq!(doubles(&sent_again).len(), 1, "the same host has no hand-over with itself");
    }

    #[test]
    fn two_copies_are_seen_at_the_same_time_and_one_after_the_other() {
        let both = seen(&[copy(1, 0, 1..200), copy(2, 1005, 100..200)]);
        let first = doubles(&both)[0];
        assert!(first.at_us < 1_040_000, "seen within 40 ms: {first:?}");
        let after = seen(&[copy(1, 0, 1..100), copy(2, 1500, 100..200), copy(1, 9000, 100..200)]);
        let found = doubles(&after);
        assert_eq!((found[0].host, found[0].sequence, found[0].before), (1, 100, (199, 2)));
        let stood = seen(&[copy(1, 0, 1..100), copy(2, 1500, 100..110), copy(1, 9000, 100..200)]);
        assert!(!doubles(&stood).is_empty(), "a second copy that ran for a tenth of a second");
    }

    #[test]
    fn another_boot_counts_anew_and_is_another_guest() {
        let mut second = copy(2, 2000, 1..50);
        second.iter_mut().for_each(|sighting| sighting.boot = 8);
        let seen = seen(&[copy(1, 0, 1..100), second]);
        assert_eq!((doubles(&seen).len(), boots(&seen)), (0, 2));
    }

    #[test]
    fn a_stop_is_time_that_the_guest_never_makes_up() {
        let moved = seen(&[copy(1, 0, 1..100), copy(2, 1290, 100..200)]);
        let one = Stop { at_us: 980_000, hosts: (1, 2), stood_us: 300_000 };
        assert_eq!(stops(&moved, 100_000), [one]);
        assert_eq!(stops(&moved, 300_001), []);
        // Paused at the destination a while later, for as short as ten datagrams take.
        let again = seen(&[copy(1, 0, 1..100), copy(2, 1290, 100..150), copy(2, 1890, 150..200)]);
        assert_eq!(stops(&again, 100_000), [one, Stop { at_us: 1_780_000, hosts: (2, 2), stood_us: 100_000 }]);
        // The last one before it was in flight, and came when the guest stood still already.
        let mut flight = moved.clone();
        flight[98].at_us += 200_000;
        assert_eq!(stops(&flight, 50_000), [Stop { at_us: 970_000, ..one }]);
        // Half a second's datagrams that come all at once, late; and a guest that got no core meanwhile, whose clock went on.
        let mut late = copy(1, 0, 1..200);
        late[100..150].iter_mut().for_each(|sighting| sighting.at_us = 1_500_000);
        assert_eq!(stops(&late, 20_000), []);
        late.drain(100..150);
        assert_eq!(stops(&late, 20_000), []);
        assert_eq!((stops(&[], 1), stops(&late[..1], 1)), (vec![], vec![]));
    }

    #[test]
    fn exactly_one_is_a_run_of_one_host_that_lasts() {
        let seen = seen(&[copy(1, 0, 1..100), copy(2, 5000, 100..200)]);
        assert_eq!(steady(&seen, 980_000), Some((1, 0)));
        assert_eq!(steady(&seen, 3_000_000), None, "silence");
        assert_eq!(steady(&seen, 5_050_000), None, "too little yet");
        assert_eq!(steady(&seen, 5_900_000), Some((2, 5_000_000)), "since the gap");
        assert_eq!(longest_gap(&seen, 0), 4_020_000);
        let mut two = copy(1, 0, 1..100);
        two.extend(copy(2, 980, 100..101));
        assert_eq!(steady(&two, 980_000), None, "two sources");
    }
}
