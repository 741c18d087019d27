//! The guests that a set knows, with the images they boot from.

use std::borrow::Cow;

use vt_cfg::{Diagnostic, Options, Source, SourceError};

use super::Assembly;

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name as `--guest-os` takes it: `Linux.Fedora.31.x86_64`.
    pub name: String,
    /// The file of its image, without a folder; a placeholder has none.
    pub image: Option<String>,
}

impl Guest {
    /// The guests of a set in order; with a machine type, those that the type can run.
    ///
    /// # Errors
    /// The configuration of the guests has mistakes, or a filter has.
    pub fn all(set: &Assembly, machine: Option<&str>, only: Option<&str>) -> Result<Vec<Self>, Vec<Diagnostic>> {
        // As Avocado-VT does: machine types first, so that names end with them.
        let (first, mut statements) = match machine {
            None => ("guest-os.cfg", Vec::new()),
            Some(_) => ("machines.cfg", vec![format!("include {}", set.path("guest-os.cfg"))]),
        };
        statements.extend(machine.iter().chain(&only).map(|filter| format!("only {filter}")));
        let config = vt_cfg::parse(set, &set.path(first), &statements, &Options::default())?;
        let guests = config.variants().map(|variant| {
            let variant = variant.map_err(|mistake| vec![mistake])?;
            let name = variant.name();
            let name = name.strip_prefix("Guest.").unwrap_or(name);
            let ending = machine.map(|machine| format!(".{machine}")).unwrap_or_default();
            let image = variant.get("image_name").filter(|name| !name.is_empty()).map(|path| {
                let format = variant.get("image_format").unwrap_or("qcow2");
                format!("{}.{format}", path.rsplit('/').next().unwrap_or(path))
            });
            Ok(Self { name: name.strip_suffix(&ending).unwrap_or(name).to_owned(), image })
        });
        guests.collect()
    }

    /// The name an image of the catalogue has to have.
    pub fn image_name(&self) -> Option<&str> {
        let file = self.image.as_deref()?;
        Some(file.rsplit_once('.').map_or(file, |(name, _)| name))
    }
}

impl Source for Assembly {
    fn read(&self, path: &str) -> Result<Cow<'_, str>, SourceError> {
        let name = path.strip_prefix('@').and_then(|path| path.strip_prefix(self.backend())?.strip_prefix('/'));
        let text = name.and_then(|name| self.text(name));
        text.map(Into::into).ok_or_else(|| SourceError::Missing(path.to_owned()))
    }
}
