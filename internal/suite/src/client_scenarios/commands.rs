//! Requests.

use nbd_engine::client::{CommandError, Error, Flags, ClientConfig};
use nbd_engine::export::{ExportError, Memory};
use nbd_engine::proto::wire::ErrorCode;
use nbd_engine::server::ServerConfig;

use crate::exports::{Call, Scripted};
use crate::{ClientSetup, Setup};

const SIZE: u64 = 1 << 20;

/// Every command, and what it does to the disk; then the client leaves, and takes no more requests.
pub fn every_command_does_what_it_says(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Memory::new(SIZE).expect("it is small"));
    let config = ClientConfig::new().with_contexts(["base:allocation"]);
    let client = clients.connect(server.endpoint(), &config).expect("the server is there");
    assert_eq!(client.export().size(), SIZE);
    assert!(client.export().is_extended() && client.export().has_context("base:allocation"));

    client.write(4096, [1; 4096].to_vec(), Flags::FUA).expect("a write");
    client.write(8192, vec![2; 4096], Flags::empty()).expect("a write");
    let (lent, written) = client.start_write(12288, vec![3; 4096], Flags::empty()).wait();
    written.expect("a write");
    assert_eq!(lent.len(), 4096, "the buffer comes back");
    client.flush().expect("a flush");
    client.start_flush().wait().1.expect("a flush");

    let mut found = [9; 8192];
    client.read_exact_at(&mut found, 0).expect("a read");
    assert_eq!((found[..4096].to_vec(), found[4096]), (vec![0; 4096], 1));
    let count = client.read_at(&mut found, SIZE - 512).expect("a read at the end");
    assert_eq!(count, 512);
    assert_eq!(client.read(8192, 4096, Flags::empty()).expect("a read"), vec![2; 4096]);
    let (lent, read) = client.read_into(12288, vec![0; 4096], Flags::empty());
    read.expect("a read");
    assert_eq!(lent, [3; 4096]);
    let (lent, read) = client.start_read(12288, vec![0; 4096], Flags::DF).wait();
    read.expect("a read");
    assert_eq!(lent, [3; 4096]);

    client.trim(4096, 4096, Flags::empty()).expect("a trim");
    client.write_zeroes(8192, 4096, Flags::NO_HOLE).expect("zeroes");
    client.cache(0, SIZE).expect("a cache");
    assert_eq!(client.read(8192, 4096, Flags::empty()).expect("a read"), vec![0; 4096]);
    let status = client.block_status(0, SIZE, Flags::empty()).expect("a block status");
    assert_eq!(&*status[0].context, "base:allocation");
    assert_eq!(status[0].extents.iter().map(|extent| extent.length).sum::<u64>(), SIZE);

    assert!(matches!(client.read(SIZE, 1, Flags::empty()), Err(Error::Invalid(_))));
    assert!(client.is_connected());
    client.disconnect();
    assert!(!client.is_connected());
    assert!(matches!(client.flush(), Err(Error::Disconnected { .. })));
    server.stop();
}

/// A request that fails on the server fails for whoever asked, in the server's words, and nobody else.
pub fn errors_of_an_export_are_told(clients: ClientSetup, servers: Setup) {
    for way in Scripted::WAYS {
        let act = |call| match call {
            Call::Write { .. } => Err(ExportError::no_space()),
            Call::Read => Err(ExportError::new(ErrorCode::EPERM, "not today")),
            _ => Ok(()),
        };
        let (_disk, exports) = Scripted::new(way).doing(act).share();
        let server = servers.serve_with(exports, ServerConfig::default());
        let client = clients.client(&server);
        let told = |result| match result {
            Err(Error::Command { error: CommandError { code, message, .. }, .. }) => (code, message),
            other => panic!("{other:?}"),
        };
        let (_, read) = client.read_into(0, vec![0; 512], Flags::empty());
        assert_eq!(told(read), (ErrorCode::EPERM, "not today".into()), "{way:?}");
        let write = client.write_all_at(&[1; 100_000], 0);
        assert_eq!(told(write), (ErrorCode::ENOSPC, "no space is left".into()), "{way:?}");
        client.flush().expect("nothing is wrong with flushes");
        drop(client);
        server.stop();
    }
}
