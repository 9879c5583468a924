//! Runs of many seeds.

use nbd_sim::plan::{Op, Plan};
use nbd_sim::run::{Report, run};
use nbd_sim::shrink::shrink;
use nbd_sim::world;
use nbd_support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is made once in a process, such as what logs events, is none of the first run's.
fn warm_up() {
    let _report = run(&Plan::draw(0), None);
}

fn check(seed: u64) -> Report {
    let plan = Plan::draw(seed);
    let report = run(&plan, None);
    if !report.is_good() {
        let smaller = shrink(&plan, None, 200).map_or(report, |shrunk| shrunk.report);
        panic!(
            "seed {seed}: {:#?}\nto see it: cargo run -p nbd-sim -- --seed {seed}",
            smaller.violations
        );
    }
    report
}

/// Runs 400 seeds, always the same, so that a failure is one of what was changed.
fn check_all(first: u64) {
    warm_up();
    let (mut requests, mut checked, mut cuts, mut replaced) = (0, 0, 0, 0);
    for seed in first..first + 400 {
        let counts = check(seed).counts;
        requests += counts.requests;
        checked += counts.cells_checked;
        cuts += counts.power_cuts;
        replaced += counts.servers;
    }
    // The runs are about something.
    assert!(requests > 15_000 && checked > 15_000, "{requests} requests, {checked} cells");
    assert!(cuts > 400 && replaced > cuts, "{cuts} power cuts, {replaced} servers replaced");
}

/// Parts of one test, so that they can run side by side.
macro_rules! fixed_seeds {
    ($($name:ident: $first:literal,)*) => { $(
        #[test]
        fn $name() {
            check_all($first);
        }
    )* };
}

fixed_seeds! {
    requests_end_once_and_what_was_flushed_is_there_in_seeds_from_0: 0,
    requests_end_once_and_what_was_flushed_is_there_in_seeds_from_400: 400,
    requests_end_once_and_what_was_flushed_is_there_in_seeds_from_800: 800,
    requests_end_once_and_what_was_flushed_is_there_in_seeds_from_1200: 1200,
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 5, 798] {
        let mut traces = Vec::new();
        for _ in 0..2 {
            world::record();
            let report = run(&Plan::draw(seed), None);
            traces.push((world::recorded(), report.nanos, report.counts));
        }
        assert!(traces[0].0.len() > 20, "seed {seed} does hardly anything");
        assert!(traces[0] == traces[1], "seed {seed}");
    }
}

/// A connection that waits for itself.
#[test]
fn a_request_of_most_of_the_servers_memory_follows_small_ones() {
    for seed in [1012, 1373, 2534, 2793, 2875, 2946] {
        check(seed);
    }
}

/// Connections that wait for each other.
#[test]
fn a_request_of_all_of_the_servers_memory_is_served_beside_others() {
    check(798);
}

/// A request that timed out before it was sent, and was sent later.
#[test]
fn a_request_that_timed_out_unsent_stays_unsent() {
    check(14);
}

/// A write with FUA that was carried out, whose flush was answered by the server's shutdown, and that was never sent again.
#[test]
fn a_request_that_a_shutdown_answered_may_have_been_carried_out() {
    check(414_045);
}

/// Leaders of two connections that kept each other awake: while the server does not read, and while there is none.
#[test]
fn leaders_of_several_connections_do_not_keep_each_other_awake() {
    for seed in [2, 19, 30, 46, 159, 291] {
        check(seed);
    }
}

#[test]
fn a_plan_without_some_of_its_parts_is_smaller_and_runs() {
    let plan = Plan::draw(7);
    let parts = plan.parts();
    let steps = |plan: &Plan| -> usize {
        plan.clients.iter().flat_map(|client| &client.lanes).map(Vec::len).sum()
    };
    assert!(parts.len() > steps(&plan));
    for (index, part) in parts.iter().enumerate() {
        let smaller = plan.without(&parts[..=index]);
        assert!(steps(&smaller) <= steps(&plan), "{part:?}");
        let flushes = |plan: &Plan| {
            let steps = plan.clients.iter().flat_map(|client| &client.lanes).flatten();
            steps.filter(|step| step.op == Op::Flush).count()
        };
        assert!(flushes(&smaller) <= flushes(&plan));
    }
    let nothing = plan.without(&parts);
    assert_eq!((steps(&nothing), nothing.outages.len()), (0, 0));
    let report = run(&nothing, None);
    assert!(report.is_good(), "{:?}", report.violations);
}
