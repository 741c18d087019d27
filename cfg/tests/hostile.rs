//! Texts made to exhaust stack, memory or time: each is answered or refused quickly.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vt_cfg::{Config, Diagnostic, MemSource, Options, parse};

fn read(text: &str) -> Result<Config, Vec<Diagnostic>> {
    let mut s = MemSource::new();
    s.insert("m.cfg", text);
    parse(&s, "m.cfg", &[], &Options::default())
}

/// Generous, because tests share the machine; the point is "not for hours".
fn soon<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let out = f();
    assert!(begin.elapsed() < Duration::from_secs(60), "{what} took {:?}", begin.elapsed());
    out
}

fn dimensions(sets: usize, variants: usize, tail: &str) -> String {
    let mut text = String::new();
    for s in 0..sets {
        text.push_str("variants:\n");
        for v in 0..variants {
            text.push_str(&format!("  - s{s}v{v}:\n      k{s} = {v}\n"));
        }
    }
    text + tail
}

#[test]
fn deep_nesting_is_refused_with_a_place() {
    let mut conditions = String::new();
    let mut sets = String::new();
    for i in 0..5000 {
        conditions.push_str(&format!("{}a:\n", " ".repeat(i)));
        let pad = " ".repeat(i * 2);
        sets.push_str(&format!("{pad}variants:\n{pad} - a:\n"));
    }
    let inline = "a: ".repeat(100_000);
    for (name, text) in [("conditions", conditions), ("sets", sets), ("inline", inline)] {
        let mistakes = soon(name, || read(&text)).unwrap_err();
        assert!(mistakes[0].message.contains("nested more than"), "{name}: {}", mistakes[0]);
        assert!(mistakes[0].line > 0);
    }
}

#[test]
fn nesting_up_to_the_limit_works() {
    let mut text = String::new();
    for i in 0..190 {
        let pad = " ".repeat(i * 2);
        text.push_str(&format!("{pad}variants:\n{pad} - a:\n"));
    }
    assert_eq!(read(&text).unwrap().variants().count(), 1);
}

#[test]
fn include_cycles_and_bombs_are_refused() {
    let mut s = MemSource::new();
    s.insert("a.cfg", "include b.cfg\n").insert("b.cfg", "x = 1\ninclude a.cfg\n");
    let mistakes = parse(&s, "a.cfg", &[], &Options::default()).unwrap_err();
    assert_eq!((mistakes[0].file.as_str(), mistakes[0].line), ("b.cfg", 2));

    let mut s = MemSource::new();
    for i in 0..60 {
        s.insert(format!("{i}.cfg"), format!("include {0}.cfg\ninclude {0}.cfg\n", i + 1));
    }
    s.insert("60.cfg", "x = 1\n");
    let mistakes = soon("doubling includes", || parse(&s, "0.cfg", &[], &Options::default())).unwrap_err();
    assert!(mistakes[0].message.contains("includes"), "{}", mistakes[0]);
}

#[test]
fn a_path_that_grows_forever_is_a_cycle_too() {
    let mut s = MemSource::new();
    // Textual paths differ each time; only the depth tells.
    struct Any;
    impl vt_cfg::Source for Any {
        fn read(&self, _: &str) -> Result<std::borrow::Cow<'_, str>, vt_cfg::SourceError> {
            Ok("include sub/m.cfg\n".into())
        }
    }
    s.insert("m.cfg", "");
    let mistakes = soon("growing path", || parse(&Any, "m.cfg", &[], &Options::default())).unwrap_err();
    assert!(mistakes[0].message.contains("nested"), "{}", mistakes[0]);
}

#[test]
fn a_trillion_combinations_are_counted_at_once() {
    let config = read(&dimensions(12, 10, "")).unwrap();
    assert_eq!(soon("count", || config.count()).unwrap(), 1_000_000_000_000);
    let config = read(&dimensions(12, 10, "no s0v1..s5v3\nonly s1v1, s2v2\n")).unwrap();
    // 10^12 · 0.99 · (1 − 0.9²)
    assert_eq!(soon("count", || config.count()).unwrap(), 188_100_000_000);
    let first: Vec<String> = config.names().take(2).map(Result::unwrap).collect();
    assert!(first[0].ends_with("s1v1.s0v0"), "{first:?}");
}

#[test]
fn counts_agree_with_walks() {
    for tail in [
        "",
        "no s0v1..s1v2\n",
        "only s0v1, s1v2.s0v0\n",
        "s0v1:\n  only s2v0\n",
        "join s0v0 s0v1\n",
        "join s0v0,s0v1 s0v1,s0v2 s1v1\n",
    ] {
        let config = read(&dimensions(3, 3, tail)).unwrap();
        let walked: Result<Vec<_>, _> = config.variants().collect();
        if let Ok(walked) = walked {
            assert_eq!(config.count().unwrap(), walked.len() as u128, "{tail}");
        }
    }
}

#[test]
fn a_riddle_of_filters_is_given_up() {
    // Pigeons and holes: unsatisfiable, and no partial choice shows it.
    let n = 12;
    let mut text = String::new();
    for p in 0..=n {
        text.push_str(&format!("variants p{p}:\n"));
        (0..n).for_each(|h| text.push_str(&format!("  - h{h}:\n")));
    }
    for h in 0..n {
        for p in 0..=n {
            for q in 0..p {
                text.push_str(&format!("no (p{p}=h{h})..(p{q}=h{h})\n"));
            }
        }
    }
    let config = read(&text).unwrap();
    let e = soon("count", || config.count());
    assert!(matches!(&e, Ok(0)) || e.unwrap_err().message.contains("entangled"));
}

#[test]
fn values_that_double_are_refused() {
    let text = "a = xx\n".to_owned() + &"a = ${a}${a}\n".repeat(100);
    let config = read(&text).unwrap();
    let e = soon("doubling", || config.variants().next()).unwrap().unwrap_err();
    assert!(e.message.contains("exceed"), "{e}");
    assert!(e.line > 1);
}

#[test]
fn a_long_chain_of_sets_costs_no_stack() {
    let text = "variants:\n  - a:\n".repeat(20_000);
    let config = read(&text).unwrap();
    let all: Vec<_> = soon("chain", || config.names().collect());
    assert_eq!(all.len(), 1);
    assert_eq!(config.count().unwrap(), 1);
}

#[test]
fn many_labels_and_filters_stay_within_memory() {
    let mut text = String::new();
    for i in 0..20_000 {
        text.push_str(&format!("variants:\n - n{i}:\n    no x{i}\n"));
    }
    let config = soon("parse", || read(&text)).unwrap();
    assert_eq!(soon("count", || config.count().map_err(|e| e.message)).unwrap_or(1), 1);
}

#[test]
fn dropping_the_iterator_early_is_fine() {
    let config = read(&dimensions(12, 10, "")).unwrap();
    let mut variants = config.variants();
    for _ in 0..1000 {
        variants.next().unwrap().unwrap();
    }
}

fn line() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("variants"),
        Just("only "),
        Just("no "),
        Just("join "),
        Just("suffix "),
        Just("del "),
        Just("include "),
        Just("- "),
        Just("a"),
        Just("b"),
        Just(".."),
        Just("."),
        Just(","),
        Just(" "),
        Just(":"),
        Just("@"),
        Just("("),
        Just(")"),
        Just("["),
        Just("]"),
        Just("="),
        Just("?="),
        Just("+="),
        Just("<="),
        Just("~="),
        Just("!"),
        Just("#"),
        Just("\""),
        Just("'"),
        Just("${a}"),
        Just("${"),
        Just("default=a"),
        Just("x_min"),
        Just("_max"),
        Just("é"),
        Just("\u{2028}"),
        Just("\t"),
        Just("\r"),
    ];
    (0usize..6, prop::collection::vec(piece, 0..8)).prop_map(|(i, p)| format!("{}{}", " ".repeat(i), p.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text_never_panics(text in "\\PC{0,300}") {
        if let Ok(c) = read(&text) {
            c.variants().take(50).for_each(drop);
        }
    }

    #[test]
    fn random_lines_never_panic(lines in prop::collection::vec(line(), 0..20)) {
        match read(&lines.join("\n")) {
            Ok(c) => {
                let mut out = Vec::new();
                c.variants().take(50).filter_map(Result::ok).for_each(|v| v.write_json(&mut out));
                let _ = c.count();
            }
            Err(mistakes) => prop_assert!(mistakes.iter().all(|m| !m.to_string().is_empty())),
        }
    }
}
