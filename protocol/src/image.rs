//! The record of an image, `image.json` in its folder: which files it has, what they are, and how to boot them.
//!
//! What may not happen here: reading files. Who reads them checks them with [`ImageFile::check`].

use serde::{Deserialize, Serialize};

use crate::catalogue::ImageFormat;

/// Name of the built-in image, which scenarios boot where nothing else is named.
pub const BUILTIN: &str = "tiny";
/// Name of the record's file in the folder of an image.
pub const RECORD_FILE: &str = "image.json";
/// What [`ImageRecord::schema`] says.
pub const RECORD_SCHEMA: &str = "vtmesh/v1/image";
/// The private key that may log in to the guest over ssh, in the folder of the image.
pub const SSH_KEY_FILE: &str = "ssh_key";

/// A file of the image, beside its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Name in the image's folder, without a path.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3, 64 hexadecimal digits.
    pub blake3: String,
}

/// A package the image was made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImagePackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 that the distribution states for it.
    pub sha256: String,
}

fn qcow2() -> ImageFormat {
    ImageFormat::Qcow2
}

/// An image: a disk, and a kernel and initrd of its own where it does not boot by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: String,
    /// Name of the image: the name of its folder.
    pub name: String,
    /// BLAKE3 over name, kernel, initrd, disk and command line: the same packages give the same digest.
    pub digest: String,
    /// For QEMU's `-kernel`; without one the firmware boots from the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ImageFile>,
    /// For QEMU's `-initrd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<ImageFile>,
    /// The disk: the backing file of the overlay each VM gets.
    pub disk: ImageFile,
    /// The format of the disk.
    #[serde(default = "qcow2")]
    pub format: ImageFormat,
    /// For QEMU's `-append`. Options of a VM (`vtmesh.ip=10.1.2.3/24`, `vtmesh.mac=…`, `vtmesh.gw=…`) are appended.
    pub cmdline: String,
    /// The key that may log in, as `vtmesh.key=` takes it. Made anew with each folder, so not part of the digest.
    pub ssh_public_key: Option<String>,
    /// BLAKE3 of everything of ours inside, the probe among it: tells an image of another version of the program.
    #[serde(default)]
    pub recipe_blake3: String,
    /// What it was made from, sorted.
    pub packages: Vec<ImagePackage>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No such JSON.
    #[error("the image record is not readable: {0}")]
    Json(#[from] serde_json::Error),
    /// Another kind or generation of record.
    #[error("the image record has schema {0:?}, wanted {RECORD_SCHEMA:?}")]
    Schema(String),
    /// A file name that leaves the folder.
    #[error("the image record names a file {0:?} outside its folder")]
    Path(String),
}

impl ImageRecord {
    /// Reads a record and refuses file names that leave the image's folder.
    pub fn parse(json: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(json)?;
        if record.schema != RECORD_SCHEMA {
            return Err(RecordError::Schema(record.schema));
        }
        for file in record.files() {
            if file.name.is_empty() || file.name.starts_with('.') || file.name.contains(['/', '\0']) {
                return Err(RecordError::Path(file.name.clone()));
            }
        }
        Ok(record)
    }

    /// Kernel, initrd and disk, those that there are.
    pub fn files(&self) -> impl Iterator<Item = &ImageFile> {
        self.kernel.iter().chain(&self.initrd).chain([&self.disk])
    }

    /// The digest that follows from the contents; an undamaged record has it as `digest`.
    pub fn content_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("vtmesh image v1");
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        add(&self.name);
        for file in self.files() {
            add(&file.name);
            add(&file.blake3);
        }
        add(&self.cmdline);
        hasher.finalize().to_hex().to_string()
    }

    /// The kernel command line of a VM: the image's, the key that may log in, and the VM's address.
    pub fn cmdline_for(&self, address: Option<(std::net::Ipv4Addr, u8)>, mac: Option<[u8; 6]>) -> String {
        let mut line = self.cmdline.clone();
        if let Some((address, prefix)) = address {
            line += &format!(" vtmesh.ip={address}/{prefix}");
        }
        if let Some([a, b, c, d, e, f]) = mac {
            line += &format!(" vtmesh.mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        if let Some(key) = &self.ssh_public_key {
            line += &format!(" vtmesh.key={key}");
        }
        line
    }
}

impl ImageFile {
    /// Whether these are the bytes the record speaks of.
    pub fn check(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.bytes && blake3::hash(bytes).to_hex().as_str() == self.blake3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ImageRecord {
        let file = |name: &str| ImageFile {
            name: name.into(),
            bytes: name.len() as u64,
            blake3: blake3::hash(name.as_bytes()).to_hex().to_string(),
        };
        let mut record = ImageRecord {
            schema: RECORD_SCHEMA.into(),
            name: "tiny".into(),
            digest: String::new(),
            kernel: Some(file("kernel")),
            initrd: Some(file("initrd")),
            disk: file("disk.qcow2"),
            format: ImageFormat::Qcow2,
            cmdline: "console=ttyS0".into(),
            ssh_public_key: Some("AAAA".into()),
            recipe_blake3: String::new(),
            packages: Vec::new(),
        };
        record.digest = record.content_digest();
        record
    }

    #[test]
    fn a_record_comes_back_and_a_bad_one_is_refused() {
        let good = record();
        let json = serde_json::to_vec(&good).unwrap();
        assert_eq!(ImageRecord::parse(&json).unwrap(), good);
        let kernel = good.kernel.as_ref().unwrap();
        assert!(kernel.check(b"kernel") && !kernel.check(b"Kernel") && !kernel.check(b"kernel2"));
        let disk_only = ImageRecord { kernel: None, initrd: None, ..record() };
        let json = serde_json::to_vec(&disk_only).unwrap();
        assert_eq!(ImageRecord::parse(&json).unwrap(), disk_only);
        for name in ["../kernel", "/etc/passwd", "", ".", "a\0b"] {
            let mut bad = record();
            bad.disk.name = name.into();
            let refused = ImageRecord::parse(&serde_json::to_vec(&bad).unwrap());
            assert!(matches!(refused, Err(RecordError::Path(_))), "{name:?}");
        }
        let other = ImageRecord { schema: "vtmesh/v2/image".into(), ..record() };
        assert!(matches!(ImageRecord::parse(&serde_json::to_vec(&other).unwrap()), Err(RecordError::Schema(_))));
        assert!(matches!(ImageRecord::parse(b"{"), Err(RecordError::Json(_))));
    }

    #[test]
    fn the_digest_is_of_contents_and_not_of_the_key() {
        let with_other_key = ImageRecord { ssh_public_key: None, ..record() };
        assert_eq!(with_other_key.content_digest(), record().digest);
        let mut changed = record();
        changed.disk.blake3 = "0".repeat(64);
        assert_ne!(changed.content_digest(), record().digest);
    }

    #[test]
    fn the_command_line_of_a_vm() {
        let line = record().cmdline_for(Some(([10, 1, 2, 3].into(), 24)), Some([0x52, 0x54, 0, 1, 2, 0xff]));
        assert_eq!(line, "console=ttyS0 vtmesh.ip=10.1.2.3/24 vtmesh.mac=52:54:00:01:02:ff vtmesh.key=AAAA");
    }
}
