//! `image build`.

use serde_json::json;
use vt_protocol::error::{ErrorCode, Exit, Report};

use super::Code;
use crate::{
    args::{ImageBuildArgs, Output},
    image::{BuildOptions, Event, Recipe, build, current, default_folder, probe_beside},
    ui::{Ui, style::Symbol, text::bytes},
};

pub(super) fn image_build(ui: &Ui, args: ImageBuildArgs) -> Result<Code, Report> {
    let images = folder(&args)?;
    let probe = match args.probe.or_else(probe_beside) {
        Some(probe) => probe,
        None => {
            return Err(Report::new(ErrorCode::ImageBuild, "the probe for the guest was not found")
                .with("wanted", "vt-probe beside vtctl")
                .help("vtctl image build --probe FILE"));
        }
    };
    let recipe = Recipe::find(&args.recipe).map_err(|error| error.report())?;
    let options = BuildOptions { name: recipe.name.clone(), images, probe, recipe };
    let name = &options.name;
    // One with the probe of another build is as good as missing: this vtctl and its vtd would misunderstand it.
    if let Some(found) = current(&options).filter(|_| args.if_missing) {
        match ui.output {
            Output::Json | Output::Jsonl => ui.json(&json!({
                "schema": "vtmesh/v1/image_build",
                "name": name,
                "folder": found.folder,
                "built": false,
                "digest": found.record.digest,
            })),
            Output::Name => ui.line(name),
            Output::Table | Output::Wide => {
                ui.line(format_args!("image {name} is in {} already", found.folder.display()));
            }
        }
        return Ok(Exit::Ok.into());
    }
    let mut say = |event: Event| match event {
        Event::Step { title, index, count } => {
            ui.note(format_args!("  {} [{index}/{count}] {title}", ui.err.symbol(Symbol::Dot)));
        }
        Event::Download { count, bytes: size } => ui.note(format_args!("      {count} to download, {}", bytes(size))),
        Event::Package { name, version, .. } => {
            if ui.verbose > 0 {
                ui.note(format_args!("      {name} {version}"));
            }
        }
    };
    let built = build(&options, &mut say).map_err(|error| error.report())?;
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&json!({
            "schema": "vtmesh/v1/image_build",
            "name": name,
            "folder": built.folder,
            "built": true,
            "digest": built.record.digest,
        })),
        Output::Name => ui.line(name),
        Output::Table | Output::Wide => {
            ui.line(format_args!("image {name} is in {}   digest {}", built.folder.display(), built.record.digest));
        }
    }
    Ok(Exit::Ok.into())
}

fn folder(args: &ImageBuildArgs) -> Result<std::path::PathBuf, Report> {
    args.images.clone().or_else(default_folder).ok_or_else(|| {
        Report::new(ErrorCode::Usage, "no directory is known for images").help("vtctl image build --images DIR")
    })
}
