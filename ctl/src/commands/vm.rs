//! `vm list`.

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, VmView},
    error::Report,
};

use super::{App, Code};
use crate::{
    args::VmVerb,
    client::Need,
    ui::{report::unexpected, style::Style, table::Table, text::safe},
};

pub(super) async fn vm(app: &mut App, verb: VmVerb) -> Result<Code, Report> {
    let VmVerb::List = verb;
    let reached = app.mesh.reach(Need::Read).await?;
    let vms = match app.mesh.call(&AdminRequest::VmList, Need::Read).await? {
        AdminReply::Vms(vms) => vms,
        other => return Err(unexpected("vm list", &other)),
    };
    let names = vms.iter().map(|vm| vm.id.clone()).collect();
    app.list("vtmesh/v1/vms", "vms", vms.iter().map(json).collect(), names, || {
        table(&vms, app.ui.out).render(app.ui.width)
    });
    Ok(app.read_from(&reached))
}

fn table(vms: &[VmView], style: Style) -> Table {
    let mut table = Table::new(&["VM", "NAME", "OWNER", ">EPOCH", "IMAGE", "ATTEMPT", "MIGRATION"]);
    for vm in vms {
        let migration = match &vm.migration {
            Some((from, to, phase)) => format!("{from} {} {to}  {}", style.arrow(), safe(phase)),
            None => style.unknown().to_owned(),
        };
        let (name, owner, image) = (vm.name.to_string(), vm.owner.to_string(), vm.image.to_string());
        table.row([safe(&vm.id), name, owner, vm.epoch.to_string(), image, vm.attempt.to_string(), migration]);
    }
    table
}

fn json(vm: &VmView) -> Value {
    json!({
        "id": vm.id,
        "name": vm.name,
        "owner": vm.owner,
        "epoch": vm.epoch.0,
        "image": vm.image,
        "attempt": vm.attempt.to_string(),
        "migration": vm.migration.as_ref().map(|(from, to, phase)| json!({"from": from, "to": to, "phase": phase})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_listed_with_its_owner_and_where_it_moves() {
        let vm = VmView {
            id: "1.1.1.vm1".into(),
            name: "vm1".parse().unwrap(),
            owner: "host1".parse().unwrap(),
            epoch: vt_protocol::ids::Epoch(9),
            image: "tiny".parse().unwrap(),
            attempt: "1.1.1".parse().unwrap(),
            migration: Some(("host1".parse().unwrap(), "host2".parse().unwrap(), "transfer".into())),
        };
        assert_eq!(
            table(std::slice::from_ref(&vm), Style::default()).render(None),
            "VM         NAME  OWNER  EPOCH  IMAGE  ATTEMPT  MIGRATION\n\
             1.1.1.vm1  vm1   host1      9  tiny   1.1.1    host1 → host2  transfer\n"
        );
        assert_eq!(json(&vm)["migration"], json!({"from": "host1", "to": "host2", "phase": "transfer"}));
        assert_eq!(json(&VmView { migration: None, ..vm })["migration"], Value::Null);
    }
}
