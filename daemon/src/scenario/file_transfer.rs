//! `file_transfer`: data goes to the guest and back over one connection while the guest moves.

use std::time::Duration;

use vt_protocol::{
    error::{ErrorCode, Report},
    params::{ParamError, Params},
    party::Failure,
};

use super::{
    Called, Scenario,
    flow::Flow,
    journey::{ECHO_PORT, Journey, SLACK, product, taken},
    settings::{ALIASES, LIMITS, MOVE_PARAMS, PLAIN, Settings, VM_PARAMS, fit},
};
use crate::party::{Party, failure::caused};

const MIB: u64 = 1 << 20;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "file_transfer",
    summary: "sends data to the guest and back over one connection while the guest moves",
    about: "host1 keeps one TCP connection to the guest, sends data that the guest sends back, and compares every byte. PASS: the \
            connection holds over all moves, bytes went over it during each, what came back is what was sent, and file_size \
            came back within transfer_timeout after the last move; the guest is whole. The longest gap is a figure of the \
            case. Avocado-VT's test copies a file by scp in a loop and looks at checksums after the last move; here every \
            16 KiB are compared at once, and a connection that had to be made anew fails.",
    hosts: (2, 64),
    params: &[
        VM_PARAMS,
        MOVE_PARAMS,
        &[
            ("migrate_count", "3", "moves"),
            ("file_size", "16", "what has to come back at least, MiB"),
            ("transfer_timeout", "240", "how long that may take after the last move, seconds"),
            ("transfer_speed", "100", "most that is sent, Mbit/s"),
        ],
    ],
    aliases: &[ALIASES],
    types: &[Called::plainly("migration_multi_host_with_file_transfer")],
    limits: &[LIMITS, PLAIN],
    check: |params| read(params).map(drop),
    run: |party| Box::pin(run(party)),
};

struct Wanted {
    settings: Settings,
    moves: u32,
    bytes: u64,
    patience: Duration,
    bytes_s: u64,
}

fn read(params: &Params) -> Result<Wanted, ParamError> {
    let number = |key, most, default| params.number(key, 1..=most).map(|number| number.unwrap_or(default));
    Ok(Wanted {
        settings: Settings::read(params)?,
        moves: fit(number("migrate_count", 1000, 3)?),
        bytes: number("file_size", 1 << 20, 16)? * MIB,
        patience: Duration::from_secs(number("transfer_timeout", 86_400, 240)?),
        bytes_s: number("transfer_speed", 1_000_000, 100)? * 125_000,
    })
}

async fn run(party: &Party) -> Result<Option<String>, Failure> {
    let Wanted { settings, moves, bytes, patience, bytes_s } = taken(party.params(), read)?;
    let spec = settings.spec.clone();
    let mut journey = Journey::begin(party, settings).await?;
    let Some(address) = journey.address() else {
        let title = "the guest has no network card here: nothing can be sent to it";
        return Err(caused(Report::new(ErrorCode::CannotRunHere, title)));
    };
    let home = journey.is_here();
    let mut flow = None;
    if home {
        let seed = party.welcome().attempt.case.job.0;
        flow = Some(Flow::begin(address, ECHO_PORT, seed, bytes_s).await.map_err(product)?);
    }
    for round in 1..=moves {
        let before = flow.as_ref().map(Flow::carried);
        journey.go(&format!("move {round}"), &spec).await?;
        // One that broke off tells why when it is ended: the moves are made by all parties alike.
        if let (Some(flow), Some(before)) = (&mut flow, before) {
            flow.until(before.bytes + 1, patience).await;
        }
    }
    if let Some(mut flow) = flow {
        let step = party.step("data goes on").await?;
        let whole = flow.until(bytes, patience).await;
        let flowed = flow.end().await.map_err(product)?;
        party.metric("flow_bytes", flowed.bytes);
        party.metric("flow_longest_gap_ms", u64::try_from(flowed.longest.as_millis()).unwrap_or(u64::MAX));
        if !whole {
            let title = format!("{} of {bytes} bytes came back within {} s", flowed.bytes, patience.as_secs());
            return Err(product(Report::new(ErrorCode::AddressLost, title)));
        }
        let mb = flowed.bytes as f64 / 1e6;
        step.done(format!("{mb:.1} MB over one connection, longest gap {} ms", flowed.longest.as_millis())).await?;
    }
    party.barrier("carried", patience + SLACK).await?;
    journey.end(None).await
}
