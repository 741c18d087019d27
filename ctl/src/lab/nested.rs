//! Hosts that are VMs of this machine: a Debian each, with `vtd` installed by the Ansible collection over ssh.
//!
//! ```text
//!   host namespace  vt-LAB-host1     up0 ─ br0 ─ tap0 ═ eth0 of the VM ─ br0 of the VM, which has 10.77.0.1N/24 and the taps
//! ```
//!
//! A VM sits in the namespace in which, elsewhere, the host itself is: switch, partition and power cut are the same. Its daemon's
//! socket is where every lab has it, carried there by ssh, which does not pass the switch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use vt_protocol::{
    client::Client,
    doctor::{Document, Severity},
    error::{ErrorCode, Report},
};

use super::{
    NestedOptions, UpOptions, cluster,
    daemon::last_lines,
    machine::Machine,
    network, playbook,
    record::{HostRecord, LabRecord, NestedRecord, Paths, trouble},
    runs_already,
};

/// Most hosts of one: each has a gigabyte or more.
pub(super) const HOSTS_MAX: u32 = 8;
/// How long a host may take from power on until ssh lets in. Emulated it takes half a minute of a machine that has nothing else
/// to do.
const BOOTS: Duration = Duration::from_secs(900);
/// How long its daemon may take then.
const ANSWERS: Duration = Duration::from_secs(600);
const LOOKS: Duration = Duration::from_secs(1);
/// The check of `vtd doctor` that runs a guest to see how it runs.
const ACCELERATION: &str = "D-PLT-01";
/// The daemon's socket on a host that was installed from packages.
const SOCKET: &str = "/run/vtmesh/vtd.sock";

/// Whether this machine can have one.
pub(super) fn check(options: &UpOptions, nested: &NestedOptions) -> Result<(), Report> {
    let usage = |title: String| Report::new(ErrorCode::Usage, title);
    if options.hosts > HOSTS_MAX {
        return Err(usage(format!("a lab cannot have {} VMs as hosts", options.hosts))
            .with("wanted", format!("1 to {HOSTS_MAX}")));
    }
    let unfit = [(options.libvirt, "--libvirt"), (options.uplinks, "--uplinks"), (!options.qemus.is_empty(), "--qemu")];
    if let Some((_, flag)) = unfit.iter().find(|(given, _)| *given) {
        return Err(usage(format!("{flag} is for hosts that are namespaces")).help("without --driver nested"));
    }
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("ssh", "openssh-client"),
        ("ansible-playbook", "ansible-core"),
    ] {
        if network::find_in_path(program).is_none() {
            return Err(Report::new(ErrorCode::LabPrecondition, "a program that nested hosts need is not there")
                .with("program", program)
                .help(format!("apt-get install {package}")));
        }
    }
    for name in ["vtd", "vtctl"] {
        let wanted = nested.packages.join(format!("{name}_{}_amd64.deb", env!("CARGO_PKG_VERSION")));
        if !wanted.is_file() {
            return Err(Report::new(
                ErrorCode::LabPrecondition,
                "a package that hosts are installed from is not there",
            )
            .with("looked for", wanted.display().to_string())
            .help("make deb; vtctl lab up --driver nested --packages target/deb"));
        }
    }
    Ok(())
}

/// How the hosts will run: found by running a guest, because a `/dev/kvm` that opens may not run any.
pub(super) fn plan(vtd: &Path, memory_mib: u32) -> Result<(NestedRecord, String), Report> {
    let failed = || Report::new(ErrorCode::LabPrecondition, "whether KVM runs guests here cannot be found out");
    let asked = Command::new(vtd).args(["doctor", "--json", "--check", ACCELERATION]).stdin(Stdio::null()).output();
    let asked = asked.map_err(|error| failed().caused_by(&error))?;
    let document: Document = serde_json::from_slice(&asked.stdout).map_err(|error| {
        failed().with("vtd said", String::from_utf8_lossy(&asked.stderr).trim().to_owned()).caused_by(&error)
    })?;
    let finding = document.findings.into_iter().find(|finding| finding.check == ACCELERATION);
    let finding = finding.ok_or_else(failed)?;
    Ok((NestedRecord { kvm: finding.severity == Severity::Ok, memory_mib }, finding.found))
}

fn machine(lab: &LabRecord) -> Machine {
    Machine::at(Paths::of(&lab.name).data.join("machine"))
}

fn nested(lab: &LabRecord) -> Result<&NestedRecord, Report> {
    lab.nested.as_ref().ok_or_else(|| Report::new(ErrorCode::Internal, "the hosts of this lab are no VMs"))
}

/// Boots the hosts and has the collection make a cluster of them. The network is there already.
pub(super) async fn make(
    lab: &LabRecord,
    options: &UpOptions,
    nested: &NestedOptions,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Report> {
    let shared = Machine::at(nested.machine.clone());
    shared.make(&options.images, say)?;
    let own = shared.link_to(&Paths::of(&lab.name).data.join("machine"))?;
    let packages = std::path::absolute(&nested.packages).map_err(|e| trouble("find", &nested.packages, &e))?;
    playbook::write(lab, &own.key(), &packages, &options.log)?;
    let begun = Instant::now();
    for host in &lab.hosts {
        fs::create_dir_all(&host.data).map_err(|e| trouble("make", &host.data, &e))?;
        let disk = disk(host).display().to_string();
        let below = own.disk().display().to_string();
        network::output("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw", &disk])?;
        power_on(lab, host)?;
    }
    for host in &lab.hosts {
        wait_for_ssh(lab, host).await?;
    }
    say(format!("hosts      {} let in by ssh after {} s", lab.hosts.len(), begun.elapsed().as_secs()));
    let begun = Instant::now();
    for line in playbook::play(lab, "site").await? {
        say(format!("ansible    {line}"));
    }
    say(format!("ansible    vtmesh.lab.site took {} s", begun.elapsed().as_secs()));
    for host in &lab.hosts {
        reach(lab, host).await?;
    }
    say(cluster::ready(lab, ANSWERS).await?);
    Ok(())
}

/// Starts a host whose power was cut, or only reaches for its daemon again where that was lost.
pub(super) async fn start(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    if answers(host, Duration::from_secs(5)).await {
        return Err(runs_already(host));
    }
    if network::processes(&host.namespace).is_empty() {
        power_on(lab, host)?;
    }
    wait_for_ssh(lab, host).await?;
    reach(lab, host).await
}

fn disk(host: &HostRecord) -> PathBuf {
    host.data.join("disk.qcow2")
}

fn console(host: &HostRecord) -> PathBuf {
    host.data.join("console.log")
}

/// Starts a host, new or as it was when its power was cut.
fn power_on(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    let (machine, nested) = (machine(lab), nested(lab)?);
    let [.., number] = host.address.octets();
    // With KVM the hosts have what this machine has, vmx or svm among it; emulated, all that QEMU can emulate.
    let (accelerator, cpu) = if nested.kvm { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
    let shown = |path: PathBuf| path.display().to_string();
    let words = [
        ["-accel".into(), accelerator.into()],
        ["-machine".into(), "q35".into()],
        ["-cpu".into(), cpu.into()],
        ["-smp".into(), "1".into()],
        ["-m".into(), nested.memory_mib.to_string()],
        ["-display".into(), "none".into()],
        ["-monitor".into(), "none".into()],
        ["-serial".into(), format!("file:{}", shown(console(host)))],
        ["-kernel".into(), shown(machine.kernel())],
        ["-initrd".into(), shown(machine.initrd())],
        ["-append".into(), command_line(host)],
        ["-drive".into(), format!("file={},if=virtio,cache=unsafe", shown(disk(host)))],
        ["-device".into(), "virtio-rng-pci".into()],
        ["-netdev".into(), format!("tap,id=n,ifname={},script=no,downscript=no", network::TAP)],
        ["-device".into(), format!("virtio-net-pci,netdev=n,mac=02:76:74:6d:00:{number:02x}")],
    ];
    let log = host.data.join("qemu.log");
    let file = fs::File::options().create(true).append(true).open(&log).map_err(|e| trouble("open", &log, &e))?;
    let errors = file.try_clone().map_err(|e| trouble("open", &log, &e))?;
    // In a session of its own, so that it outlives this program and its terminal.
    Command::new("setsid")
        .args(network::enter(&host.namespace))
        .arg("qemu-system-x86_64")
        .args(words.concat())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map(drop)
        .map_err(|error| {
            Report::new(ErrorCode::LabPrecondition, format!("{} cannot be started", host.name)).caused_by(&error)
        })
}

fn command_line(host: &HostRecord) -> String {
    format!(
        "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.hostname={} vtmesh.address={}/24",
        host.name, host.address
    )
}

/// The words of ssh to a host, from inside its namespace.
fn ssh(lab: &LabRecord, host: &HostRecord) -> Vec<String> {
    let settings = playbook::ssh_settings(lab).display().to_string();
    network::enter(&host.namespace).into_iter().chain(["ssh".into(), "-F".into(), settings]).collect()
}

/// Waits until a host lets in.
async fn wait_for_ssh(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    let begun = Instant::now();
    let words = ssh(lab, host);
    loop {
        let tried = Command::new(&words[0])
            .args(&words[1..])
            .args([host.name.as_str(), "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if tried.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        let gone = network::processes(&host.namespace).is_empty();
        if gone || begun.elapsed() > BOOTS {
            let how = if gone { "its QEMU ended" } else { "it does not let in by ssh" };
            return Err(Report::new(ErrorCode::LabPrecondition, format!("{} did not boot: {how}", host.name))
                .with("waited", format!("{} s", begun.elapsed().as_secs()))
                .with("its console", last_lines(&console(host)))
                .with("its QEMU", last_lines(&host.data.join("qemu.log"))));
        }
        sleep(LOOKS).await;
    }
}

/// Puts the daemon's socket where this machine's vtctl finds it, and waits until the daemon answers there.
async fn reach(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    carry_socket(lab, host)?;
    let begun = Instant::now();
    while !answers(host, Duration::from_secs(10)).await {
        if begun.elapsed() > ANSWERS {
            let words =
                [&ssh(lab, host)[..], &[host.name.to_string(), "journalctl -u vtd -n 20 --no-pager".into()]].concat();
            let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
            let log = network::output(&words[0], &arguments).unwrap_or_else(|report| report.title);
            return Err(Report::new(
                ErrorCode::LabPrecondition,
                format!("the daemon of {} does not answer", host.name),
            )
            .with("waited", format!("{} s", begun.elapsed().as_secs()))
            .with("its log", log));
        }
        sleep(LOOKS).await;
    }
    Ok(())
}

fn carry_socket(lab: &LabRecord, host: &HostRecord) -> Result<(), Report> {
    fs::create_dir_all(&host.run).map_err(|e| trouble("make", &host.run, &e))?;
    let carried = format!("{}:{SOCKET}", host.socket().display());
    Command::new("setsid")
        .args(ssh(lab, host))
        .args(["-N", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes", "-L", &carried])
        .arg(host.name.as_str())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
        .map_err(|error| Report::new(ErrorCode::LabPrecondition, "ssh cannot be run").caused_by(&error))
}

/// Whether the daemon behind a carried socket answers: ssh itself takes every connection.
pub(super) async fn answers(host: &HostRecord, patience: Duration) -> bool {
    Client::local(&host.socket(), Instant::now() + patience).await.is_ok()
}

/// Runs a command on a host, with this program's terminal. Returns its exit code.
pub(super) fn exec(lab: &LabRecord, host: &HostRecord, argv: &[String]) -> Result<u8, Report> {
    let quoted: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
    let words = ssh(lab, host);
    let status = Command::new(&words[0])
        .args(&words[1..])
        .args([host.name.as_str(), &quoted.join(" ")])
        .status()
        .map_err(|error| Report::new(ErrorCode::LabPrecondition, "ssh cannot be run").caused_by(&error))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// One word for the shell at the other end.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Driver;

    #[test]
    fn what_vms_cannot_be_is_refused_before_anything_is_made() {
        let nested =
            NestedOptions { packages: "/nowhere".into(), memory_mib: 2048, machine: "/nowhere/machine".into() };
        let options = UpOptions {
            name: "n".parse().unwrap(),
            hosts: 2,
            driver: Driver::Nested(nested.clone()),
            vtd: None,
            images: "/nowhere/images".into(),
            separate_pools: true,
            libvirt: false,
            uplinks: false,
            qemus: vec![],
            log: "info".into(),
        };
        let refused = |options: UpOptions| check(&options, &nested).unwrap_err();
        let report = refused(UpOptions { libvirt: true, ..options.clone() });
        assert!(report.code == ErrorCode::Usage && report.title.contains("--libvirt"), "{}", report.title);
        let report = refused(UpOptions { hosts: 9, ..options.clone() });
        assert!(report.code == ErrorCode::Usage && report.title.contains("9 VMs"), "{}", report.title);
        assert_eq!(refused(options).code, ErrorCode::LabPrecondition, "there are no packages");
    }

    #[test]
    fn a_word_is_one_word_for_a_shell() {
        for word in ["", "a b", "it's", "$HOME; `x`", "a\nb", r"\'"] {
            let said = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), word);
        }
    }
}
