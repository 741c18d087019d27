//! The first bytes of a disk image, read by us before any other program is let near it: what format it is, and whether it
//! names files beside itself. Pure.
//!
//! A format is never guessed from what a guest could have written: what begins like a qcow2 file is one, and what begins
//! like another known container is refused rather than taken as raw.
//! Source: QEMU's `docs/interop/qcow2.rst`.

use vt_protocol::catalogue::ImageFormat;

/// How much of a file is looked at: the largest cluster, in which header and backing name lie.
pub(super) const LOOKED_AT: usize = 2 << 20;

const MAGIC: &[u8] = b"QFI\xfb";
/// Containers that are not taken: what they begin with, and their names.
const OTHERS: [(&[u8], &str); 7] = [
    (b"KDMV", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"QED\0", "qed"),
    (b"<<< ", "vdi"),
    (b"LUKS\xba\xbe", "luks"),
];
const NAME_MAX: usize = 1023;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;

/// What a disk image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) format: ImageFormat,
    /// The name of the image below, as it is written there.
    pub(super) backing: Option<String>,
}

/// Why a file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("it is a {0} file: only qcow2 and raw are taken")]
    Format(&'static str),
    #[error("it is no qcow2 file: it does not begin like one")]
    NotQcow2,
    #[error("its qcow2 header is damaged: {0}")]
    Damaged(&'static str),
    #[error("it is marked as corrupt by QEMU")]
    Corrupt,
    #[error("it keeps its data in another file, which would be read from this host")]
    DataFile,
    #[error("it is encrypted")]
    Encrypted,
}

/// Reads the beginning of a file; `wanted` is the format that the user named.
pub(super) fn read(bytes: &[u8], wanted: Option<ImageFormat>) -> Result<Header, HeaderError> {
    match wanted {
        Some(ImageFormat::Raw) => return Ok(Header { format: ImageFormat::Raw, backing: None }),
        Some(ImageFormat::Qcow2) if !bytes.starts_with(MAGIC) => return Err(HeaderError::NotQcow2),
        _ => {}
    }
    if bytes.starts_with(MAGIC) {
        return qcow2(bytes);
    }
    match OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => Err(HeaderError::Format(name)),
        None => Ok(Header { format: ImageFormat::Raw, backing: None }),
    }
}

fn qcow2(bytes: &[u8]) -> Result<Header, HeaderError> {
    let damaged = HeaderError::Damaged;
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    let short = || damaged("it is too short");
    let version = word(4).ok_or_else(short)?;
    let features = match version {
        2 => 0,
        3 => long(72).ok_or_else(short)?,
        _ => return Err(damaged("its version is neither 2 nor 3")),
    };
    let cluster_bits = word(20).ok_or_else(short)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(damaged("its clusters are of no length that QEMU knows"));
    }
    if features & CORRUPT != 0 {
        return Err(HeaderError::Corrupt);
    }
    if features & DATA_FILE != 0 {
        return Err(HeaderError::DataFile);
    }
    if word(32).ok_or_else(short)? != 0 {
        return Err(HeaderError::Encrypted);
    }
    let backing = match (long(8).ok_or_else(short)?, word(16).ok_or_else(short)?) {
        (0, _) | (_, 0) => None,
        (begin, length) => {
            let (begin, length) = (usize::try_from(begin).unwrap_or(usize::MAX), length as usize);
            if length > NAME_MAX || begin.saturating_add(length) > 1 << cluster_bits {
                return Err(damaged("the name of its backing file lies outside the first cluster"));
            }
            let name = bytes.get(begin..begin + length).ok_or_else(short)?;
            let name = std::str::from_utf8(name).map_err(|_| damaged("the name of its backing file is no text"))?;
            Some(name.to_owned())
        }
    };
    Ok(Header { format: ImageFormat::Qcow2, backing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[103] = 104;
        bytes
    }

    #[test]
    fn a_format_is_what_the_first_bytes_say_and_never_a_guess() {
        let raw = Header { format: ImageFormat::Raw, backing: None };
        assert_eq!(read(b"\xeb\x63\x90 boot", None), Ok(raw.clone()));
        assert_eq!(read(b"", None), Ok(raw.clone()));
        assert_eq!(read(&sound(), None).unwrap().format, ImageFormat::Qcow2);
        assert_eq!(read(&sound(), Some(ImageFormat::Raw)), Ok(raw), "the user knows better");
        assert_eq!(read(b"\xeb\x63\x90", Some(ImageFormat::Qcow2)), Err(HeaderError::NotQcow2));
        assert_eq!(read(b"KDMV....", None), Err(HeaderError::Format("vmdk")));
    }

    #[test]
    fn what_reads_other_files_or_cannot_be_read_is_refused() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(Change, HeaderError); 8] = [
            (|b| b[79] = 4, HeaderError::DataFile),
            (|b| b[79] = 2, HeaderError::Corrupt),
            (|b| b[35] = 1, HeaderError::Encrypted),
            (|b| b.truncate(50), HeaderError::Damaged("it is too short")),
            (|b| b[7] = 9, HeaderError::Damaged("its version is neither 2 nor 3")),
            (|b| b[23] = 40, HeaderError::Damaged("its clusters are of no length that QEMU knows")),
            (
                |b| (b[8], b[19]) = (0xff, 4),
                HeaderError::Damaged("the name of its backing file lies outside the first cluster"),
            ),
            (
                |b| (b[14], b[19], b[256]) = (1, 4, 0xff),
                HeaderError::Damaged("the name of its backing file is no text"),
            ),
        ];
        for (change, error) in cases {
            let mut bytes = sound();
            change(&mut bytes);
            assert_eq!(read(&bytes, None), Err(error));
        }
    }

    #[test]
    fn a_backing_file_is_told_as_it_is_written() {
        let mut bytes = sound();
        (bytes[14], bytes[19]) = (1, 11);
        bytes[256..267].copy_from_slice(b"/etc/passwd");
        assert_eq!(read(&bytes, None).unwrap().backing.as_deref(), Some("/etc/passwd"));
    }
}
