//! Before an export is entered, by hand and not.

use std::os::unix::net::UnixStream;

use nbd_engine::client::{ClientConfig, Error, Flags, Handshake, InfoType};
use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;

use crate::client::NegotiationUnderTest;
use crate::{ClientSetup, Place, Server, Setup, Transport};

const ALLOCATION: &str = "base:allocation";

fn exports() -> ExportMap {
    let disk = |size| Memory::new(size).expect("it is small");
    let exports = ExportMap::new().with("one", disk(1 << 20)).expect("a short name");
    exports.with("two", disk(2 << 20)).expect("a short name")
}

fn negotiate(
    clients: ClientSetup,
    server: &Server,
    config: &ClientConfig,
) -> Box<dyn NegotiationUnderTest> {
    clients.negotiate(server.endpoint(), config).expect("the server is there")
}

/// Nothing is agreed on but what is asked for by hand.
fn by_hand() -> ClientConfig {
    ClientConfig::new().with_structured_replies(false).with_extended_headers(false)
}

/// Exports are listed and looked at; one that is not there is refused, and the questions go on.
pub fn a_server_is_asked_before_an_export_is_entered(clients: ClientSetup, servers: Setup) {
    let server = servers.serve_with(exports(), ServerConfig::default());
    let mut negotiation = negotiate(clients, &server, &ClientConfig::default());
    assert_eq!(negotiation.handshake(), Handshake::FixedNewstyle);
    assert!(negotiation.is_extended() && negotiation.is_structured());
    assert_eq!(negotiation.is_tls(), clients.transport() == Transport::Tls);
    let listed = negotiation.list().expect("a list");
    let names: Vec<_> = listed.iter().map(|listing| &*listing.name).collect();
    assert_eq!(names, ["one", "two"]);
    let two = negotiation.info("two").expect("it is there");
    assert_eq!((two.size(), two.name()), (2 << 20, "two"));
    assert!(two.advertised_block_size().is_some() && two.contexts().is_empty());
    assert!(matches!(negotiation.info("three"), Err(Error::Refused { .. })));
    let contexts = negotiation.list_meta_contexts("one", &["base:"]).expect("it is there");
    assert_eq!(contexts, [ALLOCATION]);
    negotiation.abort().expect("the server listens");
    server.stop();
}

/// A person is shown what there is, chooses, is refused, chooses again, and enters: all on one connection.
pub fn an_export_is_chosen_and_entered_on_one_connection(clients: ClientSetup, servers: Setup) {
    let server = servers.serve_with(exports(), ServerConfig::default());
    let config = ClientConfig::new().with_contexts([ALLOCATION]);
    let mut negotiation = negotiate(clients, &server, &config);
    let listed = negotiation.list().expect("a list");
    let refused = negotiation.enter("three").err().expect("there is no such export");
    let named = matches!(&refused, Error::Refused { export: Some(name), .. } if name == "three");
    assert!(named, "{refused:?}");
    let text = refused.to_string();
    assert!(text.starts_with(&negotiation.peer()) && text.contains("\"three\""), "{text}");
    assert_eq!(negotiation.info("one").expect("it goes on").size(), 1 << 20);
    let bad = negotiation.enter("\0").err().expect("no name");
    assert!(matches!(bad, Error::InvalidOption(_)), "{bad:?}");

    let client = negotiation.enter(&listed[1].name).expect("it is there");
    assert_eq!((client.export().size(), client.export().name()), (2 << 20, "two"));
    assert!(client.export().has_context(ALLOCATION));
    client.write_all_at(&[5; 512], 0).expect("a write");
    assert_eq!(client.read(0, 512, Flags::empty()).expect("a read"), vec![5; 512]);
    server.wait_for_connections(1);
    let over = negotiation.list().expect_err("the connection is the client's");
    assert!(matches!(over, Error::Entered { .. }), "{over:?}");
    assert!(over.to_string().starts_with("an export was entered"), "{over}");
    assert!(matches!(negotiation.enter("one").err(), Some(Error::Entered { .. })));
    negotiation.abort().expect("there is nothing to abort");
    client.flush().expect("the client goes on");
    client.disconnect();
    server.stop();
}

/// Each option when it is wanted, with the items that are wanted, over a stream of one's own.
pub fn every_option_can_be_sent_by_hand(clients: ClientSetup, servers: Setup) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let dir = tempfile::tempdir().expect("a folder");
    let place = vec![Place::Stream(theirs)];
    let mut server = servers.serve_at(exports(), ServerConfig::default(), place, dir);
    let negotiation = clients.adapter().negotiate_over(ours, &by_hand());
    let mut negotiation = negotiation.expect("the server is there");
    assert!(!negotiation.is_structured() && !negotiation.is_extended());
    let early = negotiation.set_meta_contexts("one", &[ALLOCATION]);
    assert!(matches!(early, Err(Error::InvalidOption(_))), "{early:?}");
    negotiation.structured_replies().expect("the server has them");
    assert!(negotiation.is_structured() && !negotiation.is_extended());
    let again = negotiation.structured_replies();
    assert!(matches!(again, Err(Error::InvalidOption(_))), "{again:?}");
    negotiation.extended_headers().expect("the server has them");
    assert!(negotiation.is_extended());

    let plain = negotiation.info_with("one", &[]).expect("it is there");
    assert_eq!((plain.size(), plain.canonical_name()), (1 << 20, None));
    let named = negotiation.info_with("one", &[InfoType::NAME]).expect("it is there");
    assert_eq!(named.canonical_name(), Some("one"));
    let twice = negotiation.info_with("one", &[InfoType::NAME, InfoType::NAME]);
    assert!(matches!(twice, Err(Error::InvalidOption(_))), "{twice:?}");
    let refused = negotiation.go("three", &[]).err();
    assert!(matches!(refused, Some(Error::Refused { .. })), "{refused:?}");
    let none = negotiation.set_meta_contexts("one", &["none:such"]).expect("none of them");
    assert!(none.is_empty());
    let contexts = negotiation.set_meta_contexts("one", &[ALLOCATION]).expect("it has one");
    assert_eq!(contexts, [ALLOCATION]);
    let client = negotiation.go("one", &[InfoType::BLOCK_SIZE]).expect("it is there");
    assert!(client.export().is_extended() && client.export().has_context(ALLOCATION));
    assert!(client.export().advertised_block_size().is_some());
    client.block_status(0, 512, Flags::empty()).expect("a block status");
    client.disconnect();
    server.wait_for_the_end();
}

/// The oldest way to enter, by choice; it can only be refused by hanging up.
pub fn an_export_is_entered_by_its_name_alone(clients: ClientSetup, servers: Setup) {
    let server = servers.serve_with(exports(), ServerConfig::default());
    let mut negotiation = negotiate(clients, &server, &by_hand());
    negotiation.structured_replies().expect("the server has them");
    let client = negotiation.export_name("two").expect("it is there");
    assert_eq!(client.export().size(), 2 << 20);
    assert!(client.export().is_structured() && client.export().contexts().is_empty());
    assert_eq!(client.read(0, 512, Flags::empty()).expect("a read"), vec![0; 512]);
    drop(client);
    let mut negotiation = negotiate(clients, &server, &by_hand());
    let refused = negotiation.export_name("three").err().expect("there is no such export");
    assert!(matches!(refused, Error::Refused { export: Some(_), .. }), "{refused:?}");
    drop(negotiation);
    let mut negotiation = negotiate(clients, &server, &ClientConfig::default());
    let extended = negotiation.export_name("two").err().expect("not with extended headers");
    assert!(matches!(extended, Error::InvalidOption(_)), "{extended:?}");
    assert!(negotiation.list().is_ok(), "nothing was sent");
    negotiation.abort().expect("the server listens");
    server.stop();
}

/// Entering makes as many connections as are configured, all like the first one, however that was negotiated.
pub fn entering_makes_as_many_connections_as_are_configured(clients: ClientSetup, servers: Setup) {
    let server = servers.serve_with(exports(), ServerConfig::default());
    let mut negotiation = negotiate(clients, &server, &by_hand().with_connections(3));
    negotiation.structured_replies().expect("the server has them");
    negotiation.set_meta_contexts("two", &[ALLOCATION]).expect("it has one");
    let client = negotiation.enter("two").expect("it is there");
    assert_eq!(client.connections(), 3);
    server.wait_for_connections(3);
    assert!(client.export().is_structured() && !client.export().is_extended());
    for connection in 0..6 {
        // Requests take turns.
        let found = client.block_status(0, 2 << 20, Flags::empty()).expect("a block status");
        assert_eq!(&*found[0].context, ALLOCATION, "{connection}");
    }
    client.disconnect();
    server.stop();
}
