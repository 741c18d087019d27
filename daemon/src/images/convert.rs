//! An image made of another one: in another format, packed, and always without anything below it.

use std::sync::atomic::AtomicU64;

use vt_protocol::{
    catalogue::{ConvertImage, ImageFormat},
    error::{ErrorCode, Report},
    ids::{Digest, Name},
    image::{ImageFile, ImageRecord},
};

use super::{
    blocking,
    import::{Part, Taken, copy_files, keys, read_again, settle},
    inspect,
    store::Store,
    verify,
};

/// Makes it in the pool `to`. `chain`: the image and what it is built upon, with their roots; all are in the pool `from`.
///
/// # Errors
/// One of the chain is damaged, or the new one cannot be made; nothing is left then.
pub(crate) async fn convert(
    (from, to): (Store, Store),
    chain: Vec<(Name, Digest)>,
    asked: &ConvertImage,
) -> Result<Taken, Report> {
    if asked.compress && asked.format != ImageFormat::Qcow2 {
        return Err(Report::new(ErrorCode::Usage, format!("a {} disk cannot be packed", asked.format.name()))
            .help("--format qcow2 --compress"));
    }
    // Damage is to be found now, and not to get a digest of its own.
    blocking({
        let from = from.clone();
        move || chain.iter().try_for_each(|(name, root)| verify(&from, name, *root).map(drop))
    })
    .await?;
    let record = from.record(&asked.image).map_err(|error| {
        Report::new(ErrorCode::ImageDamaged, format!("image {} cannot be used: {error}", asked.image))
    })?;
    let part = Part::fresh(&to, &asked.name)?;
    let file_name = format!("disk.{}", asked.format.name());
    let (folder, disk) = (from.folder(&asked.image), part.0.join(&file_name));
    inspect::convert((&folder.join(&record.disk.name), record.format), (&disk, asked.format), asked.compress).await?;
    let (files, blocks, whole) = blocking({
        let (record, part) = (record.clone(), part.0.clone());
        move || {
            let beside = record.kernel.iter().chain(&record.initrd).map(|file| (file.name.clone(), Some(file.clone())));
            let beside: Vec<_> = beside.chain(keys()).collect();
            let files = copy_files(&beside, &folder, Some(&part), &AtomicU64::new(0))?;
            let (blocks, whole) = read_again(&disk)?;
            Ok::<_, Report>((files, blocks, whole))
        }
    })
    .await?;
    let record = ImageRecord {
        name: asked.name.to_string(),
        disk: ImageFile { name: file_name, bytes: blocks.length, blake3: whole },
        format: asked.format,
        ..record
    };
    settle(part, record, [files, vec![blocks]].concat(), None).await
}
