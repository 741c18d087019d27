//! A way of moving, in libvirt's words: pure.

use vt_protocol::{
    libvirt::{Compression, Modes, Postcopy, Throttle},
    vm::{ByLibvirt, Intervention, MigrationSpec, Moment, Transport},
};

/// Capabilities that libvirt turns on by itself where they are needed: asking for them changes nothing.
const OF_ITSELF: [&str; 4] = ["events", "pause-before-switchover", "return-path", "late-block-activate"];
/// QEMU's word for the compression of multifd's connections.
const METHOD: &str = "multifd-compression";
const MIB: u64 = 1 << 20;
/// What libvirt has calls for that set it in a move under way. QEMU is told by us, to the same effect.
const SET_MEANWHILE: [&str; 3] = ["max-bandwidth", "downtime-limit", "xbzrle-cache-size"];
/// MiB/s of a post-copy before it is decided. A guest that has booted does not converge at it within the time after which
/// its guards end it for want of a decision.
const HELD: u64 = 1;

/// How libvirt is told to move a VM.
///
/// # Errors
/// The rule that stands against it: libvirt has no word for it, or does it in a way that we cannot decide about.
pub fn modes(spec: &MigrationSpec) -> Result<Modes, String> {
    let only_qmp = |what: &str| Err(format!("{what} is not offered through libvirt; --backend qmp has it"));
    let ByLibvirt { managed, abort_on_error, copying: _ } = spec.by_libvirt;
    let mut modes = Modes { offline: spec.offline, managed, abort_on_error, ..Modes::default() };
    match spec.transport {
        // With TLS it is TCP with certificates, which are made when it begins.
        Transport::Tcp | Transport::Tls => {}
        // Both carry the stream in the connection of the two daemons.
        Transport::Mesh => modes.tunnelled = true,
        other => return only_qmp(&format!("the transport {other}")),
    }
    let number = |name: &str| spec.parameters.get(name).copied();
    let percent = |name: &str| number(name).and_then(|value| u32::try_from(value).ok());
    let postcopy = spec.is_postcopy();
    // A post-copy that may stand still for long would be at its end before it is decided.
    let mut known = vec!["max-bandwidth", if postcopy { "max-postcopy-bandwidth" } else { "downtime-limit" }];
    let mut others = Vec::new();
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
                others.push(Compression::Xbzrle { cache: number("xbzrle-cache-size").unwrap_or(64 * MIB) });
            }
            "compress" => {
                known.extend(["compress-level", "compress-threads", "decompress-threads"]);
                others.push(Compression::Mt {
                    level: percent("compress-level"),
                    threads: percent("compress-threads"),
                    decompress: percent("decompress-threads"),
                });
            }
            // Of several connections, which is a rule of all moves.
            "zero-copy-send" => modes.zero_copy = true,
            "postcopy-ram" => {}
            name => return only_qmp(&format!("the capability {name}")),
        }
    }
    if let Some(name) = spec.parameters.keys().find(|name| !known.contains(&name.as_str())) {
        return only_qmp(&format!("the parameter {name}"));
    }
    if let Some(name) = spec.words.keys().find(|name| *name != METHOD || modes.parallel.is_none()) {
        return only_qmp(&format!("the parameter {name}"));
    }
    if modes.compression.iter().chain(&others).count() > 1 {
        return only_qmp("two compressions at once");
    }
    if modes.parallel.is_some() && !others.is_empty() {
        return only_qmp("multifd with a compression of one connection");
    }
    modes.compression = modes.compression.or_else(|| others.pop());
    if modes.tunnelled && managed {
        return Err("libvirt's tunnel is between two libvirts: --p2p".to_owned());
    }
    if modes.tunnelled && modes.parallel.is_some() {
        return Err("libvirt's tunnel is one connection, and multifd needs several".to_owned());
    }
    modes.bandwidth = number("max-bandwidth").map(|bytes| bytes.div_ceil(MIB));
    modes.downtime = number("downtime-limit");
    let offered = |(at, what): &(Moment, Intervention)| match what {
        Intervention::Cancel => !postcopy,
        Intervention::Postcopy => *at == Moment::Active,
        Intervention::Break => *at == Moment::PostcopyActive,
        Intervention::Stop => !postcopy,
        Intervention::Set(all) => !postcopy && all.keys().all(|name| SET_MEANWHILE.contains(&name.as_str())),
    };
    if let Some((at, _)) = spec.interventions.iter().find(|one| !offered(one)) {
        return only_qmp(&format!("what is to be done at {at}"));
    }
    if postcopy {
        if let Some(rule) = bars_postcopy(spec, &modes) {
            return Err(rule.to_owned());
        }
        modes.bandwidth = Some(HELD);
        modes.postcopy =
            Some(Postcopy { bandwidth: number("max-postcopy-bandwidth").map(|bytes| bytes.div_ceil(MIB)) });
    }
    Ok(modes)
}

/// What stands against a post-copy.
fn bars_postcopy(spec: &MigrationSpec, modes: &Modes) -> Option<&'static str> {
    if !spec.interventions.iter().any(|(_, what)| *what == Intervention::Postcopy) {
        Some("libvirt completes a transfer that converges, and a post-copy is decided before: it begins at active")
    } else if modes.tunnelled {
        Some("libvirt makes no post-copy through its tunnel")
    } else if spec.suspend_after_ms.is_some() {
        Some("the guest of a post-copy is paused until it is decided")
    } else if modes.offline {
        Some("libvirt makes no post-copy of a guest that is paused before")
    } else if modes.parallel.is_some() {
        Some("a post-copy goes through one connection, and multifd through several")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
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

    fn at(interventions: &[(Moment, Intervention)]) -> MigrationSpec {
        MigrationSpec { interventions: interventions.to_vec(), ..MigrationSpec::default() }
    }

    const GOES_OVER: (Moment, Intervention) = (Moment::Active, Intervention::Postcopy);

    #[test]
    fn a_postcopy_is_held_until_it_is_decided() {
        let broken = (Moment::PostcopyActive, Intervention::Break);
        let slow = spec(&["postcopy-ram"], &[("max-bandwidth", 24 << 20), ("max-postcopy-bandwidth", 16 << 20)]);
        let found = modes(&MigrationSpec { interventions: vec![GOES_OVER, broken], ..slow });
        let postcopy = Some(Postcopy { bandwidth: Some(16) });
        assert_eq!(found, Ok(Modes { bandwidth: Some(HELD), postcopy, ..Modes::default() }));
    }

    #[test]
    fn what_it_has_no_word_for_is_named() {
        let set = |name: &str| at(&[(Moment::Pass(2), Intervention::Set([(name.to_owned(), 1)].into()))]);
        for spec in [at(&[(Moment::Active, Intervention::Cancel)]), set("max-bandwidth")] {
            assert!(modes(&spec).is_ok());
        }
        assert!(modes(&set("cpu-throttle-initial")).unwrap_err().contains("at pass:2"));
        let postcopy = |other: MigrationSpec| MigrationSpec { interventions: vec![GOES_OVER], ..other };
        for (spec, named) in [
            (MigrationSpec { transport: Transport::Fd, ..MigrationSpec::default() }, "transport fd"),
            (spec(&["postcopy-ram"], &[]), "begins at active"),
            (at(&[(Moment::Pass(2), Intervention::Postcopy)]), "at pass:2"),
            (at(&[GOES_OVER, (Moment::Active, Intervention::Cancel)]), "at active"),
            (postcopy(spec(&[], &[("downtime-limit", 2000)])), "downtime-limit"),
            (postcopy(spec(&["multifd"], &[])), "multifd"),
            (postcopy(MigrationSpec { transport: Transport::Mesh, ..MigrationSpec::default() }), "tunnel"),
            (postcopy(MigrationSpec { offline: true, ..MigrationSpec::default() }), "paused before"),
            (spec(&["multifd", "xbzrle"], &[]), "one connection"),
            (spec(&["compress", "xbzrle"], &[]), "two compressions"),
            (postcopy(MigrationSpec { suspend_after_ms: Some(1), ..MigrationSpec::default() }), "until it is decided"),
            (
                MigrationSpec {
                    transport: Transport::Mesh,
                    by_libvirt: ByLibvirt { managed: true, ..ByLibvirt::default() },
                    ..spec(&[], &[])
                },
                "--p2p",
            ),
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
            (at(&[(Moment::Active, Intervention::Break)]), "at active"),
            (MigrationSpec { transport: Transport::Mesh, ..spec(&["multifd"], &[]) }, "tunnel"),
        ] {
            let rule = modes(&spec).unwrap_err();
            assert!(rule.contains(named), "{rule}");
        }
    }
}
