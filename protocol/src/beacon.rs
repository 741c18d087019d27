//! The datagram that a guest sends to everyone on its network again and again, so that who stands outside can see
//! whether the guest runs, where, and whether it runs twice.
//!
//! What may not happen here: I/O.

/// Bytes of a datagram.
pub const BEACON_BYTES: usize = 40;
/// How often the guest sends one, ms.
pub const BEACON_EVERY_MS: u64 = 10;
const MAGIC: &[u8; 8] = b"vtbeacon";

/// What one datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beacon {
    /// Which boot of which guest: the kernel's boot id.
    pub boot: u128,
    /// Counts from 1 and is never used twice by one guest: the same number a second time comes from a second copy of it.
    pub sequence: u64,
    /// The guest's CLOCK_MONOTONIC when it was sent, ns.
    pub monotonic_ns: u64,
}

impl Beacon {
    /// As it is sent.
    pub fn to_bytes(self) -> [u8; BEACON_BYTES] {
        let mut bytes = [0; BEACON_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.boot.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[32..].copy_from_slice(&self.monotonic_ns.to_be_bytes());
        bytes
    }

    /// From the payload of a datagram; `None` where it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC).filter(|_| bytes.len() == BEACON_BYTES)?;
        let word = |at: usize| rest.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let boot = u128::from_be_bytes(rest.get(..16)?.try_into().ok()?);
        Some(Self { boot, sequence: word(16)?, monotonic_ns: word(24)? })
    }

    /// A boot id as the kernel writes it, `0b5c…-…`.
    pub fn boot_of(text: &str) -> Option<u128> {
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_comes_back_and_anything_else_is_none() {
        let boot = Beacon::boot_of("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        let beacon = Beacon { boot, sequence: 7, monotonic_ns: 0x0102_0304 };
        let bytes = beacon.to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex, "7674626561636f6e00112233445566778899aabbccddeeff00000000000000070000000001020304",
            "the wire form is held"
        );
        assert_eq!(Beacon::from_bytes(&bytes), Some(beacon));
        for cut in 0..BEACON_BYTES {
            assert_eq!(Beacon::from_bytes(&bytes[..cut]), None);
        }
        assert_eq!(Beacon::from_bytes(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Beacon::from_bytes(&[0; BEACON_BYTES]), None);
        assert_eq!(Beacon::boot_of("00112233-4455"), None);
        assert_eq!(Beacon::boot_of("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }
}
