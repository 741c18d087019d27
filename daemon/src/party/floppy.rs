//! The bytes of a floppy disk: 1440 KiB with a FAT12 file system, and files in its only folder. Pure.
//!
//! Setups of guests look for their answers there, by names that are longer than FAT's own: each file has a long name, and a
//! short one made of it.
//! Source: Microsoft's "FAT: General Overview of On-Disk Format", 1.03.

/// Length of the disk, bytes.
pub(super) const BYTES: u64 = SECTORS as u64 * SECTOR as u64;

const SECTOR: usize = 512;
const SECTORS: usize = 2880;
/// Of each of the two tables.
const TABLE_SECTORS: usize = 9;
const FOLDER_ENTRIES: usize = 224;
const ENTRY: usize = 32;
const FOLDER_AT: usize = (1 + 2 * TABLE_SECTORS) * SECTOR;
const DATA_AT: usize = FOLDER_AT + FOLDER_ENTRIES * ENTRY;
/// Clusters, of one sector each; the first has number 2.
const CLUSTERS: usize = SECTORS - DATA_AT / SECTOR;
const END_OF_FILE: u16 = 0xfff;
/// Characters of a long name that one entry holds.
const LONG_PART: usize = 13;
const LONG_MAX: usize = 255;
const ATTRIBUTE_LONG: u8 = 0x0f;
const ATTRIBUTE_FILE: u8 = 0x20;
/// The first day that FAT knows: 1 January 1980.
const DAY: [u8; 2] = [0x21, 0];

/// Why files do not go on a floppy disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FloppyError {
    #[error("its files need {0} KiB, and a floppy disk has room for {limit}", limit = (CLUSTERS * SECTOR) >> 10)]
    Long(usize),
    #[error("it has more files than the {FOLDER_ENTRIES} places of a floppy disk's folder")]
    Many,
    #[error("a floppy disk can have no file {0:?}")]
    Name(String),
}

/// A floppy disk with these files: names and bytes.
pub(super) fn image(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, FloppyError> {
    let needed: usize = files.iter().map(|(_, bytes)| bytes.len().div_ceil(SECTOR)).sum();
    if needed > CLUSTERS {
        return Err(FloppyError::Long((needed * SECTOR).div_ceil(1024)));
    }
    let mut disk = vec![0; SECTORS * SECTOR];
    disk[..SECTOR].copy_from_slice(&boot_sector());
    let mut folder = Vec::new();
    // The first two places of the table say what kind of disk it is.
    let mut table = vec![0xff0, END_OF_FILE];
    for (number, (name, bytes)) in files.iter().enumerate() {
        let short = short_name(name, number);
        folder.extend(long_entries(name, &short)?);
        let first = if bytes.is_empty() { 0 } else { table.len() as u16 };
        folder.push(file_entry(&short, first, bytes.len() as u32));
        let at = DATA_AT + (table.len() - 2) * SECTOR;
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        let clusters = bytes.len().div_ceil(SECTOR);
        table.extend((1..=clusters).map(|n| if n == clusters { END_OF_FILE } else { first + n as u16 }));
    }
    if folder.len() > FOLDER_ENTRIES {
        return Err(FloppyError::Many);
    }
    let table = packed(&table);
    for copy in 0..2 {
        let at = (1 + copy * TABLE_SECTORS) * SECTOR;
        disk[at..at + table.len()].copy_from_slice(&table);
    }
    let folder = folder.concat();
    disk[FOLDER_AT..FOLDER_AT + folder.len()].copy_from_slice(&folder);
    Ok(disk)
}

fn boot_sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"VTMESH  ");
    put(11, &(SECTOR as u16).to_le_bytes());
    // Sectors of a cluster, sectors before the tables, tables.
    put(13, &[1, 1, 0, 2]);
    put(17, &(FOLDER_ENTRIES as u16).to_le_bytes());
    put(19, &(SECTORS as u16).to_le_bytes());
    put(21, &[0xf0]);
    put(22, &(TABLE_SECTORS as u16).to_le_bytes());
    // Sectors of a track, heads.
    put(24, &[18, 0, 2, 0]);
    put(38, &[0x29]);
    put(43, b"NO NAME    FAT12   ");
    put(510, &[0x55, 0xaa]);
    sector
}

/// Places of the table, of twelve bits each.
fn packed(table: &[u16]) -> Vec<u8> {
    let pair = |pair: &[u16]| {
        let (one, two) = (pair[0], pair.get(1).copied().unwrap_or(0));
        [one as u8, (one >> 8 | two << 4) as u8, (two >> 4) as u8]
    };
    table.chunks(2).flat_map(pair).collect()
}

/// Eight letters and three, unlike those of any other file: the second, `Autounattend.xml`, is `AUTO001~.XML`.
fn short_name(name: &str, number: usize) -> [u8; 11] {
    let letters = |text: &str| -> Vec<u8> {
        text.bytes().filter(u8::is_ascii_alphanumeric).map(|letter| letter.to_ascii_uppercase()).collect()
    };
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let mut short = [b' '; 11];
    let stem: Vec<u8> = letters(stem).into_iter().take(4).chain(format!("{number:03}~").into_bytes()).collect();
    for (place, letter) in short.iter_mut().zip(stem) {
        *place = letter;
    }
    for (place, letter) in short[8..].iter_mut().zip(letters(ending)) {
        *place = letter;
    }
    short
}

fn file_entry(short: &[u8; 11], first: u16, length: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(short);
    entry[11] = ATTRIBUTE_FILE;
    for day in [16, 18, 24] {
        entry[day..day + 2].copy_from_slice(&DAY);
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

/// The entries that hold the long name, the last part of it first, as they stand before the file's own.
fn long_entries(name: &str, short: &[u8; 11]) -> Result<Vec<[u8; ENTRY]>, FloppyError> {
    let letters: Vec<u16> = name.encode_utf16().collect();
    let bad = |c: char| c.is_control() || "\"*/:<>?\\|".contains(c);
    if letters.is_empty() || letters.len() > LONG_MAX || name.contains(bad) || name.ends_with(['.', ' ']) {
        return Err(FloppyError::Name(name.to_owned()));
    }
    let sum = short.iter().fold(0u8, |sum, letter| sum.rotate_right(1).wrapping_add(*letter));
    let parts = letters.chunks(LONG_PART).count();
    let entry = |(number, part): (usize, &[u16])| {
        let mut entry = [0; ENTRY];
        let last = if number + 1 == parts { 0x40 } else { 0 };
        entry[0] = (number + 1) as u8 | last;
        (entry[11], entry[13]) = (ATTRIBUTE_LONG, sum);
        // A zero behind the name, then ones.
        let letters = part.iter().copied().chain([0]).chain(std::iter::repeat(0xffff));
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (place, letter) in places.zip(letters) {
            entry[place..place + 2].copy_from_slice(&letter.to_le_bytes());
        }
        entry
    };
    let mut entries: Vec<_> = letters.chunks(LONG_PART).enumerate().map(entry).collect();
    entries.reverse();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn another_program_reads_the_files_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floppy.img");
        let long: Vec<u8> = (0..70_000u32).map(|n| (n % 251) as u8).collect();
        let files = [
            ("Autounattend.xml".to_owned(), b"<unattend/>".to_vec()),
            ("a name of more than twenty-six letters.txt".to_owned(), long),
            ("empty".to_owned(), vec![]),
            ("ks.cfg".to_owned(), vec![b'k'; SECTOR]),
        ];
        std::fs::write(&path, image(&files).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), BYTES);
        for (name, bytes) in &files {
            let read = Command::new("mtype").arg("-i").arg(&path).arg(format!("::/{name}")).output().unwrap();
            assert!(
                read.status.success() && read.stdout == *bytes,
                "{name}: {}",
                String::from_utf8_lossy(&read.stderr)
            );
        }
        let checked = Command::new("fsck.fat").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }

    #[test]
    fn what_does_not_fit_or_has_no_name_there_is_refused() {
        let file = |name: &str, length: usize| (name.to_owned(), vec![7; length]);
        assert!(image(&[file("all", CLUSTERS * SECTOR)]).is_ok());
        let long = image(&[file("all", CLUSTERS * SECTOR), file("b", 1)]).unwrap_err();
        assert_eq!(long, FloppyError::Long(1424));
        let many: Vec<_> = (0..120).map(|n| file(&format!("f{n}"), 0)).collect();
        assert_eq!(image(&many).unwrap_err(), FloppyError::Many);
        for name in ["", "a:b", "end.", "a\nb", &"x".repeat(256)] {
            assert_eq!(image(&[file(name, 1)]).unwrap_err(), FloppyError::Name(name.to_owned()));
        }
    }
}
