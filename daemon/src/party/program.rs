//! The program of a party: `vtd party --socket PATH --attempt ID`. It runs the scenario that the plan names.
//!
//! Whatever goes wrong in a scenario ends this process, never the daemon. The secret is in a file that only the daemon's
//! user can read, so that it shows on no command line.

use std::{path::PathBuf, process::ExitCode};

use vt_protocol::{
    ids::AttemptId,
    party::{Failure, Hello},
    verdict::Outcome,
};

use super::{client::Party, places::secret_file};
use crate::scenario;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Args {
    /// The daemon's party socket.
    pub socket: PathBuf,
    /// The attempt.
    pub attempt: AttemptId,
}

/// Runs the party to its end. The exit code says whether the daemon was told the outcome.
pub fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("party: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(party(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("party: {failure:?}");
            ExitCode::FAILURE
        }
    }
}

async fn party(args: Args) -> Result<(), Failure> {
    // One that cannot be read is refused by the daemon, with its reason.
    let secret = std::fs::read_to_string(secret_file(&args.socket, args.attempt)).unwrap_or_default();
    let party = Party::connect(&args.socket, Hello { attempt: args.attempt, secret }).await?;
    let outcome = match scenario::run(&party).await {
        Ok(remark) => Outcome::Passed { remark },
        Err(failure) => failure.into(),
    };
    party.finish(outcome).await
}
