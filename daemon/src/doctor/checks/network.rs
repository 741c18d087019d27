//! The network of one host: which card carries what.

use super::{super::seen::Seen, Said};

/// The cards of decisions and of migrations, where both are known.
fn cards(seen: &Seen) -> Option<(&str, &str)> {
    let control = seen.network.control.as_deref()?;
    // Where nothing is set, migrations come in where decisions do.
    Some(match &seen.network.migration {
        Some((_, interface)) => (control, interface.as_deref()?),
        None => (control, control),
    })
}

pub(super) fn planes(seen: &Seen) -> Option<Said> {
    let (control, migration) = cards(seen)?;
    Some(match control == migration {
        true => Said::note(format!(
            "{control} carries decisions and the memory of guests: a move may delay what decides"
        ))
        .fix(
            "migration under [network] in the settings: the address of another card; or -p mig_speed=… below the line",
        ),
        false => Said::ok(format!("decisions by {control}, migrations by {migration}")),
    })
}

pub(super) fn firewall(seen: &Seen) -> Option<Said> {
    let closed = seen.network.closed.as_ref()?;
    Some(match closed[..] {
        [] => Said::ok("no rule of nftables drops what other hosts send"),
        _ => Said::warn(format!("nftables drops what other hosts send to {}", closed.join(", ")))
            .fix("nft list ruleset; the rules that are wanted: /usr/share/vtmesh/nftables.conf, or the service vtmesh of firewalld"),
    })
}

pub(super) fn offloads(seen: &Seen) -> Option<Said> {
    let off = seen.network.not_offloaded.as_ref()?;
    Some(match off.first().and_then(|one| one.split_once(' ')) {
        None => Said::ok("on for every card that is used"),
        Some((card, what)) => {
            Said::note(format!("off: {}; each packet of a move costs CPU time of its own", off.join(", ")))
                .fix(format!("ethtool -K {card} {what} on, unless its driver is known to be wrong"))
        }
    })
}

pub(super) fn ways_back(seen: &Seen) -> Option<Said> {
    let (control, migration) = cards(seen)?;
    let strict: Vec<&str> = seen.network.strict.iter().map(String::as_str).collect();
    Some(match strict.iter().find(|name| control != migration && [control, migration].contains(*name)) {
        Some(name) => Said::note(format!(
            "{name} has rp_filter 1: what comes in by it and would be answered by the other card is dropped without a word"
        ))
        .fix(format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2, and a file in /etc/sysctl.d that says so")),
        None => Said::ok("answers may go out by another card"),
    })
}
