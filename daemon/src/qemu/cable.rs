//! The cable of a network card: what leads from its QEMU to the network on one host. A guest cannot see it, so each host of
//! a migration may have another one.

use vt_protocol::params::{ParamError, Params};

/// Which way a cable goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// A tap on the host's bridge.
    #[default]
    Tap,
    /// A macvtap on the host's uplink.
    Macvtap(MacvtapMode),
}

/// What Avocado-VT calls networks that all are a bridge here.
const OTHER_WAYS: [&str; 7] = ["bridge", "tap", "network", "private", "user", "none", "vdpa"];

/// Whom guests on macvtaps of one uplink reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvtapMode {
    /// Each other and the network.
    Bridge,
    /// The network, which may send back what is for another.
    Vepa,
    /// The network alone.
    Private,
    /// One guest has the uplink for itself.
    Passthru,
}

impl MacvtapMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Vepa, Self::Private, Self::Passthru];

    /// Its name, as the kernel has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Vepa => "vepa",
            Self::Private => "private",
            Self::Passthru => "passthru",
        }
    }
}

/// The cable of one network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cable {
    /// Which way it goes.
    pub way: Way,
    /// Whether the host's kernel carries the packets (vhost), and not QEMU.
    pub vhost: bool,
}

impl Cable {
    /// Those of a VM's network cards on the host whose parameters these are, in order.
    ///
    /// # Errors
    /// A value that is none.
    pub fn all(vm: &Params) -> Result<Vec<Self>, ParamError> {
        let names = vm.objects("nics");
        if names.is_empty() {
            return Ok(vec![Self::read(vm)?]);
        }
        names.iter().map(|nic| Self::read(&vm.object(nic))).collect()
    }

    fn read(card: &Params) -> Result<Self, ParamError> {
        let text = |key| card.text(key).map(str::trim).filter(|text| !text.is_empty());
        let named = |name: &str| MacvtapMode::ALL.into_iter().find(|mode| mode.name() == name);
        let mode = named(text("macvtap_mode").unwrap_or("bridge"));
        let mode =
            mode.ok_or_else(|| card.error("macvtap_mode", MacvtapMode::ALL.map(MacvtapMode::name).join(", ")))?;
        let way = match text("nettype") {
            Some("macvtap") => Way::Macvtap(mode),
            Some(word) if !OTHER_WAYS.contains(&word) => {
                return Err(card.error("nettype", format!("macvtap, or {}", OTHER_WAYS.join(", "))));
            }
            _ => Way::Tap,
        };
        let extra = text("netdev_extra_params").unwrap_or_default();
        let extra = more(extra).ok_or_else(|| card.error("netdev_extra_params", "vhost=on or vhost=off"))?;
        let vhost = match text("vhost") {
            Some("on" | "force" | "vhost=on") => true,
            Some("off" | "vhost=off") => false,
            None => extra.unwrap_or(false),
            Some(_) => return Err(card.error("vhost", "on or off")),
        };
        Ok(Self { way, vhost })
    }
}

/// Whether such options of a `-netdev` can be had.
pub fn takes(options: &str) -> bool {
    more(options).is_some()
}

/// Whether options of a `-netdev`, such as `,vhost=on`, turn vhost on or off; `None` where they do something else.
fn more(options: &str) -> Option<Option<bool>> {
    let mut vhost = None;
    for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        vhost = Some(match option.split_once('=')? {
            ("vhost" | "vhostforce", "on") => true,
            ("vhost" | "vhostforce", "off") => false,
            _ => return None,
        });
    }
    Some(vhost)
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Vec<Cable>, ParamError> {
        let mut params = Params::new();
        for (key, value) in pairs {
            params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        Cable::all(&params)
    }

    #[test]
    fn each_card_has_its_own_and_what_nobody_says_is_a_tap() {
        let plain = Cable::default();
        assert_eq!(read(&[]).unwrap(), [plain]);
        assert_eq!(read(&[("nettype", "bridge"), ("netdev_extra_params", "")]).unwrap(), [plain]);
        let vhost = Cable { vhost: true, ..plain };
        for pair in [("netdev_extra_params", ",vhost=on"), ("vhost", "on"), ("vhost", "vhost=on"), ("vhost", "force")] {
            assert_eq!(read(&[pair]).unwrap(), [vhost], "{pair:?}");
        }
        assert_eq!(read(&[("netdev_extra_params", ",vhost=on,vhost=off")]).unwrap(), [plain]);
        let macvtap = |mode| Cable { way: Way::Macvtap(mode), ..plain };
        let two = [("nics", "a b"), ("nettype_b", "macvtap"), ("vhost_a", "on")];
        assert_eq!(read(&two).unwrap(), [vhost, macvtap(MacvtapMode::Bridge)]);
        let vepa = [("nettype", "macvtap"), ("macvtap_mode", "vepa")];
        assert_eq!(read(&vepa).unwrap(), [macvtap(MacvtapMode::Vepa)]);
    }

    #[test]
    fn what_cannot_be_had_is_an_error_of_its_key() {
        for (key, value) in [
            ("netdev_extra_params", ",sndbuf=0"),
            ("vhost", "maybe"),
            ("netdev_extra_params", "vhost"),
            ("macvtap_mode", "x"),
            ("nettype", "string"),
        ] {
            assert_eq!(read(&[(key, value)]).unwrap_err().key, key, "{value}");
        }
        assert!(takes("") && takes(",vhost=on") && !takes(",sndbuf=0") && !takes("vhost=on,poll-us=30"));
    }
}
