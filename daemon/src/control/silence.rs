//! When the leader calls a host suspect and when it expires a session: a pure decision with the time as an argument.
//!
//! The leader counts on its own clock, from the moment it applied a renewal; no clock is compared with another. A new
//! leader knows nothing of the renewals before: it gives every session a fresh start, and expires none before one full
//! term and a margin have passed since it began to lead. Only who led before it was heard by itself all the time, so that
//! one's silence began when it was heard last.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use vt_protocol::ids::{Epoch, HostId};
use vt_sync::mutation::Mutation;

use crate::settings::SessionTimes;

/// A session as the committed state has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionNow {
    /// Whose.
    pub host: HostId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The start of the daemon that holds it: another one was heard when it opened the session.
    pub incarnation: u64,
    /// It is called suspect already.
    pub suspect: bool,
}

/// What the leader is to propose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The host was silent for a while.
    Suspect(HostId, Epoch),
    /// The host was silent for so long that its guards have stopped its VMs.
    Expire(HostId, Epoch),
}

/// The session that was renewed last, and when.
type Heard = (Epoch, Instant);

/// What a leader has heard since it began to lead.
#[derive(Debug)]
pub struct Silence {
    times: SessionTimes,
    leads_since: Instant,
    /// Who led before, and from when its silence counts.
    before: Option<(HostId, Instant)>,
    heard: BTreeMap<HostId, Heard>,
    /// The daemons that held the sessions when they were last looked at.
    holders: BTreeMap<HostId, (Epoch, u64)>,
}

impl Silence {
    /// A leader begins. `before` is who led before it, and how long ago it was heard.
    pub fn new(times: SessionTimes, now: Instant, before: Option<(HostId, Duration)>) -> Self {
        // One that led and was started again had nobody yet to open its session with: it has a moment to do so.
        let most = times.suspect.saturating_sub(times.renew / 2);
        let before = before.and_then(|(host, ago)| Some((host, now.checked_sub(ago.min(most))?)));
        Self { times, leads_since: now, before, heard: BTreeMap::new(), holders: BTreeMap::new() }
    }

    /// A renewal was applied.
    pub fn heard(&mut self, host: HostId, epoch: Epoch, now: Instant) {
        self.heard.insert(host, (epoch, now));
    }

    /// What is to be proposed now, and when to look again at the latest.
    pub fn decide(
        &mut self,
        sessions: impl IntoIterator<Item = SessionNow>,
        now: Instant,
    ) -> (Vec<Verdict>, Option<Instant>) {
        let mut verdicts = Vec::new();
        let mut next: Option<Instant> = None;
        let mut seen = BTreeMap::new();
        let mut holders = BTreeMap::new();
        // Hosts look for a new leader for a while; only a session whose start this leader saw is counted from there.
        let grace = self.leads_since + self.times.suspect;
        let may_expire = self.leads_since + self.times.expire + self.times.renew;
        let young = now < grace;
        for session in sessions {
            let holder = (session.epoch, session.incarnation);
            let restarted = self.holders.get(&session.host).is_some_and(|before| *before != holder);
            holders.insert(session.host, holder);
            let last = match self.heard.get(&session.host) {
                _ if restarted => now,
                Some((epoch, at)) if *epoch == session.epoch => *at,
                _ if young => match self.before {
                    Some((before, since)) if before == session.host => since,
                    _ => grace,
                },
                _ => now,
            };
            seen.insert(session.host, (session.epoch, last));
            let suspect = last + self.times.suspect;
            let in_time = (last + self.times.expire).max(may_expire);
            let expires = if Mutation::MarginZero.is_on() { suspect } else { in_time };
            if now >= expires {
                verdicts.push(Verdict::Expire(session.host, session.epoch));
                continue;
            }
            if session.suspect {
                next = Some(next.map_or(expires, |next| next.min(expires)));
                continue;
            }
            if now >= suspect {
                verdicts.push(Verdict::Suspect(session.host, session.epoch));
            }
            let at = if now >= suspect { expires } else { suspect };
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        self.heard = seen;
        self.holders = holders;
        (verdicts, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    const HOST: HostId = HostId(7);
    const EPOCH: Epoch = Epoch(3);

    struct Leader {
        silence: Silence,
        start: Instant,
    }

    impl Leader {
        fn new() -> Self {
            let start = Instant::now();
            Self { silence: Silence::new(Settings::default().session, start, None), start }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn heard(&mut self, ms: u64) {
            let now = self.at(ms);
            self.silence.heard(HOST, EPOCH, now);
        }

        fn decide(&mut self, ms: u64, suspect: bool) -> Vec<Verdict> {
            let now = self.at(ms);
            self.silence.decide([SessionNow { host: HOST, epoch: EPOCH, incarnation: 1, suspect }], now).0
        }
    }

    const SUSPECT: Verdict = Verdict::Suspect(HOST, EPOCH);
    const EXPIRE: Verdict = Verdict::Expire(HOST, EPOCH);

    #[test]
    fn silence_makes_a_host_suspect_and_then_ends_its_session() {
        let mut leader = Leader::new();
        leader.decide(0, false);
        leader.heard(20_000);
        // at, already suspect, expected
        for (ms, suspect, expected) in [
            (20_000, false, vec![]),
            (21_999, false, vec![]),
            (22_000, false, vec![SUSPECT]),
            (22_000, true, vec![]),
            (31_999, true, vec![]),
            (32_000, true, vec![EXPIRE]),
            (32_000, false, vec![EXPIRE]),
        ] {
            assert_eq!(leader.decide(ms, suspect), expected, "{ms} {suspect}");
        }
    }

    #[test]
    fn a_new_leader_waits_a_full_term_and_margin_before_it_expires_anything() {
        let mut leader = Leader::new();
        assert_eq!(leader.decide(0, false), []);
        // Hosts have time to find the leader: suspect only after twice the usual silence.
        assert_eq!(leader.decide(3_999, false), []);
        assert_eq!(leader.decide(4_000, false), [SUSPECT]);
        assert_eq!(leader.decide(12_999, true), [], "a term and a margin are not over");
        assert_eq!(leader.decide(14_000, true), [EXPIRE]);

        // A session that was heard once at the very beginning is not expired earlier than any other.
        let mut leader = Leader::new();
        leader.heard(0);
        assert_eq!(leader.decide(12_500, true), []);
        assert_eq!(leader.decide(13_000, true), [EXPIRE]);
    }

    #[test]
    fn who_led_before_was_silent_since_it_was_heard_last() {
        let ms = Duration::from_millis;
        let led_before = |ago: u64| {
            let start = Instant::now();
            Leader { silence: Silence::new(Settings::default().session, start, Some((HOST, ms(ago)))), start }
        };
        // It died: as soon as one that was started again would have spoken.
        let mut leader = led_before(2_600);
        assert_eq!(leader.decide(0, false), []);
        assert_eq!(leader.decide(499, false), []);
        assert_eq!(leader.decide(500, false), [SUSPECT]);
        assert_eq!(leader.decide(12_999, true), [], "a term and a margin are not over");
        assert_eq!(leader.decide(13_000, true), [EXPIRE]);

        // It handed the lead over: it has the usual time.
        let mut leader = led_before(10);
        assert_eq!(leader.decide(0, false), []);
        assert_eq!(leader.decide(1_989, false), []);
        assert_eq!(leader.decide(1_990, false), [SUSPECT]);

        // It came back in time.
        let mut leader = led_before(2_600);
        assert_eq!(leader.decide(0, false), []);
        leader.heard(400);
        assert_eq!(leader.decide(2_399, false), []);
    }

    #[test]
    fn another_epoch_is_another_session() {
        let mut leader = Leader::new();
        leader.heard(20_000);
        let now = leader.at(32_000);
        let later = SessionNow { host: HOST, epoch: Epoch(4), incarnation: 1, suspect: false };
        assert_eq!(leader.silence.decide([later], now).0, []);
        assert_eq!(leader.silence.decide([later], now + Duration::from_secs(2)).0, [Verdict::Suspect(HOST, Epoch(4))]);
    }

    #[test]
    fn a_daemon_that_came_back_was_heard() {
        let mut leader = Leader::new();
        leader.heard(20_000);
        assert_eq!(leader.decide(21_500, false), []);
        let now = leader.at(21_900);
        let back = SessionNow { host: HOST, epoch: EPOCH, incarnation: 2, suspect: false };
        assert_eq!(leader.silence.decide([back], now).0, []);
        assert_eq!(leader.silence.decide([back], leader.start + Duration::from_millis(23_899)).0, []);
        assert_eq!(leader.silence.decide([back], leader.start + Duration::from_millis(23_900)).0, [SUSPECT]);
    }

    #[test]
    fn the_next_look_is_when_something_can_change() {
        let mut leader = Leader::new();
        leader.heard(20_000);
        let live = SessionNow { host: HOST, epoch: EPOCH, incarnation: 1, suspect: false };
        let now = leader.at(20_000);
        assert_eq!(leader.silence.decide([live], now).1, Some(leader.at(22_000)));
        let now = leader.at(22_000);
        assert_eq!(leader.silence.decide([SessionNow { suspect: true, ..live }], now).1, Some(leader.at(32_000)));
        assert_eq!(leader.silence.decide([], now).1, None);
    }
}
