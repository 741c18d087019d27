//! vtd: the daemon of a host.

use std::process::exit;

fn main() {
    // Words that vtd is started with by itself; they must run before any thread or runtime exists.
    if let Some(code) = vt_daemon::qemu::early(std::env::args_os()) {
        exit(code);
    }
}
