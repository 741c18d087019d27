//! The table of attacks: each is refused with a reason, the refusal is written down, and the daemon lives on.
//!
//! Real `vtd` and `vtctl`; what an attacker would have is made with the libraries. The tables are printed: `make attacks`.
//! What is under attack is in [`target`]; each other file is one kind of attacker.

mod bytes;
mod flood;
mod hostile;
mod insiders;
mod parameters;
mod strangers;
mod target;
mod tokens;

pub(crate) use self::target::Target;

use vt_protocol::audit::AuditEntry;

/// One line of the table.
struct Row {
    attack: String,
    refused_by: String,
    logged: String,
}

impl Row {
    fn new(attack: impl Into<String>, refused_by: impl Into<String>, logged: impl Into<String>) -> Self {
        Self { attack: attack.into(), refused_by: refused_by.into(), logged: logged.into() }
    }

    fn of(attack: impl Into<String>, refused_by: impl ToString, entry: &AuditEntry) -> Self {
        Self::new(attack, refused_by.to_string(), format!("{} {}: {}", entry.who, entry.verb, entry.detail))
    }
}

fn print(title: &str, rows: &[Row]) {
    println!("\n{title}\n{:<52} | {:<74} | logged", "attack", "refused by");
    for Row { attack, refused_by, logged } in rows {
        println!("{attack:<52} | {:<74} | {}", refused_by.replace('\n', " "), logged.escape_debug());
    }
}
