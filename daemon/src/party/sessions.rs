//! Shells in guests by ssh from this host. One begins while its VM is here and lasts as long as the attempt, wherever the
//! VM goes: a connection that has to live through every move. A process of its own holds it ([`crate::guest::holder`]), and a
//! daemon that comes back finds that by its socket.

use std::{io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::{Answer, Failure, GuestAnswer},
    verdict::Consequence,
};

use super::{attempt::LocalAttempt, failure::caused, giveback::cgroup_name, guests::unanswered};
use crate::{
    guest::{
        Place,
        console::Console,
        ssh::{Held, Server, again, begin},
    },
    qemu::process::{Process, ProcessId, boot_id, processes_with, stat},
};

/// Port of a guest's ssh server.
pub(super) const SSH_PORT: u16 = 22;
/// The private key of an image, beside it.
const KEY_FILE: &str = "ssh_key";
/// How long a session may take to be taken up again: it is there, or it is not.
const TAKES_UP: Duration = Duration::from_secs(20);
/// How long one may take to end by itself.
const ENDS: Duration = Duration::from_secs(5);

/// A place for one.
pub(super) type Session = Arc<Mutex<Option<Console>>>;

impl LocalAttempt {
    /// Runs a line of shell in the session of a VM.
    ///
    /// # Errors
    /// It cannot begin, has broken off, or gives no answer.
    pub(super) async fn shell(&self, vm: &Name, command: &str, deadline: Instant) -> Result<Answer, Failure> {
        let session = self.session(vm);
        let mut session = session.lock().await;
        let run = async {
            // Taken out while it is used: of one that is given up half way no half-read answer is left behind.
            let socket = self.session_socket(vm);
            let mut shell = match session.take() {
                Some(shell) => shell,
                None if socket.exists() => self.session_again(socket, deadline).await?,
                None => self.begin_session(vm, deadline).await?,
            };
            let output = shell.run(command, deadline).await.map_err(|error| unanswered(&error))?;
            Ok::<_, Failure>((shell, GuestAnswer::Console { status: output.status, output: output.text }))
        };
        let (shell, answer) = tokio::select! {
            done = run => done?,
            () = self.closing.cancelled() => return Err(Failure::Followed(Consequence::Closed)),
        };
        *session = Some(shell);
        Ok(Answer::Guest(answer))
    }

    /// Where the session into a VM is found again.
    fn session_socket(&self, vm: &Name) -> PathBuf {
        self.places.sessions(self.id).join(vm.as_str())
    }

    async fn session_again(&self, socket: PathBuf, deadline: Instant) -> Result<Console, Failure> {
        let deadline = deadline.min(Instant::now() + TAKES_UP);
        let taken = again(&socket, Place::Session(socket.clone()), self.credentials(), deadline).await;
        taken.map_err(|error| unanswered(&error))
    }

    /// Ends all sessions. Says what is left.
    pub(super) async fn end_sessions(&self) -> Vec<String> {
        self.forget_sessions();
        let folder = self.places.sessions(self.id);
        let mut left = Vec::new();
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("sessions {}: {error}", folder.display()));
            }
            // They end by themselves now.
            Ok(()) => {
                for (pid, _) in processes_with(&format!("{}/", folder.display())) {
                    let Some(stat) = stat(pid) else { continue };
                    let id = ProcessId { pid, start_ticks: stat.start_ticks, boot_id: boot_id() };
                    if let Ok(Some(process)) = Process::attach(&id)
                        && tokio::time::timeout(ENDS, process.ended()).await.is_err()
                    {
                        let _ = process.kill_and_wait(ENDS).await;
                    }
                }
            }
            Err(_) => {}
        }
        left
    }

    async fn begin_session(&self, name: &Name, deadline: Instant) -> Result<Console, Failure> {
        let me = self.name_of(self.me());
        let Some(vm) = self.vm(name) else {
            let title = format!("no session into {name} has begun on {me}, and it is not there any more");
            return Err(caused(Report::new(ErrorCode::NotOwner, title)));
        };
        let Some(address) = vm.address() else {
            let title = format!("the guest of {name} has no network card on {me}, and ssh no way to it");
            return Err(caused(Report::new(ErrorCode::CannotRunHere, title)));
        };
        let image = self.image(&vm.qemu.record().spec.image).map_err(caused)?;
        let key = Some(image.folder.join(KEY_FILE)).filter(|key| key.is_file());
        let who = self.credentials();
        if key.is_none() && who.password.is_none() {
            let title = format!(
                "{me} has no key of image {} to log in with by ssh, and no password is given",
                image.record.name
            );
            return Err(caused(
                Report::new(ErrorCode::CannotRunHere, title).help("-p password=…, or -p shell_client=console"),
            ));
        }
        // It was looked at with the other parameters, before anything started.
        let port = self.param("shell_port").and_then(|port| port.trim().parse().ok()).unwrap_or(SSH_PORT);
        let server = Server { client: "ssh", address: IpAddr::V4(address), port, key, folder: &self.places.data };
        let socket = self.session_socket(name);
        let folder = self.places.sessions(self.id);
        tokio::fs::create_dir_all(&folder).await.map_err(|error| {
            let title = format!("no session can be held below {}", folder.display());
            caused(Report::new(ErrorCode::StorageFailed, title).caused_by(&error))
        })?;
        let groups = self.places.cgroups.as_ref();
        let cgroup = groups.map(|groups| groups.get(&cgroup_name(&self.places, self.id)));
        let held = Held { vtd: &self.places.vtd, socket: &socket, cgroup };
        begin(&server, &held, who, deadline).await.map_err(|error| unanswered(&error))
    }
}
