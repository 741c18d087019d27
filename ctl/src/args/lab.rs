//! `lab …`: what acts on this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use vt_protocol::ids::Name;

/// What is done with labs.
#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Make a lab: hosts as network namespaces or VMs, one cluster
    Up(LabUpArgs),
    /// Remove a lab and everything it made
    #[command(
        after_help = "Example:\n  vtctl lab down --lab lab1\n\nWithout --lab it is the current lab, and vtctl asks first unless --yes."
    )]
    Down,
    /// Labs of this machine, their hosts and what they made
    #[command(after_help = "Example:\n  vtctl lab status")]
    Status,
    /// Kill the daemon of a host, as a power cut would
    #[command(after_help = "Example:\n  vtctl lab kill host3")]
    Kill {
        /// The host
        host: Name,
    },
    /// Start a host's daemon again
    #[command(after_help = "Example:\n  vtctl lab start host3")]
    Start {
        /// The host
        host: Name,
    },
    /// Cut a host off from the others
    #[command(after_help = "Example:\n  vtctl lab partition host1")]
    Partition {
        /// The host
        host: Name,
    },
    /// Undo `partition`, of one host or of all
    #[command(after_help = "Example:\n  vtctl lab heal")]
    Heal {
        /// The host [default: all]
        host: Option<Name>,
    },
    /// Run a program on a host of a lab
    #[command(after_help = "Example:\n  vtctl lab exec host1 -- ip addr")]
    Exec {
        /// The host
        host: Name,
        /// Program and arguments
        #[arg(required = true, last = true)]
        argv: Vec<String>,
    },
    /// Make the Debian that VMs which are hosts start from
    #[command(
        after_help = "Example:\n  vtctl lab machine target/machine\n\n`lab up --driver nested` does it by itself. Nothing is done where it is there already."
    )]
    Machine {
        /// Its folder
        folder: PathBuf,
        /// Directory of images with the guest that goes into it
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
    },
}

/// What the hosts of a lab are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverArg {
    /// Network namespaces of this machine
    Namespace,
    /// VMs of this machine, each a Debian, installed by Ansible
    Nested,
}

/// `lab up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl lab up --hosts 3\n  vtctl lab up --lab second --hosts 2\n  vtctl lab up --separate-pools\n  vtctl lab up --driver nested --hosts 2 --packages target/deb\n  vtctl lab up --qemu old=target/qemu-7.2/qemu"
)]
pub struct LabUpArgs {
    /// How many hosts: host1, host2, …
    #[arg(long, default_value_t = 3)]
    pub hosts: u32,
    /// What they are
    #[arg(long, value_enum, default_value_t = DriverArg::Namespace)]
    pub driver: DriverArg,
    /// The daemon to start [default: vtd beside vtctl]
    #[arg(long, value_name = "FILE")]
    pub vtd: Option<PathBuf>,
    /// Directory of images that all hosts share
    #[arg(long, value_name = "DIR", conflicts_with = "separate_pools")]
    pub images: Option<PathBuf>,
    /// Share no storage: each host has images and disks of its own
    #[arg(long)]
    pub separate_pools: bool,
    /// Each host has a libvirtd too, for vtctl run --backend libvirt
    #[arg(long)]
    pub libvirt: bool,
    /// Each host has a second link to the network, without an address, for vtctl run -p nettype=macvtap
    #[arg(long)]
    pub uplinks: bool,
    /// A further QEMU of each host under a name, for vtctl run -p qemu_binary=NAME; may be given several times
    #[arg(long = "qemu", value_name = "NAME=FILE", value_parser = named_file)]
    pub qemus: Vec<(Name, PathBuf)>,
    /// For VMs: folder of the packages they are installed from
    #[arg(long, value_name = "DIR", required_if_eq("driver", "nested"))]
    pub packages: Option<PathBuf>,
    /// For VMs: memory of each, MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub memory: u32,
    /// For VMs: folder of the Debian they start from
    #[arg(long, value_name = "DIR", default_value = "/var/lib/vtmesh/machine")]
    pub machine: PathBuf,
    /// Log filter of the daemons
    #[arg(long, value_name = "FILTER", default_value = "info,openraft=error")]
    pub log: String,
}

fn named_file(text: &str) -> Result<(Name, PathBuf), String> {
    let (name, file) =
        text.split_once('=').filter(|(_, file)| !file.is_empty()).ok_or("NAME=FILE, e.g. old=/opt/qemu")?;
    let name = name.parse().map_err(|_| format!("{name:?} is no name"))?;
    // Daemons are started with another working directory.
    let file = std::path::absolute(file).map_err(|error| error.to_string())?;
    Ok((name, file))
}
