//! Scenarios in files: read here, understood by a daemon, mistakes shown at their places.

use std::{fs::File, io::Read};

use serde_json::{Value, json};
use vt_cfg::{Diagnostic, Severity};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Exit, Report},
    params::Params,
    scenario::{Mistake, SCENARIO_FILE_MAX, ScenarioCheck, ScenarioChecked, ScenarioText},
};

use super::{App, Code, cfg::refused};
use crate::{
    args::{Output, ScenarioCheckArgs},
    job::plan,
    ui::{
        Ui,
        report::unexpected,
        table::Table,
        text::{count, safe},
    },
};

/// Whether a word means a file and no scenario's name: those have no dot and no slash.
pub(super) fn is_file(word: &str) -> bool {
    word.contains(['.', '/'])
}

/// Reads a file.
pub(super) fn read(file: &str) -> Result<ScenarioText, Report> {
    let bad = |why: String| {
        Report::new(ErrorCode::BadConfig, format!("the scenario {file} cannot be read")).with("reason", why)
    };
    let mut bytes = Vec::new();
    let cap = SCENARIO_FILE_MAX as u64;
    File::open(file)
        .and_then(|open| open.take(cap + 1).read_to_end(&mut bytes))
        .map_err(|error| bad(error.to_string()).help("vtctl scenario list   (shows those without a file)"))?;
    if bytes.len() as u64 > cap {
        return Err(bad(format!("it has more than {} KiB", cap >> 10)));
    }
    let text = String::from_utf8(bytes).map_err(|_| bad("it is no text in UTF-8".to_owned()))?;
    Ok(ScenarioText { file: file.to_owned(), text })
}

/// Has a daemon check a file. Mistakes are shown, and the report says how many there are.
pub(super) async fn checked(
    app: &mut App,
    scenario: &ScenarioText,
    params: Params,
    hosts: u32,
) -> Result<ScenarioChecked, Report> {
    let check = ScenarioCheck { scenario: scenario.clone(), params, hosts };
    let request = AdminRequest::ScenarioCheck(check);
    match app.mesh.call(&request, crate::client::Need::Read).await? {
        AdminReply::ScenarioChecked(checked) if checked.mistakes.is_empty() => Ok(*checked),
        AdminReply::ScenarioChecked(checked) => {
            let mistakes: Vec<Diagnostic> =
                checked.mistakes.into_iter().map(|mistake| placed(scenario, mistake)).collect();
            Err(refused(&app.ui, &scenario.file, &mistakes))
        }
        other => Err(unexpected("scenario check", &other)),
    }
}

/// A mistake with its line.
fn placed(scenario: &ScenarioText, mistake: Mistake) -> Diagnostic {
    let Mistake { line, column, length, message, hint } = mistake;
    let text = usize::try_from(line).ok().and_then(|line| scenario.text.lines().nth(line.checked_sub(1)?));
    Diagnostic {
        file: scenario.file.clone(),
        line,
        column,
        length,
        // A tab is one character there as well.
        text: text.unwrap_or_default().replace('\t', " "),
        message,
        hint,
        severity: Severity::Error,
    }
}

/// `scenario check FILE`.
pub(super) async fn check(app: &mut App, args: &ScenarioCheckArgs) -> Result<Code, Report> {
    let text = read(&args.file)?;
    let checked = checked(app, &text, plan::params(&args.params), args.hosts.unwrap_or(0)).await?;
    let name = checked.info.as_ref().map_or("", |info| &info.name);
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&document(&text.file, &checked)),
        Output::Name => app.ui.line(safe(name)),
        Output::Table | Output::Wide => {
            app.ui.line(format_args!("{}: {} is right, {}", safe(&text.file), safe(name), steps(&checked)));
        }
    }
    Ok(Exit::Ok.into())
}

/// `scenario show FILE`.
pub(super) async fn show(app: &mut App, file: &str) -> Result<Code, Report> {
    let text = read(file)?;
    let checked = checked(app, &text, Params::new(), 0).await?;
    let Some(info) = &checked.info else { return Err(Report::new(ErrorCode::BadConfig, "the file says nothing")) };
    match app.ui.output {
        Output::Table | Output::Wide => {
            app.ui.raw(&super::scenario::text(info, file, app.ui.width));
            app.ui.raw(&format!("\n{}", table(&checked, &app.ui)));
        }
        Output::Json | Output::Jsonl => app.ui.json(&document(file, &checked)),
        Output::Name => app.ui.line(safe(&info.name)),
    }
    Ok(Exit::Ok.into())
}

fn steps(checked: &ScenarioChecked) -> String {
    format!(
        "{} of {}",
        count(checked.steps.len(), "step"),
        checked
            .info
            .as_ref()
            .map_or_else(String::new, |info| { count(usize::try_from(info.hosts).unwrap_or(0), "host") })
    )
}

fn table(checked: &ScenarioChecked, ui: &Ui) -> String {
    let mut table = Table::new(&[">LINE", "WHAT IS DONE"]);
    for step in &checked.steps {
        table.row([step.line.to_string(), safe(&step.text)]);
    }
    table.render(ui.width)
}

fn document(file: &str, checked: &ScenarioChecked) -> Value {
    let mut value = checked.info.as_ref().map_or_else(|| json!({}), super::scenario::json);
    value["schema"] = json!("vtmesh/v1/scenario");
    value["file"] = json!(file);
    value["timeout_ms"] = json!(checked.timeout_ms);
    value["steps"] = checked.steps.iter().map(|step| json!({"line": step.line, "does": step.text})).collect();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_at_its_place() {
        let scenario = ScenarioText { file: "cut.scenario".into(), text: "name = 'x'\n\tdo = \"mvoe\"\n".into() };
        let mistake =
            Mistake { line: 2, column: 7, length: 6, message: "no such verb".into(), hint: Some("move?".into()) };
        let shown = super::super::cfg::shown(false, true, &placed(&scenario, mistake));
        assert!(shown.contains("cut.scenario:2:7") && shown.contains("^^^^^^") && shown.contains("move?"), "{shown}");
    }

    #[test]
    fn names_of_scenarios_are_no_files() {
        for (word, file) in [("uptime", false), ("x.scenario", true), ("./uptime", true), ("a/b", true)] {
            assert_eq!(is_file(word), file, "{word}");
        }
        assert_eq!(read("/nonexistent.scenario").unwrap_err().code, ErrorCode::BadConfig);
    }
}
