//! What vtctl asks about images and pools, and what it is told.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    error::Report,
    ids::{Digest, JobId, Name},
};

/// The pool every host has: the directory of images in its settings.
pub const DEFAULT_POOL: &str = "default";

/// How a disk is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// QEMU's own, sparse.
    Qcow2,
    /// As the guest sees it.
    Raw,
}

impl ImageFormat {
    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a copy of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementState {
    /// Whole, and of the version that counts.
    Present,
    /// On its way.
    Copying,
    /// Of an earlier version.
    Stale,
    /// Gone or damaged, as its host found out.
    Missing,
}

impl PlacementState {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Copying => "copying",
            Self::Stale => "stale",
            Self::Missing => "missing",
        }
    }
}

/// What kind of storage a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// A directory of each host.
    Dir,
    /// An export of an NFS server. Takes disks of VMs.
    Nfs,
    /// A volume of Gluster. Takes disks of VMs.
    Gluster,
    /// A LUN of an iSCSI server: one disk of one VM at a time.
    Iscsi,
    /// A pool of a Ceph. Takes disks of VMs.
    Rbd,
}

impl PoolKind {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Nfs => "nfs",
            Self::Gluster => "gluster",
            Self::Iscsi => "iscsi",
            Self::Rbd => "rbd",
        }
    }
}

/// What is asked about images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRequest {
    /// All images of the catalogue.
    List,
    /// Take a disk, or the folder of an image, from this host. Unix socket only. A stream of [`ImageProgress`].
    Import(ImportImage),
    /// Copy an image to hosts. A stream of [`ImageProgress`], then [`HostOutcome`]s.
    Sync(SyncImage),
    /// Read every copy and compare it with its digests.
    Verify(Name),
    /// Keep an image from being deleted, or no longer.
    Pin {
        /// Which.
        image: Name,
        /// Whether it is kept.
        pinned: bool,
    },
    /// Remove every copy, and the image from the catalogue.
    Delete(Name),
    /// Write the disk of an image into a new file of this host. Unix socket only.
    Export {
        /// Which.
        image: Name,
        /// The file.
        to: PathBuf,
    },
    /// Remove what broken transfers left, and copies nobody has on record.
    Gc,
    /// Who writes which image.
    Writers,
    /// Make another image with the same content. A stream of [`ImageProgress`].
    Convert(ConvertImage),
    /// Take a disk from an address. Unix socket only. A stream of [`ImageProgress`].
    Fetch(FetchImage),
    /// What an image was made from, by the copy of the host that is asked.
    Packages(Name),
}

/// Takes an image into the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportImage {
    /// A disk, or the folder of an image that was built.
    pub path: PathBuf,
    /// What it is to be called.
    pub name: Name,
    /// Where it is to lie; `None`: [`DEFAULT_POOL`].
    pub pool: Option<Name>,
    /// Its format; `None`: what its first bytes say.
    pub format: Option<ImageFormat>,
    /// Digest that its bytes must have: `md5`, `sha1` or `sha256`, and hexadecimal digits.
    pub sum: Option<(String, String)>,
}

/// Makes an image that stands alone out of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertImage {
    /// Out of which.
    pub image: Name,
    /// What the new one is to be called.
    pub name: Name,
    /// Its format.
    pub format: ImageFormat,
    /// Whether its blocks are packed; qcow2 alone can do that.
    pub compress: bool,
    /// Where it is to lie; `None`: beside the one that it is made of.
    pub pool: Option<Name>,
}

/// Takes a disk from an address into the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchImage {
    /// `http://`, `https://` or `file://`.
    pub url: String,
    /// What it is to be called.
    pub name: Name,
    /// Where it is to lie; `None`: [`DEFAULT_POOL`].
    pub pool: Option<Name>,
    /// Its format, unpacked; `None`: what its first bytes say.
    pub format: Option<ImageFormat>,
    /// The digest that what comes must have.
    pub sum: FetchSum,
    /// How it is packed.
    pub packing: Option<Packing>,
}

/// Where the digest of a download is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchSum {
    /// It is known: kind and hexadecimal digits, as in [`ImportImage::sum`].
    Known(String, String),
    /// It stands in a list that has to be fetched, in the line of the file.
    ListedAt {
        /// `md5`, `sha1` or `sha256`.
        kind: String,
        /// Where the list is.
        url: String,
    },
}

/// How a download is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// `.xz`
    Xz,
    /// `.gz`
    Gzip,
    /// `.bz2`
    Bzip2,
    /// `.zst`
    Zstd,
}

impl Packing {
    /// The program that unpacks it.
    pub fn program(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
        }
    }

    /// By the ending of a file's name.
    pub fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "xz" => Some(Self::Xz),
            "gz" => Some(Self::Gzip),
            "bz2" => Some(Self::Bzip2),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Copies an image to hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncImage {
    /// Which.
    pub image: Name,
    /// To which hosts; empty: all that run cases.
    pub hosts: Vec<Name>,
    /// Most bytes a second that each host takes; 0: no bound.
    pub rate: u64,
}

/// How far something with an image is on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProgress {
    /// The host.
    pub host: Name,
    /// The image.
    pub image: Name,
    /// Bytes of the image that are done.
    pub done: u64,
    /// Bytes of the image.
    pub total: u64,
    /// Bytes that came over the network.
    pub moved: u64,
}

/// How something ended on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOutcome {
    /// The host.
    pub host: Name,
    /// What was done, or found.
    pub told: Vec<String>,
    /// Why it was not done, or what was found wrong.
    pub trouble: Option<Report>,
}

/// An image as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Its name.
    pub name: Name,
    /// The pool it lies in.
    pub pool: Name,
    /// The format of its disk.
    pub format: ImageFormat,
    /// What the guest sees, bytes.
    pub virtual_bytes: u64,
    /// What its files have, bytes.
    pub bytes: u64,
    /// Its content root.
    pub root: Digest,
    /// Images it is built upon, nearest first.
    pub backing: Vec<Name>,
    /// Whether it is kept from being deleted.
    pub pinned: bool,
    /// Its copies, in natural order of hosts.
    pub placements: Vec<PlacementView>,
    /// Jobs that used it, latest last, bounded.
    pub jobs: Vec<JobId>,
    /// VMs that write to overlays of it now.
    pub vms: Vec<String>,
}

/// A copy of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementView {
    /// The host.
    pub host: Name,
    /// How it is.
    pub state: PlacementState,
    /// Whether every host sees it.
    pub shared: bool,
}

/// Who writes what: a VM and the image below its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterView {
    /// The VM.
    pub vm: String,
    /// Its image.
    pub image: Name,
    /// The host that may write.
    pub host: Name,
    /// The writer's fencing number.
    pub epoch: u64,
    /// Whether the host still may.
    pub state: String,
    /// The host that the VM is moving to.
    pub moving_to: Option<Name>,
}

/// What is asked about pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageRequest {
    /// All pools.
    List,
    /// Make a pool known.
    Add(NewPool),
    /// Forget a pool; what lies in it stays.
    Remove(Name),
    /// Try a pool from every host.
    Check(Name),
}

/// A pool to be made known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPool {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: PoolKind,
    /// Where it is: the directory, the same on every host, or a URI; see [`crate::pool::Place`].
    pub place: String,
    /// Whether every host sees the same files there.
    pub shared: bool,
}

/// A pool as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: PoolKind,
    /// Where it is; on each host, where they differ.
    pub paths: BTreeMap<Name, String>,
    /// Whether every host sees the same files.
    pub shared: bool,
    /// Images that lie in it.
    pub images: Vec<Name>,
}
