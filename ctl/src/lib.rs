//! vtctl: parse, call, render; lab and image build live here.

pub mod args;
pub mod client;
pub mod commands;
pub mod contexts;
mod downloads;
pub mod endpoint;
pub mod exit;
pub mod image;
pub mod job;
pub mod lab;
pub mod providers;
pub mod results;
pub mod suggest;
pub mod ui;
