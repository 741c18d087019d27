//! The life of the process: lock, socket, host, until a signal; and what systemd is told.
//!
//! On SIGTERM nothing new is taken, leadership is handed over, and the process is gone within three seconds. VMs and
//! parties are processes of their own and go on.

use std::{fs, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vt_protocol::{error::Report, hello::BUILD};

use crate::{
    data::DataDir, facts::Facts, mesh::unix::AdminSocket, qemu::installed, settings::Settings, unclaimed::Front,
};

/// The process is gone this long after SIGTERM at the latest.
const STOP_TIME: Duration = Duration::from_millis(2800);
/// How often systemd is told how the daemon is, at most.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: the data directory, the socket, the identity or the log is not usable.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let settings = Arc::new(settings);
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let data = Arc::new(DataDir::open(&settings.paths.data).map_err(told)?);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&settings.paths.run)
        .with_context(|| format!("make {}", settings.paths.run.display()))?;
    let facts = Facts::new(Arc::clone(&settings));
    tokio::spawn(examine_qemus(Arc::clone(&settings), Arc::clone(&facts)));
    let front = Front::new(Arc::clone(&settings), data, facts);
    let socket = AdminSocket::bind(&settings.socket()).context("listen for vtctl")?;
    front.resume().await.map_err(told)?;
    tokio::spawn(front.clone().stay_fenced());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(socket.serve(front.clone(), stop.clone()));
    if let Some(mutation) = vt_sync::mutation::active() {
        tracing::error!(%mutation, "this daemon breaks a rule on purpose, for tests; let no real VM near it");
    }
    tracing::info!(
        build = BUILD,
        socket = %settings.socket().display(),
        claimed = front.host().is_some(),
        "vtd is ready"
    );
    tell(&[NotifyState::Ready]);
    let mut failure = None;
    let reporter = tokio::spawn(report(front.clone()));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        why = front.broken() => {
            tracing::error!(why, "this daemon cannot go on");
            failure = Some(why);
        }
    }
    tell(&[NotifyState::Stopping]);
    reporter.abort();
    stop.cancel();
    let stopping = async {
        if let Some(host) = front.host() {
            host.stop().await;
        }
        let _ = serving.await;
    };
    if tokio::time::timeout(STOP_TIME, stopping).await.is_err() {
        tracing::warn!("not everything ended in time");
    }
    tracing::info!("vtd ends");
    match failure {
        None => Ok(()),
        Some(why) => Err(anyhow::anyhow!(why)),
    }
}

/// Finds out what QEMUs there are and which accelerator really works with each. That runs a guest for a moment, so the
/// daemon does not wait for it.
async fn examine_qemus(settings: Arc<Settings>, facts: Arc<Facts>) {
    let mut found = Vec::new();
    for binary in settings.qemus.all() {
        match installed::examine(binary, Some(&settings.paths.data)).await {
            Ok(qemu) => {
                let (accelerator, why) = (qemu.accelerator, &qemu.accelerator_reason);
                tracing::info!(name = qemu.name, version = qemu.version, ?accelerator, why, "QEMU was found");
                found.push(qemu);
            }
            Err(error) => tracing::warn!(name = binary.name, %error, "this QEMU cannot be used"),
        }
    }
    facts.set_qemus(found);
}

/// Tells systemd how the daemon is, and that it lives.
async fn report(front: Arc<Front>) {
    let watchdog = sd_notify::watchdog_enabled();
    if watchdog.is_none() && std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let every = watchdog.map_or(STATUS_EVERY, |limit| STATUS_EVERY.min(limit / 3));
    loop {
        let status = front.host().map_or_else(|| "belongs to no cluster".to_owned(), |host| host.one_line());
        tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
        tokio::time::sleep(every).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// A report as an error of the process, with all that a person needs.
pub fn told(report: Report) -> anyhow::Error {
    let mut text = report.to_string();
    for (key, value) in &report.evidence {
        text += &format!("\n  {key}: {value}");
    }
    for cause in &report.causes {
        text += &format!("\n  because: {cause}");
    }
    for line in &report.help {
        text += &format!("\n  help: {line}");
    }
    anyhow::anyhow!(text)
}
