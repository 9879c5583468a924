//! What there is to know before an export is entered.

use nbd_engine::client::{Error, Handshake, Options};
use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;

use crate::{ClientSetup, Setup};

/// Exports are listed and looked at; one that is not there is refused, and the questions go on.
pub fn a_server_is_asked_before_an_export_is_entered(clients: ClientSetup, servers: Setup) {
    let disk = |size| Memory::new(size).expect("it is small");
    let exports = ExportMap::new()
        .with("one", disk(1 << 20))
        .expect("a short name")
        .with("two", disk(2 << 20))
        .expect("a short name");
    let server = servers.serve_with(exports, ServerConfig::default());
    let options = Options::default();
    let mut haggling = clients.haggle(server.endpoint(), &options).expect("the server is there");
    assert_eq!(haggling.handshake(), Handshake::FixedNewstyle);
    assert!(haggling.is_extended() && haggling.is_structured());
    let listed = haggling.list().expect("a list");
    let names: Vec<_> = listed.iter().map(|listing| &*listing.name).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(haggling.info("two").expect("it is there").size, 2 << 20);
    assert!(matches!(haggling.info("three"), Err(Error::Refused { .. })));
    let contexts = haggling.list_meta_contexts("one", &["base:"]).expect("it is there");
    assert_eq!(contexts, ["base:allocation"]);
    haggling.abort().expect("the server listens");
    server.stop();
}
