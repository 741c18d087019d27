//! Who the guest is, as its kernel tells.

use std::fs;

use vt_protocol::probe::{Hello, PROBE_VERSION};

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| format!("{path}: {error}"))
}

/// The answer to `hello`.
pub(crate) fn hello() -> Result<Hello, String> {
    Ok(Hello {
        version: PROBE_VERSION,
        boot_id: read("/proc/sys/kernel/random/boot_id")?,
        clock: crate::clock::now(),
        addresses: addresses(),
        memory_bytes: memory_line("MemTotal:").ok_or("/proc/meminfo has no MemTotal")?,
        cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        kernel: read("/proc/sys/kernel/osrelease")?,
        probe_pid: std::process::id(),
    })
}

/// Memory that a program can still take, bytes.
pub(crate) fn memory_available() -> Option<u64> {
    memory_line("MemAvailable:")
}

fn memory_line(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Where a datagram reaches everyone, a network card each.
pub(crate) fn broadcasts() -> Vec<std::net::Ipv4Addr> {
    let Ok(list) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let found = list.filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        let mask = interface.netmask?.as_sockaddr_in()?.ip();
        (!address.is_loopback()).then(|| (u32::from(address) | !u32::from(mask)).into())
    });
    found.take(64).collect()
}

fn addresses() -> Vec<String> {
    let Ok(list) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let found = list.filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        let mask = u32::from(interface.netmask?.as_sockaddr_in()?.ip());
        (!address.is_loopback()).then(|| format!("{address}/{}", mask.leading_ones()))
    });
    found.take(64).collect()
}
