//! One sector of the journal: a head that says where in the journal it stands, and a piece of a batch.
//!
//! ```text
//! checksum 8 │ position 8 │ batch 8 │ sectors 4 │ used 4 │ content 480
//! ```
//!
//! The checksum is also over the host, so that a file of another host's is all damage. A sector that was never written is
//! zero; no other sector is, for none has a checksum of zero.

use crate::stored::checksum;

/// Bytes of a sector: what a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// Bytes of it that a batch may use.
pub(super) const CONTENT: usize = SECTOR - HEAD;
const HEAD: usize = 32;

/// Where a sector stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Its number since the journal began: never given twice.
    pub(super) position: u64,
    /// The position of the first sector of its batch.
    pub(super) batch: u64,
    /// How many sectors the batch has.
    pub(super) sectors: u32,
    /// Bytes of its content that are used.
    pub(super) used: u32,
}

/// What a sector is found to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'b> {
    /// It was never written.
    Blank,
    /// It is as it was written.
    Whole(Head, &'b [u8]),
    /// It is not.
    Damaged,
}

/// Writes a sector behind `out`.
pub(super) fn put(host: u64, head: Head, content: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&head.position.to_le_bytes());
    out.extend_from_slice(&head.batch.to_le_bytes());
    out.extend_from_slice(&head.sectors.to_le_bytes());
    out.extend_from_slice(&head.used.to_le_bytes());
    out.extend_from_slice(content);
    out.resize(begin + SECTOR, 0);
    let seal = checksum(&host.to_le_bytes(), &out[begin + 8..]);
    out[begin..begin + 8].copy_from_slice(&seal);
}

/// Reads a sector; `bytes` are [`SECTOR`] long.
pub(super) fn read(host: u64, bytes: &[u8]) -> Found<'_> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Blank;
    }
    parse(host, bytes).unwrap_or(Found::Damaged)
}

fn parse(host: u64, bytes: &[u8]) -> Option<Found<'_>> {
    let (seal, body) = bytes.split_first_chunk::<8>()?;
    if checksum(&host.to_le_bytes(), body) != *seal {
        return None;
    }
    let (position, rest) = body.split_first_chunk::<8>()?;
    let (batch, rest) = rest.split_first_chunk::<8>()?;
    let (sectors, rest) = rest.split_first_chunk::<4>()?;
    let (used, content) = rest.split_first_chunk::<4>()?;
    let head = Head {
        position: u64::from_le_bytes(*position),
        batch: u64::from_le_bytes(*batch),
        sectors: u32::from_le_bytes(*sectors),
        used: u32::from_le_bytes(*used),
    };
    Some(Found::Whole(head, content.get(..usize::try_from(head.used).ok()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { position: 300, batch: 299, sectors: 2, used: 3 };

    #[test]
    fn a_sector_is_golden() {
        let mut bytes = Vec::new();
        put(1, HEAD, b"abc", &mut bytes);
        assert_eq!(bytes.len(), SECTOR);
        assert_eq!(read(1, &bytes), Found::Whole(HEAD, b"abc"));
        let hex: String = bytes[..35].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "bb3a059f8fca10552c010000000000002b010000000000000200000003000000616263");
        assert!(bytes[35..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn one_bit_changed_anywhere_is_damage_and_so_is_another_hosts() {
        let mut bytes = Vec::new();
        put(1, HEAD, b"abc", &mut bytes);
        for bit in 0..SECTOR * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(1, &bad), Found::Damaged, "bit {bit}");
        }
        assert_eq!(read(2, &bytes), Found::Damaged);
        let mut blank = vec![0; SECTOR];
        assert_eq!(read(1, &blank), Found::Blank);
        blank[77] = 1;
        assert_eq!(read(1, &blank), Found::Damaged);
    }
}
