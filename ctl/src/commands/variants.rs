//! `variants …`: the test matrix of a configuration.

use std::{collections::BTreeMap, io::Write};

use serde_json::{Value, json};
use vt_cfg::{Condition, Config, Diagnostic, Explanation, KeyHistory, LintOptions, Removal, Severity, Variant};
use vt_protocol::{
    error::{ErrorCode, Exit, Report},
    job::KeyInfo,
    params::{Origin, Param, Params, for_host},
};

use super::{
    App, Code,
    cfg::{refused, shown},
    parity,
};
use crate::{
    args::{Output, Selection, VariantsVerb},
    providers::Selected,
    ui::{Ui, report::usage, table::Table, text::safe},
};

/// Last place of a host that `show --host` takes.
const HOST_MAX: usize = 1000;

pub(super) fn variants(ui: &Ui, verb: &VariantsVerb) -> Result<Code, Report> {
    match verb {
        VariantsVerb::List(from) => list(ui, from),
        VariantsVerb::Count(from) => count(ui, from),
        VariantsVerb::Show { name, host, from } => show(ui, from, name, host.as_deref()),
        VariantsVerb::Explain { name, key, from } => explain(ui, from, name, key.as_deref()),
        VariantsVerb::Lint { keys, warnings, from } => lint(ui, from, keys.then(Vec::new), *warnings),
    }
}

/// `variants lint --keys`: a daemon is asked what its scenarios read, and why nobody reads the rest.
pub(super) async fn lint_keys(app: &mut App, verb: &VariantsVerb) -> Result<Code, Report> {
    let VariantsVerb::Lint { warnings, from, .. } = verb else { return variants(&app.ui, verb) };
    let keys = match parity::keys(app).await {
        Ok(keys) => keys,
        Err(report) => {
            app.ui.note(format_args!(
                "note: what scenarios read is not known ({}), so keys that only they read are listed too",
                safe(&report.title)
            ));
            Vec::new()
        }
    };
    lint(&app.ui, from, Some(keys), *warnings)
}

/// A configuration with the files it was read from.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) files: Selected,
    pub(super) config: Config,
}

impl Opened {
    /// Shows a mistake that was found while expanding.
    pub(super) fn refused(&self, ui: &Ui, mistake: Diagnostic) -> Report {
        refused(ui, self.files.main(), &[self.files.placed(mistake)])
    }

    /// What became of a name, with all places on disk.
    fn explain(&self, name: &str) -> Result<Explanation, Diagnostic> {
        let mut explanation = self.config.explain(name)?;
        match &mut explanation {
            Explanation::Present(keys) => {
                for step in keys.iter_mut().flat_map(|key| &mut key.steps) {
                    (step.file, step.line) = self.files.place(&step.file, step.line);
                    self.place_conditions(&mut step.conditions);
                }
            }
            Explanation::Removed(lines) => lines.iter_mut().for_each(|line| self.place_removal(line)),
            Explanation::Unknown { .. } => {}
        }
        Ok(explanation)
    }

    /// The line that removed the last variants, where one did, with its place on disk.
    pub(super) fn emptied_by(&self) -> Result<Option<Removal>, Diagnostic> {
        let mut line = self.config.emptied_by()?;
        line.iter_mut().for_each(|line| self.place_removal(line));
        Ok(line)
    }

    fn place_removal(&self, line: &mut Removal) {
        (line.file, line.line) = self.files.place(&line.file, line.line);
        self.place_conditions(&mut line.conditions);
    }

    fn place_conditions(&self, conditions: &mut [Condition]) {
        for condition in conditions {
            (condition.file, condition.line) = self.files.place(&condition.file, condition.line);
        }
    }

    /// A variant's parameters with their places on disk.
    pub(super) fn params(&self, variant: &Variant<'_>) -> Params {
        let mut out = Params::new();
        for (key, value, origin) in variant.params() {
            let (file, line) = self.files.place(origin.file, origin.line);
            out.set(key, value, Origin { file, line });
        }
        out
    }
}

/// Reads the configuration that is meant. Mistakes are shown, and the report says how many there are.
pub(super) fn read(ui: &Ui, from: &Selection) -> Result<Opened, Report> {
    let files = Selected::new(&from.set, &from.guests, &from.config)?;
    match files.parse(&statements(from)?, &vt_cfg::Options::default()) {
        Ok(config) => Ok(Opened { files, config }),
        Err(mistakes) => Err(refused(ui, files.main(), &mistakes)),
    }
}

/// What the filters and parameters say, as statements of the language behind the last file's end.
fn statements(from: &Selection) -> Result<Vec<String>, Report> {
    let mut out: Vec<String> = from.only.iter().map(|filter| format!("only {filter}")).collect();
    out.extend(from.no.iter().map(|filter| format!("no {filter}")));
    out.extend(from.params.iter().map(|(key, value)| format!("{key} = {value}")));
    match out.iter().find(|text| text.contains(['\n', '\r'])) {
        Some(text) => Err(usage(format!("{text:?} has more than one line"))),
        None => Ok(out),
    }
}

fn list(ui: &Ui, from: &Selection) -> Result<Code, Report> {
    let opened = read(ui, from)?;
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let json = matches!(ui.output, Output::Json | Output::Jsonl);
    let whole = ui.output == Output::Json;
    let mut found = 0u64;
    let mut head = if whole { "{\"schema\":\"vtmesh/v1/variants\",\"variants\":[\n" } else { "" };
    for name in opened.config.names() {
        let name = name.map_err(|mistake| opened.refused(ui, mistake))?;
        let line = match (json, whole) {
            (false, _) => safe(&name),
            (true, true) => json!(name).to_string(),
            (true, false) => json!({"name": name}).to_string(),
        };
        let end = if whole { "" } else { "\n" };
        // A reader that went away has what it wanted.
        // The first one shows at once.
        if write!(out, "{head}{line}{end}").is_err() || found == 0 && out.flush().is_err() {
            return Ok(Exit::Ok.into());
        }
        head = if whole { ",\n" } else { "" };
        found += 1;
    }
    if whole {
        let opened = if found == 0 { head } else { "" };
        let _ = writeln!(out, "{opened}]}}");
    }
    let _ = out.flush();
    if found == 0 {
        ui.note("note: no variant is left");
        if let Ok(Some(line)) = opened.emptied_by() {
            ui.note(format_args!("the line that removed the last ones: {}", removed(&line)));
        }
    }
    Ok(Exit::Ok.into())
}

fn count(ui: &Ui, from: &Selection) -> Result<Code, Report> {
    let opened = read(ui, from)?;
    let count = opened.config.count().map_err(|mistake| opened.refused(ui, mistake))?;
    match ui.output {
        Output::Json | Output::Jsonl => {
            // Counts beyond 2^64 are possible and exact; JSON numbers are not.
            let count = u64::try_from(count).map_or_else(|_| json!(count.to_string()), |n| json!(n));
            ui.json(&json!({"schema": "vtmesh/v1/variant_count", "count": count}));
        }
        _ => ui.line(count),
    }
    Ok(Exit::Ok.into())
}

/// The full name that is meant: itself, or the one name a filter leaves.
fn resolve(ui: &Ui, from: &Selection, opened: &Opened, typed: &str) -> Result<String, Report> {
    let exact = opened.explain(typed).map_err(|mistake| opened.refused(ui, mistake))?;
    if !matches!(exact, Explanation::Unknown { .. }) {
        return Ok(typed.to_owned());
    }
    let mut narrowed = from.clone();
    narrowed.only.push(typed.to_owned());
    // What is no filter either is answered as a name.
    let Ok(texts) = statements(&narrowed) else { return Ok(typed.to_owned()) };
    let Ok(left) = opened.files.parse(&texts, &vt_cfg::Options::default()) else { return Ok(typed.to_owned()) };
    let names: Vec<String> = left.names().take(6).filter_map(Result::ok).collect();
    match names.as_slice() {
        [] => Ok(typed.to_owned()),
        [one] => Ok(one.clone()),
        many => {
            let report = usage(format!("{typed} matches more than one variant"));
            let report = many.iter().take(5).fold(report, |report, name| report.with("variant", name.as_str()));
            Err(report.help(format!("vtctl variants list{} --only '{typed}'", same_files(from))))
        }
    }
}

/// The flags that name the same files.
fn same_files(from: &Selection) -> String {
    from.config.iter().map(|file| format!(" -c {file}")).collect()
}

fn show(ui: &Ui, from: &Selection, typed: &str, host: Option<&str>) -> Result<Code, Report> {
    let opened = read(ui, from)?;
    let name = resolve(ui, from, &opened, typed)?;
    let Some(variant) = opened.config.find(&name).map_err(|mistake| opened.refused(ui, mistake))? else {
        return Err(absent(&opened, from, &name));
    };
    let mut params = opened.params(&variant);
    if let Some(host) = host {
        params = of_host(&params, host, &name)?;
    }
    let by_key: BTreeMap<&str, &Param> = params.iter().collect();
    match ui.output {
        Output::Json | Output::Jsonl => {
            let values: serde_json::Map<String, Value> =
                by_key.iter().map(|(key, p)| ((*key).to_owned(), json!(p.value))).collect();
            let origins: serde_json::Map<String, Value> =
                by_key.iter().map(|(key, p)| ((*key).to_owned(), json!(p.origin.to_string()))).collect();
            ui.json(&json!({
                "schema": "vtmesh/v1/variant",
                "name": variant.name(),
                "shortname": variant.short_name(),
                "dep": variant.dep(),
                "host": host,
                "params": values,
                "origins": origins,
            }));
        }
        Output::Name => by_key.keys().for_each(|key| ui.line(safe(key))),
        Output::Table => {
            by_key.iter().for_each(|(key, p)| ui.line(format_args!("{} = {}", safe(key), safe(&p.value))));
        }
        Output::Wide => {
            let mut table = Table::new(&["KEY", "VALUE", "SET AT"]);
            for (key, p) in &by_key {
                table.row([safe(key), safe(&p.value), p.origin.to_string()]);
            }
            ui.raw(&table.render(ui.width));
        }
    }
    Ok(Exit::Ok.into())
}

/// The parameters as one host of a run sees them. No hosts are chosen here, so they go by their places: host1, host2, …
fn of_host(params: &Params, host: &str, seed: &str) -> Result<Params, Report> {
    let place = host.strip_prefix("host").and_then(|place| place.parse::<usize>().ok());
    let Some(place) = place.filter(|place| (1..=HOST_MAX).contains(place)) else {
        return Err(usage(format!("{host:?} is no place in a run: host1 to host{HOST_MAX}"))
            .help("host1 is the first one after -m of `vtctl run`, whatever its name"));
    };
    let hosts: Vec<String> = (1..=place.max(2)).map(|n| format!("host{n}")).collect();
    Ok(for_host(params, &hosts, place - 1, seed))
}

fn absent(opened: &Opened, from: &Selection, name: &str) -> Report {
    let mut report = Report::new(ErrorCode::NoVariants, format!("there is no variant {name}"));
    match opened.explain(name) {
        Ok(Explanation::Removed(lines)) => {
            report = lines.iter().take(10).fold(report, |report, line| report.with("removed by", removed(line)));
        }
        Ok(Explanation::Unknown { part, suggestion }) => {
            if let Some(part) = part {
                report = report.with("unknown part", part);
            }
            if let Some(suggestion) = suggestion {
                report = report.with("perhaps", suggestion);
            }
        }
        _ => {}
    }
    report.help(format!("vtctl variants list{}", same_files(from)))
}

/// `only x (file:line), under y (file:line)`.
pub(super) fn removed(line: &Removal) -> String {
    format!("{} ({}:{}){}", line.text, line.file, line.line, under(&line.conditions))
}

fn under(conditions: &[Condition]) -> String {
    let shown: Vec<String> = conditions.iter().map(|c| format!("{} ({}:{})", c.text, c.file, c.line)).collect();
    if shown.is_empty() { String::new() } else { format!(", under {}", shown.join(" and ")) }
}

fn explain(ui: &Ui, from: &Selection, typed: &str, key: Option<&str>) -> Result<Code, Report> {
    let opened = read(ui, from)?;
    let name = resolve(ui, from, &opened, typed)?;
    let explained = opened.explain(&name).map_err(|mistake| opened.refused(ui, mistake))?;
    match explained {
        Explanation::Present(keys) => {
            let wanted: Vec<&KeyHistory> = keys.iter().filter(|k| key.is_none_or(|key| k.key == key)).collect();
            if let (Some(key), true) = (key, wanted.is_empty()) {
                return Err(usage(format!("{name} has no key {key}")).help("leave the key out to see all"));
            }
            if ui.human() {
                ui.line(format_args!("{}", safe(&name)));
                wanted.iter().for_each(|k| ui.raw(&history(k)));
            } else {
                let keys: Vec<Value> = wanted.iter().map(|k| history_json(k)).collect();
                match ui.output {
                    Output::Name => wanted.iter().for_each(|k| ui.line(safe(&k.key))),
                    _ => ui.json(&json!({"schema": "vtmesh/v1/explain", "name": name, "exists": true, "keys": keys})),
                }
            }
        }
        Explanation::Removed(lines) => {
            if ui.human() || ui.output == Output::Name {
                ui.line(format_args!("{} is not there: it was removed by", safe(&name)));
                lines.iter().for_each(|line| ui.line(format_args!("  {}", safe(&removed(line)))));
            } else {
                let lines: Vec<Value> = lines
                    .iter()
                    .map(|l| {
                        json!({"text": l.text, "file": l.file, "line": l.line, "conditions": conditions_json(&l.conditions)})
                    })
                    .collect();
                ui.json(&json!({"schema": "vtmesh/v1/explain", "name": name, "exists": false, "removed_by": lines}));
            }
        }
        Explanation::Unknown { .. } => return Err(absent(&opened, from, &name)),
    }
    Ok(Exit::Ok.into())
}

fn history(k: &KeyHistory) -> String {
    let value = k.value.as_deref().map_or_else(|| "(deleted)".to_owned(), |v| format!("= {}", safe(v)));
    let mut text = format!("{} {value}\n", safe(&k.key));
    let last = k.steps.len().saturating_sub(1);
    for (i, s) in k.steps.iter().enumerate() {
        let won = if i == last && last > 0 { "  <- won" } else { "" };
        let to = s.value.as_deref().map_or(String::new(), |v| format!(" {}", safe(v)));
        let part = s.part.as_ref().map_or(String::new(), |part| format!(", in {part}"));
        let line = format!("{}:{}{}{part}", s.file, s.line, under(&s.conditions));
        text.push_str(&format!("    {:<5}{to}  ({}){won}\n", s.operator, safe(&line)));
    }
    text
}

fn conditions_json(conditions: &[Condition]) -> Vec<Value> {
    conditions.iter().map(|c| json!({"text": c.text, "file": c.file, "line": c.line})).collect()
}

fn history_json(k: &KeyHistory) -> Value {
    let steps: Vec<Value> = k
        .steps
        .iter()
        .map(|s| {
            json!({
                "operator": s.operator,
                "value": s.value,
                "file": s.file,
                "line": s.line,
                "conditions": conditions_json(&s.conditions),
                "part": s.part,
            })
        })
        .collect();
    json!({"key": k.key, "value": k.value, "steps": steps})
}

/// `keys` are those that daemons know; without them unused keys are not looked for.
fn lint(ui: &Ui, from: &Selection, keys: Option<Vec<KeyInfo>>, warnings: bool) -> Result<Code, Report> {
    let opened = read(ui, from)?;
    let read = |keys: &Vec<KeyInfo>| {
        let read = keys.iter().filter(|info| info.without_effect.is_none()).map(|info| info.key.clone());
        read.chain(["type", "vms"].map(str::to_owned)).collect()
    };
    let known_keys = keys.as_ref().map(read);
    let without_effect = keys.into_iter().flatten().filter_map(|info| Some((info.key, info.without_effect?))).collect();
    let options = LintOptions { known_keys, without_effect };
    let mut found: Vec<Diagnostic> =
        opened.config.lint(&options).into_iter().map(|finding| opened.files.placed(finding)).collect();
    found.retain(|d| !warnings || d.severity > Severity::Note);
    match ui.output {
        Output::Json | Output::Jsonl => {
            let items: Vec<Value> = found.iter().map(finding).collect();
            if ui.output == Output::Json {
                ui.json(&json!({"schema": "vtmesh/v1/lint", "findings": items}));
            } else {
                items.iter().for_each(|item| ui.json(item));
            }
        }
        Output::Name => found.iter().for_each(|d| ui.line(format_args!("{}:{}", safe(&d.file), d.line))),
        Output::Table | Output::Wide => {
            found.iter().for_each(|d| ui.raw(&format!("{}\n\n", shown(ui.out.color, ui.out.ascii, d))));
            let serious = found.iter().filter(|d| d.severity > Severity::Note).count();
            ui.note(format_args!("{serious} warnings, {} notes", found.len() - serious));
        }
    }
    Ok(Exit::Ok.into())
}

fn finding(d: &Diagnostic) -> Value {
    json!({"severity": d.severity.to_string(), "file": d.file, "line": d.line, "message": d.message, "hint": d.hint})
}
