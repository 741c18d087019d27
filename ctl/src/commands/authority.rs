//! `cluster ca show|rotate`.

use serde_json::{Value, json};
use vt_protocol::{
    admin::{AdminReply, AdminRequest, AuthorityView, Rotate},
    error::Report,
    ids::Name,
};

use super::{App, Code};
use crate::{
    args::{AuthorityVerb, Output},
    client::Need,
    ui::{report::unexpected, text::escaped},
};

pub(super) async fn authority(app: &mut App, verb: AuthorityVerb) -> Result<Code, Report> {
    match verb {
        AuthorityVerb::Show => show(app).await,
        AuthorityVerb::Rotate(args) => {
            let rotate = Rotate { finish: args.finish, anyway: args.yes };
            match app.mesh.call(&AdminRequest::AuthorityRotate(rotate), Need::Decide).await? {
                AdminReply::Steps(steps) => {
                    Ok(app.steps("vtmesh/v1/ca_rotate", "finished", &Value::Bool(args.finish), &steps))
                }
                other => Err(unexpected("ca rotate", &other)),
            }
        }
    }
}

async fn show(app: &mut App) -> Result<Code, Report> {
    let reached = app.mesh.reach(Need::Read).await?;
    let view = match app.mesh.call(&AdminRequest::AuthorityShow, Need::Read).await? {
        AdminReply::Authority(view) => view,
        other => return Err(unexpected("ca show", &other)),
    };
    match app.ui.output {
        Output::Json | Output::Jsonl => app.ui.json(&json!({
            "schema": "vtmesh/v1/ca",
            "fingerprint": view.fingerprint,
            "previous": view.previous,
            "hosts_without_certificate": view.hosts,
            "clients_without_certificate": view.clients,
        })),
        Output::Name => app.ui.line(escaped(&view.fingerprint)),
        Output::Table | Output::Wide => lines(&view).iter().for_each(|line| app.ui.line(escaped(line))),
    }
    Ok(app.read_from(&reached))
}

fn lines(view: &AuthorityView) -> Vec<String> {
    let mut lines = vec![format!("authority  BLAKE3 {}", view.fingerprint)];
    let listed = |names: &[Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if let Some(previous) = &view.previous {
        lines.push(format!("before it  BLAKE3 {previous}, trusted until: vtctl cluster ca rotate --finish"));
    }
    if !view.hosts.is_empty() {
        lines.push(format!(
            "hosts without a certificate of it: {}; each gets one when it is there",
            listed(&view.hosts)
        ));
    }
    if !view.clients.is_empty() {
        let then = match view.previous {
            Some(_) => "each gets one when vtctl is used with it",
            None => "each needs a new token",
        };
        lines.push(format!("clients without a certificate of it: {}; {then}", listed(&view.clients)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_done_is_said() {
        let mut view = AuthorityView {
            fingerprint: "aa".into(),
            previous: Some("bb".into()),
            hosts: vec!["host3".parse().unwrap()],
            clients: vec!["alice".parse().unwrap(), "bob".parse().unwrap()],
        };
        let text = lines(&view).join("\n");
        assert!(text.contains("rotate --finish") && text.contains("host3;") && text.contains("alice bob"), "{text}");
        view.previous = None;
        assert!(lines(&view).join("\n").contains("needs a new token"));
        view.hosts.clear();
        view.clients.clear();
        assert_eq!(lines(&view), ["authority  BLAKE3 aa"]);
    }
}
