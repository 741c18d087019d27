//! `scenario list|show|check|parity|params`.

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Exit, Report},
    job::ScenarioInfo,
};

use super::{App, Code, parity, scenario_file};
use crate::{
    args::{Output, ScenarioVerb, SetArgs},
    client::{Mesh, Need},
    providers::{self, Test},
    suggest,
    ui::{
        Ui,
        report::unexpected,
        table::Table,
        text::{count, natural, safe, wrapped},
    },
};

pub(super) async fn scenario(app: &mut App, verb: ScenarioVerb) -> Result<Code, Report> {
    match verb {
        ScenarioVerb::List { set } => {
            // What can be wrong without asking anybody comes first.
            let tests = tests(&set)?;
            let scenarios = all(&mut app.mesh).await?;
            list(&app.ui, &scenarios, &tests, set.from.providers.is_some());
        }
        ScenarioVerb::Parity(args) => return parity::parity(app, &args).await,
        ScenarioVerb::Params(args) => return parity::params(app, &args).await,
        ScenarioVerb::Check(args) => return scenario_file::check(app, &args).await,
        ScenarioVerb::Show { scenario, set } if scenario_file::is_file(&scenario) && set.from.providers.is_none() => {
            return scenario_file::show(app, &scenario).await;
        }
        ScenarioVerb::Show { scenario, set } => {
            let tests = tests(&set)?;
            let scenarios = all(&mut app.mesh).await?;
            let test = tests.iter().find(|test| scenario == test.name || scenario == full_name(test));
            match test.filter(|_| scenarios.iter().all(|known| known.name != scenario)) {
                Some(test) => show_test(&app.ui, &scenarios, test),
                None => show(&app.ui, find(&scenarios, &scenario)?),
            }
        }
    }
    Ok(Exit::Ok.into())
}

/// The tests of the set that is meant; none where none is.
fn tests(set: &SetArgs) -> Result<Vec<Test>, Report> {
    if set.from.providers.is_none() {
        return Ok(Vec::new());
    }
    Ok(Test::all(&providers::assemble(set)?)?)
}

fn list(ui: &Ui, scenarios: &[ScenarioInfo], tests: &[Test], with_tests: bool) {
    let names = scenarios.iter().map(|scenario| scenario.name.clone()).chain(tests.iter().map(full_name));
    match ui.output {
        Output::Table | Output::Wide => {
            let mut table = Table::new(&["SCENARIO", ">HOSTS", "SUMMARY"]);
            for scenario in scenarios {
                table.row([safe(&scenario.name), scenario.hosts.to_string(), safe(&scenario.summary)]);
            }
            ui.raw(&table.render(ui.width));
            if with_tests {
                ui.raw(&format!("\n{}", table_of_tests(scenarios, tests, ui.output == Output::Wide).render(ui.width)));
                let here = tests.iter().filter(|test| !scenarios_of(scenarios, test).is_empty()).count();
                ui.note(format_args!("{} of providers, {here} with a scenario here", count(tests.len(), "test")));
            }
        }
        Output::Json => {
            let scenarios_json: Vec<Value> = scenarios.iter().map(json).collect();
            let mut value = json!({"schema": "vtmesh/v1/scenarios", "scenarios": scenarios_json});
            if with_tests {
                value["tests"] = tests.iter().map(|test| test_json(scenarios, test)).collect();
            }
            ui.json(&value);
        }
        Output::Jsonl => {
            scenarios
                .iter()
                .map(json)
                .chain(tests.iter().map(|test| test_json(scenarios, test)))
                .for_each(|v| ui.json(&v));
        }
        Output::Name => names.for_each(|name| ui.line(safe(&name))),
    }
}

fn table_of_tests(scenarios: &[ScenarioInfo], tests: &[Test], all_types: bool) -> Table {
    let mut table = Table::new(&["TEST", "SCENARIO", "TYPE", "PROVIDER"]);
    for test in tests {
        let types = match test.types.as_slice() {
            [first, second, rest @ ..] if !rest.is_empty() && !all_types => {
                format!("{first} {second} and {} more", rest.len())
            }
            types => types.join(" "),
        };
        table.row([safe(&test.name), runs(scenarios, test), safe(&types), safe(&test.provider)]);
    }
    table
}

/// What runs a test, and how much of it where it is not all.
fn runs(scenarios: &[ScenarioInfo], test: &Test) -> String {
    let here = test.types.iter().filter(|kind| scenarios.iter().any(|scenario| scenario.is_called(kind))).count();
    let names = scenarios_of(scenarios, test).join(" ");
    match here {
        0 => "none".to_owned(),
        here if here == test.types.len() => names,
        here => format!("{names}, for {here} of {} types", test.types.len()),
    }
}

/// The scenarios that a test's types name, as far as they exist.
fn scenarios_of(scenarios: &[ScenarioInfo], test: &Test) -> Vec<String> {
    let named = scenarios.iter().filter(|scenario| test.types.iter().any(|kind| scenario.is_called(kind)));
    named.map(|scenario| scenario.name.clone()).collect()
}

/// As it begins the names of its variants.
fn full_name(test: &Test) -> String {
    format!("{}.{}", test.provider, test.name)
}

fn show_test(ui: &Ui, scenarios: &[ScenarioInfo], test: &Test) {
    match ui.output {
        Output::Table | Output::Wide => {
            let rows = [
                ("test", full_name(test)),
                ("type", test.types.join(" ")),
                ("scenario", format!("{}; variants of other types are skipped", runs(scenarios, test))),
                ("defined at", format!("{}:{}", test.file.display(), test.line)),
                ("variants", format!("vtctl variants list --only {}", full_name(test))),
            ];
            rows.iter().for_each(|(key, value)| ui.line(format_args!("{key:<11}{}", safe(value))));
        }
        Output::Json | Output::Jsonl => {
            let mut value = test_json(scenarios, test);
            value["schema"] = json!("vtmesh/v1/test");
            ui.json(&value);
        }
        Output::Name => ui.line(full_name(test)),
    }
}

fn test_json(scenarios: &[ScenarioInfo], test: &Test) -> Value {
    json!({
        "test": full_name(test),
        "provider": test.provider,
        "name": test.name,
        "types": test.types,
        "scenarios": scenarios_of(scenarios, test),
        "file": test.file,
        "line": test.line,
    })
}

fn show(ui: &Ui, info: &ScenarioInfo) {
    match ui.output {
        Output::Table | Output::Wide => ui.raw(&text(info, &info.name, ui.width)),
        Output::Json | Output::Jsonl => {
            let mut value = json(info);
            value["schema"] = json!("vtmesh/v1/scenario");
            ui.json(&value);
        }
        Output::Name => ui.line(&info.name),
    }
}

/// The scenarios that the daemon knows, in natural order.
pub(crate) async fn all(mesh: &mut Mesh) -> Result<Vec<ScenarioInfo>, Report> {
    match mesh.call(&AdminRequest::ScenarioList, Need::Read).await? {
        AdminReply::Scenarios(mut scenarios) => {
            scenarios.sort_by(|a, b| natural(&a.name, &b.name));
            Ok(scenarios)
        }
        other => Err(unexpected("scenario list", &other)),
    }
}

/// The one of this name, or of this `type`; else an error with those there are and what may have been meant.
pub(crate) fn find<'a>(scenarios: &'a [ScenarioInfo], name: &str) -> Result<&'a ScenarioInfo, Report> {
    let named = scenarios.iter().find(|scenario| scenario.name == name);
    if let Some(info) = named.or_else(|| scenarios.iter().find(|scenario| scenario.is_called(name))) {
        return Ok(info);
    }
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    let report = Report::new(ErrorCode::UnknownScenario, format!("no scenario is called {name:?}"))
        .with("scenarios", names.join(" "));
    Err(match suggest::close(name, names.iter().copied()).first() {
        Some(close) => report.help(format!("did you mean {close}?")),
        None => report.help("vtctl scenario list"),
    })
}

/// `typed` is how it is called in a command.
pub(super) fn text(info: &ScenarioInfo, typed: &str, width: Option<usize>) -> String {
    let mut table = Table::new(&["PARAMETER", "DEFAULT", "MEANING"]);
    for (key, default, meaning) in &info.params {
        table.row([safe(key), safe(default), safe(meaning)]);
    }
    let params = if info.params.is_empty() { "It takes no parameters.\n".to_owned() } else { table.render(width) };
    let hosts: Vec<String> = (1..=info.hosts).map(|n| format!("host{n}")).collect();
    let about = wrapped(&safe(&info.about), width.unwrap_or(100).clamp(40, 120));
    let called = match info.types.as_slice() {
        [] => String::new(),
        types => format!("In configurations: type = {}\n", safe(&types.join("; type = "))),
    };
    format!(
        "{}: {}\nIt takes {} a case:  vtctl run {} -m {}\n{called}\n{about}\n{params}",
        safe(&info.name),
        safe(&info.summary),
        count(hosts.len(), "host"),
        safe(typed),
        hosts.join(","),
    )
}

pub(super) fn json(info: &ScenarioInfo) -> Value {
    let params =
        info.params.iter().map(|(key, default, meaning)| json!({"key": key, "default": default, "meaning": meaning}));
    json!({
        "name": info.name,
        "summary": info.summary,
        "hosts": info.hosts,
        "params": params.collect::<Vec<_>>(),
        "types": info.types,
        "also_reads": info.also_reads,
        "about": info.about,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_shown_with_the_line_that_runs_it() {
        let info = ScenarioInfo {
            name: "uptime".into(),
            summary: "boot, log in, run a command".into(),
            hosts: 1,
            params: vec![("mem".into(), "256M".into(), "RAM of the guest".into())],
            types: vec!["boot".into(), "old with how = slow".into()],
            also_reads: vec![],
            about: "PASS: it runs.".into(),
        };
        assert_eq!(
            text(&info, "uptime", None),
            "uptime: boot, log in, run a command\nIt takes 1 host a case:  vtctl run uptime -m host1\n\
             In configurations: type = boot; type = old with how = slow\n\nPASS: it runs.\n\n\
             PARAMETER  DEFAULT  MEANING\nmem        256M     RAM of the guest\n"
        );
        assert_eq!(json(&info)["params"][0]["key"], "mem");
        assert_eq!(find(std::slice::from_ref(&info), "boot").unwrap().name, "uptime");
        let report = find(&[info], "uptme").unwrap_err();
        assert_eq!((report.code, report.help), (ErrorCode::UnknownScenario, vec!["did you mean uptime?".to_owned()]));
    }
}
