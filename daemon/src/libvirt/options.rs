//! A move as `virsh migrate` is told to make one, in its words: pure. What decides who runs the VM, and what names a host, is
//! the mesh's, and is refused with the rule.

use vt_protocol::vm::{ByLibvirt, Copying, Intervention, MigrationSpec, Moment, Transport};

/// The parameter that has them, as old configurations call it.
pub const KEY: &str = "virsh_migrate_options";

const MIB: u64 = 1 << 20;
/// Words that say what is so in any case, or is of no matter to a move.
const SO_ANYWAY: [&str; 5] = ["--unsafe", "--undefinesource", "--change-protection", "--verbose", "--compressed"];
/// Words that are refused, and why.
const REFUSED: [(&[&str], &str); 7] = [
    (
        &["--persistent", "--persistent-xml"],
        "a persistent domain is one that libvirt starts again whoever owns the VM; domains here end with their QEMU",
    ),
    (
        &["--suspend"],
        "whether the guest runs at the destination is decided by the hosts, and every move arrives paused",
    ),
    (&["--direct"], "libvirt has that for hypervisors that move a VM without it, and QEMU is none"),
    (
        &["--postcopy-resume"],
        "libvirtd 11.3 of the destination crashes of it, and others may wait for a page that is missing; the daemons mend a \
         connection that broke",
    ),
    (
        &["--timeout-postcopy", "--postcopy-after-precopy"],
        "libvirt completes a transfer that converges, and a post-copy is decided before: it begins at active",
    ),
    (
        &[
            "--migrateuri",
            "--listen-address",
            "--graphicsuri",
            "--disks-uri",
            "--disks-port",
            "--tls-destination",
            "--desturi",
            "--domain",
            "--dname",
            "--xml",
            "--migrate-disks",
        ],
        "where a VM goes and what it is called there is the mesh's to say",
    ),
    (&["--rdma-pin-all", "--offline"], "vtmesh moves VMs that are there, and by libvirt over tcp, tls and its tunnel"),
];

/// Has `spec` be what the options say beside what it is already.
///
/// # Errors
/// A word that is refused or not known, with the rule.
pub fn apply(options: &str, spec: &mut MigrationSpec) -> Result<(), String> {
    // A value stands behind its word, after a space or a `=`.
    let mut words = options.split_whitespace().flat_map(|word| word.splitn(2, '='));
    let (mut live, mut p2p, mut timeout) = (false, false, None);
    let mut by_libvirt = ByLibvirt::default();
    let mut methods: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        let mut number = |least: u64, most: u64| {
            let value =
                words.next().and_then(|value| value.parse().ok()).filter(|value| (least..=most).contains(value));
            value.ok_or_else(|| format!("{word} is a whole number from {least} to {most}"))
        };
        let mut set = |name: &str, value: u64| {
            spec.parameters.insert(name.to_owned(), value);
        };
        match word {
            "--live" => live = true,
            "--p2p" => p2p = true,
            "--tunnelled" => spec.transport = Transport::Mesh,
            "--tls" => spec.transport = Transport::Tls,
            "--abort-on-error" => by_libvirt.abort_on_error = true,
            "--copy-storage-all" => by_libvirt.copying = Some(Copying::Whole),
            "--copy-storage-inc" => by_libvirt.copying = Some(Copying::Own),
            "--timeout" => timeout = Some(number(1, 86_400)? * 1000),
            "--timeout-suspend" => timeout = timeout.or(Some(0)),
            "--bandwidth" => set("max-bandwidth", number(1, 1 << 20)? * MIB),
            "--postcopy-bandwidth" => set("max-postcopy-bandwidth", number(1, 1 << 20)? * MIB),
            "--postcopy" => spec.interventions.push((Moment::Active, Intervention::Postcopy)),
            "--auto-converge" => want(spec, "auto-converge"),
            "--auto-converge-initial" => set("cpu-throttle-initial", number(1, 99)?),
            "--auto-converge-increment" => set("cpu-throttle-increment", number(1, 99)?),
            "--parallel" => want(spec, "multifd"),
            "--parallel-connections" => set("multifd-channels", number(1, 255)?),
            "--zerocopy" => want(spec, "zero-copy-send"),
            "--comp-methods" => methods.extend(words.next().unwrap_or_default().split(',')),
            "--comp-xbzrle-cache" => set("xbzrle-cache-size", number(1, 1 << 50)?),
            "--comp-mt-level" => set("compress-level", number(0, 9)?),
            "--comp-mt-threads" => set("compress-threads", number(1, 255)?),
            "--comp-mt-dthreads" => set("decompress-threads", number(1, 255)?),
            "--comp-zlib-level" => set("multifd-zlib-level", number(0, 9)?),
            "--comp-zstd-level" => set("multifd-zstd-level", number(0, 20)?),
            word if SO_ANYWAY.contains(&word) => {}
            word => return Err(refused(word)),
        }
    }
    for method in methods {
        match method {
            "xbzrle" => want(spec, "xbzrle"),
            "mt" => want(spec, "compress"),
            "zlib" | "zstd" => drop(spec.words.insert("multifd-compression".to_owned(), method.to_owned())),
            other => return Err(format!("--comp-methods {other} is none of xbzrle, mt, zlib and zstd")),
        }
    }
    if timeout == Some(0) {
        return Err("--timeout-suspend is about a --timeout, and none is said".to_owned());
    }
    by_libvirt.managed = !p2p;
    spec.offline = !live;
    spec.suspend_after_ms = timeout.or(spec.suspend_after_ms);
    spec.by_libvirt = by_libvirt;
    Ok(())
}

fn want(spec: &mut MigrationSpec, capability: &str) {
    spec.capabilities.insert(capability.to_owned(), true);
}

fn refused(word: &str) -> String {
    match REFUSED.iter().find(|(words, _)| words.contains(&word)) {
        Some((_, rule)) => format!("{word}: {rule}"),
        None => format!("{word} is no option of virsh migrate that is known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::modes::modes;

    fn applied(options: &str) -> MigrationSpec {
        let mut spec = MigrationSpec::default();
        apply(options, &mut spec).unwrap_or_else(|rule| panic!("{options}: {rule}"));
        spec
    }

    #[test]
    fn every_option_that_is_taken_is_one_that_libvirt_is_told() {
        use vt_protocol::libvirt::{Compression, Modes, Postcopy, Throttle};
        let live = |modes: Modes| Modes { managed: true, ..modes };
        let none = Modes::default;
        let throttle = Throttle { initial: Some(30), increment: Some(15) };
        let mt = Compression::Mt { level: Some(1), threads: Some(2), decompress: Some(3) };
        for (options, told) in [
            ("--live --p2p --unsafe", none()),
            ("--live", live(none())),
            ("", live(Modes { offline: true, ..none() })),
            ("--live --p2p --tunnelled", Modes { tunnelled: true, ..none() }),
            ("--live --abort-on-error", live(Modes { abort_on_error: true, ..none() })),
            ("--live --bandwidth=24", live(Modes { bandwidth: Some(24), ..none() })),
            (
                "--live --auto-converge --auto-converge-initial 30 --auto-converge-increment 15",
                live(Modes { auto_converge: Some(throttle), ..none() }),
            ),
            ("--live --parallel --parallel-connections 4", live(Modes { parallel: Some(4), ..none() })),
            ("--live --parallel --zerocopy", live(Modes { parallel: Some(2), zero_copy: true, ..none() })),
            (
                "--live --compressed --comp-methods mt --comp-mt-level 1 --comp-mt-threads 2 --comp-mt-dthreads 3",
                live(Modes { compression: Some(mt), ..none() }),
            ),
            (
                "--live --comp-methods xbzrle --comp-xbzrle-cache 4096",
                live(Modes { compression: Some(Compression::Xbzrle { cache: 4096 }), ..none() }),
            ),
            (
                "--live --parallel --comp-methods=zstd --comp-zstd-level 3",
                live(Modes { parallel: Some(2), compression: Some(Compression::Zstd { level: Some(3) }), ..none() }),
            ),
            (
                "--live --p2p --postcopy --postcopy-bandwidth 16",
                Modes { bandwidth: Some(1), postcopy: Some(Postcopy { bandwidth: Some(16) }), ..none() },
            ),
        ] {
            assert_eq!(modes(&applied(options)), Ok(told), "{options}");
        }
        assert_eq!(applied("--live --tls").transport, Transport::Tls);
        assert_eq!(applied("--live --timeout 60 --timeout-suspend").suspend_after_ms, Some(60_000));
        assert_eq!(applied("--live --copy-storage-inc").by_libvirt.copying, Some(Copying::Own));
        assert_eq!(applied("--live --copy-storage-all").by_libvirt.copying, Some(Copying::Whole));
    }

    #[test]
    fn what_is_not_for_a_move_to_say_is_refused_with_the_rule() {
        for (options, rule) in [
            ("--live --persistent", "whoever owns the VM"),
            ("--suspend", "decided by the hosts"),
            ("--live --p2p --direct", "QEMU is none"),
            ("--postcopy-resume", "the daemons mend"),
            ("--timeout-postcopy", "begins at active"),
            ("--migrateuri tcp://x", "the mesh's to say"),
            ("--parallel-connections 0", "from 1 to 255"),
            ("--parallel-connections 256", "from 1 to 255"),
            ("--parallel-connections", "from 1 to 255"),
            ("--comp-methods lz4", "none of xbzrle"),
            ("--timeout-suspend", "about a --timeout"),
            ("--frobnicate", "no option of virsh"),
        ] {
            let found = apply(options, &mut MigrationSpec::default()).unwrap_err();
            assert!(found.contains(rule), "{options}: {found}");
        }
    }
}
