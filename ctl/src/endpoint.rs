//! Which daemon is asked: the flag, the environment, the current lab, or this host's own socket.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use crate::args::Globals;

/// The socket of a host's own daemon.
pub const LOCAL_SOCKET: &str = "/run/vtmesh/vtd.sock";
/// The port of a daemon where an address names none.
const PORT: u16 = 7465;
/// Most places that one list may name.
const PLACES_MAX: usize = 64;

/// Where a daemon may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host there, where that is known beforehand.
    pub host: Option<Name>,
    /// How it is reached.
    pub way: Way,
}

/// How a daemon is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Its Unix socket.
    Socket(PathBuf),
    /// QUIC, with a client certificate.
    Address(SocketAddr),
}

impl Place {
    fn socket(path: impl Into<PathBuf>) -> Self {
        Self { host: None, way: Way::Socket(path.into()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Socket(path) => path.display().fmt(f),
            Way::Address(address) => address.fmt(f),
        }
    }
}

/// Sockets of a lab in order of its hosts: of the one named, else of the current one.
pub type LabSockets = fn(Option<&Name>) -> Result<Vec<(Name, PathBuf)>, Report>;

/// The places to be asked, in order; never empty.
///
/// # Errors
/// A place cannot be understood, or the lab that was named is not there.
pub fn places(globals: &Globals, env: Option<String>, lab: LabSockets) -> Result<Vec<Place>, Report> {
    if let Some(text) = &globals.endpoint {
        return parse_list(text, "--endpoint");
    }
    let of_lab = |sockets: Vec<(Name, PathBuf)>| -> Vec<Place> {
        sockets.into_iter().map(|(host, path)| Place { host: Some(host), way: Way::Socket(path) }).collect()
    };
    if globals.lab.is_some() {
        return Ok(of_lab(lab(globals.lab.as_ref())?));
    }
    if let Some(text) = env.filter(|text| !text.trim().is_empty()) {
        return parse_list(&text, "VTCTL_ENDPOINT");
    }
    let places = of_lab(lab(None)?);
    Ok(if places.is_empty() { vec![Place::socket(LOCAL_SOCKET)] } else { places })
}

fn parse_list(text: &str, from: &str) -> Result<Vec<Place>, Report> {
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if words.is_empty() || words.len() > PLACES_MAX {
        return Err(Report::new(ErrorCode::Usage, format!("{from} names no daemon that could be asked"))
            .with("wanted", format!("1 to {PLACES_MAX} sockets or addresses, with commas between them"))
            .help("vtctl --endpoint /run/vtmesh/vtd.sock status"));
    }
    words.into_iter().map(|word| parse(word, from)).collect()
}

fn parse(word: &str, from: &str) -> Result<Place, Report> {
    if let Some(path) = word.strip_prefix("unix:") {
        return Ok(Place::socket(path));
    }
    if word.contains('/') {
        return Ok(Place::socket(word));
    }
    let with_port = if word.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        format!("[{word}]:{PORT}")
    } else if word.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        word.to_owned()
    } else {
        format!("{word}:{PORT}")
    };
    let wrong = |why: String| {
        Report::new(ErrorCode::Usage, format!("{from} names {word:?}, which is no socket and no address"))
            .with("reason", why)
            .help("a socket is a path such as /run/vtmesh/vtd.sock, an address is HOST or HOST:PORT")
    };
    let mut found = with_port.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    let address = found.next().ok_or_else(|| wrong("the name has no address".to_owned()))?;
    Ok(Place { host: None, way: Way::Address(address) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    fn globals(words: &[&str]) -> Globals {
        let line = ["vtctl"].iter().chain(words).chain(&["version"]);
        args::parse(line).unwrap().globals
    }

    fn two_hosts(name: Option<&Name>) -> Result<Vec<(Name, PathBuf)>, Report> {
        match name.map(Name::as_str) {
            Some("gone") => Err(Report::new(ErrorCode::LabMissing, "there is no lab called \"gone\"")),
            _ => Ok(vec![("host1".parse().unwrap(), "/l/host1".into()), ("host2".parse().unwrap(), "/l/host2".into())]),
        }
    }

    fn no_lab(_: Option<&Name>) -> Result<Vec<(Name, PathBuf)>, Report> {
        Ok(Vec::new())
    }

    fn text(places: Result<Vec<Place>, Report>) -> String {
        places.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_flag_comes_before_the_lab_before_the_environment_before_the_current_lab() {
        let env = || Some("/e".to_owned());
        assert_eq!(text(places(&globals(&["--endpoint", "/a,unix:b", "--lab", "x"]), env(), two_hosts)), "/a b");
        assert_eq!(text(places(&globals(&["--lab", "x"]), env(), two_hosts)), "/l/host1 /l/host2");
        assert_eq!(text(places(&globals(&[]), env(), two_hosts)), "/e");
        assert_eq!(text(places(&globals(&[]), None, two_hosts)), "/l/host1 /l/host2");
        assert_eq!(text(places(&globals(&[]), Some(String::new()), no_lab)), LOCAL_SOCKET);
        assert_eq!(places(&globals(&["--lab", "gone"]), None, two_hosts).unwrap_err().code, ErrorCode::LabMissing);
    }

    #[test]
    fn addresses_get_the_default_port_and_nonsense_is_refused() {
        let of = |word| text(places(&globals(&["--endpoint", word]), None, no_lab));
        assert_eq!(of("10.0.0.1"), "10.0.0.1:7465");
        assert_eq!(of("10.0.0.1:9"), "10.0.0.1:9");
        assert_eq!(of("::1"), "[::1]:7465");
        for word in ["", ",", "[::1", "10.0.0.1:x y"] {
            let report = places(&globals(&["--endpoint", word]), None, no_lab).unwrap_err();
            assert_eq!(report.code, ErrorCode::Usage, "{word}");
        }
    }
}
