//! nbdinfo's spellings: `nbd info --list` and `nbd info --map`, and what it paints.

use nbd_testkit::peers;
use nbd_testkit::process::run;

use super::info::assert_same_answer;
use super::{LIMIT, json, nbd, nbdinfo, nbdkit, ours_with_data, qemu_nbd, told};

#[test]
fn the_list_is_that_of_nbd_list_and_of_nbdinfo() {
    let server = ours_with_data();
    let uri = server.uri("other");
    for flag in ["--list", "-L"] {
        for json in [&[][..], &["--json"]] {
            let ours = [&["info", flag], json, &[&uri]].concat();
            assert_eq!(told(ours), told([&["list"], json, &[&uri]].concat()));
        }
    }
    let Some(peer) = peers::require("nbdinfo") else { return };
    for content in [&[][..], &["--content"], &["--no-content"]] {
        let args = [&["--list", "--json"], content, &[&uri]].concat();
        let ours = told([&["info"][..], &args].concat());
        assert_same_answer(&json(&ours), &json(&nbdinfo(&peer, args)));
    }
}

#[test]
fn maps_and_totals_are_those_of_nbd_map_and_of_nbdinfo() {
    let server = ours_with_data();
    let uri = server.uri("");
    let peer = peers::require("nbdinfo");
    for context in [None, Some("base:allocation"), Some("qemu:dirty-bitmap:b0")] {
        let map = context.map_or("--map".to_owned(), |context| format!("--map={context}"));
        for more in [&[][..], &["--totals"], &["--total"]] {
            let args = [&[map.as_str()], more, &[&uri]].concat();
            let ours = told([&["info"][..], &args].concat());
            if let Some(peer) = &peer {
                assert_eq!(ours, nbdinfo(peer, args));
            }
            let context = context.unwrap_or("base:allocation");
            let totals = more.iter().map(|_| "--totals");
            let map = ["map", "-c", context, uri.as_str()].into_iter().chain(totals);
            assert_eq!(ours, told(map));
        }
        let written = json(&told(["info", &map, "--json", &uri]));
        assert!(written[0]["length"].is_number(), "{written}");
    }
}

#[test]
fn what_makes_no_sense_together_is_refused() {
    for arguments in [
        &["--list", "--map"][..],
        &["--list", "--size"],
        &["--map", "--can", "trim"],
        &["--list", "--uri"],
        &["--totals"],
        &["--map=nonsense"],
    ] {
        let finished = nbd(["info"].iter().chain(arguments).chain([&"nbd://localhost"]));
        assert_eq!(finished.status.code(), Some(64), "{arguments:?}");
    }
}

/// Each line without its colours, and whether it had any. nbdinfo begins and ends colours wherever it likes.
fn painted(text: &str) -> Vec<(String, bool)> {
    let mut on = false;
    let lines = text.lines().map(|line| {
        let (mut plain, mut painted, mut rest) = (String::new(), false, line);
        while let Some((before, code)) = rest.split_once("\x1b[") {
            painted |= on && !before.is_empty();
            plain.push_str(before);
            let (code, after) = code.split_once('m').expect("a whole sequence");
            (on, rest) = (code != "0", after);
        }
        painted |= on && !rest.is_empty();
        (plain + rest, painted)
    });
    lines.filter(|(line, _)| !line.is_empty()).collect()
}

#[test]
fn colours_are_on_the_lines_where_nbdinfo_has_them() {
    let Some((server, _dir)) = qemu_nbd() else { return };
    let Some(peer) = peers::require("nbdinfo") else { return };
    let Some(kit) = nbdkit(&["--filter=nozero", "--no-sr", "-r", "null", "1M"]) else { return };
    let young = |(line, _): &(String, bool)| {
        !line.starts_with("protocol") && !line.contains("can_block_status_payload")
    };
    let (disk, plain) = (server.endpoint().uri("disk"), kit.endpoint().uri(""));
    for args in [
        &["--no-content", &disk][..],
        &["--no-content", &plain],
        &["--list", &disk],
        &["--map", &disk],
        &["--map", "--totals", &disk],
        &["--map=qemu:dirty-bitmap:b0", &disk],
        &["--map=qemu:allocation-depth", &disk],
        &["--size", &disk],
        &["--map", "--json", &disk],
    ] {
        let args = || ["--color"].iter().chain(args).copied();
        let ours = painted(&told(["info"].into_iter().chain(args())));
        let theirs = painted(&nbdinfo(&peer, args()));
        let same = |(ours, theirs): (&(String, bool), &(String, bool))| ours.1 == theirs.1;
        if args().any(|arg| arg == "--json") {
            assert!(ours.iter().zip(&theirs).all(same));
            continue;
        }
        // URIs are written differently.
        let kept = |lines: Vec<(String, bool)>| -> Vec<(String, bool)> {
            lines.into_iter().filter(young).filter(|(line, _)| !line.contains("uri:")).collect()
        };
        assert_eq!(kept(ours), kept(theirs));
    }
}

#[test]
fn there_are_no_colours_without_a_terminal_unless_asked_for() {
    let server = ours_with_data();
    let uri = server.uri("");
    for subcommand in ["info", "list", "map"] {
        let plain = told([subcommand, &uri]);
        assert!(!plain.contains('\x1b'), "{plain}");
        for flag in ["--color", "--colour", "--colors", "--colours"] {
            let coloured = told([subcommand, flag, &uri]);
            assert!(coloured.contains('\x1b'), "{coloured}");
            let lines = painted(&coloured).into_iter().map(|(line, _)| line + "\n");
            assert_eq!(lines.collect::<String>(), plain);
        }
        for flag in ["--no-color", "--no-colour", "--no-colors", "--no-colours"] {
            assert_eq!(told([subcommand, "--color", flag, &uri]), plain);
        }
        let mut none = super::command([subcommand, "--color", &uri]);
        let asked_for = run(none.env("NO_COLOR", "1"), LIMIT).success();
        assert!(asked_for.contains('\x1b'), "what is asked for goes first");
    }
}
