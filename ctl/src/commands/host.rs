//! `host …`: what is shown of hosts, and what is changed about them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, HostDetail, HostRole, HostView},
    error::{ErrorCode, Exit, Report},
    ids::{Name, RequestId},
    membership::{Change, HostChange},
};

use super::{App, Code};
use crate::{
    args::{DrainArgs, HostVerb, Output, ReserveArgs},
    client::{Mesh, Need},
    suggest,
    ui::{
        report::unexpected,
        style::Style,
        table::Table,
        text::{bytes, date, natural, rfc3339, safe},
    },
};

pub(super) async fn host(app: &mut App, verb: HostVerb) -> Result<Code, Report> {
    match verb {
        HostVerb::List => list(app).await,
        HostVerb::Show { host } => show(app, &host).await,
        HostVerb::Inventory { host } => inventory(app, host).await,
        HostVerb::Cordon { host } => change(app, host, Change::Cordon).await,
        HostVerb::Uncordon { host } => change(app, host, Change::Uncordon).await,
        HostVerb::Drain(args) => drain(app, args).await,
        HostVerb::Label { host, labels } => change(app, host, Change::Label(labels.into_iter().collect())).await,
        HostVerb::Promote(args) => {
            let role = if args.witness { HostRole::Witness } else { HostRole::Voter };
            change(app, args.host, Change::Role(role)).await
        }
        HostVerb::Demote { host } => change(app, host, Change::Role(HostRole::Learner)).await,
        HostVerb::Remove { host } => change(app, host, Change::Remove).await,
        HostVerb::Reserve(ReserveArgs { host, time, reason }) => {
            let for_s = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            change(app, host, Change::Reserve { by: super::run::user(), reason, for_s }).await
        }
        HostVerb::Release { host } => change(app, host, Change::Release).await,
        HostVerb::Replace { old, new } => change(app, old, Change::Replace { by: new }).await,
    }
}

async fn change(app: &mut App, host: Name, what: Change) -> Result<Code, Report> {
    let steps = ask(app, &host, what).await?;
    Ok(app.steps("vtmesh/v1/host_change", "host", &json!(host), &steps))
}

async fn ask(app: &mut App, host: &Name, what: Change) -> Result<Vec<String>, Report> {
    let change = HostChange { request: RequestId::random(), host: host.clone(), what };
    match app.mesh.call(&AdminRequest::HostChange(change), Need::Decide).await? {
        AdminReply::Steps(steps) => Ok(steps),
        other => Err(unexpected("a change of a host", &other)),
    }
}

/// How often it is looked whether a host is idle.
const LOOK: Duration = Duration::from_millis(500);

/// Cases end in their own time; how long that is waited for is the user's to say.
async fn drain(app: &mut App, args: DrainArgs) -> Result<Code, Report> {
    let host = args.host;
    let mut steps = ask(app, &host, Change::Drain).await?;
    if !args.no_wait {
        await_idle(app, &host).await?;
        steps.push(format!("{host} is idle"));
    }
    Ok(app.steps("vtmesh/v1/host_change", "host", &json!(host), &steps))
}

async fn await_idle(app: &mut App, host: &Name) -> Result<(), Report> {
    let mut last = None;
    loop {
        let busy = match app.mesh.call(&AdminRequest::Status, Need::Read).await? {
            AdminReply::Status(status) => status.hosts.iter().find(|view| view.name == *host).and_then(busy),
            other => return Err(unexpected("status", &other)),
        };
        let Some(busy) = busy else { return Ok(()) };
        if app.mesh.until().is_some_and(|until| Instant::now() + LOOK >= until) {
            return Err(Report::new(ErrorCode::DeadlinePassed, format!("{host} is not idle yet"))
                .with("host", busy)
                .help(format!("vtctl host drain {host}   (waits on)"))
                .help("vtctl job list   (shows what runs; vtctl job cancel ends it)"));
        }
        if last.as_ref() != Some(&busy) {
            app.ui.note(format_args!("waiting: {host} {busy}"));
            last = Some(busy);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a host has to do; none for one that is idle.
fn busy(view: &HostView) -> Option<String> {
    match (view.attempt, view.vms) {
        (None, 0) => None,
        (None, vms) => Some(format!("owns {vms} VMs")),
        (Some(attempt), vms) => Some(format!("serves attempt {attempt} with {vms} VMs")),
    }
}

async fn list(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let Some(status) = &reached.status else {
        return Err(Report::new(ErrorCode::NoQuorum, "the daemon that answers does not know the cluster's state")
            .with("asked", reached.place.to_string()));
    };
    let mut hosts = status.hosts.clone();
    hosts.sort_by(|a, b| natural(a.name.as_str(), b.name.as_str()));
    let names = hosts.iter().map(|host| host.name.to_string()).collect();
    app.list("vtmesh/v1/hosts", "hosts", hosts.iter().map(json).collect(), names, || {
        table(&hosts, app.ui.output == Output::Wide, app.ui.out).render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

/// Hosts as a table; `wide` adds addresses, labels and ids.
pub(super) fn table(hosts: &[HostView], wide: bool, style: Style) -> Table {
    let mut headers = vec!["HOST", "ROLE", "STATE", ">LAG", ">VMS", "ATTEMPT", "VERSION"];
    if wide {
        headers.extend(["ADDRESS", "LABELS", "ID"]);
    }
    let mut table = Table::new(&headers);
    for host in hosts {
        let role = if host.leader { "leader" } else { role(host.role) };
        let lag = host.lag.map_or_else(|| style.unknown().to_owned(), |lag| lag.to_string());
        let attempt = host.attempt.map_or_else(|| "free".to_owned(), |attempt| attempt.to_string());
        let mut row = vec![host.name.to_string(), role.to_owned(), state(host), lag];
        row.extend([host.vms.to_string(), attempt, safe(&host.build)]);
        if wide {
            let labels: Vec<String> = host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
            row.extend([addresses.join(" "), safe(&labels.join(" ")), host.id.to_string()]);
        }
        table.row(row);
    }
    table
}

/// Whether it answers, and whether cases may begin on it.
fn state(host: &HostView) -> String {
    let cordoned = if host.cordoned { ", cordoned" } else { "" };
    let reserved = match &host.reserved {
        Some(hold) => {
            format!(", reserved by {} until {}", safe(&hold.by), date(hold.until_unix_s.saturating_mul(1000)))
        }
        None => String::new(),
    };
    format!("{}{cordoned}{reserved}", safe(&host.state))
}

pub(super) fn role(role: HostRole) -> &'static str {
    match role {
        HostRole::Voter => "voter",
        HostRole::Learner => "learner",
        HostRole::Witness => "witness",
    }
}

pub(super) fn json(host: &HostView) -> Value {
    json!({
        "id": host.id.to_string(),
        "name": host.name,
        "role": role(host.role),
        "leader": host.leader,
        "state": host.state,
        "addresses": host.addresses,
        "labels": host.labels,
        "build": host.build,
        "attempt": host.attempt.map(|attempt| attempt.to_string()),
        "vms": host.vms,
        "lag": host.lag,
        "cordoned": host.cordoned,
        "reserved": host.reserved.as_ref().map(|hold| json!({
            "by": hold.by,
            "reason": hold.reason,
            "until": rfc3339(hold.until_unix_s.saturating_mul(1000)),
        })),
    })
}

/// No host is called so: which there are, and which may have been meant.
pub(crate) fn unknown(name: &str, hosts: &[HostView]) -> Report {
    let mut names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    names.sort_by(|a, b| natural(a, b));
    let report =
        Report::new(ErrorCode::UnknownHost, format!("no host is called {name:?}")).with("hosts", names.join(" "));
    match suggest::close(name, names.iter().copied()).first() {
        Some(close) => report.help(format!("did you mean {close}?")),
        None => report.help("vtctl host list"),
    }
}

async fn show(app: &mut App, name: &Name) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    if let Some(status) = &reached.status
        && !status.hosts.iter().any(|host| host.name == *name)
    {
        return Err(unknown(name.as_str(), &status.hosts));
    }
    let detail = match app.mesh.call(&AdminRequest::HostShow(name.clone()), Need::Read).await? {
        AdminReply::Host(detail) => *detail,
        other => return Err(unexpected("host show", &other)),
    };
    match app.ui.output {
        Output::Table | Output::Wide => app.ui.raw(&text(&detail, app.ui.out)),
        Output::Json | Output::Jsonl => app.ui.json(&detail_json(&detail)),
        Output::Name => app.ui.line(&detail.view.name),
    }
    Ok(app.read_from(&reached))
}

fn text(detail: &HostDetail, style: Style) -> String {
    let view = &detail.view;
    let unknown = style.unknown().to_owned();
    let role = if view.leader { format!("{}, leads", role(view.role)) } else { role(view.role).to_owned() };
    let labels: Vec<String> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        ("name", view.name.to_string()),
        ("id", view.id.to_string()),
        ("role", role),
        ("state", state(view)),
        ("address", addresses.join(" ")),
        ("labels", if labels.is_empty() { unknown.clone() } else { labels.join(" ") }),
        ("serves", view.attempt.map_or_else(|| "nothing".to_owned(), |attempt| format!("attempt {attempt}"))),
        ("vms", view.vms.to_string()),
        ("lag", view.lag.map_or(unknown, |lag| format!("{lag} entries"))),
        ("session", format!("epoch {}", detail.session)),
    ];
    if !detail.times_ms.is_empty() {
        let times: Vec<String> = detail.times_ms.iter().map(|(name, ms)| format!("{name} {ms} ms")).collect();
        lines.push(("times", times.join(", ")));
    }
    match &detail.facts {
        None => lines.push(("facts", "the host does not answer".to_owned())),
        Some(facts) => {
            lines.push(("version", facts.build.clone()));
            lines.push(("kind", facts.kind.clone()));
            lines.push(("system", format!("{}, kernel {}", facts.os, facts.kernel)));
            lines.push(("cpu", format!("{} × {}", facts.cpus, facts.cpu_model)));
            let machine = match facts.hypervisor.as_str() {
                "none" => "no VM".to_owned(),
                maker => format!("a VM of {maker}"),
            };
            lines.push(("machine", format!("{machine}; for VMs its CPU has {}", facts.cpu_virtualisation)));
            lines.push(("boot id", facts.boot_id.clone()));
            lines.push(("memory", bytes(facts.memory_bytes)));
            if facts.qemus.is_empty() {
                lines.push(("qemu", "not found".to_owned()));
            }
            for qemu in &facts.qemus {
                let accelerator = format!("{:?}", qemu.accelerator).to_lowercase();
                lines.push(("qemu", format!("{}: {} at {}", qemu.name, qemu.version, qemu.path)));
                lines.push(("accelerator", format!("{accelerator}: {}", qemu.accelerator_reason)));
            }
            let shared = if facts.pool.shared { "shared by all hosts" } else { "of this host alone" };
            lines.push(("pool", format!("{}, {shared}", facts.pool.path)));
            lines.push((
                "images",
                if facts.pool.images.is_empty() { "none".into() } else { facts.pool.images.join(" ") },
            ));
        }
    }
    let mut text = String::new();
    for (key, value) in lines {
        text.push_str(format!("{key:<12}{}", safe(&value)).trim_end());
        text.push('\n');
    }
    text
}

fn detail_json(detail: &HostDetail) -> Value {
    let mut value = json(&detail.view);
    value["schema"] = json!("vtmesh/v1/host");
    value["session_epoch"] = json!(detail.session.0);
    value["times_ms"] = json!(detail.times_ms.iter().cloned().collect::<std::collections::BTreeMap<_, _>>());
    value["facts"] = detail.facts.as_ref().map_or(Value::Null, |facts| {
        json!({
            "build": facts.build,
            "kernel": facts.kernel,
            "boot_id": facts.boot_id,
            "os": facts.os,
            "cpu_model": facts.cpu_model,
            "cpus": facts.cpus,
            "memory_bytes": facts.memory_bytes,
            "kind": facts.kind,
            "qemu": facts.qemus.first(),
            "qemus": facts.qemus,
            "pool": facts.pool,
            "hypervisor": facts.hypervisor,
            "cpu_virtualisation": facts.cpu_virtualisation,
        })
    });
    value
}

/// A host's inventory is its own knowledge: the host itself is asked, over its socket.
async fn inventory(app: &mut App, host: Option<Name>) -> Result<Code, Report> {
    let mut mesh = match &host {
        None => app.mesh.only(&app.mesh.places()[0].clone()),
        Some(host) => own(app, host).await?,
    };
    let lines = match mesh.call(&AdminRequest::Inventory, Need::Any).await? {
        AdminReply::Inventory(lines) => lines,
        other => return Err(unexpected("inventory", &other)),
    };
    match app.ui.output {
        Output::Json => app.ui.json(&json!({"schema": "vtmesh/v1/inventory", "host": host, "things": lines})),
        Output::Jsonl => lines.iter().for_each(|line| app.ui.json(&json!({"thing": line}))),
        Output::Table | Output::Wide | Output::Name => lines.iter().for_each(|line| app.ui.line(safe(line))),
    }
    Ok(Exit::Ok.into())
}

/// The daemon of one host: its socket in a lab, or the one that says it is that host.
async fn own(app: &mut App, host: &Name) -> Result<Mesh, Report> {
    if let Some(place) = app.mesh.places().iter().find(|place| place.host.as_ref() == Some(host)) {
        return Ok(app.mesh.only(place));
    }
    let mut answered = Vec::new();
    for place in app.mesh.places().to_vec() {
        let mut mesh = app.mesh.only(&place);
        if let Ok(AdminReply::Hello(hello)) = mesh.call(&AdminRequest::Hello, Need::Any).await {
            if hello.host.as_ref() == Some(host) {
                return Ok(mesh);
            }
            answered.extend(hello.host.map(|name| name.to_string()));
        }
    }
    let report = Report::new(ErrorCode::UnknownHost, format!("the daemon of {host} is not among those that are asked"));
    let report = if answered.is_empty() { report } else { report.with("answered", answered.join(" ")) };
    Err(report.help(format!("run it on {host}, or with --endpoint and the address of {host}")))
}

#[cfg(test)]
mod tests {
    use super::{super::cluster::tests::view, *};

    #[test]
    fn the_table_of_hosts() {
        let hosts = [view("host1", HostRole::Voter, "live"), view("host2", HostRole::Learner, "suspect")];
        assert_eq!(
            table(&hosts, false, Style::default()).render(None),
            "HOST   ROLE     STATE    LAG  VMS  ATTEMPT  VERSION\n\
             host1  leader   live       0    0  free     0.1.0\n\
             host2  learner  suspect    0    0  free     0.1.0\n"
        );
        let wide = table(&hosts, true, Style::default()).render(None);
        assert!(wide.contains("10.77.0.11:7465  nic=100g  hst_7"), "{wide}");
    }

    #[test]
    fn an_unknown_host_is_answered_with_those_there_are() {
        let hosts = [view("host10", HostRole::Voter, "live"), view("host2", HostRole::Voter, "live")];
        let report = unknown("hots2", &hosts);
        assert_eq!(report.evidence, [("hosts".to_owned(), "host2 host10".to_owned())]);
        assert_eq!(report.help, ["did you mean host2?"]);
        assert_eq!(unknown("nosuch", &hosts).help, ["vtctl host list"]);
    }

    #[test]
    fn a_host_that_does_not_answer_is_shown_without_facts() {
        let detail = HostDetail {
            view: view("host1", HostRole::Voter, "suspect"),
            facts: None,
            session: vt_protocol::ids::Epoch(9),
            times_ms: vec![("suspect".into(), 2000)],
        };
        let shown = text(&detail, Style::default());
        assert!(
            shown.contains("role        voter, leads\n") && shown.contains("facts       the host does not answer\n"),
            "{shown}"
        );
        let value = detail_json(&detail);
        assert_eq!((&value["facts"], &value["times_ms"]["suspect"]), (&Value::Null, &json!(2000)));
    }
}
