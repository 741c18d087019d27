//! vtd: the daemon of a host, the only crate with side effects on it.
