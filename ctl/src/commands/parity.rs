//! `scenario parity`: what would become of every variant of a configuration, by the code that decides it when a job is taken.
//! `scenario params`: who reads the keys of configurations.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{Exit, Report},
    ids::Name,
    job::{CaseFate, CaseStateView, Fate, KeyInfo, Plan, PlannedCase},
};

use super::{App, Code, chosen, job, scenario};
use crate::{
    args::{KeysArgs, Output, ParityArgs},
    client::Need,
    job::matrix::Expanded,
    ui::{
        report::{unexpected, usage},
        table::Table,
        text::{count, safe},
    },
};

/// One variant of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    variant: String,
    scenario: String,
    /// `runs`, `same`, `skip` or `refused`.
    fate: &'static str,
    /// Why, or which variant is the same.
    note: String,
    /// What a job made of it.
    verdict: Option<String>,
}

/// `scenario parity`.
pub(super) async fn parity(app: &mut App, args: &ParityArgs) -> Result<Code, Report> {
    let expanded = chosen::expand(&app.ui, &args.from)?;
    let scenarios = scenario::all(&mut app.mesh).await?;
    let hosts_of = |kind: Option<&str>| {
        let info = scenarios.iter().find(|info| kind.is_some_and(|kind| info.is_called(kind)));
        info.map_or(2, |info| info.hosts)
    };
    let case = |(number, head): (u32, &crate::job::matrix::Head)| PlannedCase {
        name: head.name.clone(),
        hosts: places(hosts_of(head.kind.as_deref())),
        variant: Some(number),
        ..PlannedCase::default()
    };
    let plan = Plan {
        cases: (0..).zip(&expanded.variants).map(case).collect(),
        matrix: Some(expanded.packed.clone()),
        ..Plan::default()
    };
    plan.encode()?;
    let fates = match app.mesh.call(&AdminRequest::PlanCheck(Box::new(plan)), Need::Read).await? {
        AdminReply::Fates(fates) => fates,
        other => return Err(unexpected("scenario parity", &other)),
    };
    let verdicts = match args.job {
        Some(which) => verdicts(app, which).await?,
        None => BTreeMap::new(),
    };
    let rows = rows(&expanded, fates, &verdicts);
    show(app, args, &rows);
    Ok(Exit::Ok.into())
}

/// host1, host2, …: nothing is asked of them.
fn places(count: u32) -> Vec<Name> {
    (1..=count).filter_map(|n| format!("host{n}").parse().ok()).collect()
}

/// Verdicts of a job by the names of its variants; of several cases of one the worst.
async fn verdicts(app: &mut App, which: crate::args::WhichJob) -> Result<BTreeMap<String, String>, Report> {
    let mut verdicts = BTreeMap::new();
    let id = job::id_of(app, which).await?;
    for case in job::ask(app, id).await?.cases {
        let CaseStateView::Done { verdict, .. } = case.state else { continue };
        let worst = verdicts.entry(case.name).or_insert(verdict);
        *worst = verdict.max(*worst);
    }
    Ok(verdicts.into_iter().map(|(name, verdict)| (name, verdict.to_string())).collect())
}

fn rows(expanded: &Expanded, fates: Vec<CaseFate>, verdicts: &BTreeMap<String, String>) -> Vec<Row> {
    let name_of = |index: u32| {
        let place = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
        place.and_then(|place| expanded.variants.get(place)).map_or("", |head| head.name.as_str())
    };
    let row = |(head, CaseFate { scenario, fate }): (&crate::job::matrix::Head, CaseFate)| {
        let (fate, note) = match fate {
            Fate::Runs => ("runs", String::new()),
            Fate::Same(index) => ("same", format!("the same test as {}", name_of(index))),
            Fate::Skipped(report) => ("skip", report.title),
            Fate::Refused(report) => ("refused", report.title),
        };
        Row { variant: head.name.clone(), scenario, fate, note, verdict: verdicts.get(&head.name).cloned() }
    };
    expanded.variants.iter().zip(fates).map(row).collect()
}

fn show(app: &App, args: &ParityArgs, rows: &[Row]) {
    let counts = tally(rows.iter().map(|row| row.fate));
    let with_job = args.job.is_some();
    match app.ui.output {
        Output::Json => {
            let variants: Vec<Value> = rows.iter().map(json_of).collect();
            app.ui.json(&json!({"schema": "vtmesh/v1/parity", "counts": counts, "variants": variants}));
        }
        Output::Jsonl => rows.iter().for_each(|row| app.ui.json(&json_of(row))),
        Output::Name => rows.iter().for_each(|row| app.ui.line(safe(&row.variant))),
        Output::Table | Output::Wide if args.markdown => {
            app.ui.raw(&markdown(rows, with_job));
        }
        Output::Table | Output::Wide => {
            let headers: &[&str] = if with_job {
                &["VARIANT", "FATE", "VERDICT", "SCENARIO", "NOTE"]
            } else {
                &["VARIANT", "FATE", "SCENARIO", "NOTE"]
            };
            let mut table = Table::new(headers);
            rows.iter().for_each(|row| table.row(cells(row, with_job)));
            app.ui.raw(&table.render(app.ui.width));
        }
    }
    if app.ui.human() {
        let words: Vec<String> = counts.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
        app.ui.note(format_args!("{}: {}", count(rows.len(), "variant"), words.join(", ")));
        let judged = tally(rows.iter().filter_map(|row| row.verdict.as_deref()));
        if !judged.is_empty() {
            let words: Vec<String> = judged.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
            app.ui.note(format_args!("in the job: {}", words.join(", ")));
        }
    }
}

fn tally<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

fn cells(row: &Row, with_job: bool) -> Vec<String> {
    let mut cells = vec![safe(&row.variant), row.fate.to_owned()];
    if with_job {
        cells.push(row.verdict.clone().unwrap_or_else(|| "-".to_owned()));
    }
    cells.extend([safe(&row.scenario), safe(&row.note)]);
    cells
}

fn markdown(rows: &[Row], with_job: bool) -> String {
    let (verdict, line) = if with_job { (" Verdict |", "---|") } else { ("", "") };
    let mut text = format!("| Variant | Fate |{verdict} Scenario | Note |\n|---|---|{line}---|---|\n");
    for row in rows {
        let cells: Vec<String> = cells(row, with_job).into_iter().map(|cell| cell.replace('|', "\\|")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn json_of(row: &Row) -> Value {
    json!({
        "variant": row.variant,
        "fate": row.fate,
        "scenario": row.scenario,
        "note": row.note,
        "verdict": row.verdict,
    })
}

/// `scenario params`.
pub(super) async fn params(app: &mut App, args: &KeysArgs) -> Result<Code, Report> {
    let keys = keys(app).await?;
    let wanted: Vec<&KeyInfo> = match &args.key {
        Some(key) => keys.iter().filter(|info| info.key == *key).collect(),
        None => keys.iter().filter(|info| !args.without_effect || info.without_effect.is_some()).collect(),
    };
    if let (Some(key), true) = (&args.key, wanted.is_empty()) {
        let report = usage(format!("nothing is known of a key {key:?}"));
        let close = crate::suggest::close(key, keys.iter().map(|info| info.key.as_str()));
        return Err(match close.first() {
            Some(close) => report.help(format!("vtctl scenario params {close}")),
            None => report.help("vtctl scenario params"),
        });
    }
    let items: Vec<Value> = wanted.iter().map(|info| json!(info)).collect();
    let names: Vec<String> = wanted.iter().map(|info| info.key.clone()).collect();
    let width = app.ui.width;
    let few = args.key.is_some() || app.ui.output == Output::Wide;
    app.list("vtmesh/v1/keys", "keys", items, names, || {
        let mut table = Table::new(&["KEY", "READ BY", "MEANING, OR WHY IT IS WITHOUT EFFECT"]);
        wanted.iter().for_each(|info| table.row(key_cells(info, few)));
        table.render(if few { None } else { width })
    });
    let without = wanted.iter().filter(|info| info.without_effect.is_some()).count();
    app.ui.note(format_args!("{}, {without} of them without effect", count(wanted.len(), "key")));
    Ok(Exit::Ok.into())
}

fn key_cells(info: &KeyInfo, few: bool) -> [String; 3] {
    let read_by = match info.read_by.as_slice() {
        [] => "-".to_owned(),
        [one, two, rest @ ..] if rest.len() > 1 && !few => format!("{one}, {two} and {} more", rest.len()),
        all => all.join(", "),
    };
    [info.key.clone(), read_by, info.without_effect.clone().unwrap_or_else(|| info.meaning.clone())]
}

/// What the daemons know of keys.
pub(super) async fn keys(app: &mut App) -> Result<Vec<KeyInfo>, Report> {
    match app.mesh.call(&AdminRequest::KeyList, Need::Read).await? {
        AdminReply::Keys(keys) => Ok(keys),
        other => Err(unexpected("scenario params", &other)),
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::{error::ErrorCode, matrix::MatrixBuilder};

    use super::*;
    use crate::job::matrix::Head;

    #[test]
    fn every_variant_has_a_row_that_says_what_becomes_of_it() {
        let head = |name: &str| Head { name: name.into(), kind: None, parents: vec![] };
        let variants = ["a", "b", "c", "d|e"].map(head).into();
        let expanded = Expanded { packed: MatrixBuilder::new().pack().unwrap(), variants, keys: BTreeMap::new() };
        let fate = |fate| CaseFate { scenario: "s".into(), fate };
        let skipped = Report::new(ErrorCode::CannotRunHere, "type = floppy: no drive");
        let refused = Report::new(ErrorCode::BadParameter, "mem is no size");
        let fates =
            vec![fate(Fate::Runs), fate(Fate::Same(1)), fate(Fate::Skipped(skipped)), fate(Fate::Refused(refused))];
        let verdicts = BTreeMap::from([("a".to_owned(), "PASS".to_owned())]);
        let rows = rows(&expanded, fates, &verdicts);
        let text = markdown(&rows, true);
        assert_eq!(
            text.lines().skip(2).collect::<Vec<_>>(),
            [
                "| a | runs | PASS | s |  |",
                "| b | same | - | s | the same test as a |",
                "| c | skip | - | s | type = floppy: no drive |",
                "| d\\|e | refused | - | s | mem is no size |",
            ]
        );
        assert_eq!(tally(rows.iter().map(|row| row.fate)).len(), 4);
    }
}
