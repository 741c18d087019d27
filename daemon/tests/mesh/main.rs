//! The mesh over real loopback sockets: who is refused, who is served, and that the daemon lives on after each.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod admission;
mod bulk;
mod join;
mod peers;
mod refused;
mod roles;
mod served;
mod support;
mod unix;
