//! The oracle finds faults that are put in on purpose.

use nbd_sim::mutation::Mutation;
use nbd_sim::plan::Plan;
use nbd_sim::run::run;
use nbd_sim::shrink::shrink;
use nbd_support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Seeds within which each fault is found, of those where it can show.
const SEEDS: usize = 100;

/// A plan for a fault: what breaks replies understands simple ones only.
fn plan(seed: u64, mutation: Mutation) -> Plan {
    let mut plan = Plan::draw(seed);
    if mutation.is_on_the_wire() {
        plan.server.structured_replies = false;
        plan.server.extended_headers = false;
    }
    plan
}

/// Whether a fault can show: doubts are reported by clients that reconnect and keep nothing, which few plans have.
fn can_show(seed: u64, mutation: Mutation) -> bool {
    let mut clients = Plan::draw(seed).clients.into_iter();
    let reports = |client: nbd_sim::plan::ClientPlan| {
        client.reconnect.is_some_and(|reconnect| reconnect.kept.is_none())
    };
    mutation != Mutation::DoubtNotReported || clients.any(reports)
}

/// The first seed that finds a fault, and what it says.
fn found(mutation: Mutation) -> Option<(u64, String)> {
    (0..).filter(|seed| can_show(*seed, mutation)).take(SEEDS).find_map(|seed| {
        let report = run(&plan(seed, mutation), Some(mutation));
        report.violations.into_iter().next().map(|violation| (seed, violation))
    })
}

#[test]
fn every_fault_that_is_put_in_is_found() {
    let _warm = run(&Plan::draw(0), None);
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match found(mutation) {
            Some((seed, violation)) => println!("{mutation}: seed {seed}: {violation}"),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn a_run_that_fails_gets_smaller() {
    let mutation = Mutation::WriteLost;
    let (seed, _) = found(mutation).expect("it is found");
    let plan = plan(seed, mutation);
    let steps = |plan: &Plan| -> usize {
        plan.clients.iter().flat_map(|client| &client.lanes).map(Vec::len).sum()
    };
    let shrunk = shrink(&plan, Some(mutation), 500).expect("it fails");
    assert!(!shrunk.report.is_good());
    assert!(steps(&shrunk.plan) <= 4, "of {} steps {} are left", steps(&plan), steps(&shrunk.plan));
}
