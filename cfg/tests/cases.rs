//! The project's own cases (`testdata`), the random ones kept with the reference's results, and the shared corpus where present.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vt_cfg::{Diagnostic, FsSource, MemSource, Options, Source, SourceError, StreamError, parse};

/// The file system below a folder, so that file names in results stay short.
struct Below(PathBuf);

impl Source for Below {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        let full = self.0.join(path);
        FsSource.read(&full.to_string_lossy()).map_err(|e| match e {
            SourceError::Missing(_) => SourceError::Missing(path.to_owned()),
            other => other,
        })
    }
}

/// Arguments as the command line takes them: options and extra statements.
fn options(args: &[String]) -> (Options, Vec<String>) {
    let (mut o, mut extra) = (Options::default(), Vec::new());
    let mut args = args.iter();
    while let Some(a) = args.next() {
        match a.as_str() {
            "--defaults" => o.defaults = true,
            "--expand" => o.expand.extend(args.next().unwrap().split(',').map(|s| s.trim().to_owned())),
            _ => extra.push(a.clone()),
        }
    }
    (o, extra)
}

#[derive(Debug)]
enum Expansion {
    Variants(Vec<Value>),
    Refused(Vec<Diagnostic>),
}

/// What comes of a configuration, taken one by one and as a stream: both must say the same.
fn expand(source: &dyn Source, file: &str, args: &[String]) -> Expansion {
    let (o, extra) = options(args);
    let config = match parse(source, file, &extra, &o) {
        Ok(c) => c,
        Err(mistakes) => return Expansion::Refused(mistakes),
    };
    let mut streamed = Vec::new();
    let end = config.write_json(&mut streamed);
    let mut lines = streamed.split_inclusive(|b| *b == b'\n');
    let mut out = Vec::new();
    for v in config.variants() {
        match v {
            Ok(v) => {
                let mut json = Vec::new();
                v.write_json(&mut json);
                json.push(b'\n');
                assert_eq!(String::from_utf8_lossy(&json), String::from_utf8_lossy(lines.next().unwrap()), "{file}");
                out.push(serde_json::from_slice(&json).unwrap());
            }
            Err(e) => {
                assert!(matches!(end, Err(StreamError::Mistake(m)) if *m == e) && lines.next().is_none(), "{file}");
                return Expansion::Refused(vec![e]);
            }
        }
    }
    assert!(end.is_ok() && lines.next().is_none(), "{file}");
    Expansion::Variants(out)
}

fn difference(want: &[Value], got: &[Value]) -> Option<String> {
    for (i, w) in want.iter().enumerate() {
        match got.get(i) {
            None => return Some(format!("{} variants, want {}", got.len(), want.len())),
            Some(g) if g != w => return Some(format!("variant {}: want {w}\ngot {g}", i + 1)),
            Some(_) => {}
        }
    }
    (want.len() != got.len()).then(|| format!("{} variants, want {}", got.len(), want.len()))
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn cases(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(testdata().join(folder))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".cfg") && !n.starts_with('_'))
        .collect();
    names.sort();
    assert!(names.len() > 20, "{folder}: {names:?}");
    names
}

#[test]
fn own_cases_expand_as_expected() {
    let folder = Below(testdata().join("ok"));
    for name in cases("ok") {
        let text = folder.read(&name).unwrap();
        let args: Vec<String> =
            text.lines().filter_map(|l| l.strip_prefix("#!")).map(|a| a.replace("\\n", "\n")).collect();
        let want: Value = serde_json::from_str(&folder.read(&name.replace(".cfg", ".json")).unwrap()).unwrap();
        match expand(&folder, &name, &args) {
            Expansion::Variants(got) => {
                if let Some(d) = difference(want.as_array().unwrap(), &got) {
                    panic!("{name}: {d}");
                }
            }
            Expansion::Refused(e) => panic!("{name}: refused: {}", e[0]),
        }
    }
}

#[test]
fn own_mistakes_are_all_found_in_place() {
    let folder = Below(testdata().join("err"));
    for name in cases("err") {
        let text = folder.read(&name).unwrap();
        let Expansion::Refused(mistakes) = expand(&folder, &name, &[]) else { panic!("{name}: accepted") };
        let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let wanted: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("#!expect ")).collect();
        assert_eq!(mistakes.len(), wanted.len(), "{name}: {}", shown.join("\n"));
        for (want, got) in wanted.iter().zip(&shown) {
            let (place, message) = want.split_once(' ').unwrap_or((want, ""));
            let place = if place.contains(".cfg") { place.to_owned() } else { format!("{name}:{place}") };
            let rest = got.strip_prefix(&place).unwrap_or_else(|| panic!("{name}: want {want}\ngot {got}"));
            assert!(rest.starts_with(':') && got.contains(message), "{name}: want {want}\ngot {got}");
        }
    }
}

#[test]
fn random_cases_equal_the_reference() {
    let read = |name: &str| std::fs::read_to_string(testdata().join(name)).unwrap();
    let text = read("random.jsonl") + &read("rare.jsonl");
    let mut n = 0;
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut source = MemSource::new();
        for (name, text) in case["files"].as_object().unwrap() {
            // Texts in memory have exactly one name; a file system has more for the same file.
            for prefix in ["", "./", "sub/../"] {
                source.insert(format!("{prefix}{name}"), text.as_str().unwrap());
            }
        }
        let args: Vec<String> =
            case["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect();
        match (expand(&source, "input.cfg", &args), case["dicts"].as_array()) {
            (Expansion::Variants(got), Some(want)) => {
                assert_eq!(difference(want, &got), None, "seed {}", case["seed"]);
            }
            (Expansion::Variants(_), None) => panic!("seed {}: accepted, want {}", case["seed"], case["error"]),
            (Expansion::Refused(e), Some(_)) => panic!("seed {}: refused: {}", case["seed"], e[0]),
            (Expansion::Refused(e), None) => {
                let (file, line) = (&case["error"][0], &case["error"][1]);
                let placed = file.is_null()
                    || line.as_i64().unwrap_or(-1) < 1
                    || e.iter().any(|d| d.file == file.as_str().unwrap() && Some(u64::from(d.line)) == line.as_u64());
                assert!(placed, "seed {}: want {file}:{line}, got {}", case["seed"], e[0]);
            }
        }
        n += 1;
    }
    assert!(n >= 400, "{n} cases");
}

/// SHA-256 of the variant's canonical JSON, as the corpus defines it.
fn hash(v: &Value) -> String {
    let sorted: BTreeMap<&String, &Value> = v.as_object().unwrap().iter().collect();
    let text = serde_json::to_string(&sorted).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Every name, and the content of every seventh variant (the corpus' own checker compares all).
fn large_case(folder: &Path, hashes: &str) -> Result<(), String> {
    let config =
        parse(&Below(folder.to_owned()), "input.cfg", &[], &Options::default()).map_err(|e| e[0].to_string())?;
    let mut variants = config.variants();
    for (i, want) in hashes.lines().enumerate() {
        let (want, name) = want.split_once("  ").unwrap();
        let v = variants.next().ok_or_else(|| format!("{i} variants are too few"))?.map_err(|e| e.to_string())?;
        if v.name() != name {
            return Err(format!("variant {}: {} instead of {name}", i + 1, v.name()));
        }
        if i % 7 == 0 {
            let mut json = Vec::new();
            v.write_json(&mut json);
            if hash(&serde_json::from_slice(&json).unwrap()) != want {
                return Err(format!("variant {} ({name}) differs", i + 1));
            }
        }
    }
    match variants.next() {
        None => Ok(()),
        Some(_) => Err("too many variants".to_owned()),
    }
}

fn corpus_case(folder: &Path) -> Result<(), String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let args: Vec<String> = read("args.txt")
        .map(|t| t.lines().filter(|l| !l.trim().is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect())
        .unwrap_or_default();
    if let Some(hashes) = read("expected.sha256") {
        return large_case(folder, &hashes);
    }
    let got = expand(&Below(folder.to_owned()), "input.cfg", &args);
    if let Some(spec) = read("expected_error.txt") {
        let value = |key: &str| spec.lines().find_map(|l| l.strip_prefix(&format!("{key}: "))).unwrap().to_owned();
        let Expansion::Refused(mistakes) = got else { return Err("accepted".to_owned()) };
        let (file, line) = (value("file"), value("line"));
        let placed =
            mistakes.iter().any(|d| (file == "any" || d.file == file) && (line == "any" || d.line.to_string() == line));
        return if placed { Ok(()) } else { Err(format!("want {file}:{line}, got {}", mistakes[0])) };
    }
    let got = match got {
        Expansion::Variants(v) => v,
        Expansion::Refused(e) => return Err(e[0].to_string()),
    };
    let want: Value = serde_json::from_str(&read("expected.json").unwrap()).unwrap();
    difference(want.as_array().unwrap(), &got).map_or(Ok(()), Err)
}

#[test]
fn shared_corpus_equals_the_reference() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/cartesian");
    let Ok(entries) = std::fs::read_dir(&corpus) else {
        eprintln!("skipped: {} is not there; the project's own cases cover the rules", corpus.display());
        return;
    };
    let mut failed = Vec::new();
    let mut n = 0;
    for e in entries {
        let folder = e.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('_') || !folder.join("input.cfg").is_file() {
            continue;
        }
        n += 1;
        if let Err(e) = corpus_case(&folder) {
            failed.push(format!("{name}: {e}"));
        }
    }
    assert!(failed.is_empty(), "{} of {n} failed:\n{}", failed.len(), failed.join("\n"));
    assert!(n > 0, "{} holds no case", corpus.display());
}
