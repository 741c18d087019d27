//! The party API: what the program of a party and its local daemon say to each other over `party.sock`.
//!
//! One JSON object a line, both ways, so that a party may be written in any language. A [`Call`] carries an id, its
//! [`Reply`] the same id; replies may come in another order. The first call of a connection is [`Request::Hello`].
//!
//! Every call may be sent again: the same id with the same content is done once and answered alike. After a restart
//! of the daemon the party connects again, says hello, and repeats what is outstanding with `repeat` set. A call ends
//! by its own deadline, never later.
//!
//! What may not happen here: I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ids::{AttemptId, Epoch, Name},
    params::Params,
    probe,
    scenario::ScenarioText,
    verdict::{Cause, Consequence, Outcome},
    vm::{Accelerator, Backend, Drive, MigrationResult, MigrationSpec, NicModel},
};

/// Longest line either side takes, in bytes, newline included.
pub const LINE_MAX: usize = 1 << 20;
/// Most bytes of one party's payload at a barrier, as JSON text.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// Most calls of one party that are under way at the same time.
pub const CALLS_MAX: usize = 32;
/// Longest text of a log line, in bytes.
pub const LOG_MAX: usize = 4096;

/// One line from the party.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the party, never used for another call of the same attempt.
    pub id: u64,
    /// Set where the call may have reached the daemon before.
    #[serde(default)]
    pub repeat: bool,
    /// What is asked.
    pub call: Request,
}

/// What a party can ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who I am; answered with [`Answer::Welcome`].
    Hello(Hello),
    /// Meet the other parties; answered with [`Answer::Released`].
    Barrier(Barrier),
    /// Start a VM on this host and wait until its guest is up; answered with [`Answer::Vm`].
    StartVm(StartVm),
    /// End a VM that this host owns; answered with [`Answer::Done`].
    StopVm {
        /// Which.
        vm: Name,
    },
    /// Make ready for [`Request::Migrate`], so that it begins at once. Optional; both sides call it.
    PrepareMigration(Move),
    /// Move a VM. Both sides call it; answered with [`Answer::Migrated`].
    Migrate(Move),
    /// Ask the guest of a VM that this host owns; answered with [`Answer::Guest`].
    Guest(Guest),
    /// A step of the scenario began or ended; answered with [`Answer::Done`].
    Step(Step),
    /// A remark for the log of the attempt; answered with [`Answer::Done`].
    Log {
        /// Whether a reader should be warned.
        warn: bool,
        /// The text, at most [`LOG_MAX`] bytes; the rest is cut.
        text: String,
    },
    /// The party has come to its end; answered with [`Answer::Done`]. The program exits after it.
    Finish(Finish),
    /// Keep a value in the evidence, as `checks/NAME.json`; answered with [`Answer::Done`].
    Keep {
        /// Its name.
        name: Name,
        /// The value; at most [`PAYLOAD_MAX`] bytes of JSON.
        value: Value,
    },
    /// Tell the hypervisor of a VM on this host something; answered with [`Answer::Monitor`]. Only what does not touch who
    /// may run the VM, or where, is passed on.
    Monitor {
        /// Which VM.
        vm: Name,
        /// A QMP command, e.g. `system_reset`.
        command: String,
        /// Its arguments: an object, or nothing.
        #[serde(default)]
        arguments: Value,
    },
    /// Devices of a VM on this host were added or removed: the destination of its next move begins with these words at the
    /// end of QEMU's command line, in place of those it had; answered with [`Answer::Done`].
    Reshape {
        /// Which VM.
        vm: Name,
        /// The words.
        extra_args: Vec<String>,
    },
    /// Drop what comes in to this host on these planes, and let pass what comes in on the others; answered with
    /// [`Answer::Done`]. What is dropped passes again at the end of the attempt at the latest.
    Cut {
        /// The planes; none: everything passes.
        planes: Vec<Plane>,
    },
}

/// What hosts send each other, by what carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// Connections from QEMU to QEMU.
    Migration,
    /// The daemons' encrypted channel for bytes: images, and VMs that it carries.
    Bulk,
    /// The daemons' QUIC: decisions, and everything that they ask each other.
    Raft,
}

impl Plane {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Migration, Self::Bulk, Self::Raft];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Migration => "migration",
            Self::Bulk => "bulk",
            Self::Raft => "raft",
        }
    }
}

/// Says who the party is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its attempt.
    pub attempt: AttemptId,
    /// What the daemon gave it when it started it.
    pub secret: String,
}

impl std::fmt::Debug for Hello {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// A meeting of all parties of the attempt, or of those named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Barrier {
    /// Its tag, at most 128 bytes.
    pub tag: String,
    /// How often this party has called the tag, this call included: from 1.
    pub generation: u32,
    /// Who meets; empty: every party of the attempt.
    #[serde(default)]
    pub parties: Vec<Name>,
    /// How long to wait, ms.
    pub deadline_ms: u64,
    /// What this party gives to the others; at most [`PAYLOAD_MAX`] bytes of JSON.
    #[serde(default)]
    pub payload: Value,
}

/// A VM to be started. Everything left out is decided by the daemon, and said in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartVm {
    /// Its name within the attempt.
    pub vm: Name,
    /// The image it boots from.
    pub image: Name,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u16,
    /// QEMU machine type.
    #[serde(default)]
    pub machine: Option<String>,
    /// QEMU CPU model.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// KVM or TCG.
    #[serde(default)]
    pub accelerator: Option<Accelerator>,
    /// Words appended to QEMU's command line.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// Who starts and moves it.
    #[serde(default)]
    pub backend: Backend,
    /// How long the guest may take until it is up, ms.
    pub boot_timeout_ms: u64,
    /// Answer as soon as its CPUs run: the scenario has something to do while the guest boots.
    #[serde(default)]
    pub no_wait: bool,
    /// Disks beside the one it boots from, and CDs.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Look into its disks before it starts and after it has ended.
    #[serde(default)]
    pub check_images: bool,
    /// Its network cards, in order; empty: one of virtio.
    #[serde(default)]
    pub nics: Vec<NicModel>,
    /// Have a thread of its own serve the disk it boots from.
    #[serde(default)]
    pub io_thread: bool,
}

/// One movement of one VM. Both sides say the same; a repetition with the same number is the same movement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Which VM.
    pub vm: Name,
    /// Which movement of it in this attempt, from 1, without gaps.
    pub number: u32,
    /// The source.
    pub from: Name,
    /// The destination.
    pub to: Name,
    /// How.
    pub spec: MigrationSpec,
}

/// A question to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Whose guest.
    pub vm: Name,
    /// What.
    pub ask: Ask,
    /// How long it may take, ms.
    pub timeout_ms: u64,
}

/// What a guest can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Log in on the serial console, where nobody is logged in yet.
    Login,
    /// Run a line of shell on the serial console; logs in where that is needed.
    Console {
        /// The line.
        command: String,
    },
    /// Ask the probe.
    Probe(probe::Request),
    /// Ping the guest agent.
    AgentPing,
    /// Send bytes to the guest's echo over TCP from this host, and read them back.
    TcpEcho {
        /// The port of the echo.
        port: u16,
    },
    /// Read the greeting of the guest's ssh server.
    Ssh,
    /// Have the guest agent run a line of shell.
    Agent {
        /// The line.
        command: String,
    },
    /// Have the guest agent write a file.
    Put {
        /// Its path in the guest.
        path: String,
        /// What it is to hold, as base64; at most [`FILE_MAX`] bytes in one call.
        base64: String,
        /// From where on; at 0 it is made anew.
        #[serde(default)]
        offset: u64,
    },
    /// Have the guest agent read a file of at most [`FILE_MAX`] bytes.
    Get {
        /// Its path in the guest.
        path: String,
    },
    /// Run a line of shell by ssh from this host. Its session begins with the first one, while the VM is here, and is the
    /// same from then on, wherever the VM goes.
    Shell {
        /// The line.
        command: String,
    },
}

/// Most bytes of a guest's file in one call.
pub const FILE_MAX: usize = 512 << 10;

/// A step begins or ends. Steps nest by name only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It begins.
    Begin {
        /// Its name.
        name: String,
    },
    /// It ended well.
    End {
        /// Its name.
        name: String,
        /// What is worth saying of it.
        note: String,
    },
}

/// How a party ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Its outcome.
    pub outcome: Outcome,
    /// Figures for the report, by name with the unit in it.
    #[serde(default)]
    pub metrics: BTreeMap<String, Value>,
}

/// One line from the daemon. Exactly one of `ok` and `failed` is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the call.
    pub id: u64,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Answer>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failure>,
}

impl Reply {
    /// A reply of either kind.
    pub fn new(id: u64, result: Result<Answer, Failure>) -> Self {
        match result {
            Ok(answer) => Self { id, ok: Some(answer), failed: None },
            Err(failure) => Self { id, ok: None, failed: Some(failure) },
        }
    }
}

/// Why a call failed. A party that cannot go on ends with it: a cause decides a verdict, a consequence never does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Something went wrong here.
    Caused(Cause),
    /// Something went wrong elsewhere.
    Followed(Consequence),
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Caused(cause) => Self::Caused(cause),
            Failure::Followed(consequence) => Self::Followed(consequence),
        }
    }
}

/// What a daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Hello`.
    Welcome(Box<Welcome>),
    /// To `Barrier`.
    Released {
        /// What each party gave, in the order of hosts.
        payloads: Vec<(Name, Value)>,
    },
    /// To `StartVm`.
    Vm(Box<VmStarted>),
    /// To `Migrate`.
    Migrated(Box<Migrated>),
    /// To `Guest`.
    Guest(GuestAnswer),
    /// There is nothing to tell.
    Done,
    /// To `Monitor`: what the hypervisor returned.
    Monitor(Value),
}

/// What a party has to do, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its attempt.
    pub attempt: AttemptId,
    /// The attempt's epoch.
    pub epoch: Epoch,
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the variant.
    pub case: String,
    /// Parameters of the case.
    pub params: Params,
    /// The hosts of the attempt, host1 first.
    pub hosts: Vec<Name>,
    /// This party's place in `hosts`, from 0.
    pub place: u32,
    /// How long the attempt may still take, ms.
    pub remaining_ms: u64,
    /// The VM is to stay at the end: the party does not stop it.
    #[serde(default)]
    pub keep: bool,
    /// The scenario itself, where it is no built-in one.
    #[serde(default)]
    pub file: Option<ScenarioText>,
}

/// A VM runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStarted {
    /// What its guest's instructions are run by.
    pub accelerator: Accelerator,
    /// Why it is that one, for people.
    pub accelerator_reason: String,
    /// Machine type, versioned.
    pub machine: String,
    /// CPU model.
    pub cpu_model: String,
    /// Version of QEMU.
    pub qemu_version: String,
    /// Versions of the QEMUs that the hosts of the case run it with, this one's included, of those that said so.
    #[serde(default)]
    pub qemus: BTreeMap<Name, String>,
    /// The guest's address, where it has one.
    pub address: Option<std::net::Ipv4Addr>,
    /// From the start of QEMU until the guest was up, ms.
    pub boot_ms: u64,
    /// Process id of QEMU.
    pub pid: u32,
}

/// A VM was moved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Migrated {
    /// The figures, at the source; the destination knows its own part only.
    pub result: Option<MigrationResult>,
    /// From seeing the decision to RESUME, ms, at the destination.
    pub resume_ms: Option<f64>,
    /// How long the guest stood still for the hosts to decide, ms, at the destination: from everything loaded until its QEMU
    /// was told to let it run. Less than that where the daemon was restarted meanwhile.
    #[serde(default)]
    pub held_ms: Option<f64>,
    /// It was cancelled, as its spec wanted: the VM has stayed at the source and runs there.
    #[serde(default)]
    pub cancelled: bool,
}

/// What a guest answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestAnswer {
    /// To `Login`, `AgentPing` and `Put`.
    Up,
    /// To `Console`, `Agent` and `Shell`.
    Console {
        /// Exit status of the line.
        status: i32,
        /// What it printed, both streams.
        output: String,
    },
    /// To `Probe`: of the type named at the probe's request.
    Probe(Value),
    /// To `TcpEcho`: the round trip, microseconds.
    Echo {
        /// Microseconds.
        micros: u64,
    },
    /// To `Ssh`: the greeting.
    Ssh {
        /// The line the server sent.
        greeting: String,
    },
    /// To `Get`: the file.
    File {
        /// What it holds, as base64.
        base64: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{ErrorCode, Report},
        verdict::Blame,
    };

    #[test]
    fn the_wire_form_is_held() {
        let call = Call {
            id: 7,
            repeat: false,
            call: Request::Barrier(Barrier {
                tag: "booted".into(),
                generation: 1,
                parties: Vec::new(),
                deadline_ms: 500,
                payload: serde_json::json!({"port": 1}),
            }),
        };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(
            text,
            r#"{"id":7,"repeat":false,"call":{"barrier":{"tag":"booted","generation":1,"parties":[],"deadline_ms":500,"payload":{"port":1}}}}"#
        );
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
        let short = r#"{"id":7,"call":{"barrier":{"tag":"booted","generation":1,"deadline_ms":500,"payload":{"port":1},"new":1}}}"#;
        assert_eq!(serde_json::from_str::<Call>(short).unwrap(), call, "left out and added fields");
    }

    #[test]
    fn a_failure_keeps_its_kind_on_the_way() {
        let cause = Cause { blame: Blame::Product, report: Report::new(ErrorCode::VmLost, "gone") };
        for failure in [Failure::Caused(cause), Failure::Followed(Consequence::PeerGone("host2".into()))] {
            let text = serde_json::to_string(&Reply::new(1, Err(failure.clone()))).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap().failed, Some(failure));
        }
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for text in ["", "{}", "[]", r#"{"id":-1,"call":"finish"}"#, r#"{"id":1,"call":{"reboot":{}}}"#] {
            assert!(serde_json::from_str::<Call>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let hello = Hello {
            attempt: AttemptId { case: crate::ids::CaseId { job: crate::ids::JobId(1), index: 1 }, number: 1 },
            secret: "swordfish".into(),
        };
        assert!(!format!("{hello:?}").contains("swordfish"));
    }
}
