//! `vtctl cfg expand` and `vtctl variants …` as a user calls them, on the cases of the language crate.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn cases() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cfg/testdata")
}

fn vtctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtctl")).args(args).current_dir(cases()).output().unwrap()
}

fn out(args: &[&str]) -> String {
    let got = vtctl(args);
    assert!(got.status.success(), "{args:?}: {}", String::from_utf8_lossy(&got.stderr));
    String::from_utf8(got.stdout).unwrap()
}

#[test]
fn expand_prints_one_object_a_line() {
    let text = out(&["cfg", "expand", "--json", "ok/nested-names.cfg"]);
    let got: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let want: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(cases().join("ok/nested-names.json")).unwrap()).unwrap();
    // The file maps name the file the way it was called; both are base names.
    assert_eq!(got, want);
}

#[test]
fn expand_takes_statements_and_defaults_in_any_order() {
    let text = out(&["cfg", "expand", "ok/defaults-on.cfg", "only d", "--defaults", "--expand", "w, v"]);
    assert_eq!(text.lines().count(), 4, "{text}");
    let text = out(&["cfg", "expand", "--defaults", "ok/defaults-on.cfg"]);
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn mistakes_are_shown_with_place_and_mark_and_exit_3() {
    let got = vtctl(&["cfg", "expand", "--json", "err/variant-names.cfg"]);
    let err = String::from_utf8(got.stderr).unwrap();
    assert_eq!(got.status.code(), Some(3), "{err}");
    for want in ["err/variant-names.cfg:2:6", "err/variant-names.cfg:6:6", "has 5 mistakes", "help: "] {
        assert!(err.contains(want), "{want}: {err}");
    }
    let got = vtctl(&["cfg", "expand", "err/expand-bounds.cfg"]);
    let err = String::from_utf8(got.stderr).unwrap();
    assert!(got.status.code() == Some(0) && err.is_empty(), "names need no values: {err}");
    let got = vtctl(&["cfg", "expand", "--json", "err/expand-bounds.cfg"]);
    let err = String::from_utf8(got.stderr).unwrap();
    assert!(got.status.code() == Some(3) && err.contains("err/expand-bounds.cfg:2"), "{err}");
    let got = vtctl(&["cfg", "expand", "nowhere.cfg"]);
    assert!(got.status.code() == Some(3) && String::from_utf8_lossy(&got.stderr).contains("nowhere.cfg"));
}

#[test]
fn variants_are_listed_and_counted() {
    let all = ["-c", "ok/filter-named.cfg"];
    assert_eq!(out(&["variants", "list", all[0], all[1]]).lines().count(), 2);
    assert_eq!(out(&["variants", "count", all[0], all[1]]), "2\n");
    let one = out(&["variants", "list", all[0], all[1], "--no", "(os=linux)..(host=linux)"]);
    assert_eq!(one, "(host=linux).(os=windows)\n");
    let json: Value = serde_json::from_str(&out(&["variants", "list", all[0], all[1], "-o", "json"])).unwrap();
    assert_eq!(json["variants"].as_array().unwrap().len(), 2);
    let empty = vtctl(&["variants", "list", all[0], all[1], "--only", "bsd", "-o", "json"]);
    let json: Value = serde_json::from_slice(&empty.stdout).unwrap();
    assert_eq!(json["variants"], Value::Array(Vec::new()));
    let err = String::from_utf8(empty.stderr).unwrap();
    assert!(err.contains("only bsd (<string>:1)"), "{err}");
}

#[test]
fn one_variant_is_shown_as_a_host_sees_it() {
    let base = ["variants", "show", "-c", "ok/single.cfg", "", "-p", "mem=1", "-p", "mem_host1=2"];
    assert!(out(&base).contains("mem = 1\n"));
    let mut host = base.to_vec();
    host.extend(["--host", "host1"]);
    assert!(out(&host).contains("mem = 2\n"));
    // A filter that leaves one variant names it.
    let text = out(&["variants", "show", "-c", "ok/operators.cfg", "y", "-o", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["name"], &json["params"]["key"]), (&Value::from("y"), &Value::from("abc")));
    let got = vtctl(&["variants", "show", "-c", "ok/filter-named.cfg", "linux"]);
    let err = String::from_utf8(got.stderr).unwrap();
    assert!(got.status.code() == Some(2) && err.contains("more than one"), "{err}");
}

#[test]
fn explain_tells_the_winner_and_the_line_that_removed() {
    let text = out(&["variants", "explain", "-c", "ok/conditions.cfg", "q.a", "x"]);
    for want in ["x = 1\n", "(ok/conditions.cfg:1)\n", "(ok/conditions.cfg:2, under a (ok/conditions.cfg:2))  <- won"] {
        assert!(text.contains(want), "{want}: {text}");
    }
    let text = out(&["variants", "explain", "-c", "ok/filters.cfg", "r.a"]);
    assert!(text.contains("removed by") && text.contains("no r (ok/filters.cfg:3)"), "{text}");
    let got = vtctl(&["variants", "explain", "-c", "ok/filters.cfg", "x.y"]);
    assert_eq!(got.status.code(), Some(4));
}

#[test]
fn lint_points_at_lines() {
    let text = out(&["variants", "lint", "-c", "ok/filters.cfg", "--only", "aa"]);
    assert!(text.contains("ok/filters.cfg:7:9") && text.contains("no variant is called d"), "{text}");
    assert!(text.contains("warning: no variant is left after 'only aa'"), "{text}");
}
