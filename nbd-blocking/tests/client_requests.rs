//! Requests of the blocking client, against our own server.

use std::collections::VecDeque;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use nbd_blocking::client::{ClientConfig, Error, Flags, Handshake, InvalidRequest, Uri};
use nbd_blocking::export::{BlockSize, Export, ExportMap, Memory, ReadOnly};
use nbd_blocking::{Client, Cursor, LocalAddr, Negotiation, Server};
use nbd_support::bounded;
use nbd_support::exports::{Blocks, GATED, Gate, Journal, Journaled};
use nbd_testkit::Pattern;

fn served(export: impl Export) -> (Server, Uri) {
    let server = Server::new(ExportMap::new().with("disk", export).unwrap());
    let listening = server.listen_tcp("127.0.0.1:0").unwrap();
    let LocalAddr::Tcp(address) = listening.local_addr() else { panic!("it is a TCP socket") };
    let uri = Uri::tcp(&address.ip().to_string(), address.port()).unwrap();
    (server, uri.with_export("disk").unwrap())
}

fn connected(export: impl Export) -> (Server, Client) {
    let (server, uri) = served(export);
    let client = Client::connect_with(&uri, &ClientConfig::default()).unwrap();
    (server, client)
}

fn memory(size: u64) -> Memory {
    Memory::new(size).unwrap()
}

#[test]
fn what_was_written_is_read_back_in_every_way() {
    bounded(|| {
        let (_server, client) = connected(memory(1 << 20));
        let data = Pattern(1).bytes(0, 10_000);
        client.write_all_at(&data, 100).unwrap();
        let mut found = vec![0; data.len()];
        client.read_exact_at(&mut found, 100).unwrap();
        assert_eq!(found, data);
        assert_eq!(client.read(100, data.len(), Flags::empty()).unwrap(), data);
        let (found, result) = client.read_into(100, found, Flags::empty());
        result.unwrap();
        assert_eq!(found, data);
        client.write(50_000, data.clone(), Flags::empty()).unwrap();
        client.write(70_000, data.clone(), Flags::FUA).unwrap();
        let (back, result) = client.submit_write_from(90_000, data.clone(), Flags::empty()).wait();
        result.unwrap();
        assert_eq!(back, data);
        for offset in [50_000, 70_000, 90_000] {
            assert_eq!(client.read(offset, data.len(), Flags::empty()).unwrap(), data);
        }
        client.flush().unwrap();
        client.write_zeroes(100, 10_000, Flags::NO_HOLE).unwrap();
        assert_eq!(client.read(100, 10_000, Flags::empty()).unwrap(), vec![0; 10_000]);
        client.trim(50_000, 10_000, Flags::empty()).unwrap();
        client.disconnect();
        assert!(matches!(client.flush(), Err(Error::Disconnected { .. })));
    });
}

#[test]
fn reads_end_where_the_export_ends() {
    bounded(|| {
        let (_server, client) = connected(memory(1000));
        let mut buffer = [1; 600];
        assert_eq!(client.read_at(&mut buffer, 500).unwrap(), 500);
        assert_eq!(client.read_at(&mut buffer, 1000).unwrap(), 0);
        assert_eq!(client.read_at(&mut buffer, u64::MAX).unwrap(), 0);
        let outside = InvalidRequest::OutOfRange(1000);
        let error = client.read_exact_at(&mut buffer, 500).unwrap_err();
        assert!(matches!(error, Error::Invalid(invalid) if invalid == outside));
        assert!(
            client.read(0, usize::MAX, Flags::empty()).is_err(),
            "nothing is allocated for what is not there"
        );
        let error = client.write_all_at(&buffer, 999).unwrap_err();
        assert!(matches!(error, Error::Invalid(InvalidRequest::OutOfRange(_))));
        assert_eq!(client.read_at(&mut [], 0).unwrap(), 0);
        client.write_all_at(&[], 1000).unwrap();
        client.trim(0, 0, Flags::empty()).unwrap();
    });
}

#[test]
fn a_long_read_is_split_and_lands_in_one_piece() {
    bounded(|| {
        let size = 100 << 20;
        let (_server, client) = connected(memory(size));
        assert_eq!(client.export().block_size().maximum_payload(), 32 << 20);
        for offset in [0, (32 << 20) - 8, (64 << 20) - 8, size - 16] {
            client.write_all_at(&Pattern(2).bytes(offset, 16), offset).unwrap();
        }
        // Holes have to be filled, whatever is in the buffer.
        let (found, result) = client.read_into(0, vec![0xaa; size as usize], Flags::empty());
        result.unwrap();
        let mut expected = vec![0; size as usize];
        for offset in [0, (32 << 20) - 8, (64 << 20) - 8, size - 16] {
            let at = offset as usize;
            expected[at..at + 16].copy_from_slice(&Pattern(2).bytes(offset, 16));
        }
        assert!(found == expected);
        client.write_all_at(&found[..(40 << 20)], 8).unwrap();
        assert!(client.read(8, 40 << 20, Flags::empty()).unwrap() == found[..(40 << 20)]);
    });
}

#[test]
fn misaligned_requests_fail_with_the_numbers_and_long_ones_are_split_on_blocks() {
    bounded(|| {
        let sizes = BlockSize::new(512, 4096, 10_000).unwrap();
        let (_server, client) = connected(Blocks(memory(1 << 20), sizes));
        let error = client.read_exact_at(&mut [0; 512], 100).unwrap_err();
        let misaligned = InvalidRequest::Misaligned(512);
        assert!(matches!(error, Error::Invalid(invalid) if invalid == misaligned));
        let text = client.write_all_at(&[0; 100], 0).unwrap_err().to_string();
        assert!(text.contains("512"), "{text}");
        // 10000 is not a multiple of 512.
        let data = Pattern(3).bytes(0, 64 << 10);
        client.write_all_at(&data, 1024).unwrap();
        assert_eq!(client.read(1024, data.len(), Flags::empty()).unwrap(), data);
    });
}

#[test]
fn requests_are_answered_out_of_order() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate);
        let slow = client.submit_read_into(GATED, vec![1; 512], Flags::empty());
        // Drives the connection: the slow one is sent along.
        assert_eq!(client.read(0, 512, Flags::empty()).unwrap(), vec![0; 512]);
        assert!(!slow.is_done());
        key.await_waiting(1);
        key.open();
        let (found, result) = slow.wait();
        result.unwrap();
        assert_eq!(found, vec![0; 512]);
    });
}

#[test]
fn requests_in_flight_are_limited_and_more_may_wait() {
    bounded(|| {
        let (_server, uri) = served(memory(1 << 20));
        let config = ClientConfig::new().with_max_in_flight(4);
        let client = Client::connect_with(&uri, &config).unwrap();
        let writes: Vec<_> = (0..100)
            .map(|at| {
                let data = Pattern(4).bytes(at * 4096, 4096);
                client.submit_write(at * 4096, data, Flags::empty())
            })
            .collect();
        for write in writes {
            write.wait().unwrap();
        }
        let mut reads = VecDeque::new();
        for at in 0..100 {
            reads
                .push_back((at, client.submit_read_into(at * 4096, vec![0; 4096], Flags::empty())));
        }
        // In the order that suits them least.
        while let Some((at, read)) = reads.pop_back() {
            let (found, result) = read.wait();
            result.unwrap();
            assert_eq!(found, Pattern(4).bytes(at * 4096, 4096));
        }
    });
}

#[test]
fn a_request_that_is_given_up_harms_no_other() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate);
        let data = Pattern(5).bytes(0, 4096);
        client.write_all_at(&data, 0).unwrap();
        let read = client.submit_read_into(GATED, vec![0; 65536], Flags::empty());
        let write = client.submit_write(GATED, vec![7; 65536], Flags::empty());
        client.send_submitted();
        key.await_waiting(2);
        drop((read, write));
        drop(client.submit_write(0, vec![7; 4096], Flags::empty()));
        key.open();
        for _ in 0..10 {
            assert_eq!(
                client.read(0, 4096, Flags::empty()).unwrap(),
                data,
                "what was not sent was not done"
            );
        }
        let after = client.read(GATED, 65536, Flags::empty()).unwrap();
        assert!(after == vec![0; 65536] || after == vec![7; 65536]);
    });
}

#[test]
fn block_status_reports_the_extents_of_each_context() {
    bounded(|| {
        let (_server, uri) = served(Journaled(Arc::new(Journal::default())));
        let config = ClientConfig::new().with_contexts(["base:allocation", "none:such"]);
        let client = Client::connect_with(&uri, &config).unwrap();
        assert_eq!(client.export().contexts(), ["base:allocation".into()]);
        let found = client.block_status(0, 256 << 10, Flags::empty()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(&*found[0].context, "base:allocation");
        let runs: Vec<_> =
            found[0].extents.iter().map(|extent| (extent.length, extent.status)).collect();
        assert_eq!(runs, [(65536, 0), (65536, 3), (65536, 0), (65536, 3)]);
        let one = client.block_status(65536, 1000, Flags::REQ_ONE).unwrap();
        assert_eq!(one[0].extents.len(), 1);
        assert_eq!((one[0].extents[0].length, one[0].extents[0].status), (1000, 3));

        let plain = Client::connect_with(&uri, &ClientConfig::default()).unwrap();
        let error = plain.block_status(0, 512, Flags::empty()).unwrap_err();
        assert!(matches!(error, Error::Invalid(InvalidRequest::NoContexts)));
    });
}

#[test]
fn what_is_not_offered_is_refused_without_asking() {
    bounded(|| {
        let (_server, client) = connected(ReadOnly::new(memory(1 << 20)));
        assert!(client.export().is_read_only() && !client.export().can_trim());
        let error = client.write_all_at(&[0; 512], 0).unwrap_err();
        assert!(matches!(error, Error::Invalid(InvalidRequest::ReadOnly)), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        let error = client.trim(0, 512, Flags::empty()).unwrap_err();
        assert!(matches!(error, Error::Invalid(InvalidRequest::ReadOnly)), "{error}");
    });
}

#[test]
fn flushes_cover_writes_of_all_connections() {
    bounded(|| {
        let journal = Arc::new(Journal::default());
        let (_server, uri) = served(Journaled(Arc::clone(&journal)));
        let config = ClientConfig::new().with_connections(4);
        let client = Client::connect_with(&uri, &config).unwrap();
        assert_eq!(client.connections(), 4);
        let writes: Vec<_> =
            (0..64).map(|at| client.submit_write(at * 512, vec![1; 512], Flags::empty())).collect();
        for write in writes {
            write.wait().unwrap();
        }
        client.flush().unwrap();
        let mut durable = journal.durable.lock().unwrap().clone();
        durable.sort_unstable();
        assert_eq!(durable, (0..64).map(|at| at * 512).collect::<Vec<_>>());
        client.disconnect();
    });
}

#[test]
fn one_connection_writes_and_another_reads() {
    bounded(|| {
        let (_server, uri) = served(memory(1 << 20));
        let config = ClientConfig::new().with_connections(2);
        let client = Client::connect_with(&uri, &config).unwrap();
        for at in 0..32 {
            let data = Pattern(6).bytes(at, 512);
            client.write_all_at(&data, 0).unwrap();
            client.flush().unwrap();
            // Requests take turns: one of these is on the other connection.
            assert_eq!(client.read(0, 512, Flags::empty()).unwrap(), data);
            assert_eq!(client.read(0, 512, Flags::empty()).unwrap(), data);
        }
    });
}

#[test]
fn resizing_changes_the_size() {
    bounded(|| {
        let (_server, client) = connected(memory(1 << 20));
        assert!(client.export().can_resize());
        client.resize(2 << 20).unwrap();
        assert_eq!(client.size(), 2 << 20);
        client.write_all_at(&[1; 512], (2 << 20) - 512).unwrap();
        client.resize(4096).unwrap();
        assert!(client.write_all_at(&[1; 512], 4096).is_err());
    });
}

#[test]
fn a_disk_reads_writes_and_seeks() {
    bounded(|| {
        let (_server, client) = connected(memory(1 << 20));
        let data = Pattern(7).bytes(0, 300_000);
        let mut cursor = Cursor::new(client.clone());
        cursor.seek(SeekFrom::Start(1000)).unwrap();
        std::io::copy(&mut &data[..], &mut cursor).unwrap();
        cursor.flush().unwrap();
        assert_eq!(cursor.seek(SeekFrom::Current(-300_000)).unwrap(), 1000);
        let mut found = Vec::new();
        let mut reader = BufReader::with_capacity(64 << 10, cursor.clone()).take(300_000);
        std::io::copy(&mut reader, &mut found).unwrap();
        assert!(found == data);
        assert_eq!(cursor.seek(SeekFrom::End(-4)).unwrap(), (1 << 20) - 4);
        let error = cursor.write_all(b"hello").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        cursor.seek(SeekFrom::End(-4)).unwrap();
        let mut last = Vec::new();
        cursor.read_to_end(&mut last).unwrap();
        assert_eq!(last, b"hell");
        assert!(cursor.seek(SeekFrom::Current(i64::MIN)).is_err());
    });
}

#[test]
fn a_write_ends_where_the_export_ends() {
    bounded(|| {
        let (_server, client) = connected(memory(1000));
        assert_eq!(client.write_at(&[1; 600], 500).unwrap(), 500);
        assert_eq!(client.write_at(&[1; 600], 1000).unwrap(), 0);
        assert_eq!(client.write_at(&[1; 600], u64::MAX).unwrap(), 0);
        assert_eq!(client.read(500, 500, Flags::empty()).unwrap(), vec![1; 500]);
        assert!(client.write_all_at(&[1; 600], 500).is_err(), "all or an error");
    });
}

#[test]
fn a_server_is_looked_at_before_an_export_is_entered() {
    bounded(|| {
        let exports =
            ExportMap::new().with("b", memory(4096)).unwrap().with("a", memory(512)).unwrap();
        let server = Server::new(exports);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listening = server.listen_unix(&socket).unwrap();
        let uri = Uri::unix(socket.to_str().unwrap()).unwrap();
        let config = ClientConfig::new().with_contexts(["base:allocation"]);
        let mut negotiation = Negotiation::connect(&uri, &config).unwrap();
        assert_eq!(negotiation.handshake(), Handshake::FixedNewstyle);
        let mut names: Vec<_> =
            negotiation.list().unwrap().into_iter().map(|listing| listing.name).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        let details = negotiation.info("b").unwrap();
        assert_eq!((details.size(), details.canonical_name()), (4096, Some("b")));
        assert!(details.advertised_block_size().is_some());
        let error = negotiation.info("c").unwrap_err();
        let names_it =
            matches!(&error, Error::Refused { export: Some(export), .. } if export == "c");
        assert!(names_it, "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        let contexts = negotiation.list_meta_contexts("a", &[]).unwrap();
        assert_eq!(contexts, ["base:allocation"]);
        let error = negotiation.enter("c").unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        let client = negotiation.enter("b").unwrap();
        assert_eq!(client.size(), 4096);
        assert!(client.export().has_context("base:allocation"));
        assert!(matches!(negotiation.list(), Err(Error::Entered { .. })));
        drop((client, negotiation));
        Negotiation::connect(&uri, &config).unwrap().abort().unwrap();
        server.shut_down();
        server.wait();
    });
}
