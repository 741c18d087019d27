//! `cluster token create|list|revoke`.

use serde_json::json;
use vt_protocol::{
    admin::{AdminReply, AdminRequest, ClientToken, TokenCreate, TokenGrant},
    error::{Exit, Report},
    identity::subject::role_name,
    ids::RequestId,
};

use super::{App, Code, host::role};
use crate::{
    args::{Output, TokenVerb},
    client::Need,
    ui::{
        report::{unexpected, usage},
        table::Table,
        text::{date, now_ms, rfc3339, safe},
    },
};

pub(super) async fn token(app: &mut App, verb: TokenVerb) -> Result<Code, Report> {
    match verb {
        TokenVerb::Create(args) => {
            let grant = TokenGrant::from(args.role);
            let ttl_s = u32::try_from(args.ttl.as_secs()).unwrap_or(86_400);
            let request = RequestId::random();
            let (request, whom, next) = match grant {
                TokenGrant::Host(_) if args.client.is_some() => {
                    return Err(usage(
                        "--for names a client: it goes with --role client-viewer, client-runner or client-admin",
                    ));
                }
                TokenGrant::Host(role) => {
                    let create = TokenCreate { request, role, ttl_s };
                    (AdminRequest::TokenCreate(create), "host", "vtctl cluster join")
                }
                TokenGrant::Client(role) => {
                    let valid_s = u32::try_from(args.valid.as_secs()).unwrap_or(u32::MAX);
                    let create = ClientToken { request, role, name: args.client, ttl_s, valid_s };
                    (AdminRequest::ClientToken(create), "client", "vtctl config use-context --join")
                }
            };
            let token = match app.mesh.call(&request, Need::Decide).await? {
                AdminReply::Token(token) => token,
                other => return Err(unexpected("token create", &"another answer").with("got", kind(&other))),
            };
            let expires_ms = token.expires_unix_s.saturating_mul(1000);
            match app.ui.output {
                Output::Table | Output::Wide => {
                    app.ui.note(format_args!(
                        "token {}, for one {whom}, valid until {}. It is shown once. There run:",
                        token.id,
                        date(expires_ms)
                    ));
                    app.ui.line(format_args!("{next} {}", token.text));
                }
                Output::Name => app.ui.line(&token.text),
                Output::Json | Output::Jsonl => app.ui.json(&json!({
                    "schema": "vtmesh/v1/token",
                    "id": token.id.to_string(),
                    "text": token.text,
                    "role": granted(grant),
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
                        "role": granted(token.grant),
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
                    table.row([token.id.to_string(), granted(token.grant), state, date(expires), made_on]);
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

/// What a token gives, as `--role` takes it.
fn granted(grant: TokenGrant) -> String {
    match grant {
        TokenGrant::Host(of_host) => role(of_host).to_owned(),
        TokenGrant::Client(access) => format!("client-{}", role_name(access)),
    }
}

/// The kind of an answer, without what may be secret in it.
fn kind(reply: &AdminReply) -> String {
    let text = format!("{reply:?}");
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}
