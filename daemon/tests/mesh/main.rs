//! The mesh over real loopback sockets: who is refused, who is served, and that the daemon lives on after each.

mod admission;
mod bulk;
mod join;
mod peers;
mod refused;
mod served;
mod support;
mod unix;
