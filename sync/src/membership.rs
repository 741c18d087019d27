//! Who votes: the next change of membership, as a pure function of what the leader sees.
//!
//! The number of voters is one, three or five, never two: two voters stop when either is lost, so they are worse than
//! one. It grows 1→3→5 and shrinks 5→3→1, each as one joint change, and only by hosts that answer and have caught up. A
//! voter that is away for [`AWAY`] is replaced, or the number shrinks. One change at a time. The loop that carries the
//! steps out lives in the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vt_protocol::ids::{Epoch, HostId};

use crate::{
    raft::Status,
    state::{Role, State},
};

/// A voter that did not answer for so long is replaced, where the settings say nothing else.
pub const AWAY: Duration = Duration::from_secs(600);
/// A host that was heard within this time answers.
pub const ANSWERS: Duration = Duration::from_secs(2);
/// A host that lacks no more entries than this has caught up.
pub const CAUGHT_UP: u64 = 64;

/// An admitted host as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The role it is wished to have.
    pub role: Role,
    /// When it was admitted: among equals the older one votes.
    pub admitted_at: Epoch,
    /// How long it has been silent; where it was never heard, how long this host leads.
    pub silent: Duration,
    /// Entries it lacks; `None`: not known yet.
    pub lag: Option<u64>,
}

impl Peer {
    fn answers(&self) -> bool {
        self.silent <= ANSWERS
    }

    fn may_begin_to_vote(&self) -> bool {
        self.wants_to_vote() && self.answers() && self.lag.is_some_and(|lag| lag <= CAUGHT_UP)
    }

    fn may_go_on_voting(&self, away: Duration) -> bool {
        self.wants_to_vote() && self.silent < away
    }

    fn wants_to_vote(&self) -> bool {
        matches!(self.role, Role::Voter | Role::Witness)
    }
}

/// What the leader sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The leader.
    pub me: HostId,
    /// Who votes.
    pub voters: BTreeSet<HostId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<HostId>,
    /// The voters that a change under way leads to.
    pub changing_to: Option<BTreeSet<HostId>>,
    /// Whether the last change is committed.
    pub settled: bool,
    /// Admitted hosts.
    pub hosts: BTreeMap<HostId, Peer>,
    /// A voter that is silent for so long is replaced.
    pub away: Duration,
}

impl View {
    /// What the leader sees, from its status, the state and how long it leads.
    pub fn new(status: &Status, state: &State, leading_for: Duration, away: Duration) -> Self {
        let peer = |host: &crate::state::Host| {
            let me = host.id == status.host;
            let follower = status.followers.get(&host.id);
            let silent = follower.and_then(|f| f.silent).unwrap_or(leading_for);
            let lag = follower.filter(|f| f.matched.is_some()).map(|f| f.lag);
            Peer {
                role: host.role,
                admitted_at: host.admitted_at,
                silent: if me { Duration::ZERO } else { silent },
                lag: if me { Some(0) } else { lag },
            }
        };
        Self {
            me: status.host,
            voters: status.leadership.voters.clone(),
            learners: status.leadership.learners.clone(),
            changing_to: status.leadership.changing_to.clone(),
            settled: status.leadership.settled,
            hosts: state.hosts.values().map(|host| (host.id, peer(host))).collect(),
            away,
        }
    }

    fn answers(&self, host: &HostId) -> bool {
        *host == self.me || self.hosts.get(host).is_some_and(Peer::answers)
    }
}

/// The next change of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be, or cannot be improved now.
    Nothing,
    /// Replicate to this admitted host.
    AddLearner(HostId),
    /// Stop replicating to this host: it is not admitted any more.
    RemoveLearner(HostId),
    /// Change the voters to these, as one joint change.
    ChangeVoters(BTreeSet<HostId>),
    /// Hand over to this voter first: the leader is about to lose its vote.
    TransferLeader(HostId),
}

/// What to do next.
pub fn next_step(view: &View) -> Step {
    if let Some(voters) = &view.changing_to {
        // Begun by a leader that did not finish it.
        return Step::ChangeVoters(voters.clone());
    }
    if !view.settled {
        return Step::Nothing;
    }
    let is_member = |host: &HostId| view.voters.contains(host) || view.learners.contains(host);
    if let Some(host) = view.hosts.keys().find(|host| !is_member(host)) {
        return Step::AddLearner(*host);
    }
    let wanted = wanted_voters(view);
    if wanted == view.voters {
        let stranger = view.learners.iter().find(|host| !view.hosts.contains_key(host));
        return stranger.map_or(Step::Nothing, |host| Step::RemoveLearner(*host));
    }
    let answering: Vec<_> = wanted.iter().filter(|host| view.answers(host)).collect();
    if answering.len() * 2 <= wanted.len() {
        return Step::Nothing;
    }
    if !wanted.contains(&view.me) {
        // A host that votes already and answers can take over; where there is none, the vote moves first.
        if let Some(heir) = answering.iter().find(|host| view.voters.contains(host)) {
            return Step::TransferLeader(**heir);
        }
    }
    Step::ChangeVoters(wanted)
}

fn wanted_voters(view: &View) -> BTreeSet<HostId> {
    let mut staying: Vec<_> = Vec::new();
    let mut coming: Vec<_> = Vec::new();
    let mut leaving: Vec<_> = Vec::new();
    for (id, peer) in &view.hosts {
        if view.voters.contains(id) {
            if peer.may_go_on_voting(view.away) {
                staying.push((*id != view.me, !peer.answers(), peer.admitted_at, *id));
            } else if peer.answers() {
                leaving.push((peer.admitted_at, *id));
            }
        } else if peer.may_begin_to_vote() {
            coming.push((peer.role != Role::Witness, peer.admitted_at, *id));
        }
    }
    staying.sort_unstable();
    coming.sort_unstable();
    leaving.sort_unstable();
    let able = staying.len() + coming.len();
    let most = match view.voters.len() {
        0..=2 => 3,
        _ => 5,
    };
    let least = if view.voters.len() >= 4 { 3 } else { 1 };
    let number = if able >= 5 && most == 5 {
        5
    } else if able >= 3 {
        3
    } else {
        1
    };
    if able + leaving.len() < least {
        // Not even the next smaller number can be filled: waiting is all that is left.
        return view.voters.clone();
    }
    // Five become three before they become one: who is to leave votes on for that step, where nobody else can.
    let staying = staying.into_iter().map(|(_, _, _, id)| id);
    let coming = coming.into_iter().map(|(_, _, id)| id);
    let leaving = leaving.into_iter().map(|(_, id)| id);
    staying.chain(coming).chain(leaving).take(number.max(least)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn host(id: u64) -> HostId {
        HostId(id)
    }

    fn set(ids: &[u64]) -> BTreeSet<HostId> {
        ids.iter().copied().map(HostId).collect()
    }

    fn peer(role: Role, silent: Duration) -> Peer {
        Peer { role, admitted_at: Epoch(1), silent, lag: Some(0) }
    }

    /// Hosts 1.. of which `voters` vote, all well; host 1 leads.
    fn view(hosts: u64, voters: &[u64]) -> View {
        let all: BTreeSet<_> = (1..=hosts).map(HostId).collect();
        let voters = set(voters);
        View {
            me: host(1),
            learners: all.difference(&voters).copied().collect(),
            voters,
            changing_to: None,
            settled: true,
            hosts: all.into_iter().map(|id| (id, peer(Role::Voter, NOW))).collect(),
            away: AWAY,
        }
    }

    fn silence(view: &mut View, id: u64, silent: Duration) {
        view.hosts.get_mut(&host(id)).unwrap().silent = silent;
    }

    #[test]
    fn voters_go_one_three_five_and_never_two_or_four() {
        for (hosts, voters, want) in [
            (1, &[1][..], None),
            (2, &[1], None),
            (3, &[1], Some(&[1, 2, 3][..])),
            (4, &[1], Some(&[1, 2, 3])),
            (5, &[1], Some(&[1, 2, 3])),
            (4, &[1, 2, 3], None),
            (5, &[1, 2, 3], Some(&[1, 2, 3, 4, 5])),
            (7, &[1, 2, 3, 4, 5], None),
        ] {
            let step = next_step(&view(hosts, voters));
            assert_eq!(step, want.map_or(Step::Nothing, |w| Step::ChangeVoters(set(w))), "{hosts} hosts, {voters:?}");
        }
    }

    #[test]
    fn a_new_host_becomes_a_learner_first_and_a_removed_one_goes() {
        let mut v = view(2, &[1]);
        v.learners.clear();
        assert_eq!(next_step(&v), Step::AddLearner(host(2)));
        let mut v = view(2, &[1]);
        v.hosts.remove(&host(2));
        assert_eq!(next_step(&v), Step::RemoveLearner(host(2)));
    }

    #[test]
    fn only_hosts_that_answer_and_have_caught_up_begin_to_vote() {
        for spoil in [
            |p: &mut Peer| p.lag = Some(CAUGHT_UP + 1),
            |p: &mut Peer| p.lag = None,
            |p: &mut Peer| p.silent = ANSWERS * 2,
            |p: &mut Peer| p.role = Role::Learner,
        ] {
            let mut v = view(3, &[1]);
            spoil(v.hosts.get_mut(&host(3)).unwrap());
            assert_eq!(next_step(&v), Step::Nothing);
        }
    }

    #[test]
    fn a_voter_that_is_away_is_replaced_only_after_ten_minutes() {
        let mut v = view(4, &[1, 2, 3]);
        silence(&mut v, 3, AWAY - Duration::from_secs(1));
        assert_eq!(next_step(&v), Step::Nothing);
        silence(&mut v, 3, AWAY);
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1, 2, 4])));
    }

    #[test]
    fn without_a_spare_host_three_become_one_and_five_become_three() {
        let mut v = view(3, &[1, 2, 3]);
        silence(&mut v, 2, AWAY);
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1])));
        let mut v = view(5, &[1, 2, 3, 4, 5]);
        silence(&mut v, 2, AWAY);
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1, 3, 4])));
    }

    #[test]
    fn a_removed_voter_loses_its_vote_before_it_is_left_alone() {
        let mut v = view(3, &[1, 2, 3]);
        v.hosts.remove(&host(3));
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1])));
    }

    #[test]
    fn a_leader_that_loses_its_vote_hands_over_first() {
        let mut v = view(4, &[1, 2, 3]);
        v.hosts.get_mut(&host(1)).unwrap().role = Role::Learner;
        assert_eq!(next_step(&v), Step::TransferLeader(host(2)));
        // The only voter has nobody to hand over to.
        let mut v = view(4, &[1]);
        v.hosts.get_mut(&host(1)).unwrap().role = Role::Learner;
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[2, 3, 4])));
    }

    #[test]
    fn many_that_leave_at_once_leave_step_by_step() {
        let mut v = view(5, &[1, 2, 3, 4, 5]);
        for id in 2..=5 {
            v.hosts.get_mut(&host(id)).unwrap().role = Role::Learner;
        }
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1, 2, 3])), "who is to leave helps once more");
        v.voters = set(&[1, 2, 3]);
        v.learners = set(&[4, 5]);
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1])));
    }

    #[test]
    fn the_last_voter_stays_until_another_can_vote() {
        let mut v = view(2, &[1]);
        v.hosts.get_mut(&host(1)).unwrap().role = Role::Learner;
        silence(&mut v, 2, ANSWERS * 2);
        assert_eq!(next_step(&v), Step::Nothing);
        silence(&mut v, 2, NOW);
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[2])));
    }

    #[test]
    fn a_voter_that_was_replaced_comes_back_as_learner() {
        let mut v = view(4, &[1, 2, 4]);
        silence(&mut v, 3, AWAY);
        assert_eq!(next_step(&v), Step::Nothing, "while it is away");
        silence(&mut v, 3, NOW);
        assert_eq!(next_step(&v), Step::Nothing, "there are three voters, so it stays a learner");
    }

    #[test]
    fn a_change_under_way_is_finished_and_nothing_else_begun() {
        let mut v = view(3, &[1]);
        v.settled = false;
        assert_eq!(next_step(&v), Step::Nothing);
        v.changing_to = Some(set(&[1, 2, 3]));
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1, 2, 3])));
    }

    #[test]
    fn a_witness_votes_before_others_and_a_silent_majority_is_never_made() {
        let mut v = view(4, &[1]);
        v.hosts.get_mut(&host(4)).unwrap().role = Role::Witness;
        assert_eq!(next_step(&v), Step::ChangeVoters(set(&[1, 2, 4])));
        let mut v = view(5, &[1, 2, 3]);
        silence(&mut v, 2, ANSWERS * 2);
        silence(&mut v, 3, ANSWERS * 2);
        v.hosts.get_mut(&host(4)).unwrap().silent = ANSWERS * 2;
        v.hosts.get_mut(&host(5)).unwrap().silent = ANSWERS * 2;
        assert_eq!(next_step(&v), Step::Nothing);
    }
}
