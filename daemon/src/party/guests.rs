//! Ways into the guest of a VM on this host, one question at a time on each.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    party::{Answer, Ask, FILE_MAX, Failure, Guest, GuestAnswer},
    probe::Request,
    verdict::{Blame, Cause},
};

use super::{
    attempt::LocalAttempt,
    failure::caused,
    local_vm::{Ended, LocalVm},
    sessions::SSH_PORT,
};
use crate::{
    guest::{
        GuestError,
        agent::Agent,
        console::{Console, Credentials, prompt},
        probe::Probe,
        reach,
    },
    qemu::{Channel, Vm},
};

/// How long the end of a QEMU may take to be noticed after its channels broke off.
const ENDING: Duration = Duration::from_secs(2);
/// Longest time a question may take.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Connections into one guest, made when they are first used.
#[derive(Debug)]
pub struct Lines {
    console_path: PathBuf,
    agent_path: PathBuf,
    console: Mutex<Option<Console>>,
    agent: Mutex<Option<Agent>>,
    probe: Mutex<Probe>,
}

impl Lines {
    /// Of that VM.
    pub fn new(vm: &Vm) -> Self {
        Self {
            console_path: vm.socket(Channel::Console),
            agent_path: vm.socket(Channel::Agent),
            console: Mutex::default(),
            agent: Mutex::default(),
            probe: Mutex::new(Probe::new(vm.socket(Channel::Probe))),
        }
    }

    /// Waits until the guest is up: its probe answers, or, where it has none, its console lets in.
    ///
    /// # Errors
    /// It does not until the deadline.
    pub async fn up(&self, probe: bool, who: &Credentials, deadline: Instant) -> Result<(), GuestError> {
        if probe { self.probe.lock().await.hello(deadline).await.map(drop) } else { self.login(who, deadline).await }
    }

    async fn login(&self, who: &Credentials, deadline: Instant) -> Result<(), GuestError> {
        self.on_console(who, deadline, async |console| console.login(deadline).await).await
    }

    async fn run(&self, command: &str, who: &Credentials, deadline: Instant) -> Result<GuestAnswer, GuestError> {
        let output = self.on_console(who, deadline, async |console| console.run(command, deadline).await).await?;
        Ok(GuestAnswer::Console { status: output.status, output: output.text })
    }

    async fn on_console<T>(
        &self,
        who: &Credentials,
        deadline: Instant,
        ask: impl AsyncFnOnce(&mut Console) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let mut place = self.console.lock().await;
        // Taken out while it is used: a question that is given up half way leaves no half-read console behind.
        let mut console = match place.take() {
            Some(console) => console,
            None => Console::connect(&self.console_path, who.clone(), deadline).await?,
        };
        let answer = ask(&mut console).await;
        if answer.is_ok() {
            *place = Some(console);
        }
        answer
    }

    async fn on_agent<T>(
        &self,
        deadline: Instant,
        ask: impl AsyncFnOnce(&mut Agent) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let mut place = self.agent.lock().await;
        let mut agent = match place.take() {
            Some(agent) => agent,
            None => Agent::connect(&self.agent_path, deadline).await?,
        };
        let answer = ask(&mut agent).await;
        if answer.is_ok() {
            *place = Some(agent);
        }
        answer
    }

    async fn run_by_agent(&self, command: &str, deadline: Instant) -> Result<GuestAnswer, GuestError> {
        let ask = async |agent: &mut Agent| agent.exec(&["/bin/sh", "-c", command], deadline).await;
        let ended = self.on_agent(deadline, ask).await?;
        let status = ended.exit.and_then(|exit| i32::try_from(exit).ok()).unwrap_or(-1);
        let bytes = [&ended.stdout[..], &ended.stderr].concat();
        let output = String::from_utf8_lossy(&bytes).chars().take(FILE_MAX / 4).collect();
        Ok(GuestAnswer::Console { status, output })
    }

    async fn put(&self, path: &str, base64: &str, offset: u64, deadline: Instant) -> Result<GuestAnswer, GuestError> {
        let bytes = STANDARD.decode(base64).ok().filter(|bytes| bytes.len() <= FILE_MAX).ok_or_else(|| {
            GuestError::Question(format!("what {path} is to hold is no base64 of at most {FILE_MAX} bytes"))
        })?;
        self.on_agent(deadline, async |agent| agent.put(path, &bytes, offset, deadline).await).await?;
        Ok(GuestAnswer::Up)
    }

    async fn get(&self, path: &str, deadline: Instant) -> Result<GuestAnswer, GuestError> {
        let bytes = self.on_agent(deadline, async |agent| agent.get(path, FILE_MAX, deadline).await).await?;
        Ok(GuestAnswer::File { base64: STANDARD.encode(bytes) })
    }

    async fn ask_probe(&self, request: Request, repeat: bool, deadline: Instant) -> Result<GuestAnswer, GuestError> {
        let begins = matches!(request, Request::MemStart(_) | Request::DiskStart(_));
        let answer = self.probe.lock().await.ask(request.clone(), deadline).await;
        match (answer, request) {
            // Asked again after a restart of the daemon: it runs already, as was asked for.
            (Err(GuestError::Refused { .. }), Request::MemStart(_)) if repeat && begins => {
                Ok(GuestAnswer::Probe(serde_json::json!({})))
            }
            (Err(GuestError::Refused { .. }), Request::DiskStart(wanted)) if repeat && begins => {
                Ok(GuestAnswer::Probe(serde_json::json!({"slots": wanted.bytes / 4096})))
            }
            (answer, _) => answer.map(GuestAnswer::Probe),
        }
    }
}

impl LocalAttempt {
    /// Who logs in on consoles, as the parameters of the case say.
    pub(super) fn credentials(&self) -> Credentials {
        let said = |key| self.param(key).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Credentials {
            user: said("username").unwrap_or_else(|| "root".to_owned()),
            password: said("password"),
            // It was looked at with the other parameters, before anything started.
            prompt: said("shell_prompt").and_then(|pattern| prompt(&pattern).ok()),
        }
    }

    /// Asks a guest on this host.
    ///
    /// # Errors
    /// The VM is not here, or the guest does not answer: that is the product's, unless QEMU ended.
    pub async fn ask_guest(&self, call: Guest, repeat: bool) -> Result<Answer, Failure> {
        if let Ask::Shell { command } = &call.ask {
            let deadline = Instant::now() + Duration::from_millis(call.timeout_ms).min(LONGEST);
            return self.shell(&call.vm, command, deadline).await;
        }
        let Some(vm) = self.vm(&call.vm) else {
            let title = format!("{} is not on {}", call.vm, self.name_of(self.me()));
            return Err(caused(Report::new(ErrorCode::NotOwner, title)));
        };
        let deadline = Instant::now() + Duration::from_millis(call.timeout_ms).min(LONGEST);
        let no_address = || {
            let title = format!("the guest of {} has no network card", call.vm);
            GuestError::Question(title)
        };
        let address = vm.address().map(IpAddr::V4);
        let asking = async {
            match call.ask.clone() {
                Ask::Login => vm.lines.login(&self.credentials(), deadline).await.map(|()| GuestAnswer::Up),
                Ask::Console { command } => vm.lines.run(&command, &self.credentials(), deadline).await,
                Ask::Probe(request) => vm.lines.ask_probe(request, repeat, deadline).await,
                Ask::AgentPing => {
                    vm.lines.on_agent(deadline, async |agent| agent.ping(deadline).await).await?;
                    Ok(GuestAnswer::Up)
                }
                Ask::Agent { command } => vm.lines.run_by_agent(&command, deadline).await,
                Ask::Put { path, base64, offset } => vm.lines.put(&path, &base64, offset, deadline).await,
                Ask::Get { path } => vm.lines.get(&path, deadline).await,
                Ask::TcpEcho { port } => {
                    let trip = reach::tcp_echo(address.ok_or_else(no_address)?, port, deadline).await?;
                    Ok(GuestAnswer::Echo { micros: u64::try_from(trip.as_micros()).unwrap_or(u64::MAX) })
                }
                Ask::Shell { .. } => Err(no_address()),
                Ask::Ssh => {
                    let greeting = reach::ssh_greeting(address.ok_or_else(no_address)?, SSH_PORT, deadline).await?;
                    Ok(GuestAnswer::Ssh { greeting })
                }
            }
        };
        tokio::select! {
            answer = asking => match answer {
                Ok(answer) => Ok(Answer::Guest(answer)),
                Err(error) => {
                    // A channel that breaks off may be the end of QEMU, which is noticed a moment later.
                    let patience = match error {
                        GuestError::Closed(_) | GuestError::Io { .. } => ENDING,
                        _ => Duration::ZERO,
                    };
                    match timeout(patience, vm.qemu.died()).await {
                        Ok(_) => Err(lost(&vm, &vm.ended().await)),
                        Err(_) => Err(unanswered(&error)),
                    }
                }
            },
            ended = vm.ended() => Err(lost(&vm, &ended)),
        }
    }
}

fn lost(vm: &LocalVm, ended: &Ended) -> Failure {
    caused(ended.report(ErrorCode::VmLost, format!("QEMU of {} ended while it should have run", vm.id.name)))
}

/// What a party is told of a guest that gave no answer.
pub(super) fn unanswered(error: &GuestError) -> Failure {
    Failure::Caused(Cause { blame: guest_blame(error), report: error.report() })
}

/// A wrong question is the scenario's fault.
fn guest_blame(error: &GuestError) -> Blame {
    if matches!(error, GuestError::Question(_)) { Blame::Infrastructure } else { Blame::Product }
}
