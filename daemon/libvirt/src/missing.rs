//! The call that the `virt` crate lacks and its bindings have.

#![allow(unsafe_code)]

use virt::{domain::Domain, error::Error};

/// Gives up the job of a domain (`virDomainAbortJob`).
pub(crate) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the pointer is the domain's own and lives as long as `domain`, which is borrowed for the call.
    match unsafe { virt_sys::virDomainAbortJob(domain.as_ptr()) } {
        -1 => Err(Error::last_error()),
        _ => Ok(()),
    }
}
