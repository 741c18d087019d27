//! `scenario list|show`.

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Exit, Report},
    job::ScenarioInfo,
};

use super::{App, Code};
use crate::{
    args::{Output, ScenarioVerb},
    client::{Mesh, Need},
    suggest,
    ui::{
        report::unexpected,
        table::Table,
        text::{natural, safe},
    },
};

pub(super) async fn scenario(app: &mut App, verb: ScenarioVerb) -> Result<Code, Report> {
    let scenarios = all(&mut app.mesh).await?;
    match verb {
        ScenarioVerb::List => {
            let names = scenarios.iter().map(|scenario| scenario.name.clone()).collect();
            app.list("vtmesh/v1/scenarios", "scenarios", scenarios.iter().map(json).collect(), names, || {
                let mut table = Table::new(&["SCENARIO", ">HOSTS", "SUMMARY"]);
                for scenario in &scenarios {
                    table.row([safe(&scenario.name), scenario.hosts.to_string(), safe(&scenario.summary)]);
                }
                table.render(app.ui.width)
            });
        }
        ScenarioVerb::Show { scenario } => {
            let info = find(&scenarios, &scenario)?;
            match app.ui.output {
                Output::Table | Output::Wide => app.ui.raw(&text(info, app.ui.width)),
                Output::Json | Output::Jsonl => {
                    let mut value = json(info);
                    value["schema"] = json!("vtmesh/v1/scenario");
                    app.ui.json(&value);
                }
                Output::Name => app.ui.line(&info.name),
            }
        }
    }
    Ok(Exit::Ok.into())
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

/// The one of this name; else an error with those there are and what may have been meant.
pub(crate) fn find<'a>(scenarios: &'a [ScenarioInfo], name: &str) -> Result<&'a ScenarioInfo, Report> {
    if let Some(info) = scenarios.iter().find(|scenario| scenario.name == name) {
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

fn text(info: &ScenarioInfo, width: Option<usize>) -> String {
    let mut table = Table::new(&["PARAMETER", "DEFAULT", "MEANING"]);
    for (key, default, meaning) in &info.params {
        table.row([safe(key), safe(default), safe(meaning)]);
    }
    let params = if info.params.is_empty() { "It takes no parameters.\n".to_owned() } else { table.render(width) };
    let hosts: Vec<String> = (1..=info.hosts).map(|n| format!("host{n}")).collect();
    format!(
        "{}: {}\nIt takes {} a case:  vtctl run {} -m {}\n\n{params}",
        safe(&info.name),
        safe(&info.summary),
        crate::ui::text::count(hosts.len(), "host"),
        safe(&info.name),
        hosts.join(","),
    )
}

fn json(info: &ScenarioInfo) -> Value {
    let params =
        info.params.iter().map(|(key, default, meaning)| json!({"key": key, "default": default, "meaning": meaning}));
    json!({
        "name": info.name,
        "summary": info.summary,
        "hosts": info.hosts,
        "params": params.collect::<Vec<_>>(),
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
        };
        assert_eq!(
            text(&info, None),
            "uptime: boot, log in, run a command\nIt takes 1 host a case:  vtctl run uptime -m host1\n\n\
             PARAMETER  DEFAULT  MEANING\nmem        256M     RAM of the guest\n"
        );
        assert_eq!(json(&info)["params"][0]["key"], "mem");
        let report = find(&[info], "uptme").unwrap_err();
        assert_eq!((report.code, report.help), (ErrorCode::UnknownScenario, vec!["did you mean uptime?".to_owned()]));
    }
}
