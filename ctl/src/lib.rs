//! vtctl: parse, call, render; lab and image build live here.
