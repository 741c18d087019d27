//! Bytes of what is stored or sent: one version byte, then postcard.
//!
//! Postcard is positional, so an appended field makes old bytes unreadable; the version byte in front is what lets a
//! later build name the older layout and decode it. Trailing bytes are refused, and both directions have a size cap.
//! No other module calls postcard directly, so that the codec can be changed in one place.

use serde::{Serialize, de::DeserializeOwned};

/// The version byte of the wire messages of this build.
pub const WIRE: u8 = 1;

/// Why bytes were not accepted, or a value could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Not even a version byte.
    #[error("there are no bytes to decode")]
    Empty,
    /// The version byte names a layout this build does not know.
    #[error("layout version {found} is not known here (newest known: {newest})")]
    UnknownVersion {
        /// The version byte that was read.
        found: u8,
        /// The newest layout this build reads.
        newest: u8,
    },
    /// The bytes do not hold a value of the wanted type.
    #[error("the bytes are garbled: {0}")]
    Garbled(postcard::Error),
    /// A value was read and bytes were left over.
    #[error("{0} bytes are left over after the value")]
    Trailing(usize),
    /// The encoded value is longer than its cap.
    #[error("{len} bytes are more than the cap of {cap}")]
    TooLong {
        /// Length in bytes.
        len: usize,
        /// The cap in bytes.
        cap: usize,
    },
}

/// A stored or sent type that names its layout and reads its predecessors.
pub trait Versioned: Serialize + DeserializeOwned {
    /// The version byte written in front.
    const VERSION: u8;

    /// Reads `body` of an older layout; the default knows none.
    fn decode_older(version: u8, body: &[u8]) -> Result<Self, CodecError> {
        let _ = body;
        Err(CodecError::UnknownVersion { found: version, newest: Self::VERSION })
    }
}

/// Encodes a versioned value; refuses results longer than `cap` bytes.
pub fn encode<T: Versioned>(value: &T, cap: usize) -> Result<Vec<u8>, CodecError> {
    encode_as(T::VERSION, value, cap)
}

/// Decodes a versioned value of the newest or an older layout.
pub fn decode<T: Versioned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    let (version, body) = split(bytes, cap)?;
    if version == T::VERSION { body_from(body) } else { T::decode_older(version, body) }
}

/// Encodes a wire message with the version byte [`WIRE`].
pub fn encode_wire<T: Serialize + ?Sized>(value: &T, cap: usize) -> Result<Vec<u8>, CodecError> {
    encode_as(WIRE, value, cap)
}

/// Decodes a wire message; only [`WIRE`] is accepted.
pub fn decode_wire<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    let (version, body) = split(bytes, cap)?;
    if version != WIRE {
        return Err(CodecError::UnknownVersion { found: version, newest: WIRE });
    }
    body_from(body)
}

/// Encodes `value` behind the version byte `version`.
pub fn encode_as<T: Serialize + ?Sized>(version: u8, value: &T, cap: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = postcard::to_extend(value, vec![version]).map_err(CodecError::Garbled)?;
    if bytes.len() > cap {
        return Err(CodecError::TooLong { len: bytes.len(), cap });
    }
    Ok(bytes)
}

/// Splits bytes into version byte and body.
pub fn split(bytes: &[u8], cap: usize) -> Result<(u8, &[u8]), CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLong { len: bytes.len(), cap });
    }
    match bytes.split_first() {
        Some((version, body)) => Ok((*version, body)),
        None => Err(CodecError::Empty),
    }
}

/// Decodes a body without its version byte; refuses trailing bytes.
pub fn body_from<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let (value, rest) = postcard::take_from_bytes(body).map_err(CodecError::Garbled)?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Disk {
        name: String,
        bytes: u64,
    }

    /// Version 2 of a record whose version 1 had no `writable`.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Record {
        disks: Vec<Disk>,
        writable: bool,
    }

    impl Versioned for Record {
        const VERSION: u8 = 2;

        fn decode_older(version: u8, body: &[u8]) -> Result<Self, CodecError> {
            match version {
                1 => body_from(body).map(|disks| Record { disks, writable: true }),
                _ => Err(CodecError::UnknownVersion { found: version, newest: Self::VERSION }),
            }
        }
    }

    fn record() -> Record {
        Record { disks: vec![Disk { name: "vda".into(), bytes: 1 << 30 }], writable: false }
    }

    #[test]
    fn wire_bytes_are_golden() {
        let bytes = encode_wire(&Disk { name: "vda".into(), bytes: 300 }, 64).unwrap();
        assert_eq!(bytes, [1, 3, b'v', b'd', b'a', 0xac, 0x02]);
    }

    #[test]
    fn an_older_layout_is_read() {
        let old = encode_as(1, &record().disks, 64).unwrap();
        assert_eq!(decode::<Record>(&old, 64).unwrap(), Record { writable: true, ..record() });
        assert_eq!(
            decode::<Record>(&[9, 0, 0], 64).unwrap_err(),
            CodecError::UnknownVersion { found: 9, newest: 2 },
            "a layout of the future is named, not guessed"
        );
    }

    #[test]
    fn trailing_bytes_and_caps_are_refused() {
        let mut bytes = encode(&record(), 64).unwrap();
        bytes.push(0);
        assert_eq!(decode::<Record>(&bytes, 64).unwrap_err(), CodecError::Trailing(1));
        assert!(matches!(decode::<Record>(&bytes, 4), Err(CodecError::TooLong { cap: 4, .. })));
        assert!(matches!(encode(&record(), 4), Err(CodecError::TooLong { cap: 4, .. })));
        assert_eq!(decode::<Record>(&[], 4).unwrap_err(), CodecError::Empty);
        assert!(matches!(
            decode_wire::<Disk>(&[2, 0, 0], 64),
            Err(CodecError::UnknownVersion { found: 2, newest: WIRE })
        ));
    }

    #[test]
    fn a_hostile_length_is_an_error() {
        let bytes = [WIRE, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(matches!(decode_wire::<Vec<u8>>(&bytes, 64), Err(CodecError::Garbled(_))));
        assert!(matches!(decode_wire::<String>(&bytes, 64), Err(CodecError::Garbled(_))));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Record>(&bytes, 4096);
            let _ = decode_wire::<Vec<(String, Option<u64>)>>(&bytes, 4096);
        }

        #[test]
        fn what_was_written_is_read(name in ".{0,40}", bytes in any::<u64>(), writable in any::<bool>()) {
            let value = Record { disks: vec![Disk { name, bytes }], writable };
            prop_assert_eq!(decode::<Record>(&encode(&value, 4096).unwrap(), 4096).unwrap(), value);
        }
    }
}
