//! Namespaces, the switch, and what runs inside: all by iproute2's `ip` and `bridge`.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt_protocol::error::{ErrorCode, Report};

use super::record::{HostRecord, LabRecord, UPLINK};

/// The tap of a VM that is a host, in its namespace.
pub(super) const TAP: &str = "tap0";

/// Whether this machine can have a lab.
pub(super) fn check_machine() -> Result<(), Report> {
    let refuse = |title: &str| Report::new(ErrorCode::LabPrecondition, title);
    if !nix::unistd::geteuid().is_root() {
        return Err(refuse("a lab can only be made by root").help("sudo vtctl lab up --hosts 3"));
    }
    for program in ["ip", "bridge", "nsenter", "setsid"] {
        if find_in_path(program).is_none() {
            return Err(refuse("a program that labs need is not there")
                .with("program", program)
                .help("apt-get install iproute2 util-linux"));
        }
    }
    Ok(())
}

/// The path of a program in PATH.
pub(crate) fn find_in_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// Makes the namespaces, the switch and the links of a lab.
pub(super) fn make(lab: &LabRecord) -> Result<(), Report> {
    let switch = &lab.switch;
    let mut namespaces = format!("netns add {switch}\n");
    for host in &lab.hosts {
        namespaces += &format!("netns add {}\n", host.namespace);
    }
    batch(None, &namespaces)?;
    let mut links = String::from("link add sw0 type bridge stp_state 0 forward_delay 0\nlink set sw0 up\n");
    for host in &lab.hosts {
        let HostRecord { namespace, port, .. } = host;
        links += &format!("link add {port} type veth peer name up0 netns {namespace}\nlink set {port} master sw0 up\n");
        if lab.uplinks {
            let port = host.uplink_port();
            links += &format!(
                "link add {port} type veth peer name {UPLINK} netns {namespace}\nlink set {port} master sw0 up\n"
            );
        }
    }
    batch(Some(switch), &links)?;
    for host in &lab.hosts {
        let bridge = "link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0\nlink set up0 master br0 up\n\
                      link set br0 up\n";
        // A host that is a VM has its addresses itself.
        let rest = match lab.nested {
            Some(_) => format!(
                "address add {}/24 dev br0\ntuntap add {TAP} mode tap\nlink set {TAP} master br0 up\n",
                host.seat()
            ),
            None => format!(
                "address add {}/24 dev br0\naddress add {}/64 dev br0 nodad\nroute add default dev br0\n",
                host.address,
                host.ipv6()
            ),
        };
        batch(Some(&host.namespace), &format!("{bridge}{rest}"))?;
        if lab.uplinks {
            add_uplink(&host.namespace)?;
        }
    }
    Ok(())
}

/// Brings the second link of a host up. What comes in there is for macvtaps: the host itself hears the same network by its
/// bridge, and would take everything twice.
fn add_uplink(namespace: &str) -> Result<(), Report> {
    batch(Some(namespace), &format!("link set {UPLINK} addrgenmode none\nlink set {UPLINK} up\n"))?;
    let own = format!("/proc/sys/net/ipv4/conf/{UPLINK}");
    let script = format!("echo 1 >{own}/rp_filter && echo 1 >{own}/arp_ignore");
    let enter = enter(namespace);
    let words: Vec<&str> = enter[1..].iter().map(String::as_str).chain(["sh", "-c", &script]).collect();
    output(&enter[0], &words).map(drop)
}

fn batch(namespace: Option<&str>, lines: &str) -> Result<(), Report> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let failed = |error: std::io::Error| Report::new(ErrorCode::LabPrecondition, "ip cannot be run").caused_by(&error);
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let written = child.stdin.take().expect("piped above").write_all(lines.as_bytes());
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    Err(Report::new(ErrorCode::LabPrecondition, "the network of the lab could not be made")
        .with("namespace", namespace.unwrap_or("(this machine)"))
        .with("ip said", String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Runs a program to its end and gives what it printed.
pub(super) fn output(program: &str, arguments: &[&str]) -> Result<String, Report> {
    let result = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let report = || {
        Report::new(ErrorCode::LabPrecondition, format!("{program} failed"))
            .with("command", format!("{program} {}", arguments.join(" ")))
    };
    match result {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            Err(report().with(format!("{program} said"), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Err(error) => Err(report().caused_by(&error)),
    }
}

/// Whether a host's port on the switch forwards.
pub(super) fn connected(lab: &LabRecord, host: &HostRecord) -> Result<bool, Report> {
    let shown = output("bridge", &["-n", &lab.switch, "link", "show", "dev", &host.port])?;
    Ok(shown.contains("state forwarding"))
}

/// Opens or closes a host's ports on the switch. A closed port drops every frame and keeps its carrier, as a network
/// that is broken somewhere else would: the host's own links stay up, and nothing answers.
pub(super) fn set_connected(lab: &LabRecord, host: &HostRecord, connected: bool) -> Result<(), Report> {
    let state = if connected { "forwarding" } else { "disabled" };
    // `bridge` takes the state by number too; words are known since iproute2 5.
    let uplink = lab.uplinks.then(|| host.uplink_port());
    for port in [Some(host.port.clone()), uplink].into_iter().flatten() {
        output("bridge", &["-n", &lab.switch, "link", "set", "dev", &port, "state", state])?;
    }
    Ok(())
}

/// Process ids inside a namespace.
pub(super) fn processes(namespace: &str) -> Vec<i32> {
    output("ip", &["netns", "pids", namespace])
        .map(|text| text.lines().filter_map(|line| line.trim().parse().ok()).collect())
        .unwrap_or_default()
}

/// Kills all processes inside a namespace and waits until they are gone. Returns how many there were.
pub(super) fn kill_all(namespace: &str) -> Result<usize, Report> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let alive = processes(namespace);
        if alive.is_empty() {
            return Ok(seen.len());
        }
        // New ones may be forked between the listing and the signal: list again until none is left.
        for pid in &alive {
            seen.insert(*pid);
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(Report::new(ErrorCode::LabBroken, format!("process {pid} cannot be killed"))
                        .with("system said", errno.to_string()));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Report::new(ErrorCode::LabBroken, format!("processes in {namespace} do not end"))
                .with("processes", format!("{alive:?}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names of all network namespaces of this machine.
pub(super) fn namespaces() -> Result<Vec<String>, Report> {
    let text = output("ip", &["netns", "list"])?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Removes a namespace, and with it every link inside.
pub(super) fn remove(namespace: &str) -> Result<(), Report> {
    output("ip", &["netns", "delete", namespace]).map(drop)
}

/// The words that run a command inside a namespace. Not `ip netns exec`: that one hides /sys/fs/cgroup.
pub(super) fn enter(namespace: &str) -> [String; 3] {
    ["nsenter".into(), format!("--net=/run/netns/{namespace}"), "--".into()]
}

/// Runs a command inside a namespace with this program's terminal.
pub(super) fn exec(namespace: &str, argv: &[String]) -> Result<u8, Report> {
    let enter = enter(namespace);
    let status = Command::new(&enter[0])
        .args(&enter[1..])
        .args(argv)
        .status()
        .map_err(|error| Report::new(ErrorCode::LabPrecondition, "the command cannot be run").caused_by(&error))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
