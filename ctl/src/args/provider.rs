//! `provider …`, `guest …`, and which configuration set is meant.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use vt_protocol::ids::Name;

use super::FormatArg;

/// What these flags stand under in help, wherever they are flattened into.
const HEADING: &str = "Test providers";

/// Where providers are.
#[derive(Debug, Clone, Default, Args)]
pub struct ProvidersArgs {
    /// Folder with test-providers.d, shared/cfg and backends
    /// (also VTCTL_PROVIDERS)
    #[arg(long, help_heading = HEADING, value_name = "DIR", env = "VTCTL_PROVIDERS", hide_env = true)]
    pub providers: Option<PathBuf>,
    /// Where trees that come by git are kept
    #[arg(long, help_heading = HEADING, value_name = "DIR", env = "VTCTL_PROVIDER_TREES", hide_env = true)]
    pub trees: Option<PathBuf>,
}

/// Which configuration set is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Where it comes from
    #[command(flatten)]
    pub from: ProvidersArgs,
    /// Whose tests; of run also who starts and moves VMs: qemu (the daemons, also called qmp), or libvirt of the hosts
    #[arg(long, help_heading = HEADING, value_name = "NAME", default_value = "qemu")]
    pub backend: String,
}

/// Which guests and machines of a configuration.
#[derive(Debug, Clone, Default, Args)]
pub struct GuestArgs {
    /// Guests, e.g. Linux.Fedora.31
    #[arg(long, help_heading = HEADING, value_name = "FILTER")]
    pub guest_os: Option<String>,
    /// Machine types, e.g. i440fx
    #[arg(long, help_heading = HEADING, value_name = "FILTER")]
    pub machine_type: Option<String>,
}

/// What is done with providers.
#[derive(Debug, Subcommand)]
pub enum ProviderVerb {
    /// Providers, where their tests come from, and what for
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl provider list --providers ./avocado-vt")]
    List(ProvidersArgs),
    /// Fetch the tests of providers with git
    #[command(after_help = "Examples:\n  vtctl provider sync\n  vtctl provider sync io-github-autotest-qemu\n\n\
                            Nothing of what is fetched is run. --timeout bounds each, 10 minutes if not given.")]
    Sync {
        /// Only these
        #[arg(value_name = "PROVIDER")]
        names: Vec<String>,
        /// Which definitions
        #[command(flatten)]
        from: ProvidersArgs,
    },
    /// Write a backend's configuration set to a new folder
    #[command(after_help = "Example:\n  vtctl provider export ./cfg --backend qemu")]
    Export {
        /// The folder; it must not exist yet
        folder: PathBuf,
        /// Which set
        #[command(flatten)]
        set: SetArgs,
    },
}

/// What is done with guests.
#[derive(Debug, Subcommand)]
pub enum GuestVerb {
    /// Guests of the configuration set, and their images
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  vtctl guest list --providers ./avocado-vt\n  vtctl guest list --guest-os Linux.Fedora --machine-type q35"
    )]
    List {
        /// Directory of images [default: /var/lib/vtmesh/images]
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// Which set
        #[command(flatten)]
        set: SetArgs,
        /// Which of them
        #[command(flatten)]
        guests: GuestArgs,
    },
    /// Write the definition of a guest of your own
    Define(GuestDefineArgs),
}

/// What runs in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GuestSystem {
    /// A shell over ssh, files by scp
    Linux,
    /// A shell over nc, files by rss: the programs of Avocado-VT's guest set-up
    Windows,
}

/// `guest define`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl guest define MyRhel9 --os linux --image rhel9-64 --password s3cret\n  \
                        vtctl guest define Win11 --os windows --file Win11.cfg\n\n\
                        The file belongs into the guest-os folder of a providers folder. The guest is a\n\
                        variant of the set then: vtctl guest list --guest-os MyRhel9.")]
pub struct GuestDefineArgs {
    /// Its name: a variant, without dots
    pub name: String,
    /// What runs in it
    #[arg(long, value_enum)]
    pub os: GuestSystem,
    /// Its image in the catalogue [default: its name in lower case]
    #[arg(long)]
    pub image: Option<Name>,
    /// Format of the image
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "qcow2")]
    pub format: FormatArg,
    /// Who logs in [default: root, on Windows Administrator]
    #[arg(long)]
    pub username: Option<String>,
    /// With which password; it stands in the file as it is
    #[arg(long)]
    pub password: Option<String>,
    /// Regular expression of the shell's prompt
    #[arg(long, value_name = "REGEX")]
    pub prompt: Option<String>,
    /// Port of the shell [default: 22, on Windows 10022]
    #[arg(long, value_name = "PORT")]
    pub shell_port: Option<u16>,
    /// Port that files go over [default: 22, on Windows 10023]
    #[arg(long, value_name = "PORT")]
    pub transfer_port: Option<u16>,
    /// Write it here; the file must not exist [default: show it]
    #[arg(long)]
    pub file: Option<PathBuf>,
}
