//! Where a pool is: the text that is on record for it, checked and taken apart.
//!
//! A directory is its path. Everything else is a URI whose scheme is the name of its kind:
//!
//! ```text
//! nfs://SERVER[:PORT]/EXPORT[?mount-port=N][&read-only]
//! gluster+tcp://SERVER[:PORT]/VOLUME
//! iscsi://SERVER[:PORT]/IQN/LUN
//! rbd://MONITOR[:PORT]/POOL[?user=NAME]
//! ```

use std::{fmt, path::PathBuf};

use crate::catalogue::PoolKind;

/// What an export is written as.
const NFS_FORM: &str = "nfs://SERVER[:PORT]/EXPORT[?mount-port=N][&read-only]";
/// What a volume is written as: as QEMU's driver has it.
const GLUSTER_FORM: &str = "gluster+tcp://SERVER[:PORT]/VOLUME";
/// What a LUN is written as: as QEMU's driver has it.
const ISCSI_FORM: &str = "iscsi://SERVER[:PORT]/IQN/LUN";
/// What a pool of a Ceph is written as.
const RBD_FORM: &str = "rbd://MONITOR[:PORT]/POOL[?user=NAME]";
/// Longest name of an iSCSI server's target, bytes.
const IQN_MAX: usize = 223;

/// A place that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of each host.
    Dir(PathBuf),
    /// An export of an NFS server.
    Nfs(NfsPlace),
    /// A volume of Gluster.
    Gluster(GlusterPlace),
    /// A LUN of an iSCSI server.
    Iscsi(IscsiPlace),
    /// A pool of a Ceph.
    Rbd(RbdPlace),
}

/// An export of an NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NfsPlace {
    /// Name or address.
    pub server: String,
    /// The export, as the server's mount service takes it: an absolute path.
    pub export: String,
    /// Port of NFS; `None`: the server's portmapper knows.
    pub port: Option<u16>,
    /// Port of the mount service; `None`: the server's portmapper knows.
    pub mount_port: Option<u16>,
    /// Whether nothing is to be written there.
    pub read_only: bool,
}

/// A volume of Gluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GlusterPlace {
    /// Name or address of one of its servers, which says where its bricks are.
    pub server: String,
    /// Port of that server's glusterd; `None`: 24007.
    pub port: Option<u16>,
    /// The volume.
    pub volume: String,
}

/// A LUN of an iSCSI server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IscsiPlace {
    /// Name or address.
    pub server: String,
    /// Its port; `None`: 3260.
    pub port: Option<u16>,
    /// What the server calls the unit that has the LUN: `iqn.…`, `eui.…` or `naa.…`.
    pub iqn: String,
    /// The number of the LUN.
    pub lun: u16,
}

/// A pool of a Ceph.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RbdPlace {
    /// Name or address of one of its monitors, which knows the others.
    pub server: String,
    /// Port of that monitor; `None`: those that monitors have.
    pub port: Option<u16>,
    /// The pool, as Ceph calls it.
    pub pool: String,
    /// Who asks; the key is in Ceph's own file on each host. `None`: Ceph asks nobody who he is.
    pub user: Option<String>,
}

/// Why a text is no place of a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// A directory's path.
    #[error("{0:?} is no absolute path without ..")]
    Path(String),
    /// A server's name.
    #[error("{0:?} is no server: a name or an address, letters, digits, dots, - and : only")]
    Server(String),
    /// A port.
    #[error("{0:?} is no port from 1 to 65535")]
    Port(String),
    /// A volume's name.
    #[error("{0:?} is no name of a volume: letters, digits, - and _ only")]
    Volume(String),
    /// A name that Ceph has.
    #[error("{0:?} is no name of a pool or a user of a Ceph: letters, digits, . - and _ only")]
    Ceph(String),
    /// What an iSCSI server has.
    #[error("{0:?} is no name that an iSCSI server has: iqn., eui. or naa., then letters, digits, . : and - only")]
    Iqn(String),
    /// A LUN's number.
    #[error("{0:?} is no number of a LUN, from 0 to 16383")]
    Lun(String),
    /// The whole.
    #[error("{0:?} is no {1}")]
    Form(String, &'static str),
}

impl Place {
    /// Reads what is on record for a pool of that kind.
    ///
    /// # Errors
    /// It cannot be one.
    pub fn parse(kind: PoolKind, text: &str) -> Result<Self, PlaceError> {
        match kind {
            PoolKind::Dir => path(text).map(|path| Self::Dir(PathBuf::from(path))),
            PoolKind::Nfs => NfsPlace::parse(text).map(Self::Nfs),
            PoolKind::Gluster => GlusterPlace::parse(text).map(Self::Gluster),
            PoolKind::Iscsi => IscsiPlace::parse(text).map(Self::Iscsi),
            PoolKind::Rbd => RbdPlace::parse(text).map(Self::Rbd),
        }
    }
}

impl NfsPlace {
    /// Reads its URI.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let form = || PlaceError::Form(text.to_owned(), NFS_FORM);
        let rest = text.strip_prefix("nfs://").ok_or_else(form)?;
        let (authority, rest) = rest.split_at(rest.find('/').ok_or_else(form)?);
        let (export, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (server, number) = server_and_port(authority)?;
        let mut place =
            Self { server, export: path(export)?.to_owned(), port: number, mount_port: None, read_only: false };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("mount-port", number)) => place.mount_port = Some(port(number)?),
                None if option == "read-only" => place.read_only = true,
                _ => return Err(form()),
            }
        }
        Ok(place)
    }
}

impl fmt::Display for NfsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> =
            [self.mount_port.map(|port| format!("mount-port={port}")), self.read_only.then(|| "read-only".to_owned())]
                .into_iter()
                .flatten()
                .collect();
        let question = if options.is_empty() { "" } else { "?" };
        let authority = authority(&self.server, self.port);
        write!(f, "nfs://{authority}{}{question}{}", self.export, options.join("&"))
    }
}

impl GlusterPlace {
    /// Reads its URI.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let form = || PlaceError::Form(text.to_owned(), GLUSTER_FORM);
        let rest = text.strip_prefix("gluster+tcp://").ok_or_else(form)?;
        let (authority, volume) = rest.split_once('/').ok_or_else(form)?;
        let (server, port) = server_and_port(authority)?;
        let plain = volume.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if !plain || volume.starts_with('-') || !(1..=255).contains(&volume.len()) {
            return Err(PlaceError::Volume(volume.to_owned()));
        }
        Ok(Self { server, port, volume: volume.to_owned() })
    }
}

impl fmt::Display for GlusterPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gluster+tcp://{}/{}", authority(&self.server, self.port), self.volume)
    }
}

impl IscsiPlace {
    /// Reads its URI.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let form = || PlaceError::Form(text.to_owned(), ISCSI_FORM);
        let rest = text.strip_prefix("iscsi://").ok_or_else(form)?;
        let (authority, rest) = rest.split_once('/').ok_or_else(form)?;
        let (iqn, lun) = rest.split_once('/').ok_or_else(form)?;
        let (server, port) = server_and_port(authority)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
        let named =
            ["iqn.", "eui.", "naa."].iter().any(|kind| iqn.strip_prefix(kind).is_some_and(|rest| !rest.is_empty()));
        if !named || iqn.len() > IQN_MAX || !iqn.chars().all(plain) {
            return Err(PlaceError::Iqn(iqn.to_owned()));
        }
        let number = lun.parse().ok().filter(|number: &u16| *number < 1 << 14 && lun == number.to_string());
        let lun = number.ok_or_else(|| PlaceError::Lun(lun.to_owned()))?;
        Ok(Self { server, port, iqn: iqn.to_owned(), lun })
    }
}

impl fmt::Display for IscsiPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iscsi://{}/{}/{}", authority(&self.server, self.port), self.iqn, self.lun)
    }
}

impl RbdPlace {
    /// Reads its URI.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let form = || PlaceError::Form(text.to_owned(), RBD_FORM);
        let rest = text.strip_prefix("rbd://").ok_or_else(form)?;
        let (authority, rest) = rest.split_once('/').ok_or_else(form)?;
        let (pool, user) = match rest.split_once('?') {
            Some((pool, option)) => (pool, Some(option.strip_prefix("user=").ok_or_else(form)?)),
            None => (rest, None),
        };
        let (server, port) = server_and_port(authority)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let named =
            |name: &str| match (1..=128).contains(&name.len()) && !name.starts_with('-') && name.chars().all(plain) {
                true => Ok(name.to_owned()),
                false => Err(PlaceError::Ceph(name.to_owned())),
            };
        Ok(Self { server, port, pool: named(pool)?, user: user.map(named).transpose()? })
    }

    /// The monitor, as Ceph's own tools take it.
    pub fn monitor(&self) -> String {
        authority(&self.server, self.port)
    }
}

impl fmt::Display for RbdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("?user={user}")).unwrap_or_default();
        write!(f, "rbd://{}/{}{user}", self.monitor(), self.pool)
    }
}

/// A server as a URI has it. An IPv6 address stands in brackets before its port.
fn authority(server: &str, port: Option<u16>) -> String {
    let server = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
    server + &port.map(|port| format!(":{port}")).unwrap_or_default()
}

/// Reads [`authority`].
fn server_and_port(text: &str) -> Result<(String, Option<u16>), PlaceError> {
    let (name, number) = match text.rsplit_once(':') {
        Some((name, number)) if !number.ends_with(']') => (name, Some(port(number)?)),
        _ => (text, None),
    };
    Ok((server(name.trim_start_matches('[').trim_end_matches(']'))?.to_owned(), number))
}

fn path(text: &str) -> Result<&str, PlaceError> {
    let plain = text.starts_with('/')
        && text.split('/').all(|part| part != "..")
        && !text.chars().any(|c| c.is_control() || matches!(c, '?' | '#'));
    if plain { Ok(text) } else { Err(PlaceError::Path(text.to_owned())) }
}

fn server(text: &str) -> Result<&str, PlaceError> {
    let fits = (1..=253).contains(&text.len())
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'));
    if fits { Ok(text) } else { Err(PlaceError::Server(text.to_owned())) }
}

fn port(text: &str) -> Result<u16, PlaceError> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| PlaceError::Port(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_it_is_read() {
        for text in [
            "nfs://10.0.0.9/virt-test/iso",
            "nfs://filer.lab:2050/a?mount-port=20048&read-only",
            "nfs://10.0.0.9/a?read-only",
            "nfs://[fd00::9]:2049/a",
            "nfs://[fd00::9]/a",
        ] {
            assert_eq!(NfsPlace::parse(text).unwrap().to_string(), text);
        }
        for text in ["gluster+tcp://10.0.0.9/disks", "gluster+tcp://[fd00::9]:24008/my_vol-1"] {
            assert_eq!(GlusterPlace::parse(text).unwrap().to_string(), text);
        }
        for text in ["iscsi://10.0.0.9/iqn.2026-11.lab:disks/1", "iscsi://[fd00::9]:3261/naa.52004567BA64678D/0"] {
            assert_eq!(IscsiPlace::parse(text).unwrap().to_string(), text);
        }
        for text in ["rbd://10.0.0.6/disks", "rbd://[fd00::6]:6789/vm_disks.1?user=lab"] {
            assert_eq!(RbdPlace::parse(text).unwrap().to_string(), text);
        }
        let place = NfsPlace::parse("nfs://[fd00::9]:2049/a?mount-port=5").unwrap();
        assert_eq!((place.server.as_str(), place.port, place.mount_port), ("fd00::9", Some(2049), Some(5)));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        use PoolKind::{Dir, Gluster, Iscsi, Nfs, Rbd};
        for (kind, text) in [
            (Dir, "images"),
            (Dir, "/a/../b"),
            (Nfs, "10.0.0.9:/a"),
            (Nfs, "nfs://10.0.0.9"),
            (Nfs, "nfs:///a"),
            (Nfs, "nfs://10.0.0.9/a/../b"),
            (Nfs, "nfs://10.0.0.9:0/a"),
            (Nfs, "nfs://10.0.0.9:70000/a"),
            (Nfs, "nfs://10.0.0.9/a?uid=0"),
            (Nfs, "nfs://a,b/c"),
            (Nfs, "nfs://-a/c"),
            (Gluster, "gluster://a/c"),
            (Gluster, "gluster+tcp://a"),
            (Gluster, "gluster+tcp://a/"),
            (Gluster, "gluster+tcp://a/v/file"),
            (Gluster, "gluster+tcp://a/-v"),
            (Gluster, "gluster+tcp:///v"),
            (Iscsi, "iscsi://a/iqn.x"),
            (Iscsi, "iscsi://a/disks/1"),
            (Iscsi, "iscsi://a/iqn./1"),
            (Iscsi, "iscsi://a/iqn.x,y/1"),
            (Iscsi, "iscsi://a/iqn.x/01"),
            (Iscsi, "iscsi://a/iqn.x/16384"),
            (Iscsi, "iscsi://user%secret@a/iqn.x/1"),
            (Rbd, "rbd://a"),
            (Rbd, "rbd://a/"),
            (Rbd, "rbd://a/p/i"),
            (Rbd, "rbd://a/p:id=x"),
            (Rbd, "rbd://a/p?key=x"),
            (Rbd, "rbd://a/p?user=-x"),
        ] {
            assert!(Place::parse(kind, text).is_err(), "{text}");
        }
    }
}
