//! Faults of QEMUs: those that hurt a guest although nobody did anything wrong, so that what is found in it has a name, and
//! those that are gone round. Pure.

/// What a report that names such a fault has among its evidence.
pub const KNOWN_FAULT: &str = "known fault of the source";
/// The first release without the fault of [`unseen_writes`].
const WRITES_SEEN: u32 = 9;
/// The first release without the fault of [`takes_disks_too_early`].
const DISKS_LEFT: u32 = 10;

/// What is known of a QEMU of this version that an emulated guest left while it ran.
///
/// Before 9.0 a transfer clears the marks of pages that were written without having the emulated CPU look for them again:
/// what that writes to such a page next is not sent. QEMU's commit 03bfc2188f06 mends it; 7.2 never got it, up to its last
/// release. The guest finds old pages, or dies of them. One that is paused while it moves writes nothing, and with KVM the
/// processor keeps the marks.
pub fn unseen_writes(version: &str) -> Option<String> {
    is_before(version, WRITES_SEEN)
        .then(|| format!("QEMU {version} misses writes of an emulated guest that moves; {WRITES_SEEN}.0 does not"))
}

/// Whether `cont` takes the disks of a guest that is still on its way.
///
/// Since 10.0 a QEMU that is told so before a post-copy has switched over notes that the guest is to run. An older one opens
/// the disks at once: the source has them locked, and where nothing is locked it would go on with what it reads then.
pub fn takes_disks_too_early(version: &str) -> bool {
    is_before(version, DISKS_LEFT)
}

/// Whether a version is known, and before that release.
fn is_before(version: &str, release: u32) -> bool {
    version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major < release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named_for_the_versions_that_have_it_and_for_no_other() {
        for version in ["7.2.22", "8.2.1"] {
            assert!(unseen_writes(version).is_some_and(|said| said.contains(version)));
            assert!(takes_disks_too_early(version));
        }
        for version in ["9.0.0", "10.0.2", "of our own"] {
            assert_eq!(unseen_writes(version), None);
            assert_eq!(takes_disks_too_early(version), version == "9.0.0");
        }
    }
}
