//! A text as the definition of a test provider: its sections and options, each with its line, or the line of a mistake.
//!
//! The reader stands alone in its file and is compiled here as it is: the client around it takes minutes to build with
//! counters.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

#[allow(dead_code, reason = "the client uses all of it")]
#[path = "../../ctl/src/providers/ini.rs"]
mod ini;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    let lines = text.lines().count();
    let place = |line: u32| assert!((1..=lines).contains(&(line as usize)), "line {line} of {lines}");
    match ini::parse(text) {
        Ok(sections) => {
            for (index, section) in sections.iter().enumerate() {
                place(section.line);
                assert!(sections[..index].iter().all(|other| other.name != section.name), "a section is there once");
                for entry in &section.entries {
                    place(entry.line);
                    assert!(!entry.key.is_empty() && entry.line > section.line);
                    assert_eq!(section.get(&entry.key), Some(entry), "an option is there once");
                }
            }
        }
        Err(mistake) => {
            place(mistake.line);
            assert!(!mistake.what.is_empty());
        }
    }
    Corpus::Keep
});
