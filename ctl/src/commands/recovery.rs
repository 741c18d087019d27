//! `cluster snapshot save|restore` and `cluster recover`.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Exit, Report},
    membership::{Recover, Restore},
};

use super::{
    App, Code,
    cluster::{own_daemon, show_joined},
};
use crate::{
    args::{RecoverArgs, RestoreArgs, SnapshotVerb},
    client::{Need, Next},
    ui::report::{unexpected, usage},
};

pub(super) async fn snapshot(app: &mut App, verb: SnapshotVerb) -> Result<Code, Report> {
    match verb {
        SnapshotVerb::Save { file } => save(app, &file).await,
        SnapshotVerb::Restore(args) => restore(app, args).await,
    }
}

/// The file is written beside its place and renamed: it is there whole or not at all.
async fn save(app: &mut App, file: &Path) -> Result<Code, Report> {
    let trouble = |what: &str, error: &std::io::Error| {
        Report::new(ErrorCode::ResultsWrite, format!("the snapshot cannot be {what}"))
            .with("file", file.display().to_string())
            .with("system", error.to_string())
    };
    let mut part = file.as_os_str().to_owned();
    part.push(format!(".part-{}", std::process::id()));
    let part = Part(part.into());
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part.0);
    let mut out = opened.map_err(|error| trouble("written there", &error))?;
    let mut stream = app.mesh.stream(&AdminRequest::SnapshotSave, Need::Read).await?;
    let (mut whole, mut steps) = (false, Vec::new());
    loop {
        match stream.next().await {
            Next::Reply(AdminReply::Files(chunk)) => {
                out.write_all(&chunk.bytes).map_err(|error| trouble("written there", &error))?;
                whole = chunk.last;
            }
            Next::Reply(AdminReply::Steps(told)) => steps = told,
            Next::Reply(other) => return Err(unexpected("snapshot save", &other)),
            Next::Refused(report) | Next::Lost(report) => return Err(report),
            Next::End => break,
        }
    }
    if !whole {
        return Err(
            Report::new(ErrorCode::Unreachable, "the daemon ended before the snapshot was complete").retryable()
        );
    }
    out.sync_all().and_then(|()| fs::rename(&part.0, file)).map_err(|error| trouble("moved there", &error))?;
    steps.push(format!("{}: keep it where only admins can read it", file.display()));
    Ok(app.steps("vtmesh/v1/snapshot", "file", &json!(file.display().to_string()), &steps))
}

/// A file that is removed unless it was renamed.
struct Part(std::path::PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn restore(app: &mut App, args: RestoreArgs) -> Result<Code, Report> {
    let file = fs::canonicalize(&args.file).map_err(|error| {
        usage(format!("the snapshot {} cannot be read", args.file.display())).with("system", error.to_string())
    })?;
    let request = AdminRequest::Restore(Restore { file, host: args.host, advertise: args.advertise, yes: args.yes });
    match own_daemon(app)?.call(&request, Need::Any).await? {
        AdminReply::Joined(joined) => {
            show_joined(app, &joined, "restored", "vtmesh/v1/cluster_restore");
            Ok(Exit::Ok.into())
        }
        other => Err(unexpected("snapshot restore", &other)),
    }
}

pub(super) async fn recover(app: &mut App, args: RecoverArgs) -> Result<Code, Report> {
    let request = AdminRequest::Recover(Recover { yes: args.yes });
    match own_daemon(app)?.call(&request, Need::Any).await? {
        AdminReply::Steps(steps) => Ok(app.steps("vtmesh/v1/cluster_recover", "host", &Value::Null, &steps)),
        other => Err(unexpected("cluster recover", &other)),
    }
}
