//! `image …`: the catalogue, and what is done with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    catalogue::{
        ConvertImage, FetchImage, FetchSum, HostOutcome, ImageProgress, ImageRequest, ImageView, ImportImage, Packing,
        PlacementState, SyncImage, WriterView,
    },
    error::{ErrorCode, Exit, Report},
    ids::Name,
};

use super::{App, Code};
use crate::{
    args::{ImageConvertArgs, ImageFetchArgs, ImageImportArgs, ImageSyncArgs, ImageVerb, Output},
    client::{Mesh, Need, Next},
    downloads,
    endpoint::Way,
    suggest,
    ui::{
        report::{self, unexpected, usage},
        style::Symbol,
        table::Table,
        text::{bytes, safe},
    },
};

pub(super) async fn image(app: &mut App, verb: ImageVerb) -> Result<Code, Report> {
    match verb {
        ImageVerb::List => list(app).await,
        ImageVerb::Show { image } => show(app, &image).await,
        ImageVerb::Packages { image } => packages(app, image).await,
        // Done before a daemon is looked for.
        ImageVerb::Build(_) => Ok(Exit::Ok.into()),
        ImageVerb::Import(args) => import(app, args).await,
        ImageVerb::Fetch(args) => fetch(app, args).await,
        ImageVerb::Convert(args) => convert(app, args).await,
        ImageVerb::Sync(args) => sync(app, args).await,
        ImageVerb::Verify { image } => {
            let outcomes = on_hosts(app, ImageRequest::Verify(image.clone())).await?;
            Ok(show_outcomes(app, "vtmesh/v1/image_verify", "image", &image, &outcomes))
        }
        ImageVerb::Export { image, file } => export(app, image, &file).await,
        ImageVerb::Pin { image } => pin(app, image, true).await,
        ImageVerb::Unpin { image } => pin(app, image, false).await,
        ImageVerb::Delete { image } => {
            let outcomes = on_hosts(app, ImageRequest::Delete(image.clone())).await?;
            Ok(show_outcomes(app, "vtmesh/v1/image_delete", "image", &image, &outcomes))
        }
        ImageVerb::Gc => {
            let outcomes = on_hosts(app, ImageRequest::Gc).await?;
            Ok(show_outcomes(app, "vtmesh/v1/image_gc", "image", &"all", &outcomes))
        }
        ImageVerb::Writers => writers(app).await,
    }
}

async fn catalogue(app: &mut App) -> Result<Vec<ImageView>, Report> {
    match app.mesh.call(&AdminRequest::Image(ImageRequest::List), Need::Read).await? {
        AdminReply::Images(images) => Ok(images),
        other => Err(unexpected("image list", &other)),
    }
}

async fn list(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let images = catalogue(app).await?;
    let names = images.iter().map(|image| image.name.to_string()).collect();
    app.list("vtmesh/v1/images", "images", images.iter().map(to_json).collect(), names, || {
        if images.is_empty() {
            return "the catalogue is empty. Add one: vtctl image import FILE\n".to_owned();
        }
        let mut table = Table::new(&["IMAGE", "FORMAT", ">SIZE", ">FILES", "POOL", "ON", "VERSION", "USED BY"]);
        for image in &images {
            let pinned = if image.pinned { " (pinned)" } else { "" };
            let used = image.vms.len();
            table.row([
                format!("{}{pinned}", image.name),
                image.format.name().to_owned(),
                bytes(image.virtual_bytes),
                bytes(image.bytes),
                image.pool.to_string(),
                places(image),
                image.root.to_string()[..12].to_owned(),
                if used == 0 { String::new() } else { format!("{used} VM(s)") },
            ]);
        }
        table.render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

/// Hosts with a whole copy, and others with how theirs is.
fn places(image: &ImageView) -> String {
    let place = |copy: &vt_protocol::catalogue::PlacementView| match (copy.state, copy.shared) {
        (PlacementState::Present, true) => format!("{} (shared)", copy.host),
        (PlacementState::Present, false) => copy.host.to_string(),
        (state, _) => format!("{} ({})", copy.host, state.name()),
    };
    let places: Vec<String> = image.placements.iter().map(place).collect();
    if places.is_empty() { "no host".to_owned() } else { places.join(", ") }
}

async fn show(app: &mut App, name: &Name) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let images = catalogue(app).await?;
    let Some(image) = images.iter().find(|image| image.name == *name) else {
        let title = format!("there is no image {name} in the catalogue");
        let report = Report::new(ErrorCode::UnknownImage, title).help("vtctl image list");
        return Err(match suggest::close(name.as_str(), images.iter().map(|image| image.name.as_str())).first() {
            Some(near) => report.help(format!("did you mean {near}?")),
            None => report,
        });
    };
    match app.ui.output {
        Output::Json | Output::Jsonl => {
            let mut value = to_json(image);
            value["schema"] = json!("vtmesh/v1/image");
            app.ui.json(&value);
        }
        Output::Name => app.ui.line(name),
        Output::Table | Output::Wide => {
            let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
            let lines = [
                ("image", image.name.to_string()),
                ("format", image.format.name().to_owned()),
                ("guest sees", format!("{} ({})", bytes(image.virtual_bytes), image.virtual_bytes)),
                ("files", format!("{} ({})", bytes(image.bytes), image.bytes)),
                ("content root", image.root.to_string()),
                ("built upon", list(image.backing.iter().map(ToString::to_string).collect())),
                ("pool", image.pool.to_string()),
                ("on", places(image)),
                ("pinned", if image.pinned { "yes" } else { "no" }.to_owned()),
                ("VMs upon it", list(image.vms.clone())),
                ("used by jobs", list(image.jobs.iter().map(ToString::to_string).collect())),
            ];
            for (key, value) in lines {
                app.ui.line(format_args!("{key:<13} {}", safe(&value)));
            }
        }
    }
    Ok(app.read_from(&reached))
}

fn to_json(image: &ImageView) -> Value {
    json!({
        "name": image.name,
        "format": image.format,
        "virtual_bytes": image.virtual_bytes,
        "bytes": image.bytes,
        "content_root": image.root.to_string(),
        "backing": image.backing,
        "pool": image.pool,
        "pinned": image.pinned,
        "placements": image.placements.iter().map(|copy| json!({
            "host": copy.host, "state": copy.state, "shared": copy.shared,
        })).collect::<Vec<_>>(),
        "jobs": image.jobs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "vms": image.vms,
    })
}

async fn import(app: &mut App, args: ImageImportArgs) -> Result<Code, Report> {
    let path = std::path::absolute(&args.file)
        .map_err(|error| usage(format!("{} is no path", args.file.display())).with("system", error.to_string()))?;
    let name = match args.name {
        Some(name) => name,
        None => name_of(&path)?,
    };
    let import = ImportImage {
        path,
        name: name.clone(),
        pool: args.pool,
        format: args.format.map(Into::into),
        sum: args.digest,
    };
    let mut mesh = local_daemon(app, args.host.as_ref())?;
    new_image(app, &mut mesh, ImageRequest::Import(import), "import", &name).await
}

async fn fetch(app: &mut App, args: ImageFetchArgs) -> Result<Code, Report> {
    let name = args.name;
    let fetch = match (args.url, args.digest) {
        (Some(url), Some((kind, digits))) => {
            let packing = Packing::of(&url);
            let sum = FetchSum::Known(kind, digits);
            FetchImage { url, name: name.clone(), pool: None, format: None, sum, packing }
        }
        _ => {
            let named = args.from.map(|folder| vec![folder]);
            downloads::find(&name, &named.unwrap_or_else(|| downloads::folders(|key| std::env::var(key).ok())))?
        }
    };
    let mut mesh = local_daemon(app, args.host.as_ref())?;
    let request = ImageRequest::Fetch(FetchImage { pool: args.pool, ..fetch });
    new_image(app, &mut mesh, request, "fetch", &name).await
}

async fn convert(app: &mut App, args: ImageConvertArgs) -> Result<Code, Report> {
    let ImageConvertArgs { image, name, format, compress, pool } = args;
    app.mesh.reach(Need::Decide).await?;
    let mut mesh = app.mesh.clone();
    let convert = ConvertImage { image, name: name.clone(), format: format.into(), compress, pool };
    new_image(app, &mut mesh, ImageRequest::Convert(convert), "convert", &name).await
}

/// Has a daemon make an image, and shows how far it is and what was done.
async fn new_image(app: &App, mesh: &mut Mesh, request: ImageRequest, verb: &str, name: &Name) -> Result<Code, Report> {
    match follow(app, mesh, &AdminRequest::Image(request), "read").await? {
        AdminReply::Steps(steps) => Ok(app.steps(&format!("vtmesh/v1/image_{verb}"), "image", &json!(name), &steps)),
        other => Err(unexpected(&format!("image {verb}"), &other)),
    }
}

/// The name of a file without its ending, as the name of an image.
fn name_of(path: &Path) -> Result<Name, Report> {
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let stem = stem.map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    stem.parse().map_err(|_| {
        usage(format!("{stem:?} cannot be the name of an image"))
            .with("wanted", "1 to 63 of a-z 0-9 - _ ., beginning with a letter or digit")
            .help(format!("vtctl image import {} --name NAME", path.display()))
    })
}

/// A daemon that sees the files of this machine: of the host named, else the first that is reached by its socket.
fn local_daemon(app: &App, host: Option<&Name>) -> Result<Mesh, Report> {
    let mut places = app.mesh.places().iter().filter(|place| matches!(place.way, Way::Socket(_)));
    let chosen = match host {
        Some(host) => places.find(|place| place.host.as_ref() == Some(host)),
        None => places.next(),
    };
    chosen.map(|place| app.mesh.only(place)).ok_or_else(|| match host {
        Some(host) => usage(format!("{host} is no host of a lab on this machine")),
        None => usage("this goes over the socket of a host's own daemon")
            .help("run vtctl on that host: it finds /run/vtmesh/vtd.sock"),
    })
}

async fn export(app: &mut App, image: Name, file: &Path) -> Result<Code, Report> {
    let to = std::path::absolute(file).unwrap_or_else(|_| PathBuf::from(file));
    let request = AdminRequest::Image(ImageRequest::Export { image: image.clone(), to });
    let mut mesh = local_daemon(app, None)?;
    match follow(app, &mut mesh, &request, "written").await? {
        AdminReply::Steps(steps) => Ok(app.steps("vtmesh/v1/image_export", "image", &json!(image), &steps)),
        other => Err(unexpected("image export", &other)),
    }
}

async fn sync(app: &mut App, args: ImageSyncArgs) -> Result<Code, Report> {
    let sync = SyncImage { image: args.image.clone(), hosts: args.hosts, rate: args.rate.unwrap_or(0) };
    let request = AdminRequest::Image(ImageRequest::Sync(sync));
    app.mesh.reach(Need::Decide).await?;
    let mut mesh = app.mesh.clone();
    match follow(app, &mut mesh, &request, "there").await? {
        AdminReply::Outcomes(outcomes) => {
            Ok(show_outcomes(app, "vtmesh/v1/image_sync", "image", &args.image, &outcomes))
        }
        other => Err(unexpected("image sync", &other)),
    }
}

/// Asks, shows how far it is, and returns the last reply.
async fn follow(app: &App, mesh: &mut Mesh, request: &AdminRequest, word: &str) -> Result<AdminReply, Report> {
    let mut stream = mesh.stream(request, Need::Any).await?;
    let mut shown = BTreeMap::new();
    let mut last = None;
    loop {
        match stream.next().await {
            Next::Reply(AdminReply::ImageProgress(now)) => progress(app, &mut shown, &now, word),
            Next::Reply(reply) => last = Some(reply),
            Next::Refused(report) | Next::Lost(report) => return Err(report),
            Next::End => break,
        }
    }
    last.ok_or_else(|| Report::new(ErrorCode::Unreachable, "the daemon ended before it was done").retryable())
}

/// A line for each tenth of the way.
fn progress(app: &App, shown: &mut BTreeMap<Name, u64>, now: &ImageProgress, word: &str) {
    let tenth = (now.done * 10).checked_div(now.total).unwrap_or(0);
    if now.total == 0 || shown.insert(now.host.clone(), tenth) == Some(tenth) {
        return;
    }
    let moved = if now.moved > 0 { format!(", {} moved", bytes(now.moved)) } else { String::new() };
    app.ui.note(format_args!(
        "  {} {}: {} %, {} of {} {word}{moved}",
        app.ui.err.symbol(Symbol::Dot),
        now.host,
        tenth * 10,
        bytes(now.done),
        bytes(now.total)
    ));
}

async fn on_hosts(app: &mut App, request: ImageRequest) -> Result<Vec<HostOutcome>, Report> {
    app.mesh.reach(Need::Decide).await?;
    let mut mesh = app.mesh.clone();
    match follow(app, &mut mesh, &AdminRequest::Image(request), "done").await? {
        AdminReply::Outcomes(outcomes) => Ok(outcomes),
        other => Err(unexpected("what hosts did", &other)),
    }
}

/// Shows what each host did or found; some done and some not has an exit code of its own.
pub(super) fn show_outcomes(
    app: &App,
    schema: &str,
    key: &str,
    value: &impl serde::Serialize,
    outcomes: &[HostOutcome],
) -> Code {
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&json!({
            "schema": schema,
            key: value,
            "hosts": outcomes.iter().map(|outcome| json!({
                "host": outcome.host,
                "ok": outcome.trouble.is_none(),
                "told": outcome.told,
                "error": outcome.trouble.as_ref().map(report::object),
            })).collect::<Vec<_>>(),
        })),
        Output::Name => outcomes.iter().for_each(|outcome| app.ui.line(&outcome.host)),
        Output::Table | Output::Wide => {
            for outcome in outcomes {
                let symbol = if outcome.trouble.is_none() { Symbol::Done } else { Symbol::Bad };
                let told = if outcome.told.is_empty() { "nothing to do".to_owned() } else { outcome.told.join("; ") };
                match &outcome.trouble {
                    None => {
                        app.ui.line(format_args!("{} {}: {}", app.ui.out.symbol(symbol), outcome.host, safe(&told)));
                    }
                    Some(trouble) => {
                        let title = safe(&trouble.title);
                        app.ui.line(format_args!("{} {}: {title}", app.ui.out.symbol(symbol), outcome.host));
                        app.ui.raw(&report::body(trouble, "     ", app.ui.verbose > 0));
                    }
                }
            }
        }
    }
    let bad: Vec<&Report> = outcomes.iter().filter_map(|outcome| outcome.trouble.as_ref()).collect();
    match bad[..] {
        [] => Exit::Ok.into(),
        // All of them failed: the code of the first says why.
        [first, ..] if bad.len() == outcomes.len() => first.code.exit().into(),
        _ => Exit::Partial.into(),
    }
}

async fn pin(app: &mut App, image: Name, pinned: bool) -> Result<Code, Report> {
    let request = AdminRequest::Image(ImageRequest::Pin { image: image.clone(), pinned });
    match app.mesh.call(&request, Need::Decide).await? {
        AdminReply::Done => {
            let step = if pinned { "pinned: it cannot be deleted" } else { "no longer pinned" };
            Ok(app.steps("vtmesh/v1/image_pin", "image", &json!(image), &[format!("{image} is {step}")]))
        }
        other => Err(unexpected("image pin", &other)),
    }
}

async fn packages(app: &mut App, image: Name) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let packages = match app.mesh.call(&AdminRequest::Image(ImageRequest::Packages(image)), Need::Read).await? {
        AdminReply::ImagePackages(packages) => packages,
        other => return Err(unexpected("image packages", &other)),
    };
    let names = packages.iter().map(|package| package.name.clone()).collect();
    app.list(
        "vtmesh/v1/image_packages",
        "packages",
        packages.iter().map(|package| json!(package)).collect(),
        names,
        || {
            if packages.is_empty() {
                return "it was not built by vtctl: nothing is known of its packages\n".to_owned();
            }
            let mut table = Table::new(&["PACKAGE", "VERSION", "SHA-256"]);
            packages.iter().for_each(|package| {
                table.row([safe(&package.name), safe(&package.version), safe(&package.sha256)]);
            });
            table.render(app.ui.width)
        },
    );
    Ok(app.read_from(&reached))
}

async fn writers(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let writers = match app.mesh.call(&AdminRequest::Image(ImageRequest::Writers), Need::Read).await? {
        AdminReply::Writers(writers) => writers,
        other => return Err(unexpected("image writers", &other)),
    };
    let item = |writer: &WriterView| {
        json!({
            "vm": writer.vm,
            "image": writer.image,
            "host": writer.host,
            "epoch": writer.epoch,
            "state": writer.state,
            "moving_to": writer.moving_to,
        })
    };
    let names = writers.iter().map(|writer| writer.vm.clone()).collect();
    app.list("vtmesh/v1/image_writers", "writers", writers.iter().map(item).collect(), names, || {
        let mut table = Table::new(&["VM", "UPON", "WRITTEN BY", ">EPOCH", "STATE"]);
        for writer in &writers {
            let state = match &writer.moving_to {
                Some(to) => format!("{}, moving to {to}", writer.state),
                None => writer.state.clone(),
            };
            let (image, host) = (writer.image.to_string(), writer.host.to_string());
            table.row([writer.vm.clone(), image, host, writer.epoch.to_string(), safe(&state)]);
        }
        table.render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}
