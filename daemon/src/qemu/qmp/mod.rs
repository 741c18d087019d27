//! QMP, QEMU's monitor, over a connection of our own.
//!
//! Why not a client from the shelf: the daemon must outlive whatever a newer QEMU says (an unknown event, an unknown
//! status word), a command that is given up must not disturb the next, and post-copy recovery needs the out-of-band
//! channel. Commands go out and come back as JSON values; typed views exist only for what we use.
//!
//! [`Qmp`] is a handle: clone it freely. The connection ends when the last handle is dropped or QEMU ends.

mod address;
mod connection;
mod error;
mod event;
mod line;
mod migration;
mod transcript;
mod words;

use std::{collections::BTreeMap, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use self::connection::{Connection, Lane};
pub use self::{
    address::Address,
    connection::Greeting,
    error::QmpError,
    event::{Event, EventError, Events},
    migration::{MigrationInfo, RamInfo},
    transcript::Transcript,
    words::{MigrationStatus, RunState},
};

/// How long the commands of the typed calls may take. QEMU answers in microseconds unless its main loop is held up.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// A handle of a monitor.
#[derive(Clone)]
pub struct Qmp {
    connection: Arc<Connection>,
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp").field("greeting", &self.connection.greeting).field("open", &self.is_open()).finish()
    }
}

/// What `query-status` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether virtual CPUs run.
    pub running: bool,
    /// What the VM is doing.
    pub state: RunState,
}

/// A machine type, from `query-machines`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name, e.g. `pc-q35-10.0`.
    pub name: String,
    /// Its other name, e.g. `q35`.
    pub alias: Option<String>,
    /// Whether QEMU will drop it.
    pub deprecated: bool,
}

impl Qmp {
    /// Connects to the monitor at `path` and negotiates, with out-of-band where the monitor has it.
    pub async fn connect(path: &Path, transcript: Transcript) -> Result<Self, QmpError> {
        Ok(Self { connection: Connection::open(path, transcript).await? })
    }

    /// What the monitor said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.connection.greeting
    }

    /// Whether the connection still stands.
    pub fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Ends the connection for every handle; QEMU goes on.
    pub fn close(&self) {
        self.connection.end("closed by us".to_owned());
    }

    /// A listener that gets every event from now on. Make it before the command whose events you want.
    pub fn events(&self) -> Events {
        self.connection.events()
    }

    /// Executes a command; `arguments` is an object or `Null`. It may be given up at any time: the answer is then
    /// ignored. `timeout` covers waiting for a place (seven commands may be in flight) and the answer.
    pub async fn execute(&self, name: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        self.connection.command(name, arguments, timeout, Lane::InBand).await
    }

    /// As [`Qmp::execute`], but past everything in-band. Only a few commands allow it (migrate-pause,
    /// migrate-recover, yank).
    pub async fn execute_oob(&self, name: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        self.connection.command(name, arguments, timeout, Lane::OutOfBand).await
    }

    async fn plain(&self, name: &str) -> Result<Value, QmpError> {
        self.execute(name, Value::Null, COMMAND_TIMEOUT).await
    }

    /// `query-status`.
    pub async fn query_status(&self) -> Result<Status, QmpError> {
        let answer = self.plain("query-status").await?;
        let state = answer.get("status").and_then(Value::as_str);
        let state = state.ok_or_else(|| shape("query-status", "status", &answer))?.into();
        Ok(Status {
            running: answer.get("running").and_then(Value::as_bool).unwrap_or(state == RunState::Running),
            state,
        })
    }

    /// `cont`: runs the virtual CPUs.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.plain("cont").await.map(drop)
    }

    /// `stop`: pauses the virtual CPUs; when it returns they stand still and block devices are drained.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.plain("stop").await.map(drop)
    }

    /// `quit`: QEMU ends. That the connection ends before the answer is fine.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.plain("quit").await {
            Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// `query-version`, as `major.minor.micro`.
    pub async fn query_version(&self) -> Result<(u64, u64, u64), QmpError> {
        let answer = self.plain("query-version").await?;
        let number = |key| answer["qemu"][key].as_u64().ok_or_else(|| shape("query-version", key, &answer));
        Ok((number("major")?, number("minor")?, number("micro")?))
    }

    /// `query-machines`.
    pub async fn query_machines(&self) -> Result<Vec<Machine>, QmpError> {
        let answer = self.plain("query-machines").await?;
        let rows = answer.as_array().ok_or_else(|| shape("query-machines", "a list", &answer))?;
        let machine = |row: &Value| {
            Some(Machine {
                name: row.get("name")?.as_str()?.to_owned(),
                alias: row.get("alias").and_then(Value::as_str).map(str::to_owned),
                deprecated: row.get("deprecated").and_then(Value::as_bool).unwrap_or(false),
            })
        };
        Ok(rows.iter().filter_map(machine).collect())
    }

    /// Thread ids of the virtual CPUs, from `query-cpus-fast`.
    pub async fn query_cpu_threads(&self) -> Result<Vec<u32>, QmpError> {
        let answer = self.plain("query-cpus-fast").await?;
        let rows = answer.as_array().ok_or_else(|| shape("query-cpus-fast", "a list", &answer))?;
        Ok(rows.iter().filter_map(|row| row.get("thread-id")?.as_u64()?.try_into().ok()).collect())
    }

    /// Whether KVM runs this VM, from `query-kvm`.
    pub async fn query_kvm(&self) -> Result<bool, QmpError> {
        let answer = self.plain("query-kvm").await?;
        answer.get("enabled").and_then(Value::as_bool).ok_or_else(|| shape("query-kvm", "enabled", &answer))
    }

    /// Names of all commands this QEMU has.
    pub async fn query_commands(&self) -> Result<Vec<String>, QmpError> {
        let answer = self.plain("query-commands").await?;
        let rows = answer.as_array().ok_or_else(|| shape("query-commands", "a list", &answer))?;
        Ok(rows.iter().filter_map(|row| Some(row.get("name")?.as_str()?.to_owned())).collect())
    }

    /// Sets migration capabilities, reads them back and returns all of them. One that QEMU lacks is refused by it.
    pub async fn migrate_set_capabilities(
        &self,
        wanted: &BTreeMap<String, bool>,
    ) -> Result<BTreeMap<String, bool>, QmpError> {
        if !wanted.is_empty() {
            let rows: Vec<Value> = wanted.iter().map(|(name, on)| json!({ "capability": name, "state": on })).collect();
            self.execute("migrate-set-capabilities", json!({ "capabilities": rows }), COMMAND_TIMEOUT).await?;
        }
        let all = self.query_migrate_capabilities().await?;
        for (name, on) in wanted {
            if all.get(name) != Some(on) {
                let lacks = format!("{name}={on} after it was set");
                return Err(shape("query-migrate-capabilities", &lacks, &json!(all)));
            }
        }
        Ok(all)
    }

    /// Every migration capability this QEMU has, and whether it is on.
    pub async fn query_migrate_capabilities(&self) -> Result<BTreeMap<String, bool>, QmpError> {
        let answer = self.plain("query-migrate-capabilities").await?;
        let rows = answer.as_array().ok_or_else(|| shape("query-migrate-capabilities", "a list", &answer))?;
        let pair = |row: &Value| Some((row.get("capability")?.as_str()?.to_owned(), row.get("state")?.as_bool()?));
        Ok(rows.iter().filter_map(pair).collect())
    }

    /// Sets migration parameters, reads them back and returns all of them.
    pub async fn migrate_set_parameters(
        &self,
        wanted: &BTreeMap<String, Value>,
    ) -> Result<Map<String, Value>, QmpError> {
        if !wanted.is_empty() {
            self.execute("migrate-set-parameters", json!(wanted), COMMAND_TIMEOUT).await?;
        }
        let answer = self.plain("query-migrate-parameters").await?;
        let Value::Object(all) = answer else {
            return Err(shape("query-migrate-parameters", "an object", &answer));
        };
        for (name, value) in wanted {
            if all.get(name) != Some(value) {
                let lacks = format!("{name}={value} after it was set");
                return Err(shape("query-migrate-parameters", &lacks, &Value::Object(all)));
            }
        }
        Ok(all)
    }

    /// `getfd`: gives QEMU a descriptor under a name, for `fd:NAME`.
    pub async fn give_descriptor(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.connection.command("getfd", arguments, COMMAND_TIMEOUT, Lane::With(descriptor)).await.map(drop)
    }

    /// `object-add`: `object` has a `qom-type` and an `id`.
    pub async fn object_add(&self, object: Value) -> Result<(), QmpError> {
        self.execute("object-add", object, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `object-del`.
    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        self.execute("object-del", json!({ "id": id }), COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate`: begins the transfer. Its progress comes as `MIGRATION` events.
    pub async fn migrate(&self, to: impl Into<Address>) -> Result<(), QmpError> {
        let arguments = to.into().arguments(self.greeting().version);
        self.execute("migrate", arguments, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate-incoming`: a QEMU started with `-incoming defer` listens, or reads, when this returns.
    pub async fn migrate_incoming(&self, from: impl Into<Address>) -> Result<(), QmpError> {
        let arguments = from.into().arguments(self.greeting().version);
        self.execute("migrate-incoming", arguments, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate-continue` from `state`, which is `pre-switchover`.
    pub async fn migrate_continue(&self, state: &MigrationStatus) -> Result<(), QmpError> {
        self.execute("migrate-continue", json!({ "state": state.as_str() }), COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate_cancel`; returns at once, the end comes as an event.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.plain("migrate_cancel").await.map(drop)
    }

    /// `migrate-start-postcopy`.
    pub async fn migrate_start_postcopy(&self) -> Result<(), QmpError> {
        self.plain("migrate-start-postcopy").await.map(drop)
    }

    /// `migrate-pause`, out of band: a post-copy whose network is cut goes to `postcopy-paused`.
    pub async fn migrate_pause(&self) -> Result<(), QmpError> {
        self.execute_oob("migrate-pause", Value::Null, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate-recover`, out of band: a paused destination listens at a new `uri`.
    pub async fn migrate_recover(&self, uri: &str) -> Result<(), QmpError> {
        self.execute_oob("migrate-recover", json!({ "uri": uri }), COMMAND_TIMEOUT).await.map(drop)
    }

    /// `migrate` with `resume`: the source goes on with a paused post-copy.
    pub async fn migrate_resume(&self, to: impl Into<Address>) -> Result<(), QmpError> {
        let mut arguments = to.into().arguments(self.greeting().version);
        arguments["resume"] = true.into();
        self.execute("migrate", arguments, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `yank`, out of band: breaks the migration's sockets when they hang.
    pub async fn yank_migration(&self) -> Result<(), QmpError> {
        let instances = json!({ "instances": [{ "type": "migration" }] });
        self.execute_oob("yank", instances, COMMAND_TIMEOUT).await.map(drop)
    }

    /// `query-migrate`.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.plain("query-migrate").await.map(MigrationInfo::from)
    }

    /// Waits until the migration's status is one that `wanted` accepts, from `MIGRATION` events (capability `events`
    /// must be on). `events` must be older than the command that begins it. Missed events lead to a query.
    pub async fn wait_migration(
        &self,
        events: &mut Events,
        mut wanted: impl FnMut(&MigrationStatus) -> bool,
        deadline: Instant,
    ) -> Result<MigrationStatus, WaitError> {
        loop {
            let seen = events.wait_for(|event| event.name == "MIGRATION", deadline).await;
            let status = match seen {
                Ok(event) => event.text("status").unwrap_or_default().into(),
                Err(EventError::Lagged(missed)) => {
                    tracing::warn!(missed, "migration events missed: asking for the status");
                    self.query_migrate().await?.status
                }
                Err(error) => return Err(error.into()),
            };
            if wanted(&status) {
                return Ok(status);
            }
        }
    }
}

/// Why a wait ended without what was waited for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WaitError {
    /// No event.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A query failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

fn shape(command: &str, lacks: &str, answer: &Value) -> QmpError {
    QmpError::Shape {
        command: command.to_owned(),
        lacks: lacks.to_owned(),
        answer: error::excerpt(&answer.to_string()),
    }
}
