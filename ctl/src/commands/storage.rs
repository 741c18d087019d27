//! `storage …`: pools that images lie in.

use std::path::Path;

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    catalogue::{NewPool, PoolKind, PoolView, StorageRequest},
    error::{ErrorCode, Exit, Report},
    ids::Name,
    pool::{GlusterPlace, IscsiPlace, NfsPlace, RbdPlace},
};

use super::{App, Code, image::show_outcomes};
use crate::{
    args::{Output, PoolKindArg, StorageAddArgs, StorageVerb},
    client::{Need, Next},
    ui::{
        report::{unexpected, usage},
        table::Table,
        text::safe,
    },
};

pub(super) async fn storage(app: &mut App, verb: StorageVerb) -> Result<Code, Report> {
    match verb {
        StorageVerb::List => list(app).await,
        StorageVerb::Show { pool } => show(app, &pool).await,
        StorageVerb::Add(args) => add(app, args).await,
        StorageVerb::Remove { pool } => {
            change(app, StorageRequest::Remove(pool.clone())).await?;
            let step = format!("pool {pool} is forgotten; what lies in it stays");
            Ok(app.steps("vtmesh/v1/storage", "pool", &json!(pool), &[step]))
        }
        StorageVerb::Check { pool } => check(app, pool).await,
    }
}

async fn pools(app: &mut App) -> Result<Vec<PoolView>, Report> {
    match app.mesh.call(&AdminRequest::Storage(StorageRequest::List), Need::Read).await? {
        AdminReply::Pools(pools) => Ok(pools),
        other => Err(unexpected("storage list", &other)),
    }
}

async fn list(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let pools = pools(app).await?;
    let names = pools.iter().map(|pool| pool.name.to_string()).collect();
    app.list("vtmesh/v1/pools", "pools", pools.iter().map(to_json).collect(), names, || {
        let mut table = Table::new(&["POOL", "KIND", "SEEN BY", "PLACE", ">IMAGES"]);
        for pool in &pools {
            let mut paths: Vec<&String> = pool.paths.values().collect();
            paths.dedup();
            let path = match paths[..] {
                [path] => safe(path),
                _ => "one on each host: vtctl storage show".to_owned(),
            };
            let seen = if pool.shared { "all hosts alike" } else { "its host alone" };
            table.row([
                pool.name.to_string(),
                pool.kind.name().into(),
                seen.into(),
                path,
                pool.images.len().to_string(),
            ]);
        }
        table.render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

async fn show(app: &mut App, name: &Name) -> Result<Code, Report> {
    let pools = pools(app).await?;
    let Some(pool) = pools.iter().find(|pool| pool.name == *name) else {
        return Err(Report::new(ErrorCode::UnknownPool, format!("there is no pool {name}")).help("vtctl storage list"));
    };
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            let mut value = to_json(pool);
            value["schema"] = json!("vtmesh/v1/pool");
            app.ui.json(&value);
        }
        Output::Name => app.ui.line(name),
        Output::Table | Output::Wide => {
            let seen = if pool.shared { "all hosts see the same files" } else { "each host has its own files" };
            app.ui.line(format_args!("pool {name}, of kind {}; {seen}", pool.kind.name()));
            for (host, path) in &pool.paths {
                app.ui.line(format_args!("  {host}: {}", safe(path)));
            }
            let images: Vec<&str> = pool.images.iter().map(Name::as_str).collect();
            app.ui.line(format_args!("images: {}", if images.is_empty() { "none".into() } else { images.join(", ") }));
        }
    }
    Ok(Exit::Ok.into())
}

fn to_json(pool: &PoolView) -> Value {
    json!({
        "name": pool.name,
        "kind": pool.kind,
        "shared": pool.shared,
        "paths": pool.paths,
        "images": pool.images,
    })
}

async fn add(app: &mut App, args: StorageAddArgs) -> Result<Code, Report> {
    let (kind, place) = match args.kind {
        PoolKindArg::Dir => {
            let Some(text) = args.path.as_deref().and_then(Path::to_str) else {
                return Err(usage("a pool of kind dir wants its directory").help("--path /var/lib/images"));
            };
            (PoolKind::Dir, text.to_owned())
        }
        PoolKindArg::Nfs => {
            // The parser wants server and export.
            let place = NfsPlace {
                server: args.server.unwrap_or_default(),
                export: args.export.unwrap_or_default(),
                port: args.nfs_port,
                mount_port: args.mount_port,
                read_only: args.read_only,
            };
            (PoolKind::Nfs, place.to_string())
        }
        PoolKindArg::Gluster => {
            let place = GlusterPlace {
                server: args.server.unwrap_or_default(),
                port: args.gluster_port,
                volume: args.volume.unwrap_or_default(),
            };
            (PoolKind::Gluster, place.to_string())
        }
        PoolKindArg::Iscsi => {
            let place = IscsiPlace {
                server: args.server.unwrap_or_default(),
                port: args.iscsi_port,
                iqn: args.iqn.unwrap_or_default(),
                lun: args.lun.unwrap_or_default(),
            };
            (PoolKind::Iscsi, place.to_string())
        }
        PoolKindArg::Rbd => {
            let place = RbdPlace {
                server: args.server.unwrap_or_default(),
                port: args.monitor_port,
                pool: args.rbd_pool.unwrap_or_default(),
                user: args.user,
            };
            (PoolKind::Rbd, place.to_string())
        }
    };
    let pool = NewPool { name: args.name.clone(), kind, place, shared: args.shared };
    change(app, StorageRequest::Add(pool)).await?;
    let steps = [format!("pool {} is known; try it: vtctl storage check {}", args.name, args.name)];
    Ok(app.steps("vtmesh/v1/storage", "pool", &json!(args.name), &steps))
}

async fn change(app: &mut App, request: StorageRequest) -> Result<(), Report> {
    match app.mesh.call(&AdminRequest::Storage(request), Need::Decide).await? {
        AdminReply::Done => Ok(()),
        other => Err(unexpected("a change of pools", &other)),
    }
}

async fn check(app: &mut App, pool: Name) -> Result<Code, Report> {
    let mut stream = app.mesh.stream(&AdminRequest::Storage(StorageRequest::Check(pool.clone())), Need::Decide).await?;
    match stream.next().await {
        Next::Reply(AdminReply::Outcomes(outcomes)) => {
            Ok(show_outcomes(app, "vtmesh/v1/storage_check", "pool", &pool, &outcomes))
        }
        Next::Reply(other) => Err(unexpected("storage check", &other)),
        Next::Refused(report) | Next::Lost(report) => Err(report),
        Next::End => Err(Report::new(ErrorCode::Unreachable, "the daemon ended before it was done").retryable()),
    }
}
