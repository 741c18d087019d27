//! Params against what Avocado-VT's own gave: the project's cases, and those of the shared corpus where it is present.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::path::Path;

use serde_json::{Value, json};
use vt_protocol::params::{Origin, Params};

#[test]
fn own_cases_give_what_the_reference_gave() {
    assert!(run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/params.json")) > 60);
}

#[test]
fn cases_of_the_corpus_give_what_the_reference_gave() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/cartesian/_params/cases.json");
    if !cases.exists() {
        eprintln!("skipped: the shared corpus is not at {}", cases.display());
        return;
    }
    assert!(run(&cases) > 60);
}

/// Runs all calls of a file and returns how many there were.
fn run(file: &Path) -> usize {
    let groups: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut calls = 0;
    for group in &groups {
        let mut params = Params::new();
        for (line, pair) in (1..).zip(group["params"].as_array().unwrap()) {
            let origin = Origin { file: "case.cfg".into(), line };
            params.set(pair[0].as_str().unwrap(), pair[1].as_str().unwrap(), origin);
        }
        for call in group["calls"].as_array().unwrap() {
            calls += 1;
            match (answer(&params, call), call.get("result")) {
                (Ok(found), Some(wanted)) => assert_eq!(&found, wanted, "{call}"),
                (Err(_), None) => assert!(call["error"].is_string(), "{call}"),
                (found, _) => panic!("{call} gave {found:?}"),
            }
        }
    }
    calls
}

/// What our method of the same meaning says. A missing key has the default that the call names.
fn answer(params: &Params, call: &Value) -> Result<Value, String> {
    let args = call["args"].as_array().unwrap();
    let text = |at: usize| args.get(at).and_then(Value::as_str);
    let key = text(0).unwrap_or_default();
    let kind = call["kwargs"]["target_type"].as_str();
    let default = |value: Value| args.get(1).cloned().unwrap_or(value);
    let mut filled = params.clone();
    if let (None, Some(default)) = (params.get(key), text(1)) {
        filled.set(key, default, Origin { file: "default".into(), line: 0 });
    }
    let error = |error: vt_protocol::params::ParamError| error.to_string();
    Ok(match call["method"].as_str().unwrap() {
        "getitem" => json!(params.required(key).map_err(|error| error.to_string())?),
        "get" => json!(filled.text(key)),
        "objects" => json!(params.objects(key)),
        "object_params" => plain(&params.object(key)),
        "object_params_chain" => {
            plain(&args.iter().fold(params.clone(), |view, name| view.object(name.as_str().unwrap())))
        }
        "object_counts" => json!(params.numbered(key, text(1).unwrap()).map_err(error)?),
        "copy_from_keys" => {
            let keys: Vec<&str> = args[0].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
            plain(&params.subset(&keys))
        }
        "get_boolean" => params.flag(key).map_err(error)?.map_or_else(|| default(json!(false)), Value::from),
        "get_numeric" if kind == Some("float") => {
            params.float(key).map_err(error)?.map_or_else(|| default(json!(0.0)), Value::from)
        }
        "get_numeric" => params.integer(key).map_err(error)?.map_or_else(|| default(json!(0)), Value::from),
        "get_list" if kind == Some("int") => {
            let numbers: Result<Vec<i64>, _> = filled.list(key, text(2)).into_iter().map(str::parse).collect();
            json!(numbers.map_err(|error| error.to_string())?)
        }
        "get_list" => json!(filled.list(key, text(2))),
        "get_dict" => {
            let pairs = filled.pairs(key, text(2)).map_err(error)?;
            pairs
                .into_iter()
                .map(|(name, value)| (name.to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        "drop_dict_internals" => plain(&params.public()),
        other => panic!("no method {other}"),
    })
}

fn plain(params: &Params) -> Value {
    params.iter().map(|(key, param)| (key.to_owned(), json!(param.value))).collect::<serde_json::Map<_, _>>().into()
}
