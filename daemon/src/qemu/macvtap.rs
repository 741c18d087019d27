//! The device of a macvtap: what its QEMU reads and writes, opened by the process that becomes that QEMU.
//!
//! The kernel gives it a number, and tells it in sysfs alone, where each network namespace has its own view; and nobody
//! but the kernel's own /dev has a file of that number. So a daemon whose /sys or /dev is another's makes itself both for
//! that moment, in a mount namespace that ends with its thread, and as a file that is gone once it is open.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
};

/// Opens the device of a macvtap in the network namespace of this thread.
///
/// # Errors
/// There is no such macvtap, or its device cannot be had.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let index = if_nametoindex(name)?;
    let device = device(name, index)?;
    let open = |path: &Path| fs::File::options().read(true).write(true).open(path).map(OwnedFd::from);
    let known = PathBuf::from(format!("/dev/tap{index}"));
    if fs::metadata(&known).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == device) {
        return open(&known);
    }
    // Not in a folder for sockets or logs: devices there are no devices on many systems.
    let node = PathBuf::from(format!("/dev/{name}"));
    let _ = fs::remove_file(&node);
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
    let opened = open(&node);
    fs::remove_file(&node)?;
    opened
}

/// The number of the device, as the kernel tells it.
fn device(name: &str, index: u32) -> io::Result<u64> {
    let file = format!("/sys/class/net/{name}/tap{index}/dev");
    let read = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, none)?;
        fs::read_to_string(&file).map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
    };
    let text =
        thread::spawn(read).join().map_err(|_| io::Error::other("the thread that looks into sysfs has died"))??;
    numbers(&text).ok_or_else(|| io::Error::other(format!("sysfs says {text:?} for a device")))
}

/// `246:1`.
fn numbers(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_two_numbers() {
        assert_eq!(numbers("246:1\n"), Some(makedev(246, 1)));
        assert_eq!([numbers(""), numbers("246"), numbers("a:b"), numbers("1:2:3")], [None; 4]);
    }
}
