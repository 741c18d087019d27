//! `cluster access list|revoke` and `cluster audit`.

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    audit::{AuditEntry, AuditQuery, AuditTrail},
    error::{Exit, Report},
    identity::subject::role_name,
};

use super::{App, Code};
use crate::{
    args::{AccessVerb, AuditArgs, Output},
    client::Need,
    ui::{
        report::unexpected,
        table::Table,
        text::{count, date, escaped, now_ms, rfc3339},
    },
};

pub(super) async fn access(app: &mut App, verb: AccessVerb) -> Result<Code, Report> {
    match verb {
        AccessVerb::List => list(app).await,
        AccessVerb::Revoke { name } => {
            match app.mesh.call(&AdminRequest::AccessRevoke(name.clone()), Need::Decide).await? {
                AdminReply::Done => {}
                other => return Err(unexpected("access revoke", &other)),
            }
            match app.ui.output {
                Output::Json | Output::Jsonl => app.ui.json(&json!({"schema": "vtmesh/v1/done", "revoked": name})),
                _ => app.ui.line(format_args!("client {name} revoked")),
            }
            Ok(Exit::Ok.into())
        }
    }
}

async fn list(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let clients = match app.mesh.call(&AdminRequest::AccessList, Need::Read).await? {
        AdminReply::Access(clients) => clients,
        other => return Err(unexpected("access list", &other)),
    };
    let items = clients
        .iter()
        .map(|client| {
            json!({
                "name": client.name,
                "role": role_name(client.role),
                "valid_until": rfc3339(client.until_unix_s.saturating_mul(1000)),
                "key": client.key.to_string(),
                "admitted_with": client.admitted_with.to_string(),
            })
        })
        .collect();
    let names = clients.iter().map(|client| client.name.to_string()).collect();
    app.list("vtmesh/v1/clients", "clients", items, names, || {
        let mut table = Table::new(&["CLIENT", "ROLE", "VALID UNTIL", "ADMITTED WITH"]);
        for client in &clients {
            let until = client.until_unix_s.saturating_mul(1000);
            let over = if until < now_ms() { " (expired)" } else { "" };
            let (role, with) = (role_name(client.role).to_owned(), client.admitted_with.to_string());
            table.row([client.name.to_string(), role, format!("{}{over}", date(until)), with]);
        }
        table.render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

/// Shows the trail. Where a host did not answer, what it saw is missing: that is said, and the exit code tells it.
pub(super) async fn audit(app: &mut App, args: AuditArgs) -> Result<Code, Report> {
    let since = args.since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let since_unix_ms = if args.since.is_some() { now_ms().saturating_sub(since) } else { 0 };
    let query = AuditQuery { since_unix_ms, limit: args.limit, denied: args.denied };
    let AuditTrail { entries, missing } = match app.mesh.call(&AdminRequest::Audit(query), Need::Read).await? {
        AdminReply::Audit(trail) => trail,
        other => return Err(unexpected("audit", &other)),
    };
    match app.ui.output {
        Output::Json => app.ui.json(&json!({
            "schema": "vtmesh/v1/audit",
            "entries": entries.iter().map(json).collect::<Vec<_>>(),
            "missing": missing.iter().map(|(host, why)| json!({"host": host, "reason": why})).collect::<Vec<_>>(),
        })),
        Output::Jsonl => entries.iter().for_each(|entry| app.ui.json(&json(entry))),
        Output::Name => entries.iter().for_each(|entry| app.ui.line(escaped(&entry.verb))),
        Output::Table | Output::Wide => app.ui.raw(&table(&entries, app.ui.width)),
    }
    for (host, why) in &missing {
        app.ui.note(format_args!("{} did not answer ({}): what it saw is missing", escaped(host), escaped(why)));
    }
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::Partial }.into())
}

fn json(entry: &AuditEntry) -> serde_json::Value {
    json!({
        "at": rfc3339(entry.at_unix_ms),
        "host": entry.host,
        "who": entry.who,
        "from": entry.from,
        "verb": entry.verb,
        "object": entry.object,
        "outcome": entry.outcome.name(),
        "detail": entry.detail,
        "unwritten": entry.unwritten,
    })
}

fn table(entries: &[AuditEntry], width: Option<usize>) -> String {
    let mut table = Table::new(&["WHEN", "HOST", "WHO", "FROM", "VERB", "OBJECT", "OUTCOME", "DETAIL"]);
    for entry in entries {
        let detail = match usize::try_from(entry.unwritten).unwrap_or(usize::MAX) {
            0 => escaped(&entry.detail),
            n => format!("{} (after {} not written down)", escaped(&entry.detail), count(n, "refusal")),
        };
        table.row([
            date(entry.at_unix_ms),
            entry.host.to_string(),
            escaped(&entry.who),
            escaped(&entry.from),
            escaped(&entry.verb),
            escaped(&entry.object),
            entry.outcome.name().to_owned(),
            detail,
        ]);
    }
    table.render(width)
}
