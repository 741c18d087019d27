//! `explain` and `lint` on small configurations with known answers, and on the real sets where present.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::path::Path;

use vt_cfg::{Config, Explanation, FsSource, KeyHistory, LintOptions, MemSource, Options, Source, SourceError, parse};

fn read(text: &str) -> Config {
    let mut s = MemSource::new();
    s.insert("m.cfg", text);
    parse(&s, "m.cfg", &[], &Options::default()).unwrap()
}

const SAMPLE: &str = "\
mem = 1
mem += 0
variants os:
    - linux:
        mem = 20
        disk = sda
    - windows:
        no tcp
variants:
    - tcp:
        linux:
            mem ?+= 48
            !slow: mem <= 1
        del disk
    - rdma:
        mem_max = 5
        only linux
";

fn history<'a>(keys: &'a [KeyHistory], key: &str) -> &'a KeyHistory {
    keys.iter().find(|k| k.key == key).unwrap_or_else(|| panic!("{key} in {keys:?}"))
}

#[test]
fn every_assignment_is_told_in_order() {
    let Explanation::Present(keys) = read(SAMPLE).explain("tcp.(os=linux)").unwrap() else { panic!() };
    let mem = history(&keys, "mem");
    let steps: Vec<(&str, Option<&str>, u32)> =
        mem.steps.iter().map(|s| (s.operator, s.value.as_deref(), s.line)).collect();
    assert_eq!(
        steps,
        [
            ("=", Some("1"), 1),
            ("+=", Some("10"), 2),
            ("=", Some("20"), 5),
            ("?+=", Some("2048"), 12),
            ("<=", Some("12048"), 13)
        ]
    );
    let last = mem.steps.last().unwrap();
    let conditions: Vec<(&str, u32)> = last.conditions.iter().map(|c| (c.text.as_str(), c.line)).collect();
    assert_eq!(conditions, [("linux", 11), ("!slow", 13)]);
    assert_eq!(mem.value.as_deref(), Some("12048"));
    let disk = history(&keys, "disk");
    assert_eq!((disk.value.clone(), disk.steps.last().unwrap().line), (None, 14));
}

#[test]
fn bounds_are_a_step_of_their_own() {
    let Explanation::Present(keys) = read(SAMPLE).explain("rdma.(os=linux)").unwrap() else { panic!() };
    let mem = history(&keys, "mem");
    let last = mem.steps.last().unwrap();
    assert_eq!((last.operator, last.value.as_deref(), last.line), ("_max", Some("5"), 16));
}

#[test]
fn an_explained_value_is_the_expanded_one() {
    let config = read(SAMPLE);
    for v in config.variants() {
        let v = v.unwrap();
        let Explanation::Present(keys) = config.explain(v.name()).unwrap() else { panic!("{}", v.name()) };
        for (key, value, origin) in v.params() {
            let h = history(&keys, key);
            assert_eq!(h.value.as_deref(), Some(value), "{key}");
            let last = h.steps.last().unwrap();
            assert_eq!((last.value.as_deref(), last.line), (Some(value), origin.line), "{key}");
        }
    }
}

#[test]
fn one_variant_is_found_without_the_others() {
    let config = read(SAMPLE);
    for v in config.variants() {
        let v = v.unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        v.write_json(&mut a);
        config.find(v.name()).unwrap().unwrap().write_json(&mut b);
        assert_eq!(String::from_utf8(a).unwrap(), String::from_utf8(b).unwrap());
    }
    assert!(config.find("tcp.(os=windows)").unwrap().is_none());
    let config = read("variants:\n  - one:\n  - two:\njoin one two\n");
    assert_eq!(config.find("one.two").unwrap().unwrap().name(), "one.two");
    assert!(config.find("one").unwrap().is_none());
}

#[test]
fn a_missing_name_names_the_line_that_removed_it() {
    let config = read(SAMPLE);
    let Explanation::Removed(lines) = config.explain("tcp.(os=windows)").unwrap() else { panic!() };
    assert_eq!((lines[0].text.as_str(), lines[0].file.as_str(), lines[0].line), ("no tcp", "m.cfg", 8));
    let Explanation::Removed(lines) = config.explain("rdma.(os=windows)").unwrap() else { panic!() };
    assert_eq!((lines[0].text.as_str(), lines[0].line), ("only linux", 17));
    let Explanation::Unknown { part, suggestion } = config.explain("rdmaa.(os=linux)").unwrap() else { panic!() };
    assert_eq!((part.as_deref(), suggestion.as_deref()), (Some("rdmaa"), Some("rdma")));
}

#[test]
fn every_part_of_a_joined_variant_is_explained() {
    let config = read(
        "k = 0\nvariants:\n  - one:\n      k = 1\n      m = 3\n      suffix _1\n  - two:\n      k = 2\n      m = 3\n      \
         suffix _2\njoin one two\nz = 1\none: z += 2\ndel m\n",
    );
    let Explanation::Present(keys) = config.explain("one.two").unwrap() else { panic!() };
    let lines = |key: &str| -> Vec<(u32, Option<&str>)> {
        history(&keys, key).steps.iter().map(|s| (s.line, s.part.as_deref())).collect()
    };
    assert_eq!(lines("k_1"), [(1, Some("one")), (4, Some("one"))]);
    assert_eq!(lines("k_2"), [(1, Some("two")), (8, Some("two"))]);
    // Equal values need no suffix, and both lines are told.
    assert_eq!(lines("m"), [(5, Some("one")), (9, Some("two"))]);
    // The later part wins.
    assert_eq!(lines("z"), [(12, Some("one")), (13, Some("one")), (12, Some("two"))]);
    assert_eq!(history(&keys, "z").value.as_deref(), Some("1"));
    assert!(matches!(config.explain("one").unwrap(), Explanation::Unknown { .. }));
    let values: Vec<(&str, Option<&str>)> = keys.iter().map(|k| (k.key.as_str(), k.value.as_deref())).collect();
    let variant = config.find("one.two").unwrap().unwrap();
    let params: Vec<(&str, Option<&str>)> = variant.params().map(|(k, v, _)| (k, Some(v))).collect();
    assert_eq!(values, params);
}

#[test]
fn a_name_that_a_bound_gives_is_found() {
    let config = read("variants:\n  - a:\n  - b:\n      x = 1\n      x_max = 7\n.*_max ?= 0\nname_fixed = ${name}!\n");
    let names: Vec<String> = config.names().map(Result::unwrap).collect();
    assert_eq!(names, ["a!", "b!"]);
    assert_eq!(config.find("b!").unwrap().unwrap().get("x"), Some("0"));
    assert!(config.find("b").unwrap().is_none());
    let Explanation::Present(keys) = config.explain("b!").unwrap() else { panic!() };
    let last = history(&keys, "x").steps.last().unwrap();
    assert_eq!((last.operator, last.value.as_deref(), last.line), ("_max", Some("0"), 6));
}

fn lint(text: &str) -> Vec<String> {
    let options = LintOptions { known_keys: Some(vec!["mem".into(), "used".into()]), ..LintOptions::default() };
    read(text).lint(&options).iter().map(ToString::to_string).collect()
}

#[test]
fn lint_finds_each_kind_of_mistake() {
    let found = lint(
        "\
used = ${mem} ${memm}
mem = 1
usde = 2
variants:
    - fedora:
    - rhel:
    - rhel:
variants:
    - tcp.fast:
    - rdma:
fedroa: x_vm1 = 1
only fedora, fast.tcp
no (os=rhel)
del missing
",
    );
    for want in [
        "m.cfg:1: note: nothing ever sets memm",
        "m.cfg:3: warning: nothing reads the key usde\n  = used is read",
        "m.cfg:7: warning: the variant rhel stands twice in its set; m.cfg:6 is shadowed",
        "m.cfg:11: warning: no variant is called fedroa, so this condition never changes\n  = there is fedora",
        "m.cfg:12: note: fast is never directly followed by tcp\n  = they stand the other way round: tcp.fast",
        "m.cfg:13: warning: no variant is called (os=rhel), so this line removes nothing\n  = there is rhel",
        "m.cfg:14: warning: nothing ever sets missing",
    ] {
        assert!(found.iter().any(|f| f.starts_with(want)), "{want}\n---\n{}", found.join("\n"));
    }
    assert_eq!(lint("used = 1\nmem = ${used}\nvariants:\n - a:\n - b:\nonly a\n"), Vec::<String>::new());
}

#[test]
fn lint_names_the_line_that_empties_a_result() {
    let text = "variants:\n - a:\n - b:\n    no p\nvariants:\n - p:\n - q:\nonly b\nno q\nonly p\n";
    let found = lint(text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("m.cfg:9: warning: no variant is left after 'no q'"), "{}", found[0]);
}

struct Below(std::path::PathBuf);

impl Source for Below {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        FsSource.read(&self.0.join(path).to_string_lossy())
    }
}

fn real_set(name: &str) -> Option<Config> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/cartesian").join(name);
    if !folder.is_dir() {
        eprintln!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(parse(&Below(folder), "input.cfg", &[], &Options::default()).unwrap())
}

fn assert_found(found: &[String], wanted: &[&str]) {
    for want in wanted {
        assert!(found.iter().any(|f| f.contains(want)), "{want}\n{}", found[..found.len().min(5)].join("\n"));
    }
}

/// Where the files of the tests and the programs that run them are known to disagree.
#[test]
fn real_sets_have_their_known_mistakes() {
    let Some(config) = real_set("large-multi-host") else { return };
    // What the programs read; the files set something else, or nothing reads it at all.
    let known = ["migrate_timeout", "max_mig_downtime", "mem", "vms", "type", "shell_port", "mig_timeout"];
    let options = LintOptions { known_keys: Some(known.map(str::to_owned).to_vec()), ..LintOptions::default() };
    let found: Vec<String> = config.lint(&options).iter().map(ToString::to_string).collect();
    assert_found(
        &found,
        &[
            // A filter by a set that was renamed since, and by a guest that is gone.
            "multi-host-tests.cfg:33: warning: no variant is called (booting_phase=after_login_vm), so this line removes everything",
            "multi-host-tests.cfg:52: warning",
            // Keys under another name than the one that is read.
            "subtests.cfg:44494: warning: nothing reads the key migration_timeout\n  = migrate_timeout is read",
            "subtests.cfg:44550: warning: nothing reads the key max_downtime\n  = max_mig_downtime is read",
            // An option without any effect.
            "subtests.cfg:44876: note: nothing reads the key attempts_timeout",
            // Names that are in every name together, but not side by side; and a processor that no set has.
            "timedrift is never directly followed by with_load, so this condition never changes\n  = if both shall be in the name anywhere, \
             write timedrift..with_load",
            "drive_mirror is never directly followed by with_powerdown, so this condition never changes",
            "HostCpuVendor is never directly followed by amd, so this line removes everything it concerns",
        ],
    );
    let name = config.names().next().unwrap().unwrap();
    let Explanation::Present(keys) = config.explain(&name).unwrap() else { panic!("{name}") };
    assert!(history(&keys, "mem").steps.last().is_some_and(|s| s.line > 0));
    let Explanation::Removed(lines) = config.explain(&name.replace("smp2", "up")).unwrap() else { panic!("{name}") };
    assert!(lines.iter().any(|l| l.text.contains("smp2")), "{lines:?}");
}

#[test]
fn names_in_the_wrong_order_are_told_from_names_that_are_gone() {
    let text = "variants:\n  - tcp:\n  - rdma:\nvariants:\n  - online:\n  - offline:\nvariants:\n  - login:\n";
    let found = lint(&format!("{text}only tcp.online, offline.rdma\nno login.tcp\nno login.gone\n"));
    assert_found(
        &found,
        &[
            "m.cfg:9: note: tcp is never directly followed by online\n  = they stand the other way round: online.tcp",
            "m.cfg:10: warning: login is never directly followed by tcp, so this line removes nothing\n  = if both shall be in \
             the name anywhere, write login..tcp",
            "m.cfg:11: note: no variant is called gone, so this line removes nothing",
        ],
    );
}
