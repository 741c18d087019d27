//! `lab …`: a thin layer of questions, tables and JSON over [`crate::lab`].

use std::{
    io::{BufRead, Write},
    path::PathBuf,
};

use serde_json::json;
use vt_protocol::{
    error::{ErrorCode, Exit, Report},
    ids::Name,
};

use super::Code;
use crate::{
    args::{DriverArg, Globals, LabUpArgs, LabVerb, Output},
    image, lab,
    ui::{Ui, report::usage, style::Symbol, table::Table, text::count},
};

/// Name of a lab where none is given.
const FIRST: &str = "lab1";

pub(super) async fn lab(globals: &Globals, ui: &Ui, verb: LabVerb) -> Result<Code, Report> {
    let chosen = || lab::chosen(globals.lab.as_ref());
    match verb {
        LabVerb::Up(args) => up(globals, ui, args).await,
        LabVerb::Down => down(globals, ui),
        LabVerb::Status => status(globals, ui).await,
        LabVerb::Kill { host } => {
            let killed = lab::kill(&chosen()?, &host)?;
            done(
                ui,
                json!({"killed": host, "processes": killed}),
                format!("{host} is off: {} killed", processes(killed)),
            )
        }
        LabVerb::Start { host } => {
            lab::start(&chosen()?, &host).await?;
            done(ui, json!({"started": host}), format!("{host} runs again"))
        }
        LabVerb::Partition { host } => {
            lab::partition(&chosen()?, &host)?;
            done(ui, json!({"partitioned": host}), format!("{host} is cut off; undo: vtctl lab heal {host}"))
        }
        LabVerb::Heal { host } => {
            let healed = lab::heal(&chosen()?, host.as_ref())?;
            let names: Vec<&str> = healed.iter().map(Name::as_str).collect();
            let text = if names.is_empty() {
                "no host was cut off".into()
            } else {
                format!("connected again: {}", names.join(" "))
            };
            done(ui, json!({"healed": healed}), text)
        }
        LabVerb::Exec { host, argv } => lab::exec(&chosen()?, &host, &argv).map(Code),
        LabVerb::Machine { folder, images } => {
            let made = lab::Machine::at(folder.clone()).make(&image_folder(images)?, &mut |line| say(ui, &line))?;
            let text = if made { "the machine is in" } else { "the machine is there already, in" };
            done(ui, json!({"machine": folder, "made": made}), format!("{text} {}", folder.display()))
        }
    }
}

fn processes(n: usize) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

fn done(ui: &Ui, mut value: serde_json::Value, text: String) -> Result<Code, Report> {
    match ui.output {
        Output::Json | Output::Jsonl => {
            value["schema"] = json!("vtmesh/v1/done");
            ui.json(&value);
        }
        _ => ui.line(text),
    }
    Ok(Exit::Ok.into())
}

async fn up(globals: &Globals, ui: &Ui, args: LabUpArgs) -> Result<Code, Report> {
    let name = match &globals.lab {
        Some(name) => name.clone(),
        None => FIRST.parse().map_err(|_| usage("no name for the lab"))?,
    };
    let images = image_folder(args.images)?;
    let begun = std::time::Instant::now();
    let LabUpArgs { hosts, vtd, separate_pools, libvirt, uplinks, qemus, log, packages, memory, machine, .. } = args;
    let (driver, separate_pools) = match (args.driver, packages) {
        (DriverArg::Namespace, None) => (lab::Driver::Namespaces, separate_pools),
        (DriverArg::Namespace, Some(_)) => return Err(usage("--packages is for --driver nested")),
        (DriverArg::Nested, packages) => {
            let packages = packages.ok_or_else(|| usage("--driver nested needs --packages"))?;
            // Kernels of their own share no directory.
            (lab::Driver::Nested(lab::NestedOptions { packages, memory_mib: memory, machine }), true)
        }
    };
    let options = lab::UpOptions { name, hosts, driver, vtd, images, separate_pools, libvirt, uplinks, qemus, log };
    let record = lab::up(options, &mut |line| say(ui, &line)).await?;
    let hosts: Vec<&str> = record.hosts.iter().map(|host| host.name.as_str()).collect();
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&json!({
            "schema": "vtmesh/v1/lab",
            "name": record.name,
            "hosts": record.hosts.iter().map(|host| json!({
                "name": host.name, "address": host.address, "namespace": host.namespace, "socket": host.socket(),
            })).collect::<Vec<_>>(),
            "driver": record.driver(),
            "separate_pools": record.separate_pools,
            "libvirt": record.libvirt,
            "uplinks": record.uplinks,
            "images": (!record.separate_pools).then_some(&record.images),
            "disks": (!record.separate_pools).then_some(&record.disks),
        })),
        Output::Name => hosts.iter().for_each(|host| ui.line(host)),
        Output::Table | Output::Wide => {
            let took = begun.elapsed().as_secs_f64();
            ui.line(format_args!(
                "lab {} with {} is up, in {took:.1} s, and is the current one. Try:",
                record.name,
                hosts.join(" ")
            ));
            if record.separate_pools && record.nested.is_none() {
                ui.line(format_args!("  vtctl image import {}/{}", record.images.display(), image::BUILTIN));
            }
            ui.line(format_args!("  vtctl run multihost_migration -m {}", hosts[..hosts.len().min(2)].join(",")));
        }
    }
    Ok(Exit::Ok.into())
}

fn say(ui: &Ui, line: &str) {
    ui.note(format_args!("  {} {line}", ui.err.symbol(Symbol::Done)));
}

fn image_folder(given: Option<PathBuf>) -> Result<PathBuf, Report> {
    given
        .or_else(image::default_folder)
        .ok_or_else(|| usage("no directory is known for images").help("vtctl lab up --images DIR"))
}

fn down(globals: &Globals, ui: &Ui) -> Result<Code, Report> {
    let name = lab::chosen(globals.lab.as_ref())?;
    if globals.lab.is_none() && !globals.yes && !agreed(ui, &name)? {
        return Err(Report::new(ErrorCode::Usage, format!("lab {name} was left as it is")));
    }
    let removed = lab::down(&name, &mut |line| {
        if ui.verbose > 0 {
            ui.note(format_args!("  {} {line}", ui.err.symbol(Symbol::Done)));
        }
    })?;
    let text = format!("lab {name} is gone: {} removed, nothing left (checked)", count(removed.len(), "thing"));
    done(ui, json!({"lab": name, "removed": removed}), text)
}

/// Asks before a lab goes that nobody named. Without a terminal there is nobody to ask.
fn agreed(ui: &Ui, name: &Name) -> Result<bool, Report> {
    if !ui.interactive {
        return Err(usage("which lab is to be removed?")
            .with("current", name.to_string())
            .help(format!("vtctl lab down --lab {name}"))
            .help("vtctl lab down --yes"));
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "remove lab {name} with its hosts, VMs and disks? [y/N] ");
    let _ = err.flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn status(globals: &Globals, ui: &Ui) -> Result<Code, Report> {
    let names = lab::list()?;
    let chosen = match lab::chosen(globals.lab.as_ref()) {
        Err(_) if names.is_empty() && globals.lab.is_none() => {
            match ui.output {
                Output::Json => {
                    ui.json(&json!({"schema": "vtmesh/v1/lab_status", "labs": [], "lab": null, "hosts": []}));
                }
                Output::Jsonl | Output::Name => {}
                Output::Table | Output::Wide => ui.line("there is no lab. Make one: vtctl lab up --hosts 3"),
            }
            return Ok(Exit::Ok.into());
        }
        chosen => chosen?,
    };
    let (record, hosts) = lab::status(&chosen).await?;
    match ui.output {
        Output::Json | Output::Jsonl => ui.json(&json!({
            "schema": "vtmesh/v1/lab_status",
            "labs": names,
            "lab": record.name,
            "ready": record.ready,
            "driver": record.driver(),
            "hosts": hosts.iter().map(|status| json!({
                "name": status.host.name,
                "address": status.host.address,
                "namespace": status.host.namespace,
                "socket": status.host.socket(),
                "processes": status.processes,
                "answers": status.answers,
                "connected": status.connected,
            })).collect::<Vec<_>>(),
        })),
        Output::Name => names.iter().for_each(|name| ui.line(name)),
        Output::Table | Output::Wide => {
            let others: Vec<&str> = names.iter().filter(|name| **name != record.name).map(Name::as_str).collect();
            let others = if others.is_empty() { String::new() } else { format!("   other labs: {}", others.join(" ")) };
            let half = if record.ready { "" } else { ", half made" };
            ui.line(format_args!("lab {}, {}{half}{others}", record.name, count(hosts.len(), "host")));
            let mut table = Table::new(&["HOST", "ADDRESS", "NAMESPACE", "DAEMON", "LINK", ">PROCESSES"]);
            for status in &hosts {
                let daemon = if status.answers { "answers" } else { "silent" };
                let link = if status.connected { "up" } else { "cut" };
                let host = &status.host;
                let row = [host.name.to_string(), host.address.to_string(), host.namespace.clone()];
                let rest = [daemon.to_owned(), link.to_owned(), status.processes.len().to_string()];
                table.row(row.into_iter().chain(rest));
            }
            ui.raw(&table.render(ui.width));
            if !ui.quiet {
                ui.line(lab::pool(&record));
            }
        }
    }
    Ok(Exit::Ok.into())
}
