//! A small qcow2 file with given first bytes and zeros after them, always the same bytes, with no program needed.
//!
//! Layout, one 64 KiB cluster each: header, refcount table, refcount block, L1 table, L2 table, data.

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTERS: u16 = 6;
/// What one L2 table reaches.
pub(super) const SIZE_MAX: u64 = CLUSTER / 8 * CLUSTER;
const COPIED: u64 = 1 << 63;

/// A disk of `size` bytes (at most [`SIZE_MAX`]) whose first cluster begins with `head`, of which at most 64 KiB count.
pub(super) fn disk(size: u64, head: &[u8]) -> Vec<u8> {
    let size = size.min(SIZE_MAX);
    let mut out = vec![0; usize::from(CLUSTERS) * CLUSTER as usize];
    let mut put = |at: u64, bytes: &[u8]| out[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    // Refcounts of 16 bits, and the length of this header.
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    for cluster in 0..u64::from(CLUSTERS) {
        put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes());
    }
    put(3 * CLUSTER, &((4 * CLUSTER) | COPIED).to_be_bytes());
    put(4 * CLUSTER, &((5 * CLUSTER) | COPIED).to_be_bytes());
    put(5 * CLUSTER, &head[..head.len().min(CLUSTER as usize)]);
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn qemu_finds_it_sound_and_reads_what_was_put() {
        let folder = tempfile::tempdir().unwrap();
        let (disk_path, raw) = (folder.path().join("disk.qcow2"), folder.path().join("raw"));
        std::fs::write(&disk_path, disk(64 << 20, b"hello")).unwrap();
        let check = Command::new("qemu-img").arg("check").arg(&disk_path).output().unwrap();
        assert!(check.status.success(), "{check:?}");
        let convert =
            Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&disk_path, &raw]).output().unwrap();
        assert!(convert.status.success(), "{convert:?}");
        let bytes = std::fs::read(raw).unwrap();
        assert_eq!(bytes.len(), 64 << 20);
        assert!(bytes.starts_with(b"hello") && bytes[5..].iter().all(|byte| *byte == 0));
    }
}
