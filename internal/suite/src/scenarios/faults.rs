//! Exports that break.

use nbd_engine::export::{self, AsyncExport, Export, ExportFuture, ExportMap, Handle, Memory};
use nbd_engine::server::Settings;
use nbd_testkit::raw::{Errno, Mode, RawClient, Request};

use crate::{Server, Setup};

/// Reads below this offset panic.
const SAFE: u64 = 4096;

struct Panics {
    inline: bool,
}

impl Export for Panics {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> export::Result<()> {
        assert!(offset >= SAFE, "an export that panics, which is part of this test");
        buffer.fill(0);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.inline
    }
}

impl AsyncExport for Panics {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> ExportFuture<'a> {
        Box::pin(async move { Export::read(self, buffer, offset) })
    }
}

fn enter(server: &Server, name: &str) -> RawClient {
    let mut client = RawClient::negotiate(server.endpoint());
    client.go(name, &[]).expect("it is there");
    client
}

/// Where a worker panics the request fails. Where the connection's own thread or task does, that connection may end, but
/// nothing else: others go on, the place is given back, and the server can be shut down.
pub fn a_panic_of_an_export_harms_no_other_connection(setup: Setup) {
    let exports = ExportMap::new()
        .with("sound", Memory::new(1 << 20).expect("it is small"))
        .with("workers", Panics { inline: false })
        .with("inline", Panics { inline: true })
        .with_handle("async", None, Handle::new_async(Panics { inline: false }));
    let server = setup.serve_with(exports, Settings::default());
    let mut witness = server.client(Mode::Simple);

    let mut client = enter(&server, "workers");
    client.call(&Request::read(0, 512)).expect_error(Errno::EIO);
    client.read(SAFE, 512);
    client.finish();

    for name in ["inline", "async"] {
        let mut client = enter(&server, name);
        client.read(SAFE, 512);
        client.send(&Request::read(0, 512));
        if let Some(reply) = client.next_reply() {
            reply.expect_error(Errno::EIO);
            client.finish();
        }
        witness.read(0, 512);
        enter(&server, name).finish();
    }
    server.wait_for_connections(1);
    witness.finish();
    server.stop();
}
