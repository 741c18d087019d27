//! The Ansible collection over the hosts of a nested lab: its inventory, how it reaches them, and its run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vt_protocol::error::{ErrorCode, Report};

use super::{
    daemon::last_lines,
    network,
    record::{HostRecord, LabRecord, Paths, trouble},
};

/// How long a playbook may take: where all hosts are emulated, each of its tasks takes seconds.
const PLAYS: Duration = Duration::from_secs(3600);
const LOOKS: Duration = Duration::from_millis(500);

/// Where the files of Ansible and ssh are.
fn folder(lab: &LabRecord) -> PathBuf {
    Paths::of(&lab.name).data.join("ansible")
}

/// The settings of ssh for the lab's hosts, by their names.
pub(super) fn ssh_settings(lab: &LabRecord) -> PathBuf {
    folder(lab).join("ssh.conf")
}

/// Writes everything that [`play`] and ssh need.
pub(super) fn write(lab: &LabRecord, key: &Path, packages: &Path, log: &str) -> Result<(), Report> {
    let (folder, run) = (folder(lab), Paths::of(&lab.name).run);
    for needed in [&folder, &run] {
        fs::create_dir_all(needed).map_err(|e| trouble("make", needed, &e))?;
    }
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|e| trouble("write", &path, &e))
    };
    put("ssh.conf", &ssh(lab, key))?;
    put("inventory.json", &inventory(lab, packages, log).to_string())?;
    let shown = folder.display();
    put(
        "ansible.cfg",
        &format!(
            "[defaults]\ninventory = {shown}/inventory.json\nlocal_tmp = {shown}/tmp\n[connection]\npipelining = true\n\
             [ssh_connection]\nssh_args = -F {shown}/ssh.conf -o ControlMaster=auto -o ControlPersist=600s \
             -o ControlPath={run}/%h\n",
            run = run.display(),
        ),
    )
}

fn ssh(lab: &LabRecord, key: &Path) -> String {
    let mut text: String =
        lab.hosts.iter().map(|host| format!("Host {}\n  HostName {}\n", host.name, host.address)).collect();
    // The hosts are of this lab alone, on a network of its own; nobody else can answer in their place.
    text += &format!(
        "Host *\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  \
         LogLevel ERROR\n  BatchMode yes\n  ConnectTimeout 10\n  ServerAliveInterval 5\n  ServerAliveCountMax 60\n",
        key.display()
    );
    text
}

fn inventory(lab: &LabRecord, packages: &Path, log: &str) -> Value {
    let host = |host: &HostRecord| (host.name.to_string(), json!({"vtmesh_advertise": host.listen().to_string()}));
    let hosts: serde_json::Map<String, Value> = lab.hosts.iter().map(host).collect();
    let mut settings = json!({
        "host": {"kind": "vm"},
        "network": {"bridge": "br0", "guests": "10.77.0.100-10.77.0.249/24"},
        "log": {"filter": log},
    });
    if lab.nested.as_ref().is_some_and(|nested| !nested.kvm) {
        // A host that is emulated on a busy machine stands still for seconds.
        settings["session"] = json!({"renew": 6000, "suspect": 15000, "pause": 45000, "kill": 60000, "expire": 90000});
        settings["raft"] = json!({"heartbeat_ms": 2000, "election_ms": [10000, 20000]});
    }
    json!({"all": {
        "children": {
            "vtmesh": {"children": {"vtmesh_voters": {"hosts": hosts}}},
            "vtmesh_clients": {"hosts": {}},
        },
        "vars": {
            "ansible_python_interpreter": "/usr/bin/python3",
            "vtmesh_cluster_name": lab.name.as_str(),
            "vtmesh_package_directory": packages,
            "vtmesh_version": env!("CARGO_PKG_VERSION"),
            "vtmesh_settings": settings,
        },
    }})
}

/// Runs a playbook of the collection over all hosts, from inside the lab's network. Gives how each host fared, a line a host.
pub(super) async fn play(lab: &LabRecord, playbook: &str) -> Result<Vec<String>, Report> {
    let (folder, log) = (folder(lab), folder(lab).join(format!("{playbook}.log")));
    let file = fs::File::create(&log).map_err(|e| trouble("make", &log, &e))?;
    let errors = file.try_clone().map_err(|e| trouble("make", &log, &e))?;
    let failed = || Report::new(ErrorCode::LabPrecondition, format!("the playbook vtmesh.lab.{playbook} failed"));
    let enter = network::enter(&lab.hosts[0].namespace);
    let mut child = Command::new(&enter[0])
        .args(&enter[1..])
        .args(["ansible-playbook", &format!("vtmesh.lab.{playbook}")])
        .env("ANSIBLE_CONFIG", folder.join("ansible.cfg"))
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| failed().caused_by(&error))?;
    let until = Instant::now() + PLAYS;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < until => sleep(LOOKS).await,
            Ok(None) => {
                // What it started is in the namespace, too, and ends with the lab.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            Err(error) => return Err(failed().caused_by(&error)),
        }
    };
    let said = fs::read_to_string(&log).unwrap_or_default();
    if status.is_some_and(|status| status.success()) {
        return Ok(recap(&said));
    }
    let report = if status.is_some() { failed() } else { failed().with("waited", format!("{} s", PLAYS.as_secs())) };
    let report = report.with("its log", last_lines(&log));
    Err(match said.contains("could not be found") {
        true => report.help("ansible-galaxy collection install ./ansible"),
        false => report,
    })
}

/// The last lines of a playbook's output: `host1 : ok=25 changed=7 …`.
fn recap(said: &str) -> Vec<String> {
    let lines = said.lines().skip_while(|line| !line.starts_with("PLAY RECAP")).skip(1);
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.len() > 3).map(|words| [&words[..1], &words[2..5]].concat().join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recap_is_a_line_a_host() {
        let said = "TASK [x] ***\nok: [host1]\n\nPLAY RECAP ****\n\
                    host1                       : ok=25   changed=7    unreachable=0    failed=0    skipped=14\n\
                    host2                       : ok=27   changed=8    unreachable=0    failed=0    skipped=14\n\n";
        assert_eq!(recap(said), ["host1 ok=25 changed=7 unreachable=0", "host2 ok=27 changed=8 unreachable=0"]);
        assert!(recap("ERROR! the playbook could not be found").is_empty());
    }
}
