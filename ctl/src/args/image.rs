//! `image …` and `storage …`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use vt_protocol::{catalogue::ImageFormat, ids::Name};

/// What is done with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Images of the catalogue, and where their copies are
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl image list")]
    List,
    /// One image: content root, copies, jobs that used it
    #[command(after_help = "Example:\n  vtctl image show tiny")]
    Show {
        /// Its name
        image: Name,
    },
    /// Packages that an image was built from: version and SHA-256
    #[command(after_help = "Example:\n  vtctl image packages tiny")]
    Packages {
        /// Its name
        image: Name,
    },
    /// Make a guest from the distribution's packages
    Build(ImageBuildArgs),
    /// Take a disk, or the folder of a built image
    Import(ImageImportArgs),
    /// Download a disk by its definition, and take it
    Fetch(ImageFetchArgs),
    /// Make an image of another: in a format, packed, alone
    Convert(ImageConvertArgs),
    /// Copy an image to hosts
    Sync(ImageSyncArgs),
    /// Read every copy and compare it with its digests
    #[command(
        after_help = "Example:\n  vtctl image verify tiny\n\nExit code 26 where a copy is damaged or a host does not answer."
    )]
    Verify {
        /// Its name
        image: Name,
    },
    /// Write the disk of an image into a new file
    #[command(
        after_help = "Example:\n  vtctl image export rhel9 /tmp/rhel9.qcow2\n\nThe daemon of this host writes it, from its own copy. One built upon another\n\
                      image still needs that one."
    )]
    Export {
        /// Its name
        image: Name,
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Keep an image from being deleted
    #[command(after_help = "Example:\n  vtctl image pin rhel9")]
    Pin {
        /// Its name
        image: Name,
    },
    /// Let an image be deleted again
    #[command(after_help = "Example:\n  vtctl image unpin rhel9")]
    Unpin {
        /// Its name
        image: Name,
    },
    /// Remove an image and all its copies
    #[command(
        after_help = "Example:\n  vtctl image delete rhel9\n\nRefused while it is pinned, or a VM or another image uses it."
    )]
    Delete {
        /// Its name
        image: Name,
    },
    /// Remove what broken transfers left, and copies off the record
    #[command(after_help = "Example:\n  vtctl image gc")]
    Gc,
    /// VMs that write to disks upon images, and on which host
    #[command(after_help = "Example:\n  vtctl image writers")]
    Writers,
}

/// `image build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl image build\n  vtctl image build --if-missing\n  vtctl image build --recipe stress\n\n\
                        A recipe is a file: name, packages, programs, kernel, modules. Each package is\n\
                        recorded in the image with version and SHA-256, by the distribution's lists."
)]
pub struct ImageBuildArgs {
    /// minimal, stress, devices, or a file
    #[arg(long, value_name = "RECIPE", default_value = "minimal")]
    pub recipe: String,
    /// Directory of images [default: /var/lib/vtmesh/images]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// The probe for the guest [default: vt-probe beside vtctl]
    #[arg(long, value_name = "FILE")]
    pub probe: Option<PathBuf>,
    /// Do nothing where the image is there already
    #[arg(long)]
    pub if_missing: bool,
}

/// A format, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// QEMU's own
    Qcow2,
    /// As the guest sees it
    Raw,
}

impl FormatArg {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        ImageFormat::from(self).name()
    }
}

impl From<FormatArg> for ImageFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Raw => Self::Raw,
        }
    }
}

/// `image import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl image import rhel9.qcow2\n  vtctl image import disk.img --name old --format raw\n  vtctl image import /var/lib/vtmesh/images/tiny\n\n\
                  The daemon of this host reads the file (in a lab: of host1, or --host). It has\n\
                  to stand alone, or upon an image of the same pool. Importing a name again makes\n\
                  a new version; other copies are stale then, and `image sync` moves what changed."
)]
pub struct ImageImportArgs {
    /// A qcow2 or raw disk, or the folder of a built image
    pub file: PathBuf,
    /// Its name [default: that of the file, without its ending]
    #[arg(long)]
    pub name: Option<Name>,
    /// The pool it is to lie in [default: the hosts' own]
    #[arg(long)]
    pub pool: Option<Name>,
    /// Its format [default: what its first bytes say]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<FormatArg>,
    /// Digest that the file must have, md5:HEX, sha1:HEX or sha256:HEX
    #[arg(long, value_name = "KIND:HEX", value_parser = digest)]
    pub digest: Option<(String, String)>,
    /// In a lab: the host that takes it
    #[arg(long)]
    pub host: Option<Name>,
}

/// `image fetch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl image fetch jeos-27-64\n  vtctl image fetch jeos-27-64 --from ./avocado-vt/shared/downloads\n\n\
                  The definition is NAME.ini: url, and sha256, sha1 or md5 (or sha1_url). It is\n\
                  looked for in ~/.config/vtctl/downloads, /etc/vtmesh/downloads and the\n\
                  providers folder's shared/downloads; without one: --url and --digest. The\n\
                  daemon of this host downloads with curl. What breaks off goes on where it was\n\
                  when it is asked for again; another digest is refused."
)]
pub struct ImageFetchArgs {
    /// Name of the definition and of the image
    pub name: Name,
    /// Folder of definitions
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub from: Option<PathBuf>,
    /// Without a definition: http://, https:// or file:///
    #[arg(long, requires = "digest")]
    pub url: Option<String>,
    /// Without a definition: the digest of what comes, md5:HEX, sha1:HEX or sha256:HEX
    #[arg(long, value_name = "KIND:HEX", value_parser = digest, requires = "url")]
    pub digest: Option<(String, String)>,
    /// The pool it is to lie in [default: the hosts' own]
    #[arg(long)]
    pub pool: Option<Name>,
    /// In a lab: the host that takes it
    #[arg(long)]
    pub host: Option<Name>,
}

/// `image convert`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl image convert rhel9 rhel9-raw --format raw\n  vtctl image convert layer whole --compress\n\n\
                  The new image stands alone, whatever the old one is built upon. The old one is\n\
                  compared with its digests first, and stays."
)]
pub struct ImageConvertArgs {
    /// The image
    pub image: Name,
    /// Name of the new one
    pub name: Name,
    /// Format of the new one
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "qcow2")]
    pub format: FormatArg,
    /// Pack its blocks (qcow2 alone)
    #[arg(long)]
    pub compress: bool,
    /// The pool it is to lie in [default: that of the image]
    #[arg(long)]
    pub pool: Option<Name>,
}

/// `image sync`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vtctl image sync tiny\n  vtctl image sync rhel9 -m host2,host3 --rate 100M\n\n\
                  Every block is compared before it is written. A copy that was broken off goes\n\
                  on where it was. Ctrl-C ends the watching, not the copying.")]
pub struct ImageSyncArgs {
    /// The image
    pub image: Name,
    /// Hosts that are to have it [default: all]
    #[arg(short = 'm', long, value_delimiter = ',', value_name = "HOST,…")]
    pub hosts: Vec<Name>,
    /// Most bytes a second for each host, such as 50M
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub rate: Option<u64>,
}

/// What is done with pools.
#[derive(Debug, Subcommand)]
pub enum StorageVerb {
    /// Pools, and the images in them
    #[command(visible_alias = "ls", after_help = "Example:\n  vtctl storage list")]
    List,
    /// One pool, with its directory on each host
    #[command(after_help = "Example:\n  vtctl storage show default")]
    Show {
        /// Its name
        pool: Name,
    },
    /// Make a pool known
    Add(StorageAddArgs),
    /// Try a pool from every host
    #[command(
        after_help = "Example:\n  vtctl storage check default\n\nCreate, write, fsync, read back, lock, direct I/O, room; where it is shared, each\n\
                      host reads what another one wrote; at a server, that a writer which is over is\n\
                      refused, and its clock. Says what protects disks there. Exit code 26 where some hosts\n\
                      cannot use it, 25 where none can."
    )]
    Check {
        /// Its name
        pool: Name,
    },
    /// Forget a pool in which no image lies; its files stay
    #[command(after_help = "Example:\n  vtctl storage remove fast")]
    Remove {
        /// Its name
        pool: Name,
    },
}

/// A kind of pool, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolKindArg {
    /// A directory of each host, or one that all see
    Dir,
    /// An export of an NFS server, spoken to from user space: nothing is mounted
    Nfs,
    /// A volume of Gluster, through QEMU's own driver
    Gluster,
    /// A LUN of an iSCSI server, through QEMU's own driver: one disk of one VM at a time
    Iscsi,
    /// A pool of a Ceph, through QEMU's own driver
    Rbd,
}

/// `storage add`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vtctl storage add fast --path /srv/fast\n  vtctl storage add mnt --path /mnt/images --shared\n  \
                  vtctl storage add filer --kind nfs --server 10.0.0.9 --export /virt-test/images\n  \
                  vtctl storage add isos --kind nfs --server 10.0.0.9 --export /virt-test/iso --read-only\n  \
                  vtctl storage add bricks --kind gluster --server 10.0.0.8 --volume disks\n  \
                  vtctl storage add lun1 --kind iscsi --server 10.0.0.7 --iqn iqn.2026-11.lab:disks --lun 1\n  \
                  vtctl storage add ceph --kind rbd --server 10.0.0.6 --rbd-pool disks --user lab\n\n\
                  With --shared every host has to see the same files there, as with an NFS mount;\n\
                  `vtctl storage check` finds out. Pools at servers take the disks of VMs:\n  \
                  vtctl run multihost_migration -m host1,host2 -p disk_pool=filer\n\
                  An NFS server and a Ceph themselves refuse a host that may no longer write. Gluster\n\
                  and iSCSI have nothing of the kind: there it is the host's own guard that ends a VM\n\
                  in time. A LUN is one disk: a VM has it alone, and `-p image_raw_device_NAME=yes\n\
                  -p image_name_NAME=lun1` gives it to a guest as it is. The key of --user is in Ceph's\n\
                  own file on every host, /etc/ceph/ceph.client.USER.keyring."
)]
pub struct StorageAddArgs {
    /// Its name
    pub name: Name,
    /// What it is
    #[arg(long, value_enum, default_value_t = PoolKindArg::Dir)]
    pub kind: PoolKindArg,
    /// Its directory, the same path on every host
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub path: Option<PathBuf>,
    /// Every host sees the same files there
    #[arg(long, conflicts_with = "server")]
    pub shared: bool,
    /// The server, by name or address
    #[arg(long, value_name = "HOST", required_if_eq_any([("kind", "nfs"), ("kind", "gluster"), ("kind", "iscsi"), ("kind", "rbd")]))]
    pub server: Option<String>,
    /// The export, as the server calls it
    #[arg(long, value_name = "PATH", required_if_eq("kind", "nfs"), requires = "server")]
    pub export: Option<String>,
    /// The volume of Gluster
    #[arg(
        long,
        value_name = "NAME",
        required_if_eq("kind", "gluster"),
        requires = "server",
        conflicts_with = "export"
    )]
    pub volume: Option<String>,
    /// What the iSCSI server calls the unit that has the LUN
    #[arg(long, value_name = "NAME", required_if_eq("kind", "iscsi"), requires = "server", conflicts_with_all = ["export", "volume"])]
    pub iqn: Option<String>,
    /// The number of the LUN
    #[arg(long, value_name = "NUMBER", required_if_eq("kind", "iscsi"), requires = "iqn")]
    pub lun: Option<u16>,
    /// Port of the iSCSI server; default: 3260
    #[arg(long, value_name = "PORT", requires = "iqn")]
    pub iscsi_port: Option<u16>,
    /// The pool, as Ceph calls it; the server is one of its monitors
    #[arg(long, value_name = "NAME", required_if_eq("kind", "rbd"), requires = "server", conflicts_with_all = ["export", "volume", "iqn"])]
    pub rbd_pool: Option<String>,
    /// Who asks Ceph; default: it asks nobody who he is
    #[arg(long, value_name = "NAME", requires = "rbd_pool")]
    pub user: Option<String>,
    /// Port of the monitor; default: those that monitors have
    #[arg(long, value_name = "PORT", requires = "rbd_pool")]
    pub monitor_port: Option<u16>,
    /// Port of glusterd; default: 24007
    #[arg(long, value_name = "PORT", requires = "volume")]
    pub gluster_port: Option<u16>,
    /// Nothing is written there
    #[arg(long, requires = "export")]
    pub read_only: bool,
    /// Port of NFS; default: what the server's portmapper says
    #[arg(long, value_name = "PORT", requires = "export")]
    pub nfs_port: Option<u16>,
    /// Port of the mount service; default: what the server's portmapper says
    #[arg(long, value_name = "PORT", requires = "export")]
    pub mount_port: Option<u16>,
}

fn digest(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("{text:?} is not md5: and 32, sha1: and 40, or sha256: and 64 hexadecimal digits");
    let (kind, digits) = text.split_once(':').ok_or_else(wrong)?;
    let length = match kind {
        "md5" => 32,
        "sha1" => 40,
        "sha256" => 64,
        _ => return Err(wrong()),
    };
    let fits = digits.len() == length && digits.chars().all(|c| c.is_ascii_hexdigit());
    if fits { Ok((kind.to_owned(), digits.to_owned())) } else { Err(wrong()) }
}

/// `50M` is 50 times 2^20.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes such as 500K, 50M or 1G");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let unit: u64 = match &text[end..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_and_sizes_are_taken_as_they_are_meant() {
        let sha1 = format!("sha1:{}", "a0".repeat(20));
        assert_eq!(digest(&sha1), Ok(("sha1".into(), "a0".repeat(20))));
        for text in ["", "sha1:abc", "md5:0123", "sha1", &sha1.replace('a', "x")] {
            assert!(digest(text).is_err(), "{text}");
        }
        for (text, bytes) in [("1", 1), ("500K", 500 << 10), ("50M", 50 << 20), ("1G", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "M", "1T", "-1", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
