//! How a VM is moved, as parameters say: bounds, speeds, capabilities, and what is done at which moment of a transfer.

use std::collections::BTreeMap;

use vt_protocol::{
    params::{ParamError, Params},
    vm::{INTERVENTIONS_MAX, Intervention, MigrationSpec, Moment, NoTransport, Transport},
};

use crate::{libvirt::options, migrate::rules};

/// The key that says what carries the stream.
pub(super) const TRANSPORT: &str = "mig_protocol";

/// Reads the part of the parameters that says how a VM is moved.
pub(super) fn read(params: &Params) -> Result<MigrationSpec, ParamError> {
    let spec = read_any(params)?;
    match rules::broken(&spec) {
        Some(rule) => Err(params.error(key_of_rule(params), format!("possible so: {rule}"))),
        None => Ok(spec),
    }
}

/// The rule that it breaks, with the key that asks for it; `None` where it breaks none, or cannot be read.
pub(super) fn barred(params: &Params) -> Option<(&'static str, String)> {
    if let Err(rule) = in_words_of_virsh(params, &mut MigrationSpec::default()) {
        return Some((options::KEY, rule));
    }
    let rule = rules::broken(&read_any(params).ok()?)?;
    Some((key_of_rule(params), rule))
}

fn key_of_rule(params: &Params) -> &'static str {
    ["capabilities", "capabilitys", "at"].into_iter().find(|key| params.get(key).is_some()).unwrap_or(TRANSPORT)
}

/// The same, whether or not what is asked for excludes itself.
pub(super) fn read_any(params: &Params) -> Result<MigrationSpec, ParamError> {
    let mut spec =
        MigrationSpec { transport: transport(params)?, offline: offline(params)?, ..MigrationSpec::default() };
    if let Some(seconds) = params.number("mig_timeout", 1..=86_400)? {
        spec.timeout_ms = seconds * 1000;
    }
    for (name, value) in settings(params)? {
        match value.parse() {
            Ok(number) => drop(spec.parameters.insert(name, number)),
            Err(_) => drop(spec.words.insert(name, value)),
        }
    }
    if let Some(speed) = params.size("mig_speed", 1, 1..=1 << 40)? {
        spec.parameters.insert("max-bandwidth".into(), speed);
    }
    // The old parameter is in seconds, the new one in QEMU's unit.
    let downtime = match params.number("downtime_limit", 0..=2_000_000)? {
        Some(ms) => Some(ms),
        None => params.number("mig_downtime", 0..=2000)?.map(|seconds| seconds * 1000),
    };
    if let Some(ms) = downtime {
        spec.parameters.insert("downtime-limit".into(), ms);
    }
    spec.capabilities = capabilities(params)?;
    spec.interventions = interventions(params)?;
    let suspend = params.number("mig_suspend_after", 1..=86_400)?;
    spec.suspend_after_ms = suspend.map(|seconds| seconds * 1000);
    in_words_of_virsh(params, &mut spec).map_err(|rule| params.error(options::KEY, format!("possible so: {rule}")))?;
    Ok(spec)
}

/// Adds what was said in the words of `virsh migrate`.
fn in_words_of_virsh(params: &Params, spec: &mut MigrationSpec) -> Result<(), String> {
    let Some(said) = params.text(options::KEY).filter(|said| !said.trim().is_empty()) else { return Ok(()) };
    if params.text("vm_type").is_none_or(|kind| kind.trim() != "libvirt") {
        return Err("they are for --backend libvirt".to_owned());
    }
    options::apply(said, spec)
}

fn transport(params: &Params) -> Result<Transport, ParamError> {
    // The same as a file, as it always was written.
    if offline_by_file(params) {
        return Ok(Transport::File);
    }
    match params.text(TRANSPORT).map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|error: NoTransport| params.error(TRANSPORT, error.to_string())),
        None => Ok(Transport::default()),
    }
}

fn offline_by_file(params: &Params) -> bool {
    params.text("host_mig_offline").is_some_and(|text| text.trim() == "yes")
}

fn offline(params: &Params) -> Result<bool, ParamError> {
    match params.text("mig_offline").map(str::trim) {
        Some("yes") => Ok(true),
        None | Some("no" | "off" | "") => Ok(offline_by_file(params)),
        Some(_) => Err(params.error("mig_offline", "yes or no")),
    }
}

/// The same without what is done meanwhile: for the move that follows one that was cancelled.
pub(super) fn undisturbed(spec: &MigrationSpec) -> MigrationSpec {
    MigrationSpec { interventions: Vec::new(), ..spec.clone() }
}

/// Whether it is to be cancelled at some moment, one that comes to every transfer.
pub(super) fn is_cancelled(spec: &MigrationSpec) -> bool {
    let cancels = |(moment, what): &(Moment, Intervention)| *what == Intervention::Cancel && *moment != Moment::Stalled;
    spec.interventions.iter().any(cancels)
}

fn capabilities(params: &Params) -> Result<BTreeMap<String, bool>, ParamError> {
    let key = if params.get("capabilities").is_some() { "capabilities" } else { "capabilitys" };
    let states = params.list("capabilitys_state", None);
    let mut all = BTreeMap::new();
    for (place, name) in params.list(key, None).into_iter().enumerate() {
        if !is_plain(name) {
            return Err(params.error(key, "a list of migration capabilities by QEMU's names"));
        }
        // A shorter list of states leaves the rest on; every word but `enable` means off, as it always did.
        let on = states.get(place).is_none_or(|state| *state == "enable");
        all.insert(name.to_owned(), on);
    }
    Ok(all)
}

/// Migration parameters as they are written: `NAME=VALUE …`.
fn settings(params: &Params) -> Result<Vec<(String, String)>, ParamError> {
    let wrong = || params.error("parameters", "a list of NAME=VALUE, migration parameters by QEMU's names");
    let pair = |word: &str| {
        let (name, value) = word.split_once('=')?;
        (is_plain(name) && is_plain(value)).then(|| (name.to_owned(), value.to_owned()))
    };
    params.list("parameters", None).into_iter().map(|word| pair(word).ok_or_else(wrong)).collect()
}

fn interventions(params: &Params) -> Result<Vec<(Moment, Intervention)>, ParamError> {
    let wrong = || params.error("at", "MOMENT and what to do, e.g. \"pass:2 postcopy; postcopy-active break\"");
    let read = |text: &str| {
        let (moment, what) = text.split_once(char::is_whitespace)?;
        Some((moment.parse().ok()?, intervention(what.trim())?))
    };
    let text = params.text("at").unwrap_or_default();
    let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
    let all = parts.map(|part| read(part).ok_or_else(wrong)).collect::<Result<Vec<_>, _>>()?;
    if all.len() > INTERVENTIONS_MAX {
        return Err(params.error("at", format!("at most {INTERVENTIONS_MAX} moments")));
    }
    Ok(all)
}

fn intervention(text: &str) -> Option<Intervention> {
    Some(match text {
        "cancel" => Intervention::Cancel,
        "postcopy" => Intervention::Postcopy,
        "break" => Intervention::Break,
        "stop" => Intervention::Stop,
        _ => {
            let setting = |word: &str| {
                let (name, value) = word.split_once('=')?;
                Some((is_plain(name).then(|| name.to_owned())?, value.parse().ok()?))
            };
            Intervention::Set(text.split_whitespace().map(setting).collect::<Option<BTreeMap<String, u64>>>()?)
        }
    })
}

/// A name as QEMU gives its capabilities, parameters and their words.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    fn all(pairs: &[(&str, &str)]) -> Result<MigrationSpec, ParamError> {
        let mut params = Params::new();
        for (key, value) in pairs {
            params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        read(&params)
    }

    fn given(key: &str, value: &str) -> Result<MigrationSpec, ParamError> {
        all(&[(key, value)])
    }

    #[test]
    fn old_spellings_mean_what_they_meant() {
        let old = [("capabilitys", "xbzrle auto-converge"), ("capabilitys_state", "disable"), ("mig_downtime", "5")];
        let spec = all(&old).unwrap();
        assert_eq!(spec.capabilities, BTreeMap::from([("xbzrle".into(), false), ("auto-converge".into(), true)]));
        assert_eq!(spec.parameters["downtime-limit"], 5000);
        let both = all(&[("capabilities", "xbzrle"), ("capabilitys", "multifd")]).unwrap();
        assert_eq!(both.capabilities.keys().collect::<Vec<_>>(), ["xbzrle"]);
    }

    #[test]
    fn parameters_are_numbers_or_words() {
        let spec = given("parameters", "multifd-channels=4 multifd-compression=zstd").unwrap();
        assert_eq!(spec.parameters, BTreeMap::from([("multifd-channels".into(), 4)]));
        assert_eq!(spec.words, BTreeMap::from([("multifd-compression".into(), "zstd".into())]));
        for wrong in ["multifd-channels", "=4", "multifd-channels=", "tls-creds=../x", "A=1"] {
            assert_eq!(given("parameters", wrong).unwrap_err().key, "parameters", "{wrong}");
        }
    }

    #[test]
    fn moments_and_what_is_done_at_them() {
        let spec = given("at", "active max-bandwidth=1048576; pass:2 postcopy;postcopy-active break ;").unwrap();
        let slow = Intervention::Set(BTreeMap::from([("max-bandwidth".into(), 1 << 20)]));
        assert_eq!(
            spec.interventions,
            [
                (Moment::Active, slow),
                (Moment::Pass(2), Intervention::Postcopy),
                (Moment::PostcopyActive, Intervention::Break),
            ]
        );
        assert!(spec.is_postcopy() && !is_cancelled(&spec));
        assert!(is_cancelled(&given("at", "setup cancel").unwrap()));
        assert!(!undisturbed(&spec).is_postcopy());
        let many = "active stop;".repeat(INTERVENTIONS_MAX + 1);
        for wrong in
            ["cancel", "soon cancel", "active", "active dance", "pass:0 cancel", "active max-bandwidth=", &many]
        {
            assert_eq!(given("at", wrong).unwrap_err().key, "at", "{wrong}");
        }
    }
}
