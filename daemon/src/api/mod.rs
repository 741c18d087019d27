//! What is asked of this daemon by vtctl and by other daemons: decode, check, read or propose, encode.

pub mod views;
