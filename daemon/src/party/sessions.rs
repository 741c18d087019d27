//! Shells in guests by ssh from this host. One begins while its VM is here and lasts as long as the attempt, wherever the
//! VM goes: a connection that has to live through every move.

use std::{net::IpAddr, sync::Arc};

use tokio::{sync::Mutex, time::Instant};
use vt_protocol::{
    error::{ErrorCode, Report},
    ids::Name,
    party::{Answer, Failure, GuestAnswer},
    verdict::Consequence,
};

use super::{attempt::LocalAttempt, failure::caused, guests::unanswered};
use crate::guest::{
    console::Console,
    ssh::{Server, begin},
};

/// Port of a guest's ssh server.
pub(super) const SSH_PORT: u16 = 22;
/// The private key of an image, beside it.
const KEY_FILE: &str = "ssh_key";

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
            // Taken out while it is used: one that breaks off or is given up half way is over.
            let mut shell = match session.take() {
                Some(shell) => shell,
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
        begin(&server, who, deadline).await.map_err(|error| unanswered(&error))
    }
}
