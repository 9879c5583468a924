//! `LIST_META_CONTEXT` and `SET_META_CONTEXT` (section 2.5, S-META-01, S-META-02).

use nbd_interop::{MIB, serve_two};
use nbd_testkit::matrix;
use nbd_testkit::raw::{Errno, Opt, RawClient, Rep, Request, meta_data};
use nbd_testkit::server::{NbdServe, Setup};

matrix! {
    tcp_and_unix: [
        set_selects_one_context_for_each_match,
    ],
    unix: [
        list_without_queries_gives_all_contexts,
        list_with_queries_gives_the_matches,
        listing_the_namespace_is_a_wildcard,
        unknown_namespaces_are_ignored,
        a_query_without_colon_is_ignored_or_invalid,
        malformed_data_is_err_invalid,
        unknown_exports_are_err_unknown,
        hundreds_of_queries_are_answered_or_too_big,
        list_before_structured_replies_is_answered_or_invalid,
        set_before_structured_replies_is_invalid_and_selects_nothing,
        set_without_queries_selects_nothing,
        set_of_a_bare_namespace_selects_nothing,
        set_of_an_unknown_leaf_selects_nothing,
        set_replaces_the_selection,
        a_failing_set_clears_the_selection,
        a_selection_for_another_export_is_void,
        a_repeated_query_selects_once,
        other_options_do_not_disturb_the_selection,
    ],
}

const BASE: &str = "base:allocation";

/// A client that agreed on structured replies.
fn negotiate(server: &NbdServe) -> RawClient {
    let mut client = RawClient::negotiate(server.endpoint());
    client.structured_reply().unwrap();
    client
}

/// Enters transmission and leaves again, having checked whether `BLOCK_STATUS` has a context to answer for.
#[track_caller]
fn assert_selected(mut client: RawClient, export: &str, selected: bool) {
    client.go(export, &[]).unwrap();
    let reply = client.call(&Request::block_status(0, 4096));
    if selected {
        reply.only_status();
    } else {
        reply.expect_error(Errno::EINVAL);
    }
    client.finish();
}

fn names(contexts: &[nbd_testkit::raw::Context]) -> Vec<&str> {
    contexts.iter().map(|context| context.name.as_str()).collect()
}

/// S-OPT-LM-01, S-OPT-LM-05, S-OPT-LM-08, S-OPT-LM-11, S-META-01, S-META-02.
fn list_without_queries_gives_all_contexts(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for export in ["", "other"] {
        let all = client.list_meta_context(export, &[]).unwrap();
        assert!(names(&all).contains(&BASE), "{all:?}");
        for context in all {
            let found = client.list_meta_context(export, &[&context.name]).unwrap();
            assert_eq!(names(&found), [&context.name]);
        }
    }
    client.finish();
}

/// S-OPT-LM-06: what matches, and nothing else.
fn list_with_queries_gives_the_matches(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(names(&client.list_meta_context("", &[BASE]).unwrap()), [BASE]);
    let mixed = ["x-nosuch:leaf", BASE, "base:nosuch"];
    assert_eq!(names(&client.list_meta_context("", &mixed).unwrap()), [BASE]);
    for near in
        ["base:nosuch", "base:alloc", "base:allocation2", "BASE:allocation", "base:ALLOCATION"]
    {
        assert_eq!(client.list_meta_context("", &[near]).unwrap(), [], "{near}");
    }
    client.finish();
}

/// S-OPT-LM-07.
fn listing_the_namespace_is_a_wildcard(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(names(&client.list_meta_context("", &["base:"]).unwrap()), [BASE]);
    client.finish();
}

/// S-OPT-LM-03, S-OPT-LM-04: a lone ACK, for LIST and SET.
fn unknown_namespaces_are_ignored(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for queries in [&["x-nosuch:leaf"][..], &["qemu:nosuch", "x-a:", "nbd-server:b"]] {
        assert_eq!(client.list_meta_context("", queries).unwrap(), []);
        assert_eq!(client.set_meta_context("", queries).unwrap(), []);
    }
    client.finish();
}

/// S-OPT-LM-10: both are allowed, success with a context is not.
fn a_query_without_colon_is_ignored_or_invalid(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for query in ["nocolon", "base", ""] {
        for option in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
            match client.option(option, &meta_data("", &[query])) {
                Ok(replies) => assert_eq!(replies, [], "{query:?}"),
                Err(error) => assert_eq!(error.code, Rep::ERR_INVALID, "{query:?}"),
            }
        }
    }
    client.finish();
}

/// S-OPT-LM-02, S-OPT-LM-14: each kind of malformed data, for both options, in sync.
fn malformed_data_is_err_invalid(setup: Setup) {
    let server = serve_two(setup);
    let good = meta_data("other", &[BASE, "base:"]);
    let count_at = 4 + "other".len();
    let query_at = count_at + 4;
    let patched = |at: usize, value: u32| {
        let mut data = good.clone();
        data[at..at + 4].copy_from_slice(&value.to_be_bytes());
        data
    };
    let cases: [(&str, Vec<u8>); 11] = [
        ("no data", vec![]),
        ("half a name length", good[..3].to_vec()),
        ("name reaches past the end", patched(0, good.len() as u32)),
        ("name of 4 GiB", patched(0, u32::MAX)),
        ("no count", good[..count_at].to_vec()),
        ("one query too few", patched(count_at, 3)),
        ("4 billion queries", patched(count_at, u32::MAX)),
        ("one query too many", patched(count_at, 1)),
        ("query reaches past the end", patched(query_at, 100)),
        ("query of 4 GiB", patched(query_at, u32::MAX)),
        ("a byte left over", [&good[..], &[0]].concat()),
    ];
    let mut client = negotiate(&server);
    for option in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
        for (what, data) in &cases {
            assert_eq!(client.option_error(option, data), Rep::ERR_INVALID, "{option:?}: {what}");
        }
    }
    assert_eq!(client.set_meta_context("other", &[BASE]).unwrap().len(), 1);
    assert_selected(client, "other", true);
}

/// S-OPT-LM-12, and such an error leaves nothing selected.
fn unknown_exports_are_err_unknown(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let error = client.list_meta_context("nosuch", &[]).unwrap_err();
    assert_eq!(error.code, Rep::ERR_UNKNOWN);
    let error = client.set_meta_context("nosuch", &[BASE]).unwrap_err();
    assert_eq!(error.code, Rep::ERR_UNKNOWN);
    client.finish();
}

/// S-OPT-LM-13.
fn hundreds_of_queries_are_answered_or_too_big(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let mut queries = vec!["x-nosuch:leaf"; 500];
    queries.push(BASE);
    match client.list_meta_context("", &queries) {
        Ok(contexts) => assert_eq!(names(&contexts), [BASE]),
        Err(error) => assert_eq!(error.code, Rep::ERR_TOO_BIG),
    }
    assert_eq!(client.set_meta_context("", &[BASE]).unwrap().len(), 1);
    client.finish();
}

/// S-OPT-LM-09.
fn list_before_structured_replies_is_answered_or_invalid(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    match client.list_meta_context("", &[]) {
        Ok(contexts) => assert!(names(&contexts).contains(&BASE)),
        Err(error) => assert_eq!(error.code, Rep::ERR_INVALID),
    }
    client.finish();
}

/// S-OPT-SM-02, S-OPT-EH-08: nothing is selected, also for structured replies that are agreed afterwards.
fn set_before_structured_replies_is_invalid_and_selects_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.set_meta_context("", &[BASE]).unwrap_err().code, Rep::ERR_INVALID);
    client.structured_reply().unwrap();
    assert_selected(client, "", false);
}

/// S-OPT-SM-04, S-OPT-LM-11: one context, its name as asked for; it works under SR and EH.
fn set_selects_one_context_for_each_match(setup: Setup) {
    let server = serve_two(setup);
    for extended in [false, true] {
        let mut client = RawClient::negotiate(server.endpoint());
        match extended {
            false => client.structured_reply().unwrap(),
            true => client.extended_headers().unwrap(),
        }
        assert_eq!(names(&client.set_meta_context("", &["x-no:such", BASE]).unwrap()), [BASE]);
        assert_selected(client, "", true);
    }
}

/// S-OPT-SM-03.
fn set_without_queries_selects_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.set_meta_context("", &[]).unwrap(), []);
    assert_selected(client, "", false);
}

/// S-OPT-SM-05, S-OPT-SM-07: the wildcard is for LIST only.
fn set_of_a_bare_namespace_selects_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.set_meta_context("", &["base:"]).unwrap(), []);
    assert_selected(client, "", false);
}

/// S-OPT-SM-06.
fn set_of_an_unknown_leaf_selects_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.set_meta_context("", &["base:nosuch"]).unwrap(), []);
    assert_selected(client, "", false);
}

/// S-OPT-SM-01: the last SET decides, in both directions.
fn set_replaces_the_selection(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.set_meta_context("", &[BASE]).unwrap();
    client.set_meta_context("", &["x-no:such"]).unwrap();
    assert_selected(client, "", false);

    let mut client = negotiate(&server);
    client.set_meta_context("other", &[BASE]).unwrap();
    client.set_meta_context("", &[BASE]).unwrap();
    assert_selected(client, "", true);
}

/// S-OPT-SM-01: a SET that fails has cleared what was selected before, whatever it failed of.
fn a_failing_set_clears_the_selection(setup: Setup) {
    let server = serve_two(setup);
    let mut truncated = meta_data("", &[BASE]);
    truncated.pop();
    for bad in [truncated, vec![], meta_data("nosuch", &[BASE])] {
        let mut client = negotiate(&server);
        client.set_meta_context("", &[BASE]).unwrap();
        client.option_error(Opt::SET_META_CONTEXT, &bad);
        assert_selected(client, "", false);
    }
}

/// S-OPT-SM-08.
fn a_selection_for_another_export_is_void(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.set_meta_context("other", &[BASE]).unwrap().len(), 1);
    assert_selected(client, "", false);
}

/// S-OPT-SM-09.
fn a_repeated_query_selects_once(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.set_meta_context("", &[BASE, BASE, BASE]).unwrap().len(), 1);
    assert_selected(client, "", true);
}

/// S-OPT-SM-10.
fn other_options_do_not_disturb_the_selection(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.set_meta_context("", &[BASE]).unwrap();
    client.list().unwrap();
    client.option_error(Opt(77), b"unknown");
    client.list_meta_context("other", &[]).unwrap();
    client.list_meta_context("", &["x-no:such"]).unwrap();
    assert_eq!(client.info("other", &[]).unwrap().size, 2 * MIB);
    client.info("nosuch", &[]).unwrap_err();
    client.go("nosuch", &[]).unwrap_err();
    assert_selected(client, "", true);
}
