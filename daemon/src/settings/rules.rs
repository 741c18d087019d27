//! What has to hold between settings, whichever text set them: it is looked at once, when all of them are read.

use std::time::Duration;

use super::{SessionTimes, Settings};

/// Longest path of the run directory, bytes: a socket's path has at most 107, and names are put behind it.
const RUN_PATH_MAX: usize = 60;

/// A rule that does not hold, and the key that is to blame.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) text: String,
    pub(super) hint: Option<&'static str>,
}

/// Every rule that does not hold.
pub(super) fn broken_rules(settings: &Settings) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut blame = |section, key, text, hint| broken.push(Broken { section, key, text, hint });

    if settings.paths.run.as_os_str().len() > RUN_PATH_MAX {
        let text = format!("run is longer than {RUN_PATH_MAX} bytes, too long for the paths of sockets");
        blame("paths", "run", text, None);
    }

    for pair in settings.session.named().windows(2) {
        let [(before, short), (after, long)] = [pair[0], pair[1]];
        if short >= long {
            let text =
                format!("{after} ({} ms) is not longer than {before} ({} ms)", long.as_millis(), short.as_millis());
            blame("session", after, text, Some("renew < suspect < pause < kill < expire"));
        }
    }
    for ((name, time), least, rule) in margins(&settings.session) {
        if time < least {
            let text = format!("{name} ({} ms) is less than {} ms", time.as_millis(), least.as_millis());
            blame("session", name, text, Some(rule));
        }
    }

    let (low, high) = settings.raft.election_ms;
    if low < 3 * settings.raft.heartbeat_ms {
        let text = format!("election_ms begins at {low}, less than three heartbeats of {}", settings.raft.heartbeat_ms);
        blame("raft", "election_ms", text, None);
    }
    if low >= high {
        blame("raft", "election_ms", "election_ms is not a range from less to more".into(), None);
    }
    if settings.voter_away <= settings.session.expire {
        let text = format!("voter_away_ms ({}) is not longer than a session lasts", settings.voter_away.as_millis());
        blame("raft", "voter_away_ms", text, Some("session.expire < raft.voter_away_ms"));
    }

    if let Some(libvirt) = &settings.libvirt {
        let hint = Some("uri is how this host reaches it, peer how the libvirts of other hosts do");
        for (key, value) in [("uri", &libvirt.uri), ("peer", &libvirt.peer)] {
            if value.is_empty() {
                blame("libvirt", key, format!("{key} is missing"), hint);
            }
        }
    }

    if tracing_subscriber::EnvFilter::try_new(&settings.log.filter).is_err() {
        let text = format!("filter {:?} is not a level or a list of MODULE=LEVEL", settings.log.filter);
        blame("log", "filter", text, None);
    }
    broken
}

/// A time with its key, the least it may be, and the rule that says so.
type Margin = ((&'static str, Duration), Duration, &'static str);

/// What has to lie between the times of a session, each for a reason of its own.
fn margins(times: &SessionTimes) -> [Margin; 4] {
    let SessionTimes { renew, suspect, pause, kill, expire } = *times;
    [
        // One renewal that is lost is no silence.
        (("suspect", suspect), 2 * renew, "suspect >= 2 x renew"),
        // A new leader has to be found and to answer before VMs stand still.
        (("pause", pause), suspect + renew, "pause >= suspect + renew"),
        // `stop` may take its time before the process is killed.
        (("kill", kill), pause + renew, "kill >= pause + renew"),
        // Nothing of the old owner may run when the next one begins, however late its guard was woken.
        (("expire", expire), kill + 2 * renew, "expire >= kill + 2 x renew"),
    ]
}
