//! Making a run that fails smaller.

use crate::mutation::Mutation;
use crate::plan::{Part, Plan};
use crate::run::{Report, run};

/// The smallest plan that was found to fail, how it fails, and the parts that it does without.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Shrunk {
    /// What is left.
    pub plan: Plan,
    /// How that fails.
    pub report: Report,
    /// Runs that it took.
    pub runs: u32,
}

/// Leaves out parts of a plan that fails as long as it does, with at most `max_runs` runs. `None` if it does not fail.
#[must_use]
pub fn shrink(plan: &Plan, mutation: Option<Mutation>, max_runs: u32) -> Option<Shrunk> {
    let mut report = run(plan, mutation);
    if report.is_good() {
        return None;
    }
    let mut runs = 1;
    let mut left_out: Vec<Part> = Vec::new();
    let mut candidates = plan.parts();
    // Large groups first, then single parts, until nothing more can go.
    let mut size = candidates.len().div_ceil(2);
    while size > 0 && runs < max_runs {
        let mut smaller = false;
        let mut rest = Vec::new();
        for group in candidates.chunks(size) {
            if runs >= max_runs {
                rest.extend_from_slice(group);
                continue;
            }
            let mut attempt = left_out.clone();
            attempt.extend_from_slice(group);
            runs += 1;
            let outcome = run(&plan.without(&attempt), mutation);
            if outcome.is_good() {
                rest.extend_from_slice(group);
            } else {
                (left_out, report, smaller) = (attempt, outcome, true);
            }
        }
        candidates = rest;
        if size == 1 && !smaller {
            break;
        }
        size = if size == 1 { 1 } else { size / 2 };
    }
    Some(Shrunk { plan: plan.without(&left_out), report, runs })
}
