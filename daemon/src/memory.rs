//! How the daemon takes its memory from the C library.

#![allow(unsafe_code)]

use nix::libc;

/// Places of their own that threads may take memory from, besides the heap.
///
/// Without a bound each thread that ever copied an image keeps one, with what its largest list took, and the daemon grows
/// copy by copy until every thread had its turn. Two threads run at a time, so more would not be faster. QEMU and the other
/// programs are not touched: the bound ends with this process image, which a variable of the environment would not.
const ARENAS: libc::c_int = 2;

/// Bounds what threads keep for themselves. Called before there are any.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers, no pointers, and no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}
