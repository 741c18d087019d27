//! A configuration of up to four files, read and expanded: whatever the text, an answer comes soon and nothing panics.
//!
//! The input is text; a NUL byte ends a file (`m.cfg`, `a.cfg`, `b.cfg`, `sub/c.cfg`). Lines `#!TEXT` of the first are command
//! line arguments, as in the test data of the crate, which is where the first inputs come from.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use vt_cfg::{Explanation, LintOptions, MemSource, Options, parse};

const FILES: [&str; 4] = ["m.cfg", "a.cfg", "b.cfg", "sub/c.cfg"];
/// Variants looked at; a small text can have 10^12.
const VARIANTS: usize = 64;
/// Variants that are explained and found by name, which is done once for each.
const NAMED: usize = 4;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    let mut source = MemSource::new();
    for (name, text) in FILES.iter().zip(text.split('\0')) {
        source.insert(*name, text);
    }
    let (options, extra) = arguments(text.split('\0').next().unwrap_or_default());
    match parse(&source, FILES[0], &extra, &options) {
        Ok(config) => expand(&config, options.defaults),
        Err(mistakes) => {
            assert!((1..=100).contains(&mistakes.len()));
            mistakes.iter().for_each(|m| assert!(!m.to_string().is_empty()));
        }
    }
    Corpus::Keep
});

/// Options and extra statements.
fn arguments(text: &str) -> (Options, Vec<String>) {
    let mut options = Options::default();
    let mut extra = Vec::new();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("#!"));
    while let Some(line) = lines.next() {
        match line {
            "--defaults" => options.defaults = true,
            "--expand" => options.expand.extend(lines.next().unwrap_or_default().split(',').map(str::to_owned)),
            line if line.starts_with("expect") => {}
            line => extra.push(line.replace("\\n", "\n")),
        }
    }
    (options, extra)
}

fn expand(config: &vt_cfg::Config, defaults: bool) {
    let _ = config.count();
    let _ = config.lint(&LintOptions { known_keys: Some(vec!["x".into()]), ..LintOptions::default() });
    let names: Vec<_> = config.names().take(VARIANTS).collect();
    let mut json = Vec::new();
    for (i, variant) in config.variants().take(VARIANTS).enumerate() {
        let Ok(variant) = variant else { break };
        json.clear();
        variant.write_json(&mut json);
        let read: serde_json::Value = serde_json::from_slice(&json).expect("the JSON of a variant can be read");
        assert_eq!(read["name"], variant.name());
        assert_eq!(names[i].as_deref(), Ok(variant.name()), "names and variants agree");
        for (key, value, origin) in variant.params() {
            assert_eq!(read[key], value, "{key}");
            assert!(origin.line > 0);
        }
        if i < NAMED && !defaults {
            let found = config.find(variant.name());
            assert!(!matches!(found, Ok(None)), "a variant that exists is found");
            let explained = config.explain(variant.name());
            assert!(!matches!(explained, Ok(Explanation::Unknown { .. })), "a variant that exists is explained");
        }
    }
}
