//! vt-probe: the program inside the built-in guest that lets a host see whether the guest is really unhurt.
//!
//! It answers calls of `vt_protocol::probe` on a virtio-serial port, given as its only argument. It knows nothing of
//! migrations: it keeps patterns in memory and on disk, and clocks, and tells what it finds.
//!
//! What may not happen here: an async runtime, a dependency that makes the image larger, or an end because of
//! anything that comes in through the port.

mod beacon;
mod clock;
mod disk;
mod echo;
mod exec;
mod identity;
mod memory;
mod service;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(port), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: vt-probe PORT (a virtio-serial port, such as /dev/virtio-ports/org.vtmesh.probe.0)");
        return ExitCode::from(2);
    };
    let error = service::serve(port.as_ref());
    eprintln!("vt-probe: {}: {error}", port.to_string_lossy());
    ExitCode::FAILURE
}
