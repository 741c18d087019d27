//! `guest …`, and `guest list`.

use std::{collections::BTreeSet, path::Path};

use serde_json::json;
use vt_protocol::{
    error::{ErrorCode, Exit, Report},
    image::{ImageRecord, RECORD_FILE},
};

use super::{Code, cfg::refused};
use crate::{
    args::GuestVerb,
    image,
    providers::{self, Guest},
    ui::{
        Ui,
        table::Table,
        text::{count, safe},
    },
};

pub(super) fn guest(ui: &Ui, verb: &GuestVerb) -> Result<Code, Report> {
    let (images, set, only) = match verb {
        GuestVerb::List { images, set, guests } => (images, set, guests),
        GuestVerb::Define(args) => return super::guest_define::define(ui, args),
    };
    let assembly = providers::assemble(set)?;
    let found = Guest::all(&assembly, only.machine_type.as_deref(), only.guest_os.as_deref())
        .map_err(|mistakes| refused(ui, "guest-os.cfg", &mistakes))?;
    if found.is_empty() {
        return Err(Report::new(ErrorCode::NoVariants, "no guest is left")
            .with("guest-os", only.guest_os.as_deref().unwrap_or("any"))
            .with("machine type", only.machine_type.as_deref().unwrap_or("any"))
            .help("vtctl guest list"));
    }
    let folder = images.clone().or_else(image::default_folder);
    let catalogue = folder.as_deref().map(catalogue).unwrap_or_default();
    let here = |guest: &Guest| guest.image_name().is_some_and(|name| catalogue.contains(name));
    let items = found.iter().map(|guest| json!({"name": guest.name, "image": guest.image, "here": here(guest)}));
    let names: Vec<String> = found.iter().map(|guest| guest.name.clone()).collect();
    ui.list("vtmesh/v1/guests", "guests", &items.collect::<Vec<_>>(), &names, || {
        let mut table = Table::new(&["GUEST", "IMAGE"]);
        for guest in &found {
            let image = match &guest.image {
                None => "-".to_owned(),
                Some(image) if here(guest) => image.clone(),
                Some(image) => format!("missing {image}"),
            };
            table.row([safe(&guest.name), safe(&image)]);
        }
        table.render(ui.width)
    });
    if ui.human() {
        let (guests, here) = (count(found.len(), "guest"), found.iter().filter(|guest| here(guest)).count());
        ui.note(format_args!("{guests}, {here} with an image in the catalogue"));
    }
    Ok(Exit::Ok.into())
}

/// The names of the images in a folder: folders with a record of the same name.
fn catalogue(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let records = entries.filter_map(|entry| std::fs::read(entry.path().join(RECORD_FILE)).ok());
    records.filter_map(|record| ImageRecord::parse(&record).ok()).map(|record| record.name).collect()
}
