//! vtctl: parse, call, render; lab and image build live here.

pub mod image;
pub mod lab;
