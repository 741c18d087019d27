//! What is done to a domain.

use virt::{
    connect::Connect,
    domain::{Domain, MigrateParameters},
    error::Error,
};
use virt_sys as sys;
use vt_protocol::{
    libvirt::{Compression, DomainState, Migrate, Refusal, Reply, Running},
    vm::Copying,
};

use crate::{
    connection::{open, refusal},
    missing::{abort_job, start_postcopy},
};

fn done<T>(result: Result<T, Error>) -> Result<Reply, Refusal> {
    result.map(|_| Reply::Done).map_err(|error| refusal(&error))
}

/// The bindings panic at a text with a NUL in it.
fn text(text: &str) -> Result<&str, Refusal> {
    if text.contains('\0') { Err(Refusal::ours("a text with a NUL in it")) } else { Ok(text) }
}

fn find(connect: &Connect, name: &str) -> Result<Domain, Refusal> {
    Domain::lookup_by_name(connect, text(name)?).map_err(|error| refusal(&error))
}

/// Starts a transient domain with its CPUs stopped. Should libvirt lose us, it goes on.
pub(crate) fn start(connect: &Connect, xml: &str) -> Result<Reply, Refusal> {
    done(Domain::create_xml(connect, text(xml)?, sys::VIR_DOMAIN_START_PAUSED))
}

/// How a domain is.
pub(crate) fn state(connect: &Connect, name: &str) -> Result<Option<DomainState>, Refusal> {
    let domain = match find(connect, name) {
        Ok(domain) => domain,
        Err(refusal) if refusal.code == Refusal::NO_DOMAIN => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    let (state, _) = domain.get_state().map_err(|error| refusal(&error))?;
    let cpus = match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => Running::Yes,
        sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED => Running::Ended,
        _ => Running::Paused,
    };
    // A domain without CPUs, and a driver without jobs, have none.
    let busy = domain.get_job_info().is_ok_and(|job| job.r#type != sys::VIR_DOMAIN_JOB_NONE as i32);
    Ok(Some(DomainState { cpus, busy }))
}

/// Gives up the move that is under way.
pub(crate) fn abort(connect: &Connect, name: &str) -> Result<Reply, Refusal> {
    done(abort_job(&find(connect, name)?))
}

/// Has the move that is under way go over to post-copy.
pub(crate) fn go_over(connect: &Connect, name: &str) -> Result<Reply, Refusal> {
    done(start_postcopy(&find(connect, name)?))
}

/// Moves it. At the end it is at the destination, paused but for a post-copy, and here no more.
pub(crate) fn migrate(connect: &Connect, move_: &Migrate) -> Result<Reply, Refusal> {
    for one in [&move_.to, &move_.uri, &move_.xml].into_iter().chain(&move_.tls) {
        text(one)?;
    }
    let domain = find(connect, &move_.domain)?;
    if let Some(ms) = move_.modes.downtime {
        domain.migrate_set_max_downtime(ms, 0).map_err(|error| refusal(&error))?;
    }
    let moved = if move_.modes.managed {
        let there = open(&move_.to)?;
        done(domain.migrate3(&there, parameters(move_), flags(move_)))
    } else {
        done(domain.migrate_to_uri3(Some(&move_.to), parameters(move_), flags(move_)))
    };
    // libvirt that has gone away has refused nothing.
    moved.map_err(|refusal| Refusal { lost: !connect.is_alive().unwrap_or(false), ..refusal })
}

/// `UNSAFE` takes from libvirt a guess that it cannot make: whether both hosts see one disk is known by who calls.
fn flags(move_: &Migrate) -> sys::virDomainMigrateFlags {
    let modes = &move_.modes;
    let mut flags = sys::VIR_MIGRATE_UNSAFE;
    for (wanted, flag) in [
        (!modes.managed, sys::VIR_MIGRATE_PEER2PEER),
        (!modes.offline, sys::VIR_MIGRATE_LIVE),
        (modes.abort_on_error, sys::VIR_MIGRATE_ABORT_ON_ERROR),
        // libvirt takes one of the two.
        (modes.postcopy.is_none(), sys::VIR_MIGRATE_PAUSED),
        (modes.postcopy.is_some(), sys::VIR_MIGRATE_POSTCOPY),
        (modes.parallel.is_some(), sys::VIR_MIGRATE_PARALLEL),
        (modes.zero_copy, sys::VIR_MIGRATE_ZEROCOPY),
        (modes.auto_converge.is_some(), sys::VIR_MIGRATE_AUTO_CONVERGE),
        (modes.compression.is_some(), sys::VIR_MIGRATE_COMPRESSED),
        (modes.tunnelled, sys::VIR_MIGRATE_TUNNELLED),
        (modes.copying == Some(Copying::Own), sys::VIR_MIGRATE_NON_SHARED_INC),
        (modes.copying == Some(Copying::Whole), sys::VIR_MIGRATE_NON_SHARED_DISK),
        (move_.tls.is_some(), sys::VIR_MIGRATE_TLS),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    flags
}

fn parameters(move_: &Migrate) -> MigrateParameters {
    let number = |value: Option<u32>| value.map(|value| i32::try_from(value).unwrap_or(i32::MAX));
    let modes = &move_.modes;
    let mut compressed = MigrateParameters::default();
    let method = match modes.compression {
        None => None,
        Some(Compression::Xbzrle { cache }) => {
            compressed.compression_xbzrle_cache = Some(cache);
            Some("xbzrle")
        }
        Some(Compression::Zlib { level }) => {
            compressed.compression_zlib_level = number(level);
            Some("zlib")
        }
        Some(Compression::Zstd { level }) => {
            compressed.compression_zstd_level = number(level);
            Some("zstd")
        }
        Some(Compression::Mt { level, threads, decompress }) => {
            compressed.compression_mt_level = number(level);
            compressed.compression_mt_threads = number(threads);
            compressed.compression_mt_dthreads = number(decompress);
            Some("mt")
        }
    };
    MigrateParameters {
        // A tunnel has no address of its own.
        uri: (!modes.tunnelled).then(|| move_.uri.clone()),
        dest_xml: Some(move_.xml.clone()),
        bandwidth: modes.bandwidth.map(|mib| mib.max(1)),
        bandwidth_postcopy: modes.postcopy.and_then(|postcopy| postcopy.bandwidth),
        parallel_connections: number(modes.parallel),
        auto_converge_initial: number(modes.auto_converge.and_then(|throttle| throttle.initial)),
        auto_converge_increment: number(modes.auto_converge.and_then(|throttle| throttle.increment)),
        compression: method.map(str::to_owned),
        tls_destination: move_.tls.clone(),
        ..compressed
    }
}

#[cfg(test)]
mod tests {
    use vt_protocol::libvirt::{Modes, Postcopy};

    use super::*;

    #[test]
    fn a_domain_never_runs_at_the_destination_by_itself_but_in_a_postcopy() {
        let of = |modes: Modes| {
            let [domain, to, uri, xml] = [const { String::new() }; 4];
            Migrate { domain, to, uri, xml, tls: None, modes }
        };
        for modes in [Modes::default(), Modes { offline: true, tunnelled: true, ..Modes::default() }] {
            assert_ne!(flags(&of(modes.clone())) & sys::VIR_MIGRATE_PAUSED, 0, "{modes:?}");
        }
        assert_eq!(flags(&of(Modes { offline: true, ..Modes::default() })) & sys::VIR_MIGRATE_LIVE, 0);
        for managed in [false, true] {
            let of_two = flags(&of(Modes { managed, ..Modes::default() })) & sys::VIR_MIGRATE_PEER2PEER != 0;
            assert_eq!(of_two, !managed);
        }
        let postcopy = of(Modes { postcopy: Some(Postcopy::default()), ..Modes::default() });
        let either = sys::VIR_MIGRATE_PAUSED | sys::VIR_MIGRATE_POSTCOPY;
        assert_eq!(flags(&postcopy) & either, sys::VIR_MIGRATE_POSTCOPY);
    }
}
