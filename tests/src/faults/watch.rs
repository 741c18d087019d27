//! The watcher outside: it stands on the switch of a lab, where every host's link ends, and notes each datagram of a guest with
//! the link it came in by. A host that is cut off is seen as well: its link is dead only behind the switch.

use std::{
    fs::File,
    io::IoSliceMut,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use nix::{
    cmsg_space,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
            setsockopt, socket,
            sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestampns},
        },
        time::{TimeSpec, TimeVal, TimeValLike},
    },
};
use vt_protocol::beacon::Beacon;

use super::sighting::Sighting;

/// Port that guests of the table of faults send to: their parties do not listen there.
pub const PORT: u16 = 7008;
/// Sightings that are kept: an hour of one guest.
const KEPT: usize = 500_000;
/// Buffer of the socket; a transfer of a guest goes through the same switch.
const BUFFER: usize = 32 << 20;
/// A frame that the switch sends out, not one that came in.
const OUTGOING: u8 = 4;
/// Ethernet, IPv4 and UDP before the payload, options left aside.
const HEADERS: usize = 14 + 20 + 8;

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Vec<Sighting>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the switch of a lab with this many hosts.
    ///
    /// # Errors
    /// The namespace or the socket cannot be had.
    pub fn start(lab: &str, hosts: u32) -> anyhow::Result<Self> {
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (tell, told) = std::sync::mpsc::channel();
        let (filled, stopped) = (seen.clone(), stop.clone());
        let namespace = format!("/run/netns/vt-{lab}-sw");
        // A namespace is a thread's own.
        let thread =
            std::thread::Builder::new().name("watcher".into()).spawn(move || match stand(&namespace, hosts) {
                Ok((socket, ports)) => {
                    let _ = tell.send(Ok(()));
                    while !stopped.load(Ordering::Relaxed) {
                        note(&socket, &ports, &filled);
                    }
                }
                Err(error) => drop(tell.send(Err(error))),
            })?;
        told.recv().context("the watcher ended at once")??;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Sighting>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came at or after that moment, in the order the kernel took it.
    pub fn since(&self, from_us: u64) -> Vec<Sighting> {
        let mut seen: Vec<_> = self.locked().iter().filter(|sighting| sighting.at_us >= from_us).copied().collect();
        // Links are served by several cores.
        seen.sort_by_key(|sighting| sighting.at_us);
        seen
    }

    /// Forgets what it saw.
    pub fn forget(&self) {
        self.locked().clear();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Links of the switch, by their number: which host is behind.
type Ports = Vec<(usize, u32)>;

fn stand(namespace: &str, hosts: u32) -> anyhow::Result<(OwnedFd, Ports)> {
    let file = File::open(namespace).with_context(|| namespace.to_owned())?;
    setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
    let port = |host: u32| anyhow::Ok((if_nametoindex(format!("port{host}").as_str())? as usize, host));
    let ports = (1..=hosts).map(port).collect::<anyhow::Result<Ports>>().context("links of the switch")?;
    // Every protocol, for only such a socket sees frames before the bridge takes or drops them.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok((socket, ports))
}

fn note(socket: &OwnedFd, ports: &Ports, seen: &Mutex<Vec<Sighting>>) {
    let mut bytes = [0; 128];
    let mut control = cmsg_space!(TimeSpec);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    // A time-out, or a signal: asked again by the caller.
    let Ok(message) = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::MSG_TRUNC)
    else {
        return;
    };
    let Some(link) = message.address else { return };
    let Some((_, host)) = ports.iter().find(|(index, _)| *index == link.ifindex()) else { return };
    if link.pkttype() == OUTGOING {
        return;
    }
    let stamp = message.cmsgs().ok().and_then(|mut all| {
        all.find_map(|one| match one {
            ControlMessageOwned::ScmTimestampns(at) => Some(at),
            _ => None,
        })
    });
    let at_us = stamp.map_or_else(now_us, |at| u64::try_from(Duration::from(at).as_micros()).unwrap_or(u64::MAX));
    let length = message.bytes.min(128);
    let Some(beacon) = beacon(&bytes[..length]) else { return };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() < KEPT {
        let (boot, sequence, guest_us) = (beacon.boot, beacon.sequence, beacon.monotonic_ns / 1000);
        seen.push(Sighting { at_us, host: *host, boot, sequence, guest_us });
    }
}

/// The beacon in a frame: Ethernet, IPv4, UDP to any port, for a guest has one of its own where nobody says which.
fn beacon(frame: &[u8]) -> Option<Beacon> {
    let ip = frame.get(14..).filter(|_| frame.len() >= HEADERS && frame[12..14] == [0x08, 0x00])?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    let udp = ip.get(header..).filter(|udp| ip[0] >> 4 == 4 && ip[9] == 17 && udp.len() >= 8)?;
    Beacon::from_bytes(&udp[8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beacon_is_found_in_its_frame_and_nowhere_else() {
        let beacon = Beacon { boot: 9, sequence: 3, monotonic_ns: 1 };
        let mut frame = vec![0xff; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 68, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 100, 10, 77, 0, 255]);
        frame.extend([&[0x12, 0x34][..], &PORT.to_be_bytes(), &[0, 48, 0, 0]].concat());
        frame.extend(beacon.to_bytes());
        assert_eq!(super::beacon(&frame), Some(beacon));
        for cut in 0..frame.len() {
            assert_eq!(super::beacon(&frame[..cut]), None);
        }
        for (at, other) in [(12, 0x86), (14, 0x65), (23, 6)] {
            let mut wrong = frame.clone();
            wrong[at] ^= other;
            assert_eq!(super::beacon(&wrong), None, "byte {at}");
        }
    }
}
