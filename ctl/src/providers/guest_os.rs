//! `guest-os.cfg`: the folders of `shared/cfg/guest-os` as nested variants.

use std::path::{Path, PathBuf};

use super::{error::ProviderError, tree, written::Written};

const INDENT: usize = 4;
/// Most folders in folders.
const DEPTH_MAX: usize = 16;

/// Puts the file together.
///
/// `NAME/` beside `NAME.cfg` are the variants below the variant of that file. Files without a folder stand among them, in
/// one set; where Avocado-VT finds both in one folder, it makes two sets, and every guest would be multiplied by a file that
/// is only a placeholder.
pub(super) fn write(folder: &Path) -> Result<Written, ProviderError> {
    let mut written = Written::default();
    written.line(0, "variants:");
    written.line(INDENT, "- Guest:");
    children(&mut written, folder, folder, 1)?;
    Ok(written)
}

fn children(written: &mut Written, root: &Path, folder: &Path, depth: usize) -> Result<(), ProviderError> {
    if depth > DEPTH_MAX {
        return Err(ProviderError::tree(folder, format!("more than {DEPTH_MAX} folders in folders")));
    }
    let folders = tree::folders(folder)?;
    let files = tree::children(folder, "cfg")?;
    let mut all: Vec<(String, Option<PathBuf>)> = folders.into_iter().map(|name| (name, None)).collect();
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match all.iter_mut().find(|(name, _)| *name == stem) {
            Some((_, its)) => *its = Some(file),
            // With its ending, so that it is sorted as files are.
            None => all.push((tree::name(&file), Some(file))),
        }
    }
    all.sort();
    if all.is_empty() {
        return Ok(());
    }
    let indent = 2 * depth * INDENT;
    written.line(indent, "variants:");
    for (name, file) in all {
        let inside = folder.join(&name);
        match &file {
            Some(file) => written.append(indent + INDENT, file, &tree::text(file, root)?),
            None => written.line(indent + INDENT, &format!("- {name}:")),
        }
        if inside.is_dir() {
            children(written, root, &inside, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folders_are_nested_variants_and_files_without_one_stand_among_them() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("Linux.cfg", "- @Linux:\n    os = linux\n"),
            ("Linux/Custom.cfg", "- Custom:\n"),
            ("Linux/Fedora.cfg", "- Fedora:\n"),
            ("Linux/Fedora/31.cfg", "- 31:\n"),
            ("Linux/Debian/12.cfg", "- 12:"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let written = write(dir.path()).unwrap();
        let want = "\
variants:
    - Guest:
        variants:
            - @Linux:
                os = linux
                variants:
                    - Custom:
                    - Debian:
                        variants:
                            - 12:
                    - Fedora:
                        variants:
                            - 31:
";
        assert_eq!(written.text(), want);
        assert_eq!(written.place(5), Some((dir.path().join("Linux.cfg").as_path(), 2)));
    }
}
