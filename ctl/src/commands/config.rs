//! `config contexts|use-context|remove-context|view|path`, and which context is meant.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;
use vt_protocol::{
    enroll::enroll,
    error::{ErrorCode, Exit, Report},
    identity::{PrivateKey, Subject, store, subject::role_name},
    ids::Name,
    token::Token,
};

use super::{Code, cluster::read_token};
use crate::{
    args::{ConfigVerb, Globals, Output, UseContextArgs},
    contexts::{Context, Contexts},
    ui::{
        Ui,
        report::usage,
        table::Table,
        text::{date, now_ms, rfc3339, safe},
    },
};

/// How long a token may take to become an identity where `--timeout` says nothing.
const JOINS: Duration = Duration::from_secs(60);

/// The client's file, as the environment says where it is.
///
/// # Errors
/// There is no place for it, or it cannot be understood.
pub(super) fn load() -> Result<Contexts, Report> {
    Contexts::load(&path()?)
}

fn path() -> Result<PathBuf, Report> {
    Contexts::path_of(|name| std::env::var(name).ok()).ok_or_else(|| {
        usage("it is not known where the settings of vtctl are: neither HOME nor XDG_CONFIG_HOME is set")
            .help("set VTCTL_CONFIG to a file")
    })
}

pub(super) async fn config(globals: &Globals, ui: &Ui, verb: ConfigVerb) -> Result<Code, Report> {
    match verb {
        ConfigVerb::Path => {
            let path = path()?;
            match ui.output {
                Output::Json | Output::Jsonl => {
                    ui.json(&json!({"schema": "vtmesh/v1/config_path", "path": path, "exists": path.exists()}));
                }
                _ => ui.line(path.display()),
            }
        }
        ConfigVerb::Contexts => contexts(ui, &load()?),
        ConfigVerb::View => view(ui, &load()?),
        ConfigVerb::UseContext(args) => use_context(globals, ui, args).await?,
        ConfigVerb::RemoveContext { name } => {
            load()?.remove(&name)?;
            done(ui, "removed", &json!(name), format_args!("context {name} and its key are gone"));
        }
    }
    Ok(Exit::Ok.into())
}

/// What is known of the identity of a context without asking anyone.
struct Known {
    who: String,
    role: String,
    until_s: Option<u64>,
    trouble: Option<String>,
}

fn known(contexts: &Contexts, context: &Context) -> Known {
    let none = "—".to_owned();
    match store::load_client(&contexts.identity_dir(context)) {
        Ok(identity) => {
            let facts = identity.facts();
            let (who, role) = match &facts.subject {
                Subject::Client { name, role, .. } => (name.to_string(), role_name(*role).to_owned()),
                Subject::Host { .. } => (none.clone(), none),
            };
            let over = facts.out_of_date(now_ms() / 1000).then(|| "expired".to_owned());
            Known { who, role, until_s: Some(facts.not_after), trouble: over }
        }
        Err(error) => Known { who: none.clone(), role: none, until_s: None, trouble: Some(error.to_string()) },
    }
}

fn contexts(ui: &Ui, contexts: &Contexts) {
    let all: Vec<(&Name, &Context, Known)> =
        contexts.all().map(|(name, context)| (name, context, known(contexts, context))).collect();
    let items: Vec<Value> = all
        .iter()
        .map(|(name, context, known)| {
            json!({
                "name": name,
                "current": contexts.current() == Some(*name),
                "endpoints": context.endpoints,
                "identity": context.identity,
                "client": known.who,
                "role": known.role,
                "valid_until": known.until_s.map(|until| rfc3339(until.saturating_mul(1000))),
                "trouble": known.trouble,
            })
        })
        .collect();
    let names: Vec<String> = all.iter().map(|(name, ..)| name.to_string()).collect();
    ui.list("vtmesh/v1/contexts", "contexts", &items, &names, || {
        let mut table = Table::new(&["", "CONTEXT", "CLIENT", "ROLE", "VALID UNTIL", "ENDPOINTS"]);
        for (name, context, known) in &all {
            let current = if contexts.current() == Some(*name) { "*" } else { "" };
            let until = known.until_s.map_or_else(|| "—".to_owned(), |until| date(until.saturating_mul(1000)));
            let until = match &known.trouble {
                Some(trouble) if known.until_s.is_some() => format!("{until} ({trouble})"),
                Some(trouble) => safe(trouble),
                None => until,
            };
            let endpoints = context.endpoints.iter().map(|word| safe(word)).collect::<Vec<_>>().join(",");
            table.row([current.to_owned(), name.to_string(), known.who.clone(), known.role.clone(), until, endpoints]);
        }
        table.render(ui.width)
    });
}

fn view(ui: &Ui, contexts: &Contexts) {
    let all: serde_json::Map<String, Value> = contexts
        .all()
        .map(|(name, context)| {
            let dir = contexts.identity_dir(context);
            (name.to_string(), json!({"endpoints": context.endpoints, "identity": context.identity, "folder": dir}))
        })
        .collect();
    match ui.output {
        Output::Table | Output::Wide | Output::Name => {
            ui.line(format_args!("# {}", contexts.path().display()));
            if let Some(current) = contexts.current() {
                ui.line(format_args!("current = \"{current}\""));
            }
            for (name, context) in contexts.all() {
                ui.line(format_args!("[context.{name}]"));
                ui.line(format_args!("endpoints = {}", json!(context.endpoints)));
                ui.line(format_args!("identity = {}", json!(context.identity)));
            }
        }
        Output::Json | Output::Jsonl => ui.json(&json!({
            "schema": "vtmesh/v1/config",
            "path": contexts.path(),
            "current": contexts.current(),
            "contexts": all,
        })),
    }
}

async fn use_context(globals: &Globals, ui: &Ui, args: UseContextArgs) -> Result<(), Report> {
    let mut contexts = load()?;
    let token = match (&args.join, &args.join_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => {
            contexts.make_current(args.name.as_ref())?;
            match &args.name {
                Some(name) => done(ui, "current", &json!(name), format_args!("context {name} is current")),
                None => done(ui, "current", &Value::Null, format_args!("no context is current")),
            }
            note_lab(ui);
            return Ok(());
        }
    };
    let token: Token = token.parse().map_err(|error: vt_protocol::token::TokenError| error.report())?;
    let wish = args.wish.map_or_else(user, Ok)?;
    let key = PrivateKey::generate()
        .map_err(|error| Report::new(ErrorCode::Internal, "a key could not be made").caused_by(&error))?;
    let by = Instant::now() + globals.timeout.unwrap_or(JOINS);
    let (identity, enrolled) = enroll(&token, key, &wish, by).await.map_err(|error| error.report())?;
    let name = args.name.unwrap_or_else(|| enrolled.cluster_name.clone());
    let endpoints: Vec<String> = enrolled.endpoints.iter().map(ToString::to_string).collect();
    contexts.keep(&name, &identity, &enrolled.name, &endpoints)?;
    let until_ms = enrolled.until_unix_s.saturating_mul(1000);
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&json!({
            "schema": "vtmesh/v1/context",
            "name": name,
            "cluster": enrolled.cluster.to_string(),
            "client": enrolled.name,
            "role": role_name(enrolled.role),
            "valid_until": rfc3339(until_ms),
            "ca_fingerprint": token.ca.to_string(),
            "endpoints": endpoints,
        })),
        Output::Name => ui.line(&name),
        Output::Table | Output::Wide => {
            let (client, role) = (&enrolled.name, role_name(enrolled.role));
            ui.line(format_args!("context {name} is current: client {client}, role {role}, until {}", date(until_ms)));
            ui.line(format_args!("CA BLAKE3 {}", token.ca));
            ui.note("try: vtctl status");
        }
    }
    note_lab(ui);
    Ok(())
}

/// A lab of this machine comes before a context, so that a command meant for the lab never reaches a real cluster.
fn note_lab(ui: &Ui) {
    if crate::lab::current_sockets(None).is_ok_and(|sockets| !sockets.is_empty()) {
        ui.note("note: a lab is up on this machine and is meant first; --context NAME means the context all the same");
    }
}

fn done(ui: &Ui, key: &str, value: &Value, text: std::fmt::Arguments<'_>) {
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&json!({"schema": "vtmesh/v1/done", key: value})),
        _ => ui.line(text),
    }
}

/// The name of the user, as far as it can be one here.
fn user() -> Result<Name, Report> {
    let set = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let known = || nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let user = set("USER").or_else(|| set("LOGNAME")).or_else(known).unwrap_or_default();
    user.to_lowercase().parse().map_err(|_| {
        usage(format!("{:?} cannot be the name of a client", safe(&user)))
            .help("vtctl config use-context --join TOKEN --as NAME")
    })
}
