//! The daemon's own log, and what a panic does.
//!
//! Logs go to standard error, one line an event; where they end up is the business of who started the daemon. A panic
//! anywhere ends the process: a daemon that lost a task without a word would be worse than one that is gone.

use std::io::Write;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::settings::Log;

/// Starts logging; a second call in one process does nothing. `RUST_LOG` wins over the settings.
pub fn start(log: &Log) {
    // The libraries below say at info what only their authors want to know; who wants it names them.
    let quiet = format!("openraft=warn,{}", log.filter);
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(quiet))
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error"));
    let registry = tracing_subscriber::registry().with(filter);
    let result = if log.json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init()
    };
    if let Err(error) = result {
        tracing::debug!(%error, "logging was started before");
    }
}

/// Makes a panic in any thread or task end the process after its message.
pub fn abort_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let _ = writeln!(std::io::stderr(), "vtd: a bug: it stops now; VMs are left to their guards");
        std::process::abort();
    }));
}
