//! What one host of a case sees of the case's parameters.
//!
//! The parameters of a case are one set; the hosts' own are derived where they are used, so that a plan holds each set once.
//! A pure function of the set, the hosts and a seed: every host, and whoever looks at it later, derives the same.

use super::{Origin, Params};

/// The place of what is derived here.
pub const DERIVED: &str = "derived";

/// The parameters of a case as the host at `place` (from 0) sees them.
///
/// First what all hosts share is added to the case's own: `hosts`, a MAC address `mac_NIC_VM` for every NIC that the
/// configuration gives none, `master_images_clone` and `kill_vm`. Then every `KEY_hostN` of this host becomes its `KEY`.
/// Last comes what tells the hosts apart: `hostid`, `clone_master`, and `not_preprocess` on all but host1.
///
/// `seed` is what the addresses are made of: the same for all hosts of a case, another one for every case that may run at
/// the same time.
#[must_use]
pub fn for_host(case: &Params, hosts: &[impl AsRef<str>], place: usize, seed: &str) -> Params {
    let mut shared = case.clone();
    let mut add = |key: &str, value: &str| shared.set(key, value, origin());
    let names: Vec<&str> = hosts.iter().map(AsRef::as_ref).collect();
    add("hosts", &names.join(" "));
    for (key, address) in addresses(case, seed) {
        add(&key, &address);
    }
    // The disk that is cloned, by one host for all.
    add("master_images_clone", "image1");
    add("kill_vm", "yes");

    let mut own = shared.object(&format!("host{}", place + 1));
    let mut add = |key: &str, value: &str| own.set(key, value, origin());
    add("hostid", names.get(place).copied().unwrap_or_default());
    add("clone_master", if place == 0 { "yes" } else { "no" });
    if place > 0 {
        add("not_preprocess", "yes");
    }
    own
}

/// A key and an address for each NIC of each VM that has none.
fn addresses(case: &Params, seed: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for vm in case.objects("vms") {
        let of_vm = case.object(vm);
        for nic in of_vm.objects("nics") {
            if of_vm.object(nic).text("mac").is_none_or(|mac| mac.trim().is_empty()) {
                found.push((format!("mac_{nic}_{vm}"), address(seed, vm, nic)));
            }
        }
    }
    found
}

/// `9a:` and five bytes that follow from the seed: locally administered, as Avocado-VT's are.
fn address(seed: &str, vm: &str, nic: &str) -> String {
    // None of the parts holds a line end, so no two triples read the same.
    let hash = blake3::hash(format!("{seed}\n{vm}\n{nic}").as_bytes());
    let [a, b, c, d, e, ..] = hash.as_bytes();
    format!("9a:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

fn origin() -> Origin {
    Origin { file: DERIVED.to_owned(), line: 0 }
}

#[cfg(test)]
mod tests {
    use super::{super::params, *};

    const HOSTS: [&str; 3] = ["lab-a1", "lab-a2", "lab-a3"];

    fn seen(case: &Params, key: &str) -> Vec<String> {
        (0..HOSTS.len())
            .map(|place| for_host(case, &HOSTS, place, "case_1").text(key).unwrap_or("-").to_owned())
            .collect()
    }

    /// Key, what the configuration sets, what host1, host2 and host3 see.
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], [&'a str; 3]);

    #[test]
    fn each_host_sees_its_own() {
        let table: &[Row<'_>] = &[
            ("hosts", &[], ["lab-a1 lab-a2 lab-a3"; 3]),
            ("hosts", &[("hosts", "x y")], ["lab-a1 lab-a2 lab-a3"; 3]),
            ("hostid", &[], HOSTS),
            ("hostid", &[("hostid", "x"), ("hostid_host2", "y")], HOSTS),
            ("clone_master", &[], ["yes", "no", "no"]),
            ("clone_master", &[("clone_master_host2", "yes")], ["yes", "no", "no"]),
            ("master_images_clone", &[("master_images_clone", "image2")], ["image1"; 3]),
            ("kill_vm", &[("kill_vm", "no")], ["yes"; 3]),
            // A host's own value stands above what is shared.
            ("kill_vm", &[("kill_vm_host2", "no")], ["yes", "no", "yes"]),
            ("not_preprocess", &[], ["-", "yes", "yes"]),
            ("not_preprocess", &[("not_preprocess", "no")], ["no", "yes", "yes"]),
            ("not_preprocess", &[("not_preprocess_host1", "yes")], ["yes", "yes", "yes"]),
            ("not_preprocess", &[("not_preprocess_host2", "no")], ["-", "yes", "yes"]),
            ("start_vm", &[("start_vm", "yes")], ["yes"; 3]),
            ("start_vm", &[("start_vm_host1", "yes"), ("start_vm", "no")], ["yes", "no", "no"]),
            ("mem_vm1", &[("mem_vm1_host3", "9"), ("mem_vm1", "1")], ["1", "1", "9"]),
            // `host1` is no ending of `host11`.
            ("x", &[("x_host11", "11")], ["-"; 3]),
            ("x_host2", &[("x_host2", "2")], ["2"; 3]),
        ];
        for (key, set, want) in table {
            assert_eq!(seen(&params(set), key), want, "{key} with {set:?}");
        }
    }

    #[test]
    fn every_nic_has_one_address_on_all_hosts_and_another_in_every_case() {
        let case = params(&[
            ("vms", "vm1 vm2"),
            ("nics", "nic1 nic2"),
            ("nics_vm2", "nic1"),
            ("mac_nic2", "00:11:22:33:44:00"),
        ]);
        let one = seen(&case, "mac_nic1_vm1");
        assert!(one[0].starts_with("9a:") && one[0].len() == 17, "{one:?}");
        assert!(one.iter().all(|address| *address == one[0]), "{one:?}");
        assert_ne!(one, seen(&case, "mac_nic1_vm2"));
        assert_ne!(Some(one[0].as_str()), for_host(&case, &HOSTS, 0, "case_2").text("mac_nic1_vm1"));
        // vm2 has one NIC, and the second one of vm1 was given an address.
        assert_eq!(seen(&case, "mac_nic2_vm2"), ["-"; 3]);
        assert_eq!(seen(&case, "mac_nic2_vm1"), ["-"; 3]);
        assert_eq!(for_host(&case, &HOSTS, 1, "s").object("vm1").object("nic2").text("mac"), Some("00:11:22:33:44:00"));
    }

    #[test]
    fn what_is_derived_says_so() {
        let own = for_host(&params(&[("a_host1", "1")]), &HOSTS, 0, "s");
        assert_eq!(own.get("hostid").unwrap().origin.to_string(), "derived");
        assert_eq!(own.get("a").unwrap().origin.to_string(), "a.cfg:1");
    }
}
