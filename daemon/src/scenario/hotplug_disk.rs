//! `hotplug_disk`: a disk is plugged in before a move and out after it, or the other way round.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Limit, Scenario,
    journey::{Journey, SLACK, product, taken},
    load::run as in_guest,
    settings::{ALIASES, LIMITS, MOVE_PARAMS, Settings, VM_PARAMS},
};
use crate::party::Party;

/// How long a device may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Ids of the disk and of the slot that it goes into, and the disk's size.
const DISK: &str = "hot";
const SLOT: &str = "hotslot";
const BYTES: u64 = 64 << 20;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "hotplug_disk",
    summary: "plugs a disk in, or out, and moves the guest with the devices it has then",
    about: "PASS: hot_plug_block_dev: the guest boots without the disk, sees it once it is plugged in, and still after a move to \
            a host whose QEMU began with it; there it is unplugged, and a move back without it leaves the guest whole. \
            hot_unplug_block_dev: the same the other way round. The guest's own list of disks is what counts, and the disk is \
            read to its end. The disk is one of zeros, so that no file has to be on both hosts. Avocado-VT's test ships its \
            pickled VM object so that the other side builds the same devices, and spells the number of its attempts wrong; \
            here the changed devices are part of the VM.",
    hosts: (2, 2),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[("helper_test", "hot_plug_block_dev", "what is done before the first move, or hot_unplug_block_dev")],
    ],
    aliases: &[ALIASES, &["plug_block", "unplug_block"]],
    types: &[Called { kind: "migration_multi_host", when: &[("migration_sync_vms", "yes")] }],
    limits: &[
        LIMITS,
        &[Limit {
            key: "pre_sub_test",
            takes: |test| matches!(test, "" | "migration_multi_host_helper_tests"),
            does: "has no other tests inside than the plugging of a disk",
        }],
    ],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

/// Where a disk is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bus {
    /// A slot of PCI Express that is there for it.
    Slot,
    /// A place on the one bus of an older machine.
    Pci,
}

impl Bus {
    /// What says so to the device.
    fn place(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Slot => &[("bus", SLOT)],
            Self::Pci => &[("bus", "pci.0"), ("addr", "0x1e")],
        }
    }
}

fn read(params: &Params) -> Result<(Settings, Bus, bool), ParamError> {
    let mut settings = Settings::read(params)?;
    // Hosts other than the first do nothing before the move: what host1 has to do is what is meant.
    let key = if params.get("helper_test_host1").is_some() { "helper_test_host1" } else { "helper_test" };
    let plugged = match params.text(key).map(str::trim).unwrap_or_default() {
        "" | "hot_plug_block_dev" => false,
        "hot_unplug_block_dev" => true,
        _ => return Err(params.error(key, "hot_plug_block_dev or hot_unplug_block_dev")),
    };
    // The disk that is plugged is none of those that the VM has all the time.
    let hot = [params.list("plug_block", None), params.list("unplug_block", None)].concat();
    settings.vm.drives.retain(|drive| !hot.contains(&drive.name.as_str()));
    let bus = if settings.vm.has_pcie() { Bus::Slot } else { Bus::Pci };
    settings.vm.extra_args.extend(words(bus, plugged));
    Ok((settings, bus, plugged))
}

/// The end of QEMU's command line, with the disk in its place or without it. A slot is where nobody else puts one: libvirt
/// counts from the beginning, and names its own only after this one is there.
fn words(bus: Bus, plugged: bool) -> Vec<String> {
    let mut words = match bus {
        Bus::Slot => vec!["-device".to_owned(), format!("pcie-root-port,id={SLOT},chassis=99,addr=0x10")],
        Bus::Pci => Vec::new(),
    };
    if plugged {
        let backend = format!("driver=null-co,node-name={DISK},size={BYTES},read-zeroes=on");
        let place: String = bus.place().iter().map(|(key, value)| format!(",{key}={value}")).collect();
        let device = format!("virtio-blk-pci,id={DISK},drive={DISK},serial={DISK}{place}");
        words.extend(["-blockdev".to_owned(), backend, "-device".to_owned(), device]);
    }
    words
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let (settings, bus, mut plugged) = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    if journey.is_here() {
        sees(&journey, plugged).await?;
    }
    for round in ["there", "back"] {
        plugged = !plugged;
        if journey.is_here() {
            turn(&journey, bus, plugged).await?;
        }
        party.barrier("turned", PATIENCE * 2 + SLACK).await?;
        journey.go(round, &spec).await?;
        if journey.is_here() {
            sees(&journey, plugged).await?;
        }
    }
    journey.end(None).await
}

/// Plugs the disk in or out and waits until the guest sees it.
async fn turn(journey: &Journey<'_>, bus: Bus, plug: bool) -> Result<(), Failure> {
    let step = journey.party.step(if plug { "plug in" } else { "plug out" }).await?;
    if plug {
        let backend = json!({"driver": "null-co", "node-name": DISK, "size": BYTES, "read-zeroes": true});
        journey.monitor("blockdev-add", backend).await?;
        let mut device = json!({"driver": "virtio-blk-pci", "id": DISK, "drive": DISK, "serial": DISK});
        bus.place().iter().for_each(|(key, value)| device[*key] = json!(value));
        journey.monitor("device_add", device).await?;
    } else {
        journey.monitor("device_del", json!({"id": DISK})).await?;
        until_gone(journey).await?;
        remove_backend(journey).await?;
    }
    journey.party.vm(journey.vm.clone()).reshape(words(bus, plug)).await?;
    step.done("").await?;
    sees(journey, plug).await
}

/// Waits until QEMU has let go of the disk: the guest has to agree first.
async fn until_gone(journey: &Journey<'_>) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let blocks = journey.monitor("query-block", Value::Null).await?;
        let holds = |block: &Value| block["qdev"].as_str().is_some_and(|path| path.contains(&format!("/{DISK}/")));
        if !blocks.as_array().into_iter().flatten().any(holds) {
            return Ok(());
        }
        if Instant::now() >= until {
            let title = format!("the guest did not let go of the disk within {} s", PATIENCE.as_secs());
            return Err(product(Report::new(ErrorCode::GuestStopped, title)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes what the disk was made of. A device that is gone from every list holds on to it for a moment more.
async fn remove_backend(journey: &Journey<'_>) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match journey.monitor("blockdev-del", json!({"node-name": DISK})).await {
            Err(Failure::Caused(cause)) if cause.report.title.ends_with("is in use") && Instant::now() < until => {
                tokio::time::sleep(LOOK).await;
            }
            done => return done.map(drop),
        }
    }
}

/// Waits until the guest sees the disk, and reads it to its end, or sees it no more.
async fn sees(journey: &Journey<'_>, plugged: bool) -> Result<(), Failure> {
    let step = journey.party.step(if plugged { "the guest sees the disk" } else { "the guest sees no disk" }).await?;
    let find = format!("grep -l '^{DISK}$' /sys/block/*/serial 2>/dev/null");
    let ticks = PATIENCE.as_millis() / LOOK.as_millis();
    let wanted = if plugged { "!=" } else { "=" };
    let wait = format!(
        "n=0; while ! [ \"$({find})\" {wanted} '' ]; do n=$((n+1)); [ $n -lt {ticks} ] || exit 1; sleep 0.25; done"
    );
    let read = match plugged {
        true => {
            format!("; f=$({find}); d=${{f%/serial}}; [ $(dd if=/dev/${{d##*/}} bs=1M 2>/dev/null | wc -c) = {BYTES} ]")
        }
        false => String::new(),
    };
    in_guest(&journey.guest(), &format!("( {wait}{read} )")).await?;
    step.done(if plugged { format!("{} MiB read", BYTES >> 20) } else { String::new() }).await
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    #[test]
    fn a_disk_is_plugged_where_the_machine_has_room_for_it() {
        let words = |machine: &str, test: &str| {
            let mut params = Params::new();
            for (key, value) in [("machine_type", machine), ("helper_test_host1", test)] {
                params.set(key, value, Origin { file: "-p".into(), line: 0 });
            }
            read(&params).unwrap().0.vm.extra_args.join(" ")
        };
        assert_eq!(words("pc", "hot_plug_block_dev"), "");
        assert!(words("pc-i440fx-10.0", "hot_unplug_block_dev").ends_with("serial=hot,bus=pci.0,addr=0x1e"));
        assert_eq!(words("pc-q35-7.2", "hot_plug_block_dev"), "-device pcie-root-port,id=hotslot,chassis=99,addr=0x10");
        assert!(words("q35", "hot_unplug_block_dev").ends_with("serial=hot,bus=hotslot"));
    }
}
