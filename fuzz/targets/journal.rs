//! A journal that was written, damaged and opened: damage is refused or loses nothing that was acknowledged.
//!
//! The input says what is written, what becomes of the file, and what stands in a snapshot. Sectors may also be forged with
//! the right checksum, which no disk does: then nothing panics, and what opens can be read and goes on.

#![no_main]

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use vt_sync::fuzzing::{Damage, File, Piece};

#[derive(Debug, Arbitrary)]
struct Script {
    batches: Vec<Vec<Record>>,
    damage: Vec<Harm>,
    purged: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum Record {
    /// The entry behind the last one.
    Next(u8),
    /// One of another index.
    Entry(u64),
    Truncated(u8),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Harm {
    Flip(u32),
    Blank(u8),
    Copy(u8, u8),
    Forge {
        sector: u8,
        position: u64,
        batch: u64,
        sectors: u32,
        content: Vec<u8>,
    },
    /// A sector that says it stands where it does.
    Misplace {
        sector: u8,
        segment: u8,
        batch: u8,
        sectors: u8,
        content: Vec<u8>,
    },
}

fuzz_target!(|script: Script| {
    let mut next = 0u64;
    // Where the last batch but one ends, and where the last.
    let mut kept = (None, None);
    let mut is_log = true;
    let batches: Vec<Vec<Piece>> = script
        .batches
        .iter()
        .filter(|batch| !batch.is_empty())
        .take(32)
        .map(|batch| {
            let batch = batch.iter().take(32).map(|record| match record {
                Record::Next(length) => {
                    let index = next;
                    next = next.saturating_add(1);
                    Piece::Entry(index, usize::from(*length) * 8)
                }
                Record::Entry(index) => {
                    is_log &= *index == next;
                    next = index.saturating_add(1);
                    Piece::Entry(*index, 1)
                }
                Record::Truncated(first) => {
                    is_log = false;
                    next = next.min(u64::from(*first));
                    Piece::Truncated((*first).into())
                }
                Record::Bytes(bytes) => {
                    is_log = false;
                    Piece::Bytes(bytes.clone())
                }
            });
            let batch = batch.collect();
            kept = (kept.1, next.checked_sub(1));
            batch
        })
        .collect();

    let file = File::default();
    let written = file.write(&batches).expect("an empty file opens");
    for harm in script.damage.iter().take(8) {
        file.damage(&damage(harm));
    }
    let purged = script.purged.map(u64::from);
    let opened = file.open(purged);

    // A log that the journal took, in batches of one segment each: what a disk may do to it once.
    let is_simple = is_log && written && purged.is_none() && batches.iter().all(|batch| batch.len() == 1);
    match (&script.damage[..], opened) {
        ([], opened) if is_simple => assert_eq!(opened.expect("an undamaged file opens"), kept.1),
        ([Harm::Flip(_)], opened) if is_simple && kept.1.is_some() => {
            assert!(opened.is_err(), "a changed bit was not noticed");
        }
        ([Harm::Blank(_) | Harm::Copy(..)], Ok(last)) if is_simple => {
            assert!(last == kept.0 || last == kept.1, "{last:?} is left of {kept:?}");
        }
        _ => {}
    }
});

fn damage(harm: &Harm) -> Damage {
    match harm {
        Harm::Flip(bit) => Damage::Flip((*bit).into()),
        Harm::Blank(sector) => Damage::Blank((*sector).into()),
        Harm::Copy(from, to) => Damage::Copy((*from).into(), (*to).into()),
        Harm::Forge { sector, position, batch, sectors, content } => Damage::Forge {
            sector: (*sector).into(),
            position: *position,
            batch: *batch,
            sectors: *sectors,
            content: content.clone(),
        },
        Harm::Misplace { sector, segment, batch, sectors, content } => {
            let position = u64::from(*segment) * File::SEGMENT + u64::from(*sector) % File::SEGMENT;
            let batch = position.saturating_sub((*batch).into());
            Damage::Forge {
                sector: (*sector).into(),
                position,
                batch,
                sectors: (*sectors).into(),
                content: content.clone(),
            }
        }
    }
}
