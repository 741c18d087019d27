//! Real guests in real QEMUs, moved between namespaces by real daemons.

mod life;
mod moves;
mod trouble;
