//! `guest define`: a guest of one's own as a file of the configuration set, in place of the custom guests of Avocado-VT's
//! guide. It says how to get into the guest; what runs in it is the image's business.

use std::{fs::File, io::Write, path::PathBuf};

use serde_json::json;
use vt_protocol::error::{ErrorCode, Exit, Report};

use super::Code;
use crate::{
    args::{GuestDefineArgs, GuestSystem, Output},
    ui::{Ui, report::usage, style::Symbol},
};

pub(super) fn define(ui: &Ui, args: &GuestDefineArgs) -> Result<Code, Report> {
    let text = text(args)?;
    let Some(file) = &args.file else {
        match ui.output {
            Output::Json | Output::Jsonl => {
                ui.json(&json!({"schema": "vtmesh/v1/guest_define", "guest": args.name, "text": text}));
            }
            _ => ui.raw(&text),
        }
        return Ok(Exit::Ok.into());
    };
    write(file, &text)?;
    match ui.output {
        Output::Json | Output::Jsonl => {
            ui.json(&json!({"schema": "vtmesh/v1/guest_define", "guest": args.name, "file": file}));
        }
        Output::Name => ui.line(&args.name),
        Output::Table | Output::Wide => {
            let done = ui.out.symbol(Symbol::Done);
            ui.line(format_args!("{done} {} is defined in {}", args.name, file.display()));
            ui.note(format_args!(
                "  in a providers folder: shared/cfg/guest-os/{}/{}.cfg",
                args.os.folder(),
                args.name
            ));
        }
    }
    Ok(Exit::Ok.into())
}

/// A file that is there may be somebody's work.
fn write(file: &PathBuf, text: &str) -> Result<(), Report> {
    let written = File::create_new(file).and_then(|mut made| made.write_all(text.as_bytes()));
    written.map_err(|error| {
        Report::new(ErrorCode::ResultsWrite, format!("{} cannot be written", file.display())).caused_by(&error)
    })
}

/// The variant, as `guest-os` folders have it.
fn text(args: &GuestDefineArgs) -> Result<String, Report> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if args.name.is_empty() || !args.name.chars().all(plain) {
        return Err(usage(format!("{:?} cannot be the name of a guest", args.name))
            .with("wanted", "letters, digits, - and _: dots part the names of variants"));
    }
    let mut lines = args.os.lines();
    let port = args.shell_port.map(|port| port.to_string());
    let transfer = args.transfer_port.map(|port| port.to_string());
    for (key, value) in [
        ("username", args.username.as_ref()),
        ("password", args.password.as_ref()),
        ("shell_prompt", args.prompt.as_ref()),
        ("shell_port", port.as_ref()),
        ("file_transfer_port", transfer.as_ref()),
    ] {
        let Some(value) = value else { continue };
        if value.chars().any(|c| c.is_control() || c == '"') || value.is_empty() {
            return Err(usage(format!("{key} {value:?} cannot be written into a configuration"))
                .with("wanted", "text without quotes and line ends"));
        }
        lines.retain(|(known, _)| *known != key);
        lines.push((key, value.clone()));
    }
    let image = args.image.as_ref().map_or_else(|| args.name.to_lowercase(), ToString::to_string);
    lines.push(("image_name", format!("images/{image}")));
    lines.push(("image", image));
    lines.push(("image_format", args.format.name().to_owned()));
    let mut text = format!("- {}:\n", args.name);
    for (key, value) in lines {
        text += &match value.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_./".contains(c)) {
            true => format!("    {key} = \"{value}\"\n"),
            false => format!("    {key} = {value}\n"),
        };
    }
    Ok(text)
}

impl GuestSystem {
    fn folder(self) -> &'static str {
        match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows",
        }
    }

    /// What every guest of that kind has, where nothing else is said.
    fn lines(self) -> Vec<(&'static str, String)> {
        let lines: &[(&str, &str)] = match self {
            Self::Linux => &[
                ("os_type", "linux"),
                ("shell_client", "ssh"),
                ("shell_port", "22"),
                ("shell_prompt", r"^\[.*\][\#\$]\s*$"),
                ("file_transfer_client", "scp"),
                ("file_transfer_port", "22"),
                ("username", "root"),
                ("shutdown_command", "shutdown -h now"),
                ("reboot_command", "shutdown -r now"),
            ],
            Self::Windows => &[
                ("os_type", "windows"),
                ("shell_client", "nc"),
                ("shell_port", "10022"),
                ("shell_prompt", r"^\w:\\.*>\s*$"),
                ("file_transfer_client", "rss"),
                ("file_transfer_port", "10023"),
                ("username", "Administrator"),
                ("shutdown_command", "shutdown /s /f /t 0"),
                ("reboot_command", "shutdown /r /f /t 0"),
                ("rtc_base", "localtime"),
            ],
        };
        lines.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use vt_cfg::{MemSource, Options};

    use super::*;
    use crate::args::FormatArg;

    fn args(name: &str, os: GuestSystem) -> GuestDefineArgs {
        GuestDefineArgs {
            name: name.into(),
            os,
            image: None,
            format: FormatArg::Qcow2,
            username: None,
            password: None,
            prompt: None,
            shell_port: None,
            transfer_port: None,
            file: None,
        }
    }

    /// What the configuration language makes of it.
    fn read(text: &str) -> serde_json::Value {
        let mut source = MemSource::new();
        let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
        source.insert("g.cfg", format!("variants:\n{indented}"));
        let config = vt_cfg::parse(&source, "g.cfg", &[], &Options::default()).unwrap();
        let mut json = Vec::new();
        config.write_json(&mut json).unwrap();
        let first = json.split(|byte| *byte == b'\n').find(|line| line.len() > 2).unwrap();
        serde_json::from_slice(first).unwrap()
    }

    #[test]
    fn a_definition_is_read_back_as_it_was_meant() {
        let linux = GuestDefineArgs {
            image: Some("rhel9-64".parse().unwrap()),
            password: Some("s3cret #1".into()),
            prompt: Some(r"^\$ $".into()),
            shell_port: Some(2022),
            ..args("MyRhel9", GuestSystem::Linux)
        };
        let read_back = read(&text(&linux).unwrap()).to_string();
        for part in ["MyRhel9", "rhel9-64", "s3cret #1", r"^\\$ $", "2022", "shutdown -h now", "scp"] {
            assert!(read_back.contains(part), "{part}: {read_back}");
        }
        let windows = read(&text(&args("Win11", GuestSystem::Windows)).unwrap()).to_string();
        for part in ["windows", r"^\\w:\\\\.*>\\s*$", "10023", "images/win11"] {
            assert!(windows.contains(part), "{part}: {windows}");
        }
    }

    #[test]
    fn what_would_become_something_else_is_refused() {
        assert!(text(&args("a.b", GuestSystem::Linux)).is_err());
        assert!(text(&GuestDefineArgs { password: Some("a\"b".into()), ..args("a", GuestSystem::Linux) }).is_err());
        assert!(text(&GuestDefineArgs { prompt: Some("a\nb".into()), ..args("a", GuestSystem::Linux) }).is_err());
    }
}
