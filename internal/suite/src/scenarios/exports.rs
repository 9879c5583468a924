//! Exports of every kind, several at once.

use nbd_engine::export::{AnyExport, ExportEntry, ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Info, Mode, RawClient, Rep, Request};
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::Setup;
use crate::every_command::every_command;
use crate::exports::Way;

/// The exports of a server, one for each way, named after it.
fn one_of_each(size: u64, dir: &std::path::Path) -> ExportMap {
    Way::ALL.into_iter().fold(ExportMap::new(), |exports, way| {
        exports.with(format!("{way:?}"), way.export(size, dir)).expect("a short name")
    })
}

/// A client in transmission on a named export.
#[track_caller]
fn enter(server: &crate::Server, name: &str, mode: Mode) -> RawClient {
    let mut client = RawClient::negotiate(server.endpoint());
    match mode {
        Mode::Simple => {}
        Mode::Structured => client.structured_reply().expect("they are supported"),
        Mode::Extended => client.extended_headers().expect("they are supported"),
    }
    if mode != Mode::Simple {
        client.set_meta_context(name, &["base:allocation"]).expect("contexts are supported");
    }
    client.go(name, &[Info::BLOCK_SIZE]).expect("the export is there");
    client
}

/// LIST tells all, names choose, the empty name chooses the first, an unknown name is refused and another can follow.
pub fn exports_are_listed_and_found_by_name(setup: Setup) {
    let memory = |size| AnyExport::new(Memory::new(size).expect("it is small"));
    let first = ExportEntry::new("first", memory(4096)).expect("a short name");
    let exports = ExportMap::new()
        .with_entry(first.with_description("the one").expect("a short text"))
        .with("second", memory(8192))
        .expect("a short name");
    let server = setup.serve_with(exports, ServerConfig::default());
    let mut client = RawClient::negotiate(server.endpoint());
    let list = client.list().expect("listing is allowed");
    assert_eq!(list, [("first".into(), "the one".into()), ("second".into(), String::new())]);
    assert_eq!(client.go("third", &[]).expect_err("no such export").code, Rep::ERR_UNKNOWN);
    assert_eq!(client.info("", &[]).expect("the first is there").size, 4096);
    assert_eq!(client.go("second", &[]).expect("it is there").size, 8192);
    client.write(0, b"second");
    let mut other = server.client(Mode::Simple);
    assert_eq!((other.export().size, other.read(0, 6)), (4096, vec![0; 6]));
    other.finish();
    client.finish();
    server.stop();
}

/// Every command in each form, carried out inline, by workers, as a future, on a file.
pub fn every_command_on_every_way(setup: Setup) {
    let dir = tempfile::tempdir().expect("a folder for the file");
    let server = setup.serve_with(one_of_each(1 << 20, dir.path()), ServerConfig::default());
    for (seed, mode) in [Mode::Simple, Mode::Structured, Mode::Extended].into_iter().enumerate() {
        for way in Way::ALL {
            let mut client = enter(&server, &format!("{way:?}"), mode);
            every_command(&mut client, seed as u64);
            client.finish();
        }
    }
    server.stop();
}

/// Payloads that fill many buffers, in both directions at once.
pub fn large_payloads_on_every_way(setup: Setup) {
    const LENGTH: usize = 3 << 20;
    let dir = tempfile::tempdir().expect("a folder for the file");
    let server = setup.serve_with(one_of_each(16 << 20, dir.path()), ServerConfig::default());
    let (first, second) = (Pattern(1).bytes(0, LENGTH), Pattern(2).bytes(0, LENGTH));
    for way in Way::ALL {
        let mut client = enter(&server, &format!("{way:?}"), Mode::Structured);
        client.write(0, &first);
        // Not at a page's beginning, so that nothing can be taken over.
        let cookies = client.send_all(&[
            Request::read(0, LENGTH as u64),
            Request::write(5_000_001, &second),
            Request::read(4096, 1 << 20),
        ]);
        assert_same_bytes(&client.reply_to(cookies[0]).data(), &first, "a large read");
        client.reply_to(cookies[1]).ok();
        let part = client.reply_to(cookies[2]).data();
        assert_same_bytes(&part, &first[4096..4096 + (1 << 20)], "part of it");
        assert_same_bytes(&client.read(5_000_001, LENGTH as u64), &second, "a large write");
        client.finish();
    }
    server.stop();
}
