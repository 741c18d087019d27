//! Which ways of moving a VM exclude each other, whatever the QEMUs can do: pure, known before anything is asked.

use vt_protocol::vm::{Intervention, MigrationSpec, Moment, Transport};

/// Why a spec cannot be: the rule it breaks. `None` where it can.
pub fn broken(spec: &MigrationSpec) -> Option<String> {
    let transport = spec.transport;
    let carried_by = |what: &str| Some(format!("{what} (the transport is {transport})"));
    let over_tcp = matches!(transport, Transport::Tcp | Transport::Tcp6);
    let one_connection = matches!(transport, Transport::Fd | Transport::Exec);
    let one_way = matches!(transport, Transport::Exec | Transport::File);
    if spec.wants("background-snapshot") {
        return Some("background-snapshot saves a guest that goes on where it is; it moves none".to_owned());
    }
    if spec.wants("x-ignore-shared") {
        return Some("x-ignore-shared leaves the RAM behind in a file that two hosts do not share".to_owned());
    }
    if spec.wants("mapped-ram") && transport != Transport::File {
        return carried_by("mapped-ram is a form of a file");
    }
    if spec.wants("multifd") && one_connection {
        return carried_by("multifd needs several connections, and here is one");
    }
    if spec.wants("multifd") && transport == Transport::File && !spec.wants("mapped-ram") {
        return carried_by("multifd writes into a file only with mapped-ram");
    }
    if spec.is_postcopy() && (one_way || one_connection || transport == Transport::Rdma) {
        return carried_by("a post-copy needs a connection both ways that can be made anew");
    }
    let cancels_late =
        |(moment, what): &(Moment, Intervention)| (*moment, what) == (Moment::PostcopyActive, &Intervention::Cancel);
    if spec.interventions.iter().any(cancels_late) {
        return Some("a post-copy that is active cannot be cancelled: the guest runs at the destination".to_owned());
    }
    if (spec.wants("return-path") || spec.wants("switchover-ack")) && one_way {
        return carried_by("the destination answers over the stream, and here it goes one way");
    }
    if spec.wants("zero-copy-send") {
        let compressed = spec.words.get("multifd-compression").is_some_and(|method| method != "none");
        if !over_tcp || !spec.wants("multifd") || compressed {
            return carried_by("zero-copy-send is for multifd over plain tcp, uncompressed");
        }
    }
    if spec.wants("rdma-pin-all") && transport != Transport::Rdma {
        return carried_by("rdma-pin-all is for rdma");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(transport: Transport, capabilities: &[&str]) -> MigrationSpec {
        let capabilities = capabilities.iter().map(|name| ((*name).to_owned(), true)).collect();
        MigrationSpec { transport, capabilities, ..MigrationSpec::default() }
    }

    #[test]
    fn what_cannot_be_is_named_and_what_can_be_is_not() {
        for (transport, capabilities, breaks) in [
            (Transport::Tcp, &["multifd", "zero-copy-send"][..], None),
            (Transport::Tcp, &["postcopy-ram", "postcopy-preempt"], None),
            (Transport::Mesh, &["multifd"], None),
            (Transport::Mesh, &["postcopy-ram"], None),
            (Transport::File, &["mapped-ram", "multifd"], None),
            (Transport::Tls, &["multifd"], None),
            (Transport::File, &["multifd"], Some("mapped-ram")),
            (Transport::Tcp, &["mapped-ram"], Some("a form of a file")),
            (Transport::Fd, &["multifd"], Some("several connections")),
            (Transport::Exec, &["postcopy-ram"], Some("post-copy")),
            (Transport::File, &["return-path", "switchover-ack"], Some("one way")),
            (Transport::Tls, &["multifd", "zero-copy-send"], Some("zero-copy-send")),
            (Transport::Tcp, &["zero-copy-send"], Some("zero-copy-send")),
            (Transport::Tcp, &["background-snapshot"], Some("moves none")),
        ] {
            let broken = broken(&spec(transport, capabilities));
            match breaks {
                None => assert_eq!(broken, None, "{transport} {capabilities:?}"),
                Some(part) => {
                    let words = broken.unwrap_or_default();
                    assert!(words.contains(part), "{transport} {capabilities:?}: {words}");
                }
            }
        }
    }
}
