//! What stands in the guest's file system: programs of the packages with the libraries they need, kernel modules in
//! the order they load, and our own few scripts.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use super::{
    cpio::{Entry, Tree},
    elf,
    error::ImageError,
    program::run,
    recipe::Recipe,
};

/// Drivers the guest loads; what they depend on is found.
const MODULES: [&str; 8] =
    ["virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "virtio_rng", "virtio_scsi", "sr_mod", "isofs"];
/// Programs of packages, and where they may be in them.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("busybox", &["usr/bin/busybox", "bin/busybox"]),
    ("dropbear", &["usr/sbin/dropbear"]),
    ("qemu-ga", &["usr/sbin/qemu-ga", "usr/bin/qemu-ga"]),
];
/// Where packages put libraries.
const LIBRARY_FOLDERS: [&str; 4] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib"];
/// Where the guest's dynamic linker looks.
const GUEST_LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// The dynamic linker, which every program names by this path.
const LINKER: &str = "lib64/ld-linux-x86-64.so.2";
/// Its name in the folder of libraries, where its package really keeps it.
const LINKER_NAME: &str = "ld-linux-x86-64.so.2";
/// Our own files: path, bytes, executable.
const OWN: [(&str, &str, bool); 11] = [
    ("etc/inittab", include_str!("guest/inittab"), false),
    ("etc/rc", include_str!("guest/rc"), true),
    ("etc/on-port", include_str!("guest/on-port"), true),
    ("etc/ssh-server", include_str!("guest/ssh-server"), true),
    ("bin/shutdown", include_str!("guest/shutdown"), true),
    ("etc/profile", include_str!("guest/profile"), false),
    ("etc/passwd", "root::0:0:root:/root:/bin/sh\n", false),
    ("etc/group", "root:x:0:\ntty:x:5:\n", false),
    ("etc/shells", "/bin/sh\n", false),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n", false),
    ("etc/issue", "vtmesh guest\n", false),
];

/// Everything that this program itself puts into the file system, for the digest of the recipe.
pub(super) fn own_parts() -> impl Iterator<Item = &'static [u8]> {
    let own = OWN.iter().flat_map(|(path, text, _)| [path.as_bytes(), text.as_bytes()]);
    own.chain(MODULES.iter().map(|name| name.as_bytes()))
}

/// Files of unpacked packages, never followed out of their folder.
pub(super) struct Unpacked {
    root: PathBuf,
}

impl Unpacked {
    pub(super) fn new(root: &Path) -> Result<Self, ImageError> {
        Ok(Self { root: root.canonicalize().map_err(ImageError::io(root))? })
    }

    /// The first of `paths` that a package brought.
    pub(super) fn find<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Option<PathBuf> {
        let inside = |path: &str| {
            let real = self.root.join(path).canonicalize().ok()?;
            (real.starts_with(&self.root) && real.is_file()).then_some(real)
        };
        paths.into_iter().find_map(inside)
    }

    fn library(&self, name: &str) -> Option<PathBuf> {
        let paths: Vec<_> = LIBRARY_FOLDERS.iter().map(|folder| format!("{folder}/{name}")).collect();
        self.find(paths.iter().map(String::as_str))
    }

    /// A command that runs a program of the packages with their own libraries, so that none need be installed here.
    /// `paths`: where it may be in them.
    pub(super) fn command(&self, paths: &[&str]) -> Result<(PathBuf, Vec<String>), ImageError> {
        let missing = |path: &str| ImageError::Missing(path.into());
        let program = self.find(paths.iter().copied()).ok_or_else(|| missing(paths[0]))?;
        let linker = self.library(LINKER_NAME).ok_or_else(|| missing(LINKER))?;
        let folders = LIBRARY_FOLDERS.iter().map(|folder| self.root.join(folder).display().to_string());
        let folders = folders.collect::<Vec<_>>().join(":");
        Ok((linker, vec!["--library-path".into(), folders, program.display().to_string()]))
    }
}

/// Puts the guest's file system together.
pub(super) fn assemble(
    packages: &Unpacked,
    kernel: &Unpacked,
    probe: &[u8],
    recipe: &Recipe,
) -> Result<Tree, ImageError> {
    let mut tree = Tree::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "etc/dropbear", "var/run"] {
        tree.put(folder, Entry::Folder);
    }
    for (path, text, executable) in OWN {
        tree.put(path, Entry::File { bytes: text.as_bytes().to_vec(), executable });
    }
    let mut programs = vec![("vt-probe".to_owned(), PathBuf::from("vt-probe"), probe.to_vec())];
    let mut program = |name: &str, paths: &[&str]| -> Result<(), ImageError> {
        let path = packages.find(paths.iter().copied()).ok_or_else(|| ImageError::Missing(paths[0].into()))?;
        let bytes = fs::read(&path).map_err(ImageError::io(&path))?;
        programs.push((name.to_owned(), path, bytes));
        Ok(())
    };
    for (name, paths) in PROGRAMS {
        program(name, paths)?;
    }
    for path in &recipe.programs {
        program(path.rsplit('/').next().unwrap_or(path), &[path.as_str()])?;
    }
    let mut wanted = BTreeSet::new();
    for (name, path, bytes) in programs {
        wanted.extend(needed(&path, &bytes)?);
        let bytes = elf::stripped(&bytes).map_err(|source| ImageError::Elf { path, source })?;
        tree.put(&format!("bin/{name}"), Entry::File { bytes, executable: true });
    }
    put_libraries(&mut tree, packages, wanted)?;
    put_applets(&mut tree, packages)?;
    put_modules(&mut tree, packages, kernel, &recipe.modules)?;
    tree.put("init", Entry::Link("bin/busybox".into()));
    tree.put("sbin", Entry::Link("bin".into()));
    Ok(tree)
}

fn needed(path: &Path, bytes: &[u8]) -> Result<Vec<String>, ImageError> {
    elf::needed(bytes).map_err(|source| ImageError::Elf { path: path.into(), source })
}

fn put_libraries(tree: &mut Tree, packages: &Unpacked, wanted: BTreeSet<String>) -> Result<(), ImageError> {
    let mut waiting: VecDeque<String> = wanted.into_iter().chain([LINKER_NAME.to_owned()]).collect();
    while let Some(name) = waiting.pop_front() {
        let guest_path = if name == LINKER_NAME { LINKER.to_owned() } else { format!("{GUEST_LIBRARIES}/{name}") };
        if tree.contains(&guest_path) {
            continue;
        }
        let path = packages.library(&name).ok_or(ImageError::Missing(name))?;
        let bytes = fs::read(&path).map_err(ImageError::io(&path))?;
        waiting.extend(needed(&path, &bytes)?);
        tree.put(&guest_path, Entry::File { bytes, executable: true });
    }
    Ok(())
}

/// A link for everything busybox can do, so that the guest need not make them at every boot.
fn put_applets(tree: &mut Tree, packages: &Unpacked) -> Result<(), ImageError> {
    let busybox = packages.find(PROGRAMS[0].1.iter().copied()).ok_or_else(|| ImageError::Missing("busybox".into()))?;
    let list = run(&busybox, ["--list"], "asking busybox what it can do", &packages.root)?;
    for applet in String::from_utf8_lossy(&list).lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = format!("bin/{applet}");
        if !applet.contains('/') && !tree.contains(&path) {
            tree.put(&path, Entry::Link("busybox".into()));
        }
    }
    Ok(())
}

/// Modules with what they depend on, and a list of them in an order that loads.
fn put_modules(tree: &mut Tree, packages: &Unpacked, kernel: &Unpacked, more: &[String]) -> Result<(), ImageError> {
    let files = module_files(&kernel.root)?;
    let mut loading = Vec::new();
    for name in MODULES.into_iter().chain(more.iter().map(String::as_str)) {
        load(name, &files, packages, tree, &mut loading, 0)?;
    }
    let order = loading.iter().map(|name| format!("{name}\n")).collect::<String>();
    tree.put("lib/modules/order", Entry::File { bytes: order.into_bytes(), executable: false });
    Ok(())
}

fn load(
    name: &str,
    files: &[PathBuf],
    packages: &Unpacked,
    tree: &mut Tree,
    loading: &mut Vec<String>,
    depth: usize,
) -> Result<(), ImageError> {
    if loading.iter().any(|done| done == name) || depth > 8 {
        return Ok(());
    }
    // File names may have - where the module's name has _.
    let plain = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        file.strip_prefix(name).is_some_and(|rest| rest == ".ko" || rest == ".ko.xz")
    };
    let Some(path) = files.iter().find(|path| plain(path)) else {
        return if is_builtin(name, files)? {
            Ok(())
        } else {
            Err(ImageError::Missing(format!("kernel module {name}")))
        };
    };
    let bytes = if path.extension().is_some_and(|ending| ending == "xz") {
        let busybox =
            packages.find(PROGRAMS[0].1.iter().copied()).ok_or_else(|| ImageError::Missing("busybox".into()))?;
        let arguments = ["xz".as_ref(), "-dc".as_ref(), path.as_os_str()];
        run(busybox, arguments, "unpacking a kernel module", &packages.root)?
    } else {
        fs::read(path).map_err(ImageError::io(path))?
    };
    let depends = elf::module_depends(&bytes).map_err(|source| ImageError::Elf { path: path.clone(), source })?;
    for dependency in depends {
        load(&dependency, files, packages, tree, loading, depth + 1)?;
    }
    tree.put(&format!("lib/modules/{name}.ko"), Entry::File { bytes, executable: false });
    loading.push(name.to_owned());
    Ok(())
}

/// Whether the kernel has the driver inside, by the list that comes with its modules.
fn is_builtin(name: &str, files: &[PathBuf]) -> Result<bool, ImageError> {
    let Some(list) = files.iter().find(|path| path.file_name().is_some_and(|name| name == "modules.builtin")) else {
        return Ok(false);
    };
    let text = fs::read_to_string(list).map_err(ImageError::io(list))?;
    let ending = format!("/{name}.ko");
    Ok(text.lines().any(|line| line.replace('-', "_").ends_with(&ending)))
}

/// Every file below the kernel's module folders, in order of name.
fn module_files(root: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    let mut waiting = vec![root.join("lib/modules"), root.join("usr/lib/modules")];
    while let Some(folder) = waiting.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(ImageError::io(&folder))? {
            let entry = entry.map_err(ImageError::io(&folder))?;
            // Links such as `build` lead out of the package.
            match entry.file_type().map_err(ImageError::io(&folder))? {
                kind if kind.is_dir() => waiting.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}
