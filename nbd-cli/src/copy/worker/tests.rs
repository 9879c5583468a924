//! What a copy counts.

use core::time::Duration;

use nbd_blocking::Server;
use nbd_blocking::export::{ExportMap, Memory};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::Mode;
use nbd_testkit::scripted::{Export, Script, ScriptedServer};

use super::*;
use crate::copy::extents::{Extents, Oracle};
use crate::copy::plan::{Cut, Plan};

/// What the threads of a copy of `size` bytes share, in pieces of 10 bytes.
pub(in crate::copy) fn shared(size: u64) -> Shared {
    let cut = Cut { unit: 1, data: 10, zero: 10 };
    Shared {
        feed: Feed::plan(Plan::new(size, cut, Extents::new(Oracle::None, size))),
        progress: Progress::Silent,
        source: "source".into(),
        destination: "destination".into(),
        requests: 1,
        request_size: 10,
        sparse: 0,
        skip_zeroes: false,
        allocated: false,
        count: AtomicU64::new(0),
        record: None,
    }
}

#[test]
fn a_byte_that_was_left_out_or_dealt_with_twice_is_a_fault_of_ours() {
    let shared = shared(0);
    for (bytes, total) in [(0, 0), (3, 3), (4, 7)] {
        shared.done(total - bytes, bytes);
        shared.check(total).unwrap();
        for size in [total + 1, total.wrapping_sub(1)] {
            let said = shared.check(size).unwrap_err();
            assert!(said.text().contains(&format!("{total} bytes of {size} were dealt with")));
        }
    }
}

/// A server of 4096 zeroes, which ends when this is dropped, and its first client.
pub(in crate::copy) struct Zeroes {
    server: Server,
    pub(in crate::copy) client: Client,
    _folder: tempfile::TempDir,
}

impl Zeroes {
    pub(in crate::copy) fn serve() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let exports = ExportMap::new().with("", Memory::new(4096).unwrap()).unwrap();
        let server = Server::new(exports);
        server.listen_unix(&socket).unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let client = Client::connect(&uri).unwrap();
        Self { server, client, _folder: folder }
    }
}

impl Drop for Zeroes {
    fn drop(&mut self) {
        self.client.disconnect();
        self.server.shut_down();
        self.server.wait();
    }
}

#[test]
fn what_waits_for_its_turn_in_a_pipe_counts_as_in_flight() {
    let zeroes = Zeroes::serve();
    let source = Source::Server(zeroes.client.clone());
    let file = tempfile::tempfile().unwrap();
    let pipe = Destination::Stream(InOrder::new(file.try_clone().unwrap()));
    let shared = shared(0);
    let mut worker = Worker::new(&shared, (source, pipe));
    let read = Piece { offset: 0, length: 10, zero: false };
    worker.store(20, vec![1; 10]).unwrap();
    worker.zero(30, 10).unwrap();
    assert_eq!(worker.in_flight(), 2, "the bytes before are missing");
    worker.load(read).unwrap();
    assert_eq!(worker.in_flight(), 3);
    worker.store(10, vec![1; 10]).unwrap();
    assert_eq!(worker.in_flight(), 4);
    // What was read comes first: then all can go.
    worker.landed(0).unwrap();
    assert_eq!((worker.in_flight(), file.metadata().unwrap().len()), (0, 40));
    shared.check(40).unwrap();
}

#[test]
fn answers_that_are_there_are_taken_and_no_other_is_waited_for() {
    const LIMIT: Duration = Duration::from_secs(60);
    let zeroes = Zeroes::serve();
    let silent = Script::new(Export::new(Mode::Extended)).enter().silence();
    let silent = ScriptedServer::unix([silent]);
    let unanswered = Client::connect(&silent.endpoint().uri("")).unwrap();
    let shared = shared(0);
    let destination = Destination::Server(zeroes.client.clone());
    let mut worker = Worker::new(&shared, (Source::Stream, destination));
    worker.zero(0, 10).unwrap();
    worker.plain.push(unanswered.submit_write_zeroes(10, 10, Flags::empty()));
    worker.ranges.push((10, 10));
    worker.zero(20, 10).unwrap();
    worker.zero(30, 10).unwrap();
    wait_until("the zeroes are written", LIMIT, || {
        // Answers are received while something is waited for.
        zeroes.client.flush().unwrap();
        [0, 2, 3].into_iter().all(|index| worker.plain[index].is_done())
    });
    worker.collect().unwrap();
    assert_eq!(worker.ranges, [(10, 10)]);
    shared.check(30).unwrap();
}

#[test]
fn zeroes_are_written_to_a_disk_unless_they_are_there() {
    for is_zero in [false, true] {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(file, false).unwrap();
        disk.write(&[7; 30], 0).unwrap();
        let mut shared = shared(0);
        shared.skip_zeroes = is_zero;
        let ends = (Source::Stream, Destination::Disk(disk.clone()));
        Worker::new(&shared, ends).zero(10, 10).unwrap();
        let mut found = [1; 30];
        disk.read(&mut found, 0).unwrap();
        let between = if is_zero { 7 } else { 0 };
        assert_eq!(found, [[7; 10], [between; 10], [7; 10]].concat()[..]);
        shared.check(10).unwrap();
    }
}

#[test]
fn a_server_gets_what_it_was_asked_before_more_is_read() {
    let server = Script::new(Export::new(Mode::Extended)).enter().serve();
    let server = ScriptedServer::unix([server]);
    let client = Client::connect(&server.endpoint().uri("")).unwrap();
    let file = tempfile::tempfile().unwrap();
    let disk = Disk::new(file, false).unwrap();
    disk.write(&[7; 10], 0).unwrap();
    let shared = shared(10);
    let ends = (Source::Disk(disk), Destination::Server(client));
    let mut worker = Worker::new(&shared, ends);
    worker.load(Piece { offset: 0, length: 10, zero: false }).unwrap();
    // Nobody waits for an answer yet.
    server.wait_for_requests(1);
}
