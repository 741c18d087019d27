//! `job rerun`: the cases of a job again, on the same hosts, with the same matrix to the byte.

use vt_protocol::{
    admin::{AdminReply, AdminRequest},
    error::{ErrorCode, Report},
    ids::JobId,
    job::{CaseStateView, CaseView, Plan},
    verdict::Verdict,
};

use super::{
    App, Code, job,
    run::{submitted, user},
};
use crate::{args::RerunArgs, client::Need, job::plan::again, results::bundle::check_goal, ui::report::unexpected};

pub(super) async fn rerun(app: &mut App, id: JobId, args: RerunArgs) -> Result<Code, Report> {
    if let Some(goal) = args.outcome.goal() {
        check_goal(goal)?;
    }
    let plan = match app.mesh.call(&AdminRequest::JobPlan(id), Need::Read).await? {
        AdminReply::Plan(plan) => *plan,
        other => return Err(unexpected("job rerun", &other)),
    };
    let earlier = job::ask(app, id).await?;
    let plan = if args.failed {
        let wanted: Vec<u32> = earlier.cases.iter().filter(|case| failed(case)).map(|case| case.id.index).collect();
        again(plan, |index| wanted.binary_search(&index).is_ok())
    } else {
        again(plan, |_| true)
    };
    if plan.cases.is_empty() {
        return Err(
            Report::new(ErrorCode::NoVariants, format!("no case of {id} failed")).help(format!("vtctl job rerun {id}"))
        );
    }
    let note = args.note.unwrap_or_else(|| format!("again: {id}"));
    let plan = Plan { user: user(), note: Some(note), ..plan };
    submitted(app, plan, &earlier.scenario, args.outcome).await
}

/// Whether a case did not come to a good end: it failed, has no verdict, or waited for one that failed.
fn failed(case: &CaseView) -> bool {
    match &case.state {
        CaseStateView::Done { verdict: Verdict::Pass | Verdict::Warn, .. } => false,
        CaseStateView::Done { verdict: Verdict::Skip, cause } => {
            cause.as_ref().is_some_and(|cause| cause.code == ErrorCode::ParentNotPassed)
        }
        CaseStateView::Done { .. } | CaseStateView::Pending { .. } | CaseStateView::Running { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tracker::tests::{case, failed as failing};

    #[test]
    fn what_did_not_come_to_a_good_end_has_failed() {
        let skipped = |code| CaseStateView::Done { verdict: Verdict::Skip, cause: Some(Report::new(code, "x")) };
        for (state, expected) in [
            (CaseStateView::Done { verdict: Verdict::Pass, cause: None }, false),
            (CaseStateView::Done { verdict: Verdict::Cancelled, cause: None }, true),
            (failing(), true),
            (skipped(ErrorCode::UnknownScenario), false),
            (skipped(ErrorCode::ParentNotPassed), true),
            (CaseStateView::Pending { why: None }, true),
        ] {
            assert_eq!(failed(&case(1, state.clone())), expected, "{state:?}");
        }
    }
}
