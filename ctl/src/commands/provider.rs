//! `provider list|sync|export`.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use vt_protocol::error::{ErrorCode, Exit, Report};

use super::Code;
use crate::{
    args::{Output, ProviderVerb, ProvidersArgs, SetArgs},
    providers::{self, Definition, Providers},
    ui::{Ui, style::Symbol, table::Table, text::safe},
};

/// How long the tree of one provider may take to come, where `--timeout` does not say.
const SYNC_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn provider(ui: &Ui, verb: ProviderVerb, limit: Option<Duration>) -> Result<Code, Report> {
    match verb {
        ProviderVerb::List(from) => show(ui, &providers::providers(&from)?),
        ProviderVerb::Sync { names, from } => sync(ui, &names, &from, limit.unwrap_or(SYNC_LIMIT)).await?,
        ProviderVerb::Export { folder, set } => export(ui, &folder, &set)?,
    }
    Ok(Exit::Ok.into())
}

fn show(ui: &Ui, all: &Providers) {
    let state = |definition: &Definition| if all.tree_of(definition).is_dir() { "here" } else { "missing" };
    let sections = |definition: &Definition| definition.offers.iter().map(|offer| offer.section.clone()).collect();
    let items = all.definitions().iter().map(|definition| {
        json!({
            "name": definition.name,
            "uri": definition.uri_text(),
            "for": sections(definition),
            "state": state(definition),
            "tree": all.tree_of(definition),
            "defined_in": definition.file,
        })
    });
    let names: Vec<String> = all.definitions().iter().map(|definition| definition.name.clone()).collect();
    ui.list("vtmesh/v1/providers", "providers", &items.collect::<Vec<_>>(), &names, || {
        let mut table = Table::new(&["PROVIDER", "TESTS", "FOR", "URI"]);
        for definition in all.definitions() {
            let sections: Vec<String> = sections(definition);
            table.row([
                safe(&definition.name),
                state(definition).to_owned(),
                sections.join(" "),
                safe(&definition.uri_text()),
            ]);
        }
        table.render(ui.width)
    });
}

async fn sync(ui: &Ui, names: &[String], from: &ProvidersArgs, limit: Duration) -> Result<(), Report> {
    let all = providers::providers(from)?;
    let trees = from.trees.clone().unwrap_or_else(providers::default_trees);
    let chosen: Vec<&Definition> = if names.is_empty() {
        all.definitions().iter().filter(|definition| definition.is_git()).collect()
    } else {
        names.iter().map(|name| all.definition(name)).collect::<Result<_, _>>()?
    };
    let mut done = Vec::new();
    for definition in chosen {
        ui.note(format_args!("  {} {} from {}", ui.err.symbol(Symbol::Dot), definition.name, definition.uri_text()));
        let commit = providers::sync(definition, &trees, limit).await?;
        if ui.human() {
            ui.line(format_args!("{} is at {commit} in {}", definition.name, all.tree_of(definition).display()));
        }
        done.push((definition, commit));
    }
    match ui.output {
        Output::Json | Output::Jsonl => {
            let items: Vec<Value> = done
                .iter()
                .map(|(definition, commit)| {
                    json!({"name": definition.name, "commit": commit, "tree": all.tree_of(definition)})
                })
                .collect();
            ui.json(&json!({"schema": "vtmesh/v1/provider_sync", "providers": items}));
        }
        Output::Name => done.iter().for_each(|(definition, _)| ui.line(&definition.name)),
        Output::Table | Output::Wide => {}
    }
    Ok(())
}

fn export(ui: &Ui, folder: &Path, set: &SetArgs) -> Result<(), Report> {
    let assembly = providers::assemble(set)?;
    let failed = |path: &Path| {
        let title = format!("{} cannot be written", path.display());
        move |error: std::io::Error| Report::new(ErrorCode::StorageFailed, title).with("system", error.to_string())
    };
    // A folder that is there may hold somebody's own files.
    fs::create_dir(folder).map_err(failed(folder))?;
    let mut names = Vec::new();
    for (name, text) in assembly.files() {
        let path = folder.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
        names.push(name);
    }
    match ui.output {
        Output::Json | Output::Jsonl => {
            ui.json(&json!({"schema": "vtmesh/v1/provider_export", "folder": folder, "files": names}));
        }
        Output::Name => names.iter().for_each(|name| ui.line(safe(name))),
        Output::Table | Output::Wide => {
            let count = crate::ui::text::count(names.len(), "file");
            ui.line(format_args!("{count} of {} in {}", assembly.backend(), folder.display()));
        }
    }
    Ok(())
}
