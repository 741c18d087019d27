//! Which daemon is asked: the flags, the environment, the current lab, the current context, or this host's own socket.
//!
//! A lab comes before a context that was not named, so that what was meant for the lab never reaches a real cluster.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use crate::{args::Globals, contexts::Contexts};

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

/// Where labs and contexts are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Sources {
    /// Labs of this machine.
    pub lab: LabSockets,
    /// The client's own file; it is read only where a context may be meant.
    pub contexts: fn() -> Result<Contexts, Report>,
}

/// What is asked, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The places to be asked, in order; never empty.
    pub places: Vec<Place>,
    /// The folder of the client certificate, where one is known.
    pub identity: Option<PathBuf>,
}

/// Finds what is to be asked.
///
/// # Errors
/// A place cannot be understood, or the lab or context that was named is not there.
pub fn places(globals: &Globals, env: impl Fn(&str) -> Option<String>, from: Sources) -> Result<Found, Report> {
    let set = |name: &str| env(name).filter(|text| !text.trim().is_empty());
    let with = |identity: Option<PathBuf>| set("VTCTL_IDENTITY").map(PathBuf::from).or(identity);
    let plain = |places: Vec<Place>| Found { places, identity: with(None) };
    let of_context = |contexts: &Contexts, name: &Name| -> Result<Found, Report> {
        let context = contexts.get(name)?;
        let places = parse_list(&context.endpoints.join(","), &format!("context {name}"))?;
        Ok(Found { places, identity: with(Some(contexts.identity_dir(context))) })
    };
    if let Some(text) = &globals.endpoint {
        return parse_list(text, "--endpoint").map(plain);
    }
    if let Some(name) = &globals.context {
        return of_context(&(from.contexts)()?, name);
    }
    let lab = from.lab;
    let of_lab = |sockets: Vec<(Name, PathBuf)>| -> Vec<Place> {
        sockets.into_iter().map(|(host, path)| Place { host: Some(host), way: Way::Socket(path) }).collect()
    };
    if globals.lab.is_some() {
        return Ok(plain(of_lab(lab(globals.lab.as_ref())?)));
    }
    if let Some(text) = set("VTCTL_ENDPOINT") {
        return parse_list(&text, "VTCTL_ENDPOINT").map(plain);
    }
    if let Some(text) = set("VTCTL_CONTEXT") {
        let name = text.trim().parse().map_err(|_| {
            Report::new(ErrorCode::Usage, format!("VTCTL_CONTEXT is {text:?}, which is no name of a context"))
                .help("vtctl config contexts")
        })?;
        return of_context(&(from.contexts)()?, &name);
    }
    let places = of_lab(lab(None)?);
    if !places.is_empty() {
        return Ok(plain(places));
    }
    // Without a place for the file there is no context; on a host of a cluster that is as it should be.
    if env("HOME").or_else(|| env("XDG_CONFIG_HOME")).or_else(|| env("VTCTL_CONFIG")).is_some() {
        let contexts = (from.contexts)()?;
        if let Some(name) = contexts.current().cloned() {
            return of_context(&contexts, &name);
        }
    }
    Ok(plain(vec![Place::socket(LOCAL_SOCKET)]))
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

    fn no_file() -> Result<Contexts, Report> {
        Contexts::load(std::path::Path::new("/nowhere/config.toml"))
    }

    fn two_contexts() -> Result<Contexts, Report> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text = "current = \"b\"\n[context.a]\nendpoints = [\"10.0.0.1\", \"10.0.0.2:9\"]\nidentity = \"me@a\"\n\
                    [context.b]\nendpoints = [\"10.0.0.3\"]\nidentity = \"me@b\"\n";
        std::fs::write(&path, text).unwrap();
        Contexts::load(&path)
    }

    fn find(words: &[&str], set: &[(&str, &str)], from: Sources) -> Result<Found, Report> {
        let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        places(&globals(words), env, from)
    }

    fn text(found: Result<Found, Report>) -> String {
        found.unwrap().places.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    const LAB: Sources = Sources { lab: two_hosts, contexts: two_contexts };
    const NO_LAB: Sources = Sources { lab: no_lab, contexts: two_contexts };
    const NOTHING: Sources = Sources { lab: no_lab, contexts: no_file };

    #[test]
    fn flags_come_before_the_environment_before_the_lab_before_the_current_context() {
        let env = [("VTCTL_ENDPOINT", "/e"), ("VTCTL_CONTEXT", "a"), ("HOME", "/h")];
        assert_eq!(text(find(&["--endpoint", "/a,unix:b"], &env, LAB)), "/a b");
        assert_eq!(text(find(&["--lab", "x"], &env, LAB)), "/l/host1 /l/host2");
        assert_eq!(text(find(&["--context", "a"], &env, LAB)), "10.0.0.1:7465 10.0.0.2:9");
        assert_eq!(text(find(&[], &env, LAB)), "/e");
        assert_eq!(text(find(&[], &env[1..], LAB)), "10.0.0.1:7465 10.0.0.2:9");
        assert_eq!(text(find(&[], &env[2..], LAB)), "/l/host1 /l/host2", "never a real cluster where a lab is up");
        assert_eq!(text(find(&[], &env[2..], NO_LAB)), "10.0.0.3:7465");
        assert_eq!(text(find(&[], &[("VTCTL_ENDPOINT", "")], NO_LAB)), LOCAL_SOCKET, "no HOME, no file");
        assert_eq!(text(find(&[], &env[2..], NOTHING)), LOCAL_SOCKET);
        assert_eq!(find(&["--lab", "gone"], &[], LAB).unwrap_err().code, ErrorCode::LabMissing);
        assert_eq!(find(&["--context", "c"], &[], LAB).unwrap_err().code, ErrorCode::Usage);
        assert_eq!(find(&[], &[("VTCTL_CONTEXT", "A B")], LAB).unwrap_err().code, ErrorCode::Usage);
    }

    #[test]
    fn the_identity_is_the_contexts_unless_the_environment_names_one() {
        let identity = |words, set: &[(&str, &str)]| find(words, set, NO_LAB).unwrap().identity;
        let of_a = identity(&["--context", "a"], &[]).unwrap();
        assert!(of_a.ends_with("identities/me@a"), "{}", of_a.display());
        assert_eq!(identity(&["--context", "a"], &[("VTCTL_IDENTITY", "/i")]), Some("/i".into()));
        assert_eq!(identity(&["--endpoint", "10.0.0.1"], &[]), None);
    }

    #[test]
    fn addresses_get_the_default_port_and_nonsense_is_refused() {
        let of = |word| text(find(&["--endpoint", word], &[], NOTHING));
        assert_eq!(of("10.0.0.1"), "10.0.0.1:7465");
        assert_eq!(of("10.0.0.1:9"), "10.0.0.1:9");
        assert_eq!(of("::1"), "[::1]:7465");
        for word in ["", ",", "[::1", "10.0.0.1:x y"] {
            let report = find(&["--endpoint", word], &[], NOTHING).unwrap_err();
            assert_eq!(report.code, ErrorCode::Usage, "{word}");
        }
    }
}
