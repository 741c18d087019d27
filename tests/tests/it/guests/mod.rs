//! Real guests in real QEMUs, moved between namespaces by real daemons.

mod cards;
mod disks;
mod domains;
mod drives;
mod faults;
mod libvirt;
mod life;
mod luns;
mod matrix;
mod modes;
mod moves;
mod pools;
mod probe;
mod scenario;
mod trouble;
mod unchanged;
mod versions;
mod writers;
