//! How long a guest is silent, as heard from outside, and whether it is one: the beacon it sends to its whole network every
//! 10 ms.
//!
//! A guest takes its count along when it moves, so a number comes once. Two copies of it, at the same time or one after the
//! other, go on from the same number.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, sync::watch, task::JoinHandle, time::timeout};
use vt_protocol::{
    beacon::{BEACON_BYTES, Beacon},
    ids::Digest,
};

/// Ports of beacons, of which every attempt has its own, so that guests of one network are not taken for each other.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Numbers that are remembered: what a guest sends in twenty seconds.
const NUMBERS_MAX: usize = 2000;
/// Numbers that may come again at a hand-over: the source's network card may have taken over a datagram that the
/// destination sends once more.
const IN_FLIGHT: u64 = 2;
/// How long a guest that moved may take to be heard again before its silence is told as it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The port of the beacon of the guest that `name` names, an attempt and its VM.
pub(super) fn port(name: &str) -> u16 {
    let digest = Digest::of(name.as_bytes());
    PORTS.start + u16::from_be_bytes([digest.0[0], digest.0[1]]) % (PORTS.end - PORTS.start)
}

/// Listens to the beacon of one guest until it is dropped.
#[derive(Debug)]
pub(super) struct Hearing {
    port: u16,
    heard: watch::Sender<Heard>,
    task: JoinHandle<()>,
}

/// What was heard of a guest since it was last asked for.
#[derive(Debug, Default, Clone)]
pub(super) struct Heard {
    last: Option<Instant>,
    boot: u128,
    /// The greatest numbers of that boot. One that is late on its way is not here yet.
    numbers: BTreeSet<u64>,
    /// The longest silence.
    pub(super) longest: Duration,
    /// Numbers that came again.
    again: u64,
}

impl Hearing {
    /// Listens on a UDP port; `None` where that cannot be had.
    pub(super) async fn on(port: u16) -> Option<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.ok()?;
        let heard = watch::Sender::new(Heard::default());
        let tell = heard.clone();
        let task = tokio::spawn(async move {
            let mut bytes = [0; BEACON_BYTES + 1];
            while let Ok((length, _)) = socket.recv_from(&mut bytes).await {
                if let Some(beacon) = Beacon::from_bytes(&bytes[..length]) {
                    tell.send_modify(|heard| heard.hear(Instant::now(), beacon));
                }
            }
        });
        Some(Self { port, heard, task })
    }

    /// Where it listens.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Forgets what was heard so far.
    pub(super) fn begin(&self) {
        self.heard.send_modify(|heard| (heard.longest, heard.again) = (Duration::ZERO, 0));
    }

    /// What was heard since then, once the guest is heard again; `None` where nothing was ever heard.
    pub(super) async fn heard(&self) -> Option<Heard> {
        let (mut heard, asked) = (self.heard.subscribe(), Instant::now());
        heard.borrow().last?;
        let again = timeout(PATIENCE, heard.wait_for(|heard| heard.last.is_some_and(|last| last >= asked))).await;
        drop(again);
        let heard = heard.borrow().clone();
        heard.last.map(|last| Heard { longest: heard.longest.max(last.elapsed()), ..heard })
    }
}

impl Heard {
    /// How many numbers came again, where that is more than a hand-over explains: a second copy ran.
    pub(super) fn doubled(&self) -> Option<u64> {
        Some(self.again).filter(|again| *again > IN_FLIGHT)
    }

    fn hear(&mut self, at: Instant, beacon: Beacon) {
        if self.boot != beacon.boot {
            self.boot = beacon.boot;
            self.numbers.clear();
        }
        self.again += u64::from(!self.numbers.insert(beacon.sequence));
        if self.numbers.len() > NUMBERS_MAX {
            self.numbers.pop_first();
        }
        if let Some(last) = self.last.replace(at) {
            self.longest = self.longest.max(at.saturating_duration_since(last));
        }
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silence_is_kept_and_there_is_none_before_the_first_word() {
        let begin = Instant::now();
        let mut heard = Heard::default();
        for (at_ms, longest_ms) in [(500, 0), (510, 10), (700, 190), (710, 190), (900, 190)] {
            heard.hear(begin + Duration::from_millis(at_ms), Beacon { boot: 1, sequence: at_ms, monotonic_ns: 0 });
            assert_eq!(heard.longest, Duration::from_millis(longest_ms), "at {at_ms} ms");
        }
    }

    #[test]
    fn a_number_that_comes_again_is_a_second_copys_and_one_of_another_boot_is_not() {
        let hear = |numbers: &[(u128, u64)]| {
            let mut heard = Heard::default();
            for (boot, sequence) in numbers {
                heard.hear(Instant::now(), Beacon { boot: *boot, sequence: *sequence, monotonic_ns: 0 });
            }
            heard.doubled()
        };
        assert_eq!(hear(&[(1, 1), (1, 2), (1, 6), (1, 5)]), None, "some are lost on the way, or late");
        assert_eq!(hear(&[(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]), None, "it was rebooted");
        assert_eq!(hear(&[(1, 7), (1, 8), (1, 7), (1, 8), (1, 9)]), None, "sent once more at a hand-over");
        assert_eq!(hear(&[(1, 7), (1, 7), (1, 8), (1, 8), (1, 9), (1, 9)]), Some(3), "both run at the same time");
        assert_eq!(hear(&[(1, 7), (1, 8), (1, 9), (1, 7), (1, 8), (1, 9)]), Some(3), "one after the other");
    }

    #[tokio::test]
    async fn a_silent_port_says_nothing_and_other_datagrams_are_no_word_of_a_guest() {
        let hearing = Hearing::on(port("a test of hearing")).await.unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = (Ipv4Addr::LOCALHOST, port("a test of hearing"));
        socket.send_to(b"something else", to).await.unwrap();
        assert!(hearing.heard().await.is_none());
        let beacon = Beacon { boot: 1, sequence: 1, monotonic_ns: 1 };
        let speaking = tokio::spawn(async move {
            loop {
                socket.send_to(&beacon.to_bytes(), to).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let until = Instant::now() + Duration::from_secs(20);
        while hearing.heard().await.is_none() {
            assert!(Instant::now() < until, "it is not heard");
            tokio::task::yield_now().await;
        }
        speaking.abort();
    }
}
