//! The mesh: how hosts of a cluster, and vtctl, reach this daemon, and how it reaches them.
//!
//! [`router`] takes QUIC connections and admits each to the one service it was opened for; [`peers`] keeps connections
//! to other hosts; [`unix`] serves vtctl on this machine; [`bulk`] moves bytes over TCP; [`join`] lets a host in. What
//! a request does is behind [`services`]. Nothing here decides for the cluster: who is admitted is read from committed
//! state each time a request arrives.

pub mod access;
pub mod bulk;
mod doors;
pub mod join;
pub mod peers;
pub mod router;
pub mod serve;
pub mod services;
pub mod unix;

pub use peers::Peers;
pub use router::Router;
pub use services::{AdminService, Caller, Membership, MembershipView, ReplySink, Services};
