//! The calls that the `virt` crate lacks and its bindings have.

#![allow(unsafe_code)]

use virt::{domain::Domain, error::Error};

fn done(result: i32) -> Result<(), Error> {
    if result == -1 { Err(Error::last_error()) } else { Ok(()) }
}

/// Gives up the job of a domain (`virDomainAbortJob`).
pub(crate) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the pointer is the domain's own and lives as long as `domain`, which is borrowed for the call.
    done(unsafe { virt_sys::virDomainAbortJob(domain.as_ptr()) })
}

/// Has the move of a domain go over to post-copy (`virDomainMigrateStartPostCopy`).
pub(crate) fn start_postcopy(domain: &Domain) -> Result<(), Error> {
    // SAFETY: as above. There are no flags.
    done(unsafe { virt_sys::virDomainMigrateStartPostCopy(domain.as_ptr(), 0) })
}
