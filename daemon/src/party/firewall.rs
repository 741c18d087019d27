//! Packets that come in from other hosts, dropped on purpose: a table of rules that is this attempt's alone, so that nothing of
//! anybody else's rules is touched, and one command takes all of it away.
//!
//! A file in the attempt's evidence says that there may be such a table. It is written before the rules are set: what a dead
//! daemon had blocked is opened by the next one when it gives the attempt back.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::AttemptId,
    party::{Answer, Failure, Plane},
};

use super::{attempt::LocalAttempt, failure::caused};
use crate::migrate::inlet::PORTS;

/// How long nft may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Says that there may be rules of this attempt.
const MARK: &str = "firewall";

/// The table of an attempt.
fn table(attempt: AttemptId) -> String {
    let name: String = attempt.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("inet vtmesh_{name}")
}

/// Rules that drop what comes in on these planes. `port`: of this cluster's daemons.
fn rules(attempt: AttemptId, planes: &[Plane], port: u16) -> String {
    let (first, last) = (PORTS.start(), PORTS.end());
    let rule = |plane: &Plane| match plane {
        Plane::Migration => format!("  tcp dport {first}-{last} drop\n"),
        Plane::Bulk => format!("  tcp dport {port} drop\n  tcp sport {port} drop\n"),
        Plane::Raft => format!("  udp dport {port} drop\n  udp sport {port} drop\n"),
    };
    let rules: String = planes.iter().map(rule).collect();
    let chain = "type filter hook input priority -10; policy accept;\n  iifname lo accept";
    format!("table {} {{\n chain in {{\n  {chain}\n{rules} }}\n}}\n", table(attempt))
}

/// What stands in the events, e.g. `migration and bulk`.
fn told(planes: &[Plane]) -> String {
    planes.iter().map(|plane| plane.name()).collect::<Vec<_>>().join(" and ")
}

/// Makes sure that the table is gone, whether it is there or not.
fn gone(attempt: AttemptId) -> String {
    let table = table(attempt);
    format!("table {table}\ndelete table {table}\n")
}

impl LocalAttempt {
    fn firewall_mark(&self) -> PathBuf {
        self.evidence.dir().join(MARK)
    }

    /// Drops what comes in on these planes, and on no others.
    ///
    /// # Errors
    /// nft is not there or refuses.
    pub(super) async fn cut(&self, planes: &[Plane]) -> Result<Answer, Failure> {
        if planes.is_empty() {
            return match self.open_firewall().await {
                None => Ok(Answer::Done),
                Some(left) => Err(caused(Report::new(ErrorCode::NetworkSetup, left))),
            };
        }
        let failed = |why: String| {
            let title = "packets could not be blocked on this host";
            caused(Report::new(ErrorCode::NetworkSetup, title).with("nft", why).help("apt-get install nftables"))
        };
        tokio::fs::write(self.firewall_mark(), table(self.id)).await.map_err(|error| failed(error.to_string()))?;
        // The table anew, so that asking twice is asking once.
        nft(&(gone(self.id) + &rules(self.id, planes, self.places.port))).await.map_err(failed)?;
        self.evidence.events.say(format!("what comes in is dropped: {}", told(planes)));
        Ok(Answer::Done)
    }

    /// Takes this attempt's rules away, where there may be any. Says what is left.
    pub(super) async fn open_firewall(&self) -> Option<String> {
        let mark = self.firewall_mark();
        if !mark.exists() {
            return None;
        }
        if let Err(why) = nft(&gone(self.id)).await {
            return Some(format!("nft table {}: {why}", table(self.id)));
        }
        self.evidence.events.say("what comes in passes again".to_owned());
        match tokio::fs::remove_file(&mark).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("{}: {error}", mark.display())),
            _ => None,
        }
    }
}

/// Has nft do what a script says, all of it or nothing.
async fn nft(script: &str) -> Result<(), String> {
    let work = async {
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = nft.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match timeout(PATIENCE, work).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().chars().take(400).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_of_one_attempt_and_name_the_ports_of_their_planes() {
        let attempt: AttemptId = "7f3k2a.1.2".parse().unwrap();
        assert_eq!(table(attempt), "inet vtmesh_7f3k2a_1_2");
        let migrations = rules(attempt, &[Plane::Migration], 7465);
        assert!(migrations.contains("tcp dport 49152-49215 drop") && !migrations.contains("7465"), "{migrations}");
        let others = rules(attempt, &[Plane::Bulk, Plane::Raft], 7465);
        for rule in ["tcp dport 7465 drop", "tcp sport 7465 drop", "udp dport 7465 drop", "udp sport 7465 drop"] {
            assert!(others.contains(rule) && !others.contains("49152"), "{others}");
        }
        assert_eq!(gone(attempt), "table inet vtmesh_7f3k2a_1_2\ndelete table inet vtmesh_7f3k2a_1_2\n");
    }
}
