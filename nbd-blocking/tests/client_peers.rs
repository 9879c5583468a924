//! The client against other implementations' servers.

use std::thread;
use std::time::Duration;

use nbd_blocking::client::{ClientConfig, Error, Flags, Handshake, InvalidRequest, Pending, Uri};
use nbd_blocking::{Client, Negotiation};
use nbd_support::bounded;
use nbd_testkit::Pattern;
use nbd_testkit::peers::{PeerServer, require};

fn uri(server: &PeerServer, export: &str) -> Uri {
    server.endpoint().uri(export).parse().unwrap()
}

/// Every combination of headers that a client can ask for.
fn headers() -> impl Iterator<Item = (bool, ClientConfig)> {
    [(false, false), (true, false), (true, true)].into_iter().map(|(structured, extended)| {
        let config =
            ClientConfig::new().with_structured_replies(structured).with_extended_headers(extended);
        (structured, config.with_contexts(["base:allocation"]))
    })
}

fn write_and_read(client: &Client) {
    let data = Pattern(1).bytes(0, 100_000);
    client.write_all_at(&data, 4096).unwrap();
    assert_eq!(client.read(4096, data.len(), Flags::empty()).unwrap(), data);
    client.flush().unwrap();
    client.write_zeroes(0, 1 << 20, Flags::empty()).unwrap();
    assert_eq!(client.read(4096, data.len(), Flags::empty()).unwrap(), vec![0; data.len()]);
    client.trim(0, 65536, Flags::empty()).unwrap();
    // Answers in any order.
    let mut reads: Vec<_> = (0..64)
        .map(|at| {
            client.submit_write_from(at * 8192, Pattern(2).bytes(at * 8192, 8192), Flags::empty())
        })
        .collect();
    while let Some(at) = Pending::wait_any(&reads) {
        reads.swap_remove(at).wait().1.unwrap();
    }
    let mut reads: Vec<_> = (0..64)
        .map(|at| (at * 8192, client.submit_read_into(at * 8192, vec![0; 8192], Flags::empty())))
        .collect();
    while let Some((offset, read)) = reads.pop() {
        let (found, result) = read.wait();
        result.unwrap();
        assert_eq!(found, Pattern(2).bytes(offset, 8192));
    }
}

#[test]
fn nbdkit_memory_with_all_kinds_of_headers() {
    let Some(nbdkit) = require("nbdkit") else { return };
    bounded(move || {
        for (structured, config) in headers() {
            let server = PeerServer::nbdkit(&nbdkit, &["memory", "100M"]);
            let client = Client::connect_with(&uri(&server, ""), &config).unwrap();
            assert_eq!(client.export().is_structured(), structured);
            write_and_read(&client);
            client.trim(0, 1 << 20, Flags::empty()).unwrap();
            client.write_all_at(&[1; 65536], 1 << 20).unwrap();
            if client.export().has_context("base:allocation") {
                let found = client.block_status(0, 2 << 20, Flags::empty()).unwrap();
                let runs: Vec<_> =
                    found[0].extents.iter().map(|run| (run.length, run.status)).collect();
                assert_eq!(runs[..2], [(1 << 20, 3), (65536, 0)]);
            } else {
                assert!(!structured);
            }
            // Longer than the largest payload: split, and holes are filled.
            let (found, result) = client.read_into(0, vec![1; 100 << 20], Flags::empty());
            result.unwrap();
            assert!(found[(1 << 20) + 65536..].iter().all(|byte| *byte == 0));
            client.disconnect();
        }
    });
}

#[test]
fn nbdkit_with_large_blocks_only() {
    let Some(nbdkit) = require("nbdkit") else { return };
    bounded(move || {
        let server = PeerServer::nbdkit(
            &nbdkit,
            &[
                "--filter=blocksize-policy",
                "memory",
                "1M",
                "blocksize-minimum=512",
                "blocksize-preferred=4096",
                "blocksize-maximum=64k",
                "blocksize-error-policy=error",
            ],
        );
        let client = Client::connect_with(&uri(&server, ""), &ClientConfig::default()).unwrap();
        assert_eq!(client.export().block_size().minimum(), 512);
        let error = client.read(1, 512, Flags::empty()).unwrap_err();
        assert!(matches!(error, Error::Invalid(InvalidRequest::Misaligned(512))), "{error}");
        let data = Pattern(3).bytes(0, 512 << 10);
        client.write_all_at(&data, 512).unwrap();
        assert_eq!(client.read(512, data.len(), Flags::empty()).unwrap(), data);
    });
}

#[test]
fn nbdkit_with_several_connections() {
    let Some(nbdkit) = require("nbdkit") else { return };
    bounded(move || {
        let server = PeerServer::nbdkit(&nbdkit, &["memory", "16M"]);
        let config = ClientConfig::new().with_connections(4);
        let client = Client::connect_with(&uri(&server, ""), &config).unwrap();
        assert_eq!(client.connections(), 4);
        write_and_read(&client);
        let server = PeerServer::nbdkit(
            &nbdkit,
            &["--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable"],
        );
        let client = Client::connect_with(&uri(&server, ""), &config).unwrap();
        assert_eq!(client.connections(), 1, "a server that does not allow for more gets no more");
    });
}

#[test]
fn nbdkit_that_fails_and_one_that_is_killed() {
    let Some(nbdkit) = require("nbdkit") else { return };
    bounded(move || {
        let server = PeerServer::nbdkit(
            &nbdkit,
            &["--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%"],
        );
        let client = Client::connect_with(&uri(&server, ""), &ClientConfig::default()).unwrap();
        let error = client.read(512, 1024, Flags::empty()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("1024 bytes at 512") && text.contains("ENOSPC"), "{text}");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        client.write_all_at(&[1; 512], 0).unwrap();

        let server =
            PeerServer::nbdkit(&nbdkit, &["--filter=delay", "memory", "1M", "rdelay=1000"]);
        let client = Client::connect_with(&uri(&server, ""), &ClientConfig::default()).unwrap();
        client.write_all_at(&[1; 512], 0).unwrap();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(server);
        });
        let error = client.read(0, 512, Flags::empty()).unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        killer.join().unwrap();
        let error = client.write_all_at(&[1; 512], 0).unwrap_err();
        assert!(matches!(error, Error::Lost { sent: false, .. }), "{error}");
    });
}

#[test]
fn nbdkit_oldstyle() {
    let Some(nbdkit) = require("nbdkit") else { return };
    bounded(move || {
        let server = PeerServer::nbdkit(&nbdkit, &["--oldstyle", "memory", "4M"]);
        let mut negotiation =
            Negotiation::connect(&uri(&server, ""), &ClientConfig::default()).unwrap();
        assert_eq!(negotiation.handshake(), Handshake::Oldstyle);
        assert!(matches!(negotiation.list(), Err(Error::Unsupported { .. })));
        let client = negotiation.enter("").unwrap();
        // Nothing else: this server forgets what it can do when it speaks oldstyle, and refuses to flush.
        let data = Pattern(4).bytes(0, 100_000);
        client.write_all_at(&data, 4096).unwrap();
        assert_eq!(client.read(4096, data.len(), Flags::empty()).unwrap(), data);
        let config = ClientConfig::new().with_oldstyle(false);
        let error = Client::connect_with(&uri(&server, ""), &config).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    });
}

#[test]
fn qemu_nbd_with_holes() {
    let Some(qemu) = require("qemu-nbd") else { return };
    bounded(move || {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.raw");
        std::fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        let path = disk.to_str().unwrap();
        let server = PeerServer::qemu_nbd(&qemu, &["--format=raw", "--export-name=disk", path]);
        for (_, config) in headers() {
            let client = Client::connect_with(&uri(&server, "disk"), &config).unwrap();
            write_and_read(&client);
            client.disconnect();
        }
        let mut negotiation =
            Negotiation::connect(&uri(&server, ""), &ClientConfig::default()).unwrap();
        let exports = negotiation.list().unwrap();
        assert_eq!(exports.iter().map(|export| &*export.name).collect::<Vec<_>>(), ["disk"]);
        assert_eq!(negotiation.info("disk").unwrap().size(), 8 << 20);
        let contexts = negotiation.list_meta_contexts("disk", &["base:"]).unwrap();
        assert_eq!(contexts, ["base:allocation"]);
        assert!(matches!(negotiation.info("other"), Err(Error::Refused { .. })));
        negotiation.abort().unwrap();
    });
}
