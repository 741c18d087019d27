//! A way of moving, in libvirt's words: pure.

use vt_protocol::{
    libvirt::{Compression, Modes, Throttle},
    vm::{Intervention, MigrationSpec, Transport},
};

/// Capabilities that libvirt turns on by itself where they are needed: asking for them changes nothing.
const OF_ITSELF: [&str; 4] = ["events", "pause-before-switchover", "return-path", "late-block-activate"];
/// QEMU's word for the compression of multifd's connections.
const METHOD: &str = "multifd-compression";
const MIB: u64 = 1 << 20;

/// How libvirt is told to move a VM.
///
/// # Errors
/// The rule that stands against it: libvirt has no word for it, or does it in a way that we cannot decide about.
pub fn modes(spec: &MigrationSpec) -> Result<Modes, String> {
    let only_qmp = |what: &str| Err(format!("{what} is not offered through libvirt; --backend qmp has it"));
    let mut modes = Modes { offline: spec.offline, ..Modes::default() };
    match spec.transport {
        // With TLS it is TCP with certificates, which are made when it begins.
        Transport::Tcp | Transport::Tls => {}
        // Both carry the stream in the connection of the two daemons.
        Transport::Mesh => modes.tunnelled = true,
        other => return only_qmp(&format!("the transport {other}")),
    }
    let number = |name: &str| spec.parameters.get(name).copied();
    let percent = |name: &str| number(name).and_then(|value| u32::try_from(value).ok());
    let mut known: Vec<&str> = vec!["max-bandwidth", "downtime-limit"];
    let mut xbzrle = None;
    for name in spec.asked() {
        match name.as_str() {
            name if OF_ITSELF.contains(&name) => {}
            "multifd" => {
                known.push("multifd-channels");
                modes.parallel = Some(percent("multifd-channels").unwrap_or(2));
                match spec.words.get(METHOD).map(String::as_str) {
                    None | Some("none") => {}
                    Some("zlib") => {
                        known.push("multifd-zlib-level");
                        modes.compression = Some(Compression::Zlib { level: percent("multifd-zlib-level") });
                    }
                    Some("zstd") => {
                        known.push("multifd-zstd-level");
                        modes.compression = Some(Compression::Zstd { level: percent("multifd-zstd-level") });
                    }
                    Some(method) => return only_qmp(&format!("{METHOD}={method}")),
                }
            }
            "auto-converge" => {
                known.extend(["cpu-throttle-initial", "cpu-throttle-increment"]);
                modes.auto_converge = Some(Throttle {
                    initial: percent("cpu-throttle-initial"),
                    increment: percent("cpu-throttle-increment"),
                });
            }
            "xbzrle" => {
                known.push("xbzrle-cache-size");
                // QEMU's own default.
                xbzrle = Some(Compression::Xbzrle { cache: number("xbzrle-cache-size").unwrap_or(64 * MIB) });
            }
            // It decides by itself when to go over, and a post-copy has to be decided before.
            "postcopy-ram" => return only_qmp("post-copy"),
            name => return only_qmp(&format!("the capability {name}")),
        }
    }
    if let Some(name) = spec.parameters.keys().find(|name| !known.contains(&name.as_str())) {
        return only_qmp(&format!("the parameter {name}"));
    }
    if let Some(name) = spec.words.keys().find(|name| *name != METHOD || modes.parallel.is_none()) {
        return only_qmp(&format!("the parameter {name}"));
    }
    if modes.compression.is_some() && xbzrle.is_some() {
        return only_qmp("two compressions at once");
    }
    modes.compression = modes.compression.or(xbzrle);
    if modes.tunnelled && modes.parallel.is_some() {
        return Err("libvirt's tunnel is one connection, and multifd needs several".to_owned());
    }
    if spec.interventions.iter().any(|(_, what)| *what != Intervention::Cancel) {
        return only_qmp("what is done at a moment of the transfer, but cancel,");
    }
    modes.bandwidth = number("max-bandwidth").map(|bytes| bytes.div_ceil(MIB));
    modes.downtime = number("downtime-limit");
    Ok(modes)
}

#[cfg(test)]
mod tests {
    use vt_protocol::vm::Moment;

    use super::*;

    fn spec(capabilities: &[&str], parameters: &[(&str, u64)]) -> MigrationSpec {
        MigrationSpec {
            capabilities: capabilities.iter().map(|name| ((*name).to_owned(), true)).collect(),
            parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            ..MigrationSpec::default()
        }
    }

    #[test]
    fn what_libvirt_has_a_word_for_is_said_in_it() {
        assert_eq!(modes(&MigrationSpec::default()), Ok(Modes::default()));
        let found = modes(&spec(&["multifd", "events"], &[("multifd-channels", 4), ("max-bandwidth", 1_500_000)]));
        assert_eq!(found, Ok(Modes { parallel: Some(4), bandwidth: Some(2), ..Modes::default() }));
        let found = modes(&spec(&["auto-converge"], &[("cpu-throttle-initial", 30), ("downtime-limit", 50)]));
        let throttle = Throttle { initial: Some(30), increment: None };
        assert_eq!(found, Ok(Modes { auto_converge: Some(throttle), downtime: Some(50), ..Modes::default() }));
        let zstd = |parameters: &[(&str, u64)]| {
            let words = [("multifd-compression".to_owned(), "zstd".to_owned())].into();
            modes(&MigrationSpec { words, ..spec(&["multifd"], parameters) })
        };
        let compression = Some(Compression::Zstd { level: Some(3) });
        assert_eq!(
            zstd(&[("multifd-zstd-level", 3)]),
            Ok(Modes { parallel: Some(2), compression, ..Modes::default() })
        );
        assert!(zstd(&[("multifd-zlib-level", 3)]).is_err(), "the level of another method");
        let tunnel = MigrationSpec { transport: Transport::Mesh, offline: true, ..MigrationSpec::default() };
        assert_eq!(modes(&tunnel), Ok(Modes { tunnelled: true, offline: true, ..Modes::default() }));
    }

    #[test]
    fn what_it_has_no_word_for_is_named() {
        let at = |what| MigrationSpec { interventions: vec![(Moment::Active, what)], ..MigrationSpec::default() };
        assert!(modes(&at(Intervention::Cancel)).is_ok());
        for (spec, named) in [
            (MigrationSpec { transport: Transport::Fd, ..MigrationSpec::default() }, "transport fd"),
            (spec(&["postcopy-ram"], &[]), "post-copy"),
            (spec(&["zero-copy-send"], &[]), "zero-copy-send"),
            (spec(&[], &[("multifd-channels", 4)]), "multifd-channels"),
            (
                MigrationSpec {
                    words: [("multifd-compression".into(), "qpl".into())].into(),
                    ..spec(&["multifd"], &[])
                },
                "qpl",
            ),
            (
                MigrationSpec { words: [("multifd-compression".into(), "zstd".into())].into(), ..spec(&[], &[]) },
                "multifd-compression",
            ),
            (at(Intervention::Break), "at a moment"),
            (MigrationSpec { transport: Transport::Mesh, ..spec(&["multifd"], &[]) }, "tunnel"),
        ] {
            let rule = modes(&spec).unwrap_err();
            assert!(rule.contains(named), "{rule}");
        }
    }
}
