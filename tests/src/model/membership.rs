//! Who votes: the real policy, under hosts that come, go, fall silent and change their minds.

use std::{collections::BTreeSet, time::Duration};

use vt_protocol::ids::{Epoch, HostId};
use vt_sync::{
    membership::{ANSWERS, AWAY, CAUGHT_UP, Peer, Step, View, next_step},
    state::Role,
};

use super::choices::Choices;
use crate::invariants::{Invariants, Seen, Violation};

/// Most hosts of a walk.
const MOST: usize = 7;

/// Walks some steps from a cluster of one.
pub(super) fn walk(choices: &mut Choices, steps: usize) -> Result<BTreeSet<usize>, Violation> {
    let mut rules = Invariants::default();
    let first = HostId(1);
    let mut view = View {
        me: first,
        voters: [first].into(),
        learners: BTreeSet::new(),
        changing_to: None,
        settled: true,
        hosts: [(first, peer(1))].into(),
        away: AWAY,
    };
    let mut next = 2;
    let mut sizes = BTreeSet::new();
    for _ in 0..steps {
        if !choices.step() {
            break;
        }
        match choices.weighted(&[10, 4, 4, 4, 30, 3]) {
            0 if view.hosts.len() < MOST => {
                view.hosts.insert(HostId(next), peer(next));
                next += 1;
            }
            1 => {
                if let Some(peer) = any(&mut view, choices) {
                    peer.silent = [Duration::ZERO, ANSWERS * 2, AWAY][choices.below(3)];
                }
            }
            2 => {
                if let Some(peer) = any(&mut view, choices) {
                    peer.role = [Role::Voter, Role::Learner, Role::Witness][choices.below(3)];
                }
            }
            3 => {
                if let Some(peer) = any(&mut view, choices) {
                    peer.lag = [Some(0), Some(CAUGHT_UP + 1), None][choices.below(3)];
                }
            }
            5 if view.hosts.len() > 1 => {
                let at = choices.below(view.hosts.len());
                let gone = *view.hosts.keys().nth(at).expect("it is one of them");
                if gone != view.me {
                    view.hosts.remove(&gone);
                }
            }
            _ => take(&mut view, choices, &mut rules)?,
        }
        sizes.insert(view.voters.len());
    }
    Ok(sizes)
}

fn peer(at: u64) -> Peer {
    Peer { role: Role::Voter, admitted_at: Epoch(at), silent: Duration::ZERO, lag: Some(0) }
}

/// One of the others.
fn any<'v>(view: &'v mut View, choices: &mut Choices) -> Option<&'v mut Peer> {
    let me = view.me;
    let others = view.hosts.len().checked_sub(1).filter(|others| *others > 0)?;
    let at = choices.below(others);
    view.hosts.iter_mut().filter(|(id, _)| **id != me).nth(at).map(|(_, peer)| peer)
}

/// The leader takes its step; a change of voters may be left half done, and is then finished by whoever leads next.
fn take(view: &mut View, choices: &mut Choices, rules: &mut Invariants) -> Result<(), Violation> {
    match next_step(view) {
        Step::Nothing => {}
        Step::AddLearner(host) => {
            view.learners.insert(host);
        }
        Step::RemoveLearner(host) => {
            view.learners.remove(&host);
        }
        Step::TransferLeader(host) => view.me = host,
        Step::ChangeVoters(voters) => {
            if choices.percent(20) {
                view.changing_to = Some(voters.clone());
                // The leader is gone: another voter of the old or the new set goes on.
                let heirs: Vec<HostId> = view.voters.union(&voters).copied().collect();
                view.me = heirs[choices.below(heirs.len())];
                return Ok(());
            }
            let left: Vec<HostId> = view.voters.difference(&voters).copied().collect();
            view.learners.extend(left);
            view.learners.retain(|host| !voters.contains(host));
            view.voters = voters;
            view.changing_to = None;
            rules.see(&Seen::Voters(&view.voters))?;
            if !view.voters.contains(&view.me) {
                view.me = *view.voters.first().expect("a set of voters is never empty");
            }
        }
    }
    Ok(())
}
