//! `cluster init|join|leave|transfer|status`.

use std::io::Read;

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClusterStatus, HostRole, HostView, Init, Join, Joined},
    error::{Exit, Report},
    ids::{Name, RequestId},
    membership::Leave,
};

use super::{App, Code, access, authority, host, recovery, token};
use crate::{
    args::{ClusterVerb, InitArgs, JoinArgs, LeaveArgs, Output},
    client::{Mesh, Need},
    endpoint::{LOCAL_SOCKET, Way},
    exit,
    ui::{
        report::{unexpected, usage},
        style::{Style, Symbol},
        text::count,
    },
};

/// Most bytes of a file with a token.
const TOKEN_FILE_MAX: u64 = 64 << 10;

pub(super) async fn cluster(app: &mut App, verb: ClusterVerb) -> Result<Code, Report> {
    match verb {
        ClusterVerb::Init(args) => init(app, args).await,
        ClusterVerb::Join(args) => join(app, args).await,
        ClusterVerb::Status => status(app).await,
        ClusterVerb::Transfer { host } => transfer(app, host).await,
        ClusterVerb::Leave(args) => leave(app, args).await,
        ClusterVerb::Snapshot(verb) => recovery::snapshot(app, verb).await,
        ClusterVerb::Recover(args) => recovery::recover(app, args).await,
        ClusterVerb::Token(verb) => token::token(app, verb).await,
        ClusterVerb::Access(verb) => access::access(app, verb).await,
        ClusterVerb::Ca(verb) => authority::authority(app, verb).await,
        ClusterVerb::Audit(args) => access::audit(app, args).await,
    }
}

async fn init(app: &mut App, args: InitArgs) -> Result<Code, Report> {
    if args.role == crate::args::RoleArg::Learner {
        return Err(usage("a cluster's first host votes: its role is voter or witness"));
    }
    let request = AdminRequest::Init(Init {
        cluster: args.cluster,
        host: args.host,
        advertise: args.advertise,
        role: args.role.into(),
        labels: args.labels.into_iter().collect(),
    });
    let joined = claim(app, &request).await?;
    show_joined(app, &joined, "created", "vtmesh/v1/cluster_init");
    if app.ui.human() && !app.ui.quiet {
        app.ui.line("this host is the only voter: the cluster survives 0 failures\n");
        app.ui.line("On each other host run `vtctl cluster join TOKEN`, with a token of its own from\n  vtctl cluster token create");
    }
    Ok(Exit::Ok.into())
}

async fn join(app: &mut App, args: JoinArgs) -> Result<Code, Report> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => return Err(usage("no token was given")),
    };
    let request = AdminRequest::Join(Join {
        token: token.trim().to_owned(),
        host: args.host,
        advertise: args.advertise,
        role: args.role.into(),
        labels: args.labels.into_iter().collect(),
    });
    let joined = claim(app, &request).await?;
    show_joined(app, &joined, "joined", "vtmesh/v1/cluster_join");
    Ok(Exit::Ok.into())
}

pub(super) fn read_token(file: &std::path::Path) -> Result<String, Report> {
    let mut text = String::new();
    let read = if file == std::path::Path::new("-") {
        std::io::stdin().lock().take(TOKEN_FILE_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(TOKEN_FILE_MAX).read_to_string(&mut text))
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) => {
            Err(usage(format!("the token file {} cannot be read", file.display())).with("system", error.to_string()))
        }
    }
}

async fn claim(app: &App, request: &AdminRequest) -> Result<Joined, Report> {
    match own_daemon(app)?.call(request, Need::Any).await? {
        AdminReply::Joined(joined) => Ok(joined),
        other => Err(unexpected("init or join", &other)),
    }
}

async fn leave(app: &mut App, args: LeaveArgs) -> Result<Code, Report> {
    let request = AdminRequest::Leave(Leave { request: RequestId::random(), forget: args.forget });
    match own_daemon(app)?.call(&request, Need::Any).await? {
        AdminReply::Steps(steps) => Ok(app.steps("vtmesh/v1/cluster_leave", "host", &Value::Null, &steps)),
        other => Err(unexpected("cluster leave", &other)),
    }
}

async fn transfer(app: &mut App, host: Name) -> Result<Code, Report> {
    match app.mesh.call(&AdminRequest::TransferLeader(host.clone()), Need::Decide).await? {
        AdminReply::Steps(steps) => Ok(app.steps("vtmesh/v1/cluster_transfer", "leader", &json!(host), &steps)),
        other => Err(unexpected("cluster transfer", &other)),
    }
}

/// What is for the daemon of this very host: never for one of a lab that happens to be the current one.
pub(super) fn own_daemon(app: &App) -> Result<Mesh, Report> {
    let chosen = app.globals.endpoint.is_some() || std::env::var_os("VTCTL_ENDPOINT").is_some();
    let place = match app.mesh.places() {
        [place] if chosen => place.clone(),
        _ if chosen => return Err(usage("this is for the daemon of one host: name one socket")),
        _ => crate::endpoint::Place { host: None, way: Way::Socket(LOCAL_SOCKET.into()) },
    };
    if matches!(place.way, Way::Address(_)) {
        return Err(usage("this goes over the socket of the host's own daemon")
            .help("run vtctl on that host: it finds /run/vtmesh/vtd.sock"));
    }
    Ok(app.mesh.only(&place))
}

pub(super) fn show_joined(app: &App, joined: &Joined, done: &str, schema: &str) {
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&json!({
            "schema": schema,
            "cluster": joined.cluster.to_string(),
            "name": joined.name,
            "host": joined.host_name,
            "host_id": joined.host.to_string(),
            "ca_fingerprint": joined.ca_fingerprint,
            "steps": joined.steps,
        })),
        Output::Name => app.ui.line(&joined.host_name),
        Output::Table | Output::Wide => {
            for step in &joined.steps {
                app.ui.note(format_args!("  {} {step}", app.ui.err.symbol(Symbol::Done)));
            }
            app.ui.line(format_args!("cluster {} {done} by {}   id {}", joined.name, joined.host_name, joined.cluster));
            app.ui.line(format_args!("CA BLAKE3 {}", joined.ca_fingerprint));
        }
    }
}

pub(super) async fn status(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let status = match reached.status {
        Some(status) => *status,
        None => match app.mesh.call(&AdminRequest::Status, Need::Read).await? {
            AdminReply::Status(status) => *status,
            other => return Err(unexpected("status", &other)),
        },
    };
    let exit = if status.quorum { Exit::Ok } else { Exit::NoQuorum };
    match app.ui.output {
        Output::Table | Output::Wide => {
            app.ui.raw(&text(&status, app.ui.out));
            app.ui.raw(&host::table(&status.hosts, app.ui.output == Output::Wide, app.ui.out).render(app.ui.width));
            if !app.ui.quiet {
                status.notes.iter().for_each(|note| app.ui.line(format_args!("note: {note}")));
            }
        }
        Output::Json | Output::Jsonl => app.ui.json(&json(&status, exit)),
        Output::Name => app.ui.line(&status.name),
    }
    Ok(exit.into())
}

/// Voters that answer, and voters in all.
fn voters_up(status: &ClusterStatus) -> (usize, usize) {
    let votes = |host: &&HostView| matches!(host.role, HostRole::Voter | HostRole::Witness);
    let up = status.hosts.iter().filter(votes).filter(|host| host.state == "live").count();
    (up, usize::try_from(status.voters).unwrap_or(usize::MAX))
}

/// How many more voters may fail now: those that do not answer have failed already.
fn survives(status: &ClusterStatus) -> usize {
    let (up, voters) = voters_up(status);
    let majority = voters / 2 + 1;
    let nominal = usize::try_from(status.survives).unwrap_or(usize::MAX);
    if status.quorum { up.saturating_sub(majority).min(nominal) } else { 0 }
}

/// The first lines: how it is, and how many failures it survives.
fn text(status: &ClusterStatus, style: Style) -> String {
    let (up, voters) = voters_up(status);
    let dot = style.dot();
    if !status.quorum {
        let leader = status.leader.as_ref().map(|leader| format!("{dot} last leader {leader}")).unwrap_or_default();
        return format!(
            "{}  {}  survives 0 more failures: most of {} do not answer{leader}\n\
             The data below is what {} knew up to entry {}; it is possibly old. Running VMs are not touched,\n\
             new jobs wait. To go on, bring back one of the voters that are not live.\n",
            status.name,
            style.paint("NO QUORUM", "1;31"),
            count(voters, "voter"),
            status.answered_by,
            status.applied,
        );
    }
    let well = up == voters && status.hosts.iter().all(|host| host.state == "live");
    let word = if well { style.paint("HEALTHY", "1;32") } else { style.paint("DEGRADED", "1;33") };
    let votes = if up == voters { count(voters, "voter") } else { format!("{up} of {} up", count(voters, "voter")) };
    let leader = match &status.leader {
        Some(leader) => format!("leader {leader} term {}", status.term),
        None => format!("no leader in term {}", status.term),
    };
    let failures = count(survives(status), if well { "failure" } else { "more failure" });
    format!(
        "{}  {word}  survives {failures}{dot} {votes}{dot} {leader}{dot} {}\n",
        status.name,
        count(usize::try_from(status.jobs).unwrap_or(usize::MAX), "job"),
    )
}

fn json(status: &ClusterStatus, exit: Exit) -> Value {
    let (up, voters) = voters_up(status);
    json!({
        "schema": "vtmesh/v1/cluster_status",
        "cluster": status.cluster.to_string(),
        "name": status.name,
        "ca_fingerprint": status.ca_fingerprint,
        "quorum": status.quorum,
        "leader": status.leader,
        "term": status.term,
        "voters": voters,
        "voters_live": up,
        "survives": survives(status),
        "applied": status.applied,
        "answered_by": status.answered_by,
        "jobs": status.jobs,
        "notes": status.notes,
        "hosts": status.hosts.iter().map(host::json).collect::<Vec<_>>(),
        "exit": exit::json(exit),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn view(name: &str, role: HostRole, state: &str) -> HostView {
        HostView {
            id: vt_protocol::ids::HostId(7),
            name: name.parse().unwrap(),
            role,
            leader: name == "host1",
            state: state.into(),
            addresses: vec!["10.77.0.11:7465".parse().unwrap()],
            labels: [("nic".to_owned(), "100g".to_owned())].into(),
            build: "0.1.0".into(),
            attempt: None,
            vms: 0,
            lag: Some(0),
            cordoned: false,
            reserved: None,
        }
    }

    fn sample(quorum: bool, third: &str) -> ClusterStatus {
        ClusterStatus {
            cluster: vt_protocol::ids::ClusterId(77),
            name: "lab-a".parse().unwrap(),
            ca_fingerprint: "5b0e".into(),
            quorum,
            leader: Some("host1".parse().unwrap()),
            term: 3,
            voters: 3,
            survives: 1,
            applied: 214,
            answered_by: "host2".parse().unwrap(),
            hosts: vec![
                view("host1", HostRole::Voter, "live"),
                view("host2", HostRole::Voter, "live"),
                view("host3", HostRole::Voter, third),
            ],
            jobs: 0,
            notes: vec![],
        }
    }

    #[test]
    fn the_first_sentence_says_how_many_failures_it_survives() {
        let style = Style::default();
        assert_eq!(
            text(&sample(true, "live"), style),
            "lab-a  HEALTHY  survives 1 failure · 3 voters · leader host1 term 3 · 0 jobs\n"
        );
        assert_eq!(
            text(&sample(true, "expired"), style),
            "lab-a  DEGRADED  survives 0 more failures · 2 of 3 voters up · leader host1 term 3 · 0 jobs\n"
        );
        let lost = text(&sample(false, "expired"), style);
        assert!(lost.starts_with("lab-a  NO QUORUM  survives 0 more failures"), "{lost}");
        assert!(lost.contains("host2 knew up to entry 214; it is possibly old"), "{lost}");
    }

    #[test]
    fn json_has_schema_quorum_and_the_exit_code() {
        let value = json(&sample(false, "suspect"), Exit::NoQuorum);
        assert_eq!(value["schema"], "vtmesh/v1/cluster_status");
        assert_eq!((&value["quorum"], &value["exit"]["code"]), (&json!(false), &json!(21)));
        assert_eq!(value["hosts"][2]["state"], "suspect");
        assert_eq!(value["hosts"][2]["role"], "voter");
        assert_eq!(value["hosts"][0]["attempt"], Value::Null, "unknown is null, never absent");
        assert_eq!(value["voters_live"], 2);
    }
}
