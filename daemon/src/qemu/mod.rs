//! QEMU on this host: how one is started, spoken to, found again and ended.
//!
//! What may not happen here: decisions about owners and migrations. Those are made elsewhere, from what this module
//! reports.

pub mod qmp;
