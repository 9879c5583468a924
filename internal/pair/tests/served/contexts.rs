//! Metadata contexts: what is listed, and what is selected.

use nbd_proto::server::Config;
use nbd_proto::wire::{CommandType, ErrorCode, OptionCode as Opt, OptionReplyType as Rep};

use crate::peer::*;

const LIST: Opt = Opt::LIST_META_CONTEXT;
const SET: Opt = Opt::SET_META_CONTEXT;

fn structured() -> Served {
    let mut served = negotiating(Config::default());
    served.agree(Opt::STRUCTURED_REPLY);
    served
}

fn extended() -> Served {
    let mut served = negotiating(Config::default());
    served.agree(Opt::EXTENDED_HEADERS);
    served
}

fn names(contexts: &[(u32, String)]) -> Vec<&str> {
    contexts.iter().map(|(_, name)| name.as_str()).collect()
}

/// S-OPT-LM-09, S-OPT-SM-02.
#[test]
fn contexts_need_structured_replies() {
    let mut served = negotiating(Config::default());
    for code in [LIST, SET] {
        assert_eq!(served.kinds(code, &meta("disk", &["base:allocation"])), [Rep::ERR_INVALID]);
    }
    served.agree(Opt::STRUCTURED_REPLY);
    served.enter("disk");
    assert!(served.connection.export().unwrap().contexts.is_empty());

    let mut served = negotiating(config(|config| config.structured_replies = false));
    for code in [LIST, SET, Opt::STRUCTURED_REPLY] {
        let data = if code == Opt::STRUCTURED_REPLY { vec![] } else { meta("disk", &[]) };
        assert_eq!(served.kinds(code, &data), [Rep::ERR_UNSUP]);
    }
}

/// S-OPT-LM-05 to S-OPT-LM-08, S-OPT-SM-03 to S-OPT-SM-07.
#[test]
fn an_empty_leaf_is_a_wildcard_in_list_and_nothing_in_set() {
    let all = ["base:allocation", "x-a:b", "x-a:wide"];
    for (queries, listed, selected) in [
        (&[][..], &all[..], &[][..]),
        (&["base:"], &all[..1], &[]),
        (&["x-a:"], &all[1..], &[]),
        (&["x-"], &[], &[]),
        (&["x-a"], &[], &[]),
        (&["x-a:wi"], &[], &[]),
        (&[":"], &[], &[]),
        (&["base:nosuch", "x-no:such", "nocolon"], &[], &[]),
        (&["x-a:b", "base:allocation", "x-a:b"], &all[..2], &all[..2]),
    ] {
        let mut served = extended();
        let told = served.contexts(LIST, "disk", queries);
        assert_eq!(names(&told), listed, "{queries:?}");
        assert!(told.iter().all(|(id, _)| *id == 0), "numbers mean nothing in a list");
        let told = served.contexts(SET, "disk", queries);
        assert_eq!(names(&told), selected, "{queries:?}");
        let mut ids: Vec<_> = told.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        assert_eq!(ids.len(), told.len(), "each has a number of its own");
        served.enter("disk");
        let view = served.connection.export().unwrap();
        assert!(
            view.contexts
                .iter()
                .map(|one| (one.id, &one.name))
                .eq(told.iter().map(|(id, name)| (*id, name)))
        );
    }
}

/// S-OPT-EH-09.
#[test]
fn wide_contexts_are_neither_listed_nor_selected_without_extended_headers() {
    let mut served = structured();
    assert_eq!(names(&served.contexts(LIST, "disk", &[])), ["base:allocation", "x-a:b"]);
    assert_eq!(served.contexts(LIST, "disk", &["x-a:wide"]), []);
    assert_eq!(served.contexts(SET, "disk", &["x-a:wide"]), []);
}

#[test]
fn a_context_that_an_export_has_twice_is_reported_once() {
    let mut served = extended();
    let again = served.embedder.exports[1].1.contexts[0].clone();
    served.embedder.exports[1].1.contexts.push(again);
    assert_eq!(served.contexts(LIST, "disk", &["base:"]).len(), 1);
    assert_eq!(served.contexts(SET, "disk", &["base:allocation"]).len(), 1);
}

#[test]
fn as_many_contexts_as_the_limit_allows_can_be_selected() {
    for (most, fits) in [(2, true), (1, false)] {
        let mut config = Config::default();
        config.limits.max_contexts = most;
        let mut served = negotiating(config);
        served.agree(Opt::STRUCTURED_REPLY);
        let kinds = served.kinds(SET, &meta("disk", &["base:allocation", "x-a:b"]));
        let expected = [Rep::META_CONTEXT, Rep::META_CONTEXT, Rep::ACK];
        assert_eq!(kinds, if fits { &expected[..] } else { &[Rep::ERR_TOO_BIG] });
        assert_eq!(served.contexts(LIST, "disk", &[]).len(), 2, "a list has no such limit");
    }
}

/// S-OPT-SM-01: however it fails.
#[test]
fn a_failing_set_voids_the_selection_before() {
    let long = "x".repeat(60_000);
    let trailing = [&meta("disk", &["base:allocation"])[..], b"?"].concat();
    for (data, reply) in [
        (meta("nowhere", &["base:allocation"]), Rep::ERR_UNKNOWN),
        (meta("a\0b", &["base:allocation"]), Rep::ERR_UNKNOWN),
        (trailing, Rep::ERR_INVALID),
        (vec![], Rep::ERR_INVALID),
        (meta("disk", &[&long, &long]), Rep::ERR_TOO_BIG),
    ] {
        let mut served = structured();
        assert_eq!(served.contexts(SET, "disk", &["base:allocation"]).len(), 1);
        assert_eq!(served.kinds(SET, &data), [reply]);
        served.enter("disk");
        assert!(served.connection.export().unwrap().contexts.is_empty(), "{reply}");
    }
}

/// S-OPT-SM-10.
#[test]
fn other_options_keep_the_selection() {
    let mut served = structured();
    assert_eq!(served.contexts(SET, "disk", &["base:allocation"]).len(), 1);
    served.kinds(Opt::INFO, &go("", &[]));
    served.kinds(Opt::GO, &go("nowhere", &[]));
    served.kinds(Opt::LIST, &[]);
    served.kinds(LIST, &meta("", &["x-a:b"]));
    served.kinds(LIST, &meta("nowhere", &[]));
    served.kinds(LIST, &[]);
    served.kinds(Opt(77), b"?");
    served.enter("disk");
    assert_eq!(served.connection.export().unwrap().contexts.len(), 1);
}

/// S-OPT-SM-08: what was selected for one export is void on another.
#[test]
fn a_selection_holds_for_the_export_that_it_was_made_for() {
    let mut served = extended();
    assert_eq!(served.contexts(SET, "disk", &["base:allocation"]).len(), 1);
    served.enter("");
    assert!(served.connection.export().unwrap().contexts.is_empty());
    let status = plain(CommandType::BLOCK_STATUS, 0, 512);
    assert_eq!(served.ask(&status, &[])[0].error(), ErrorCode::EINVAL);
}
