//! Reading folders: sorted, bounded, and never out of the tree that was meant.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::error::ProviderError;

/// Most files of one tree.
const FILES_MAX: usize = 50_000;
/// Most folders in folders.
const DEPTH_MAX: usize = 32;
/// Longest configuration file, bytes.
const FILE_MAX: u64 = 4 << 20;

/// One entry of a folder.
struct Child {
    path: PathBuf,
    is_folder: bool,
}

/// All files with this ending below a folder, sorted by their whole paths. What begins with a dot is left out, as are
/// links to folders.
pub(super) fn files(root: &Path, ending: &str) -> Result<Vec<PathBuf>, ProviderError> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for child in entries(&folder)? {
            if child.is_folder {
                if depth == DEPTH_MAX {
                    return Err(ProviderError::tree(&child.path, format!("more than {DEPTH_MAX} folders in folders")));
                }
                open.push((child.path, depth + 1));
            } else if has_ending(&child.path, ending) {
                found.push(child.path);
            }
            if found.len() + open.len() > FILES_MAX {
                return Err(ProviderError::tree(root, format!("more than {FILES_MAX} files and folders")));
            }
        }
    }
    found.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(found)
}

/// The files with this ending in a folder itself, sorted.
pub(super) fn children(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, ProviderError> {
    let files = entries(folder)?.into_iter().filter(|child| !child.is_folder && has_ending(&child.path, ending));
    Ok(files.map(|child| child.path).collect())
}

/// The names of the folders in a folder, sorted.
pub(super) fn folders(folder: &Path) -> Result<Vec<String>, ProviderError> {
    Ok(entries(folder)?.into_iter().filter(|child| child.is_folder).map(|child| name(&child.path)).collect())
}

/// The last part of a path, as text.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The text of a configuration file of the tree `within`, with line ends as `\n` and one at its end.
pub(super) fn text(file: &Path, within: &Path) -> Result<String, ProviderError> {
    // A link may lead to another file of the tree, but not to one of this machine.
    let real = |path: &Path| std::fs::canonicalize(path).map_err(ProviderError::io(path));
    if !real(file)?.starts_with(real(within)?) {
        return Err(ProviderError::tree(file, format!("this link leads out of {}", within.display())));
    }
    text_up_to(file, FILE_MAX)
}

/// The text of a file of at most this many bytes, in the same form.
pub(super) fn text_up_to(file: &Path, most: u64) -> Result<String, ProviderError> {
    let mut bytes = Vec::new();
    // A pipe or device would be waited for.
    if !std::fs::metadata(file).map_err(ProviderError::io(file))?.is_file() {
        return Err(ProviderError::tree(file, "this is no regular file"));
    }
    let open = File::open(file).map_err(ProviderError::io(file))?;
    open.take(most + 1).read_to_end(&mut bytes).map_err(ProviderError::io(file))?;
    if bytes.len() as u64 > most {
        return Err(ProviderError::tree(file, format!("more than {most} bytes are no configuration")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ProviderError::tree(file, format!("this is not UTF-8: first bad byte at offset {at}"))
    })?;
    let mut text = text.replace("\r\n", "\n").replace('\r', "\n");
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

/// What a folder holds, sorted by name.
fn entries(folder: &Path) -> Result<Vec<Child>, ProviderError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ProviderError::io(folder))? {
        let entry = entry.map_err(ProviderError::io(folder))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(ProviderError::io(&path))?;
        let link_to_folder = kind.is_symlink() && path.is_dir();
        if !link_to_folder {
            found.push(Child { path, is_folder: kind.is_dir() });
        }
        if found.len() > FILES_MAX {
            return Err(ProviderError::tree(folder, format!("more than {FILES_MAX} files and folders")));
        }
    }
    found.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn files_are_found_in_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["b/z.cfg", "b-c/y.cfg", "a.cfg", ".git/x.cfg", "b/n.txt", "b/c/w.cfg"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x = 1\r\ny = 2").unwrap();
        }
        symlink(dir.path(), dir.path().join("loop")).unwrap();
        let found = files(dir.path(), "cfg").unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.cfg", "b-c/y.cfg", "b/c/w.cfg", "b/z.cfg"]);
        assert_eq!(text(&found[0], dir.path()).unwrap(), "x = 1\ny = 2\n");
    }

    #[test]
    fn what_is_no_text_of_the_tree_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let out = dir.path().join("out.cfg");
        symlink("/etc/passwd", &out).unwrap();
        let says = |path: &Path| text(path, dir.path()).unwrap_err().to_string();
        assert!(says(&out).contains("leads out of"));
        assert!(says(&file("huge.cfg", &vec![b'#'; FILE_MAX as usize + 1])).contains("more than 4194304 bytes"));
        assert!(says(&file("latin.cfg", b"x = \xff")).contains("offset 4"));
        assert!(says(&dir.path().join("none.cfg")).contains("none.cfg"));
        let mut deep = dir.path().join("deep");
        (0..=DEPTH_MAX + 1).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).unwrap();
        assert!(files(dir.path(), "cfg").unwrap_err().to_string().contains("folders in folders"));
    }
}
