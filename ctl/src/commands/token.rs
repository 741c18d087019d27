//! `cluster token create|list|revoke`.

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, TokenCreate},
    error::{Exit, Report},
    ids::RequestId,
};

use super::{App, Code, host::role};
use crate::{
    args::{Output, TokenVerb},
    client::Need,
    ui::{
        report::unexpected,
        table::Table,
        text::{date, now_ms, rfc3339, safe},
    },
};

pub(super) async fn token(app: &mut App, verb: TokenVerb) -> Result<Code, Report> {
    match verb {
        TokenVerb::Create(args) => {
            let request = AdminRequest::TokenCreate(TokenCreate {
                request: RequestId::random(),
                role: args.role.into(),
                ttl_s: u32::try_from(args.ttl.as_secs()).unwrap_or(86_400),
            });
            let token = match app.mesh.call(&request, Need::Decide).await? {
                AdminReply::Token(token) => token,
                other => return Err(unexpected("token create", &"another answer").with("got", kind(&other))),
            };
            let expires_ms = token.expires_unix_s.saturating_mul(1000);
            match app.ui.output {
                Output::Table | Output::Wide => {
                    app.ui.note(format_args!(
                        "token {}, for one host, valid until {}. It is shown once. On that host run:",
                        token.id,
                        date(expires_ms)
                    ));
                    app.ui.line(format_args!("vtctl cluster join {}", token.text));
                }
                Output::Name => app.ui.line(&token.text),
                Output::Json | Output::Jsonl => app.ui.json(&json!({
                    "schema": "vtmesh/v1/token",
                    "id": token.id.to_string(),
                    "text": token.text,
                    "role": role(args.role.into()),
                    "expires_at": rfc3339(expires_ms),
                })),
            }
            Ok(Exit::Ok.into())
        }
        TokenVerb::List => {
            let reached = app.mesh.reach(Need::Read).await?;
            let tokens = match app.mesh.call(&AdminRequest::TokenList, Need::Read).await? {
                AdminReply::Tokens(tokens) => tokens,
                other => return Err(unexpected("token list", &other)),
            };
            let items = tokens
                .iter()
                .map(|token| {
                    json!({
                        "id": token.id.to_string(),
                        "role": role(token.role),
                        "state": token.state,
                        "expires_at": rfc3339(token.expires_unix_s.saturating_mul(1000)),
                        "made_on": token.made_on,
                    })
                })
                .collect();
            let names = tokens.iter().map(|token| token.id.to_string()).collect();
            app.list("vtmesh/v1/tokens", "tokens", items, names, || {
                let mut table = Table::new(&["TOKEN", "ROLE", "STATE", "EXPIRES", "MADE ON"]);
                for token in &tokens {
                    let expires = token.expires_unix_s.saturating_mul(1000);
                    let over = token.state == "open" && expires < now_ms();
                    let state = if over { "expired".to_owned() } else { safe(&token.state) };
                    let made_on = token.made_on.to_string();
                    table.row([token.id.to_string(), role(token.role).to_owned(), state, date(expires), made_on]);
                }
                table.render(app.ui.width)
            });
            Ok(app.read_from(&reached))
        }
        TokenVerb::Revoke { id } => match app.mesh.call(&AdminRequest::TokenRevoke(id), Need::Decide).await? {
            AdminReply::Done => {
                match app.ui.output {
                    Output::Json | Output::Jsonl => {
                        app.ui.json(&json!({"schema": "vtmesh/v1/done", "revoked": id.to_string()}));
                    }
                    _ => app.ui.line(format_args!("{id} revoked")),
                }
                Ok(Exit::Ok.into())
            }
            other => Err(unexpected("token revoke", &other)),
        },
    }
}

/// The kind of an answer, without what may be secret in it.
fn kind(reply: &AdminReply) -> String {
    let text = format!("{reply:?}");
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}
