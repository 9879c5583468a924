//! `nbd list`.

use nbd_testkit::peers;

use super::info::assert_same_answer;
use super::{json, nbd, nbdinfo, nbdkit, ours, ours_with_data, qemu_nbd, told};

#[track_caller]
fn compare(uri: &str) {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let theirs = nbdinfo(&peer, ["--list", "--json", uri]);
    assert_same_answer(&json(&told(["list", "--json", uri])), &json(&theirs));
}

#[test]
fn qemu_nbds_export_is_listed_as_by_nbdinfo() {
    let Some((server, _dir)) = qemu_nbd() else { return };
    compare(&server.endpoint().uri(""));
}

#[test]
fn our_own_exports_are_listed_as_by_nbdinfo() {
    compare(&ours_with_data().uri(""));
}

#[test]
fn a_server_without_exports_has_an_empty_list() {
    let args = ["--filter=exportname", "memory", "1M", "exportname-list=empty"];
    let Some(server) = nbdkit(&args) else { return };
    compare(&server.endpoint().uri(""));
}

#[test]
fn more_exports_than_a_connection_may_ask_about_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..300 {
        std::fs::write(dir.path().join(format!("disk{n}")), vec![0; n]).unwrap();
    }
    let folder = format!("dir={}", dir.path().display());
    let Some(server) = nbdkit(&["file", &folder]) else { return };
    let answer = json(&told(["list", "--json", &server.endpoint().uri("")]));
    let exports = answer["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 300);
    for export in exports {
        let name = export["export-name"].as_str().unwrap();
        assert_eq!(name, format!("disk{}", export["export-size"]));
    }
}

#[test]
fn the_export_that_the_uri_names_makes_no_difference() {
    let server = ours_with_data();
    assert_eq!(told(["list", &server.uri("nowhere")]), told(["list", &server.uri("")]));
}

#[test]
fn an_oldstyle_server_has_one_export_without_a_name() {
    let server = ours().args(["--oldstyle", "memory:1M"]).start();
    let answer = json(&told(["list", "--json", &server.uri("")]));
    assert_eq!(answer["protocol"], "oldstyle");
    assert_eq!(answer["exports"][0]["export-name"], "");
    assert_eq!(answer["exports"][0]["export-size"], 1 << 20);
}

#[test]
fn a_server_that_lists_nothing_is_named_with_a_remedy() {
    let args = ["--filter=exportname", "memory", "1M", "exportname-list=error"];
    let Some(server) = nbdkit(&args) else { return };
    let uri = server.endpoint().uri("");
    let stderr = nbd(["list", &uri]).failure();
    assert!(stderr.contains("does not list its exports"), "{stderr}");
    assert!(stderr.contains("name one in the URI"), "{stderr}");
    let stderr = nbd(["list", &server.endpoint().uri("named")]).failure();
    assert!(stderr.contains("nbd info shows the one that the URI names"), "{stderr}");
}

#[test]
fn names_cannot_command_the_terminal() {
    let server = ours().args(["--description", "\u{1b}[31mred", "a\n\"b=memory:1M"]).start();
    let text = told(["list", &server.uri("")]);
    assert!(text.contains("export=\"a\\n\\\"b\":"), "{text}");
    assert!(text.contains("[31mred") && !text.contains('\u{1b}'), "{text}");
}
