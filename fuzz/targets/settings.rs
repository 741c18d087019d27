//! A text as the daemon's settings: taken, or refused with mistakes that each have a place.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use vt_daemon::settings::Settings;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    match Settings::parse("vtd.toml", text) {
        Ok(settings) => {
            let _ = (settings.host_name(), settings.advertise(), settings.socket(), settings.times().count());
            if let Some(guests) = &settings.network.guests {
                let _ = (guests.count(), guests.at(0), guests.at(u32::MAX));
            }
            // Times that would let two hosts run one guest are never taken.
            let session = settings.session;
            assert!(session.suspect < session.pause && session.pause < session.kill && session.kill < session.expire);
        }
        Err(error) => assert!(!error.report().to_string().is_empty()),
    }
    Corpus::Keep
});
