//! Places where a test may hold a daemon, so that a fault lands in a phase that is over in less than a millisecond.
//! Debug builds alone; in a release build nothing of it is there.
//!
//! Where `VTMESH_HOLD_DIR` names a directory, a daemon that comes to a place looks there for `HOST.PLACE.hold`. While that
//! file exists it waits, at most [`LONGEST`], and says so by `HOST.PLACE.here`, which holds the time. Only the task that came to
//! the place waits; the rest of the daemon goes on.
//!
//! What may not happen here: a place inside a decision. One stands before something is proposed or done, where a slow
//! host would be slow too.

#[cfg(debug_assertions)]
pub use holding::at;

/// Goes on.
#[cfg(not(debug_assertions))]
#[inline]
pub async fn at(_host: &str, _place: &str) {}

#[cfg(debug_assertions)]
mod holding {
    use std::{fs, path::PathBuf, time::Duration};

    use tokio::time::{Instant, sleep};

    /// The variable that names the directory.
    const VARIABLE: &str = "VTMESH_HOLD_DIR";
    /// A test that died must not hold a daemon for ever.
    const LONGEST: Duration = Duration::from_secs(90);
    /// How often it is looked whether the file is still there.
    const AGAIN: Duration = Duration::from_millis(5);

    /// Waits here while a test wants it.
    pub async fn at(host: &str, place: &str) {
        let Some(folder) = std::env::var_os(VARIABLE) else { return };
        let file = |end: &str| PathBuf::from(&folder).join(format!("{host}.{place}.{end}"));
        let hold = file("hold");
        if !hold.exists() {
            return;
        }
        tracing::info!(place, "held here by a test");
        if let Err(error) = fs::write(file("here"), crate::evidence::unix_ms().to_string()) {
            tracing::warn!(%error, place, "the test is not told");
        }
        let until = Instant::now() + LONGEST;
        while hold.exists() && Instant::now() < until {
            sleep(AGAIN).await;
        }
        tracing::info!(place, "held no longer");
    }
}
