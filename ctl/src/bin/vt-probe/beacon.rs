//! A datagram to everyone on the guest's network, every few milliseconds for as long as the guest runs.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread,
    time::Duration,
};

use vt_protocol::beacon::{BEACON_EVERY_MS, Beacon};

use crate::{clock, identity};

/// Starts to send to `port` of the broadcast address of every network card.
pub(crate) fn start(port: u16) -> Result<(), String> {
    if port == 0 {
        return Err("port: 0 is not in 1 to 65535".into());
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let boot = Beacon::boot_of(&text).ok_or_else(|| format!("{path} holds no boot id: {text:?}"))?;
    let to: Vec<Ipv4Addr> = identity::broadcasts();
    if to.is_empty() {
        return Err("the guest has no network to send to".into());
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|error| format!("udp: {error}"))?;
    socket.set_broadcast(true).map_err(|error| format!("broadcast: {error}"))?;
    let send = move || {
        for sequence in 1.. {
            let bytes = Beacon { boot, sequence, monotonic_ns: clock::now().monotonic_ns }.to_bytes();
            for address in &to {
                // One that is not sent is missed by who listens, and that is what the beacon is for.
                let _ = socket.send_to(&bytes, SocketAddrV4::new(*address, port));
            }
            thread::sleep(Duration::from_millis(BEACON_EVERY_MS));
        }
    };
    thread::Builder::new().name("beacon".into()).spawn(send).map(drop).map_err(|error| error.to_string())
}
