//! The cables of a VM's network cards on this host: what its parameters ask for, and whether this host has it.
//!
//! What a host cannot do is never done in another way: the case is skipped, in that host's words.

use std::path::Path;

use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
};

use super::attempt::LocalAttempt;
use crate::qemu::{
    cable::{Cable, Way},
    process::resolve_program,
    tap::Tap,
    vhost,
};

impl LocalAttempt {
    /// The cables of a VM here, as this host's parameters say.
    ///
    /// # Errors
    /// A value that is none; they were looked at before anything started.
    pub(crate) fn cables(&self, vm: &Name) -> Result<Vec<Cable>, Report> {
        let params = self.record().case.params.object(vm.as_str());
        Cable::all(&params).map_err(|error| Report::new(ErrorCode::BadParameter, error.to_string()))
    }

    /// Whether VMs with such cables have network cards here at all.
    pub(crate) fn has_network(&self, cables: &[Cable]) -> bool {
        let by_uplink = cables.iter().all(|cable| matches!(cable.way, Way::Macvtap(_)));
        self.places.bridge.is_some() || (by_uplink && self.places.uplink.is_some())
    }

    /// Whether this host has what those cables need.
    ///
    /// # Errors
    /// It has not: the case cannot run here.
    pub(crate) async fn check_cables(&self, vm: &Name) -> Result<(), Report> {
        let cables = self.cables(vm)?;
        let me = self.name_of(self.me());
        if cables.iter().any(|cable| matches!(cable.way, Way::Macvtap(_))) {
            if self.param("vm_type").is_some_and(|kind| kind.trim() == "libvirt") {
                let title = "nettype = macvtap: libvirt gets taps from us, and no macvtaps";
                return Err(Report::new(ErrorCode::CannotRunHere, title).help("-p nettype=bridge"));
            }
            let lacks = match &self.places.uplink {
                None => Some(format!("{me} has no uplink for macvtaps")),
                Some(uplink) if !Tap::exists(uplink) => Some(format!("{uplink}, the uplink of {me}, is not there")),
                Some(_) => None,
            };
            if let Some(title) = lacks {
                let report = Report::new(ErrorCode::CannotRunHere, format!("nettype = macvtap: {title}"));
                return Err(report.help(format!("uplink under [network] in the settings of {me}")));
            }
        }
        if self.has_network(&cables) && cables.iter().any(|cable| cable.vhost) {
            let qemu = self.qemu(vm)?;
            // One that is not there is told by whoever starts it.
            if let Some(path) = resolve_program(qemu.path)
                && let Err(why) = vhost::probe(&path, Path::new(vhost::DEVICE)).await
            {
                let report = Report::new(ErrorCode::CannotRunHere, format!("vhost = on: {me} cannot do it: {why}"));
                return Err(report.help(format!("modprobe vhost_net   (on {me})")));
            }
        }
        Ok(())
    }
}
