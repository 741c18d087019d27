//! Bytes from a QEMU as its monitor: the connection is refused, ends, or goes on; commands are answered or fail in time.
//!
//! The input is all that QEMU ever says. An even first byte puts a good greeting and a good answer in front of the rest, so
//! that events and answers of an open connection are reached.

#![no_main]

use std::{
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use tokio::{io::AsyncWriteExt, net::UnixListener, runtime::Runtime, time::timeout};
use vt_daemon::qemu::qmp::{EventError, Qmp, Transcript};

const OPENING: &[u8] =
    br#"{"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":10},"package":""},"capabilities":["oob"]}}
{"return":{},"id":1}
"#;
/// Longer than anything here takes on a busy machine; what waits for it hangs.
const SOON: Duration = Duration::from_secs(10);

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("vt-fuzz-qmp-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory can be made");
    directory
});
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));
static INPUTS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let said = if first % 2 == 0 { [OPENING, rest].concat() } else { rest.to_vec() };
    let socket = DIRECTORY.join(INPUTS.fetch_add(1, Ordering::Relaxed).to_string());
    RUNTIME.block_on(async {
        let listener = UnixListener::bind(&socket).expect("a socket in an own directory can be bound");
        let speaking = async {
            let (mut stream, _) = listener.accept().await.expect("it is connected");
            let _ = stream.write_all(&said).await;
            let _ = stream.shutdown().await;
            // What the other side says is taken until it ends.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        };
        let asking = async {
            let Ok(qmp) = Qmp::connect(&socket, Transcript::none()).await else { return };
            let mut events = qmp.events();
            let _ = qmp.query_status().await;
            let _ = qmp.query_migrate().await;
            let _ = qmp.query_machines().await;
            // The monitor says nothing more: events end.
            loop {
                match events.next().await {
                    Ok(event) => drop(event.text("status").map(str::to_owned)),
                    Err(EventError::Lagged(_)) => {}
                    Err(_) => break,
                }
            }
            assert!(!qmp.is_open(), "QEMU has ended");
        };
        let both = async { tokio::join!(speaking, asking) };
        timeout(SOON, both).await.expect("whatever QEMU says, nothing waits for ever");
    });
    let _ = std::fs::remove_file(socket);
});
