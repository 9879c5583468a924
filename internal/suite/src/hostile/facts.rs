//! What a server says of its export.

use nbd_engine::client::{Error, Flags};
use nbd_proto::wire::ErrorCode;
use nbd_testkit::assert_same_bytes;
use nbd_testkit::raw::{BlockSize, Cmd, Errno, Mode, flag};
use nbd_testkit::scripted::{Answer, Export, Script};

use super::table::{MODES, connect, entered, expect_alive, config, which};
use crate::ClientSetup;

/// Obligations that can't be met end the session; a preferred size is a hint, and is corrected (C-OPT-GO-25).
pub fn impossible_sizes_are_refused_and_hints_corrected(setup: ClientSetup) {
    let sizes = |minimum, preferred, maximum| BlockSize { minimum, preferred, maximum };
    let told = |sizes| {
        let mut export = Export::new(Mode::Structured);
        export.block_size = Some(sizes);
        Script::new(export).enter()
    };
    for sizes in [
        sizes(0, 4096, 1 << 20),
        sizes(3, 4096, 1 << 20),
        sizes(u32::MAX, 4096, 1 << 20),
        sizes(1 << 17, 1 << 17, 1 << 20),
        sizes(1, 4096, 0),
        sizes(4096, 4096, 512),
        sizes(0, 0, 0),
    ] {
        let server = setup.play([told(sizes).silence()]);
        let error = setup.connect(server.endpoint(), &config()).err().expect("impossible sizes");
        let Error::Protocol { source, .. } = &error else { panic!("{sizes:?}: {error:?}") };
        assert!(which!(PeerMisbehaved(Peer::BadBlockSize(_)))(source), "{sizes:?}: {source:?}");
        assert!(server.finish()[0].left, "{sizes:?}");
    }
    for (sizes, preferred) in [
        (sizes(1, 0, 1 << 20), 512),
        (sizes(1, 3, 1 << 20), 512),
        (sizes(1, 5000, u32::MAX), 8192),
        (sizes(1, u32::MAX, 1 << 16), 1 << 16),
    ] {
        let what = format!("{sizes:?}");
        let server = setup.play([told(sizes).serve()]);
        let client = connect(setup, &server, &config(), &what);
        assert_eq!(client.export().block_size().preferred(), preferred, "{what}");
        expect_alive(&*client, &what);
        drop(client);
        server.finish();
    }
}

/// Sizes have 64 bits, and nothing overflows at their end.
pub fn an_export_may_have_any_size(setup: ClientSetup) {
    for mode in MODES {
        for size in [0, 1, 511, i64::MAX as u64, 1 << 63, u64::MAX] {
            let what = format!("{mode:?}, {size} bytes");
            let mut export = Export::new(mode);
            export.size = size;
            let server = setup.play([Script::new(export).enter().serve()]);
            let client = connect(setup, &server, &config(), &what);
            assert_eq!(client.export().size(), size, "{what}");
            let at = size.saturating_sub(300);
            let mut found = [0; 512];
            let count = client.read_at(&mut found, at).expect(&what);
            assert_eq!(count as u64, size - at, "{what}");
            assert_same_bytes(&found[..count], &Export::CONTENT.bytes(at, count), &what);
            for beyond in [
                client.read(at, 512, Flags::empty()).map(drop),
                client.read(u64::MAX, 2, Flags::empty()).map(drop),
                client.write_all_at(&[0; 2], u64::MAX),
                client.trim(u64::MAX, u64::MAX, Flags::empty()),
                client.write_zeroes(1, u64::MAX, Flags::empty()),
                client.cache(u64::MAX - 1, 2),
            ] {
                assert!(matches!(beyond, Err(Error::Invalid(_))), "{what}: {beyond:?}");
            }
            assert!(client.is_connected(), "{what}");
            drop(client);
            server.finish();
        }
    }
}

/// Requests are spread over several connections only where a flush on one covers them all (C-XF-11).
pub fn without_multi_conn_there_is_one_connection(setup: ClientSetup) {
    const WANTED: usize = 4;
    for (flags, expected) in [(flag::CAN_MULTI_CONN, WANTED), (0, 1)] {
        let mut export = Export::new(Mode::Structured);
        export.flags = export.flags & !flag::CAN_MULTI_CONN | flags;
        let server = setup.play(vec![Script::new(export).enter().serve(); WANTED]);
        let config = config().with_connections(WANTED);
        let client = connect(setup, &server, &config, "a proper server");
        assert_eq!(client.connections(), expected);
        for _ in 0..WANTED {
            expect_alive(&*client, "on each connection");
        }
        assert_eq!(server.accepted(), expected, "the server has seen no other");
        drop(client);
        assert_eq!(server.finish().len(), expected);
    }
}

/// A server may learn of lost data on the connection that wrote it, and on no other: a flush goes to every connection
/// that has written since its last successful one, and fails if any of them does (C-XF-11).
pub fn a_flush_covers_every_connection_that_wrote(setup: ClientSetup) {
    const CONNECTIONS: usize = 4;
    for (mode, failure) in [
        (Mode::Simple, Answer::simple(Errno::EIO, &[])),
        (Mode::Structured, Answer::error(Errno::EIO, "lost").done()),
        (Mode::Extended, Answer::error(Errno::EIO, "lost").done()),
    ] {
        for failing in 0..CONNECTIONS - 1 {
            let what = format!("{mode:?}, the flush on connection {failing} fails");
            let script = |connection: usize| {
                let script = entered(mode);
                // Requests take turns. The last connection does not write, and is not asked to flush.
                match connection {
                    _ if connection == CONNECTIONS - 1 => script.request(Cmd::DISC),
                    _ if connection == failing => script
                        .request(Cmd::WRITE)
                        .obey()
                        .request(Cmd::FLUSH)
                        .answer(failure.clone())
                        .request(Cmd::FLUSH)
                        .obey()
                        .request(Cmd::DISC),
                    _ => script
                        .request(Cmd::WRITE)
                        .obey()
                        .request(Cmd::FLUSH)
                        .obey()
                        .request(Cmd::DISC),
                }
            };
            let server = setup.play((0..CONNECTIONS).map(script));
            let config = config().with_connections(CONNECTIONS);
            let client = connect(setup, &server, &config, &what);
            for _ in 0..CONNECTIONS - 1 {
                client.write_all_at(&[1; 512], 0).expect(&what);
            }
            let error = client.flush().expect_err(&what);
            let Error::Command { error, .. } = error else { panic!("{what}: {error:?}") };
            assert_eq!(error.code, ErrorCode::EIO, "{what}");
            client.flush().expect("the server has no more to report");
            drop(client);
            server.finish();
        }
    }
}

/// What the server says on the first connection has to hold on all of them: else a flush would cover too little, or a
/// request be refused on one connection that is fine on another (C-XF-11).
pub fn a_connection_without_multi_conn_is_no_further_one(setup: ClientSetup) {
    let script = |change: fn(&mut Export)| {
        let mut export = Export::new(Mode::Structured);
        export.flags |= flag::CAN_MULTI_CONN;
        change(&mut export);
        Script::new(export).enter().silence()
    };
    let config = config().with_connections(2);
    for other in [
        (|export| export.flags &= !flag::CAN_MULTI_CONN) as fn(&mut Export),
        |export| export.flags &= !flag::SEND_TRIM,
        |export| export.size -= 512,
        |export| {
            export.block_size = Some(BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 });
        },
    ] {
        let server = setup.play([script(|_| {}), script(other)]);
        let error = setup.connect(server.endpoint(), &config).err().expect("they are not alike");
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        server.finish();
    }
    let server = setup.play([script(|_| {}), script(|export| export.size += 512)]);
    let client = connect(setup, &server, &config, "the export has grown");
    assert_eq!(client.connections(), 2);
    drop(client);
    server.finish();
}
