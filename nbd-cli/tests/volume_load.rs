//! Servers of volumes and objects under load: snapshots and clones while clients write, and many clients of one object.
#![cfg(feature = "volume")]

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nbd_testkit::objects::ObjectServer;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{RawClient, Request};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use nbd_testkit::{Pattern, Random, cases};

const LIMIT: Duration = Duration::from_secs(100);

#[track_caller]
fn nbd(args: &[&str]) {
    run(Command::new(nbd_binary()).args(args), LIMIT).success();
}

#[track_caller]
fn end(mut server: NbdServe) {
    server.terminate();
    let status = server.wait_exit(LIMIT).expect("it ends");
    assert!(status.success(), "{status}: {}", server.stderr());
}

const BLOCK: u64 = 4096;

/// Blocks of each writer.
const BLOCKS: u64 = 32;

/// A client that writes versions, each a greater one than the last, into blocks that are its own.
struct Writer {
    first: u64,
    blocks: Vec<Versions>,
}

/// The versions of a block.
#[derive(Default)]
struct Versions {
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Writer {
    fn new(index: u64) -> Self {
        let blocks = (0..BLOCKS).map(|_| Versions::default()).collect();
        Self { first: index * BLOCKS * BLOCK, blocks }
    }

    fn write_until(&self, over: &AtomicBool, server: &NbdServe, mut random: Random) {
        let mut client = RawClient::go_simple(server.endpoint());
        let mut version = 0u64;
        while !over.load(Ordering::Acquire) {
            version += 1;
            let start = random.below(BLOCKS);
            let count = 1 + random.below((BLOCKS - start).min(8));
            let blocks = &self.blocks[start as usize..][..count as usize];
            blocks.iter().for_each(|block| block.begun.store(version, Ordering::Release));
            let data = version.to_le_bytes().repeat((count * BLOCK) as usize / 8);
            client.write(self.first + start * BLOCK, &data);
            blocks.iter().for_each(|block| block.answered.store(version, Ordering::Release));
            if random.one_in(50) {
                client.call(&Request::flush()).ok();
            }
        }
        client.finish();
    }

    fn answered(&self) -> Vec<u64> {
        self.blocks.iter().map(|block| block.answered.load(Ordering::Acquire)).collect()
    }

    fn begun(&self) -> Vec<u64> {
        self.blocks.iter().map(|block| block.begun.load(Ordering::Acquire)).collect()
    }
}

/// What a server of a volume or of a snapshot has in the blocks of so many writers.
fn served(setup: Setup, backend: &str, writers: usize) -> Vec<u8> {
    let server = setup.serve().arg(backend).start();
    let mut client = RawClient::go_simple(server.endpoint());
    let disk = client.read(0, writers as u64 * BLOCKS * BLOCK);
    client.finish();
    end(server);
    disk
}

/// The versions of blocks, none of which has bytes of two.
#[track_caller]
fn versions(disk: &[u8]) -> Vec<u64> {
    let version = |block: &[u8]| {
        let words: HashSet<&[u8]> = block.chunks(8).collect();
        assert_eq!(words.len(), 1, "a block has a part of a write");
        u64::from_le_bytes(block[..8].try_into().unwrap())
    };
    disk.chunks(BLOCK as usize).map(version).collect()
}

#[test]
fn a_snapshot_and_a_clone_under_load_have_what_was_answered_and_nothing_that_came_later() {
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("file://{}/volumes/{name}", folder.path().display());
    let (origin, copy) = (url("origin"), url("copy"));
    nbd(&["volume", "create", &origin, "--size", "16M"]);
    let server = setup.serve().args(["--volume-lease", "1s", &format!("volume:{origin}")]).start();
    let writers: Vec<Writer> = (0..4).map(Writer::new).collect();
    let over = AtomicBool::new(false);
    let answered = || writers.iter().flat_map(Writer::answered).collect::<Vec<_>>();
    let begun = || writers.iter().flat_map(Writer::begun).collect::<Vec<_>>();
    let check = |disk: &[u8], before: &[u64], after: &[u64]| {
        for (index, version) in versions(disk).into_iter().enumerate() {
            let possible: RangeInclusive<u64> = before[index]..=after[index];
            assert!(possible.contains(&version), "block {index}: {version} is not in {possible:?}");
        }
    };
    let disks = thread::scope(|scope| {
        // Also when this thread fails.
        let stop = Stop(&over);
        for (index, writer) in writers.iter().enumerate() {
            let (over, server) = (&over, &server);
            scope.spawn(move || writer.write_until(over, server, Random::new(index as u64)));
        }
        wait_until("each block was written", LIMIT, || !answered().contains(&0));
        let before = answered();
        nbd(&["volume", "snapshot", &origin, "monday"]);
        let after = begun();
        nbd(&["volume", "clone", &origin, &copy]);
        let later = begun();
        // While they go on.
        let monday = served(setup, &format!("volume:{origin}@monday"), writers.len());
        let cloned = served(setup, &format!("volume:{copy}"), writers.len());
        check(&monday, &before, &after);
        // It has all that the snapshot has, which was made before.
        check(&cloned, &versions(&monday), &later);
        let now = answered();
        wait_until("each block was written again", LIMIT, || {
            now.iter().zip(answered()).all(|(old, new)| *old < new)
        });
        drop(stop);
        (monday, cloned)
    });
    end(server);
    let (monday, cloned) = disks;
    assert!(served(setup, &format!("volume:{origin}@monday"), writers.len()) == monday);
    assert!(served(setup, &format!("volume:{copy}"), writers.len()) == cloned);
    let last = served(setup, &format!("volume:{origin}"), writers.len());
    assert_eq!(versions(&last), answered());
}

/// Has the writers stop, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

const PART: u64 = 64 << 10;

/// Has many clients connected at the same time, each with some reads in flight. With `NBD_CASES=N` so many.
#[track_caller]
fn many_clients_read_an_object(setup: Setup) {
    let store = ObjectServer::start();
    let size = 128 * PART + 123;
    let bytes = Pattern(1).bytes(0, size as usize);
    store.put("bucket/disk.img", bytes.clone());
    // So long that others ask for what is asked for already.
    store.set_delay(Duration::from_millis(5));
    let most = if setup.runtime == Runtime::Blocking { "3000" } else { "20000" };
    let serve = setup.serve().args(["--max-connections", most]);
    let server = serve.arg(format!("{}/bucket/disk.img", store.url())).start();
    let mut clients = Vec::new();
    cases(500, |random| {
        let client = RawClient::go_simple(server.endpoint());
        clients.push((client, Random::new(random.next())));
    });
    for _ in 0..2 {
        let mut reads = Vec::new();
        for (client, random) in &mut clients {
            let ranges = [(); 4].map(|()| {
                let start = random.below(size);
                (start, 1 + random.below((size - start).min(20_000)))
            });
            let requests = ranges.map(|(start, length)| Request::read(start, length));
            reads.push((ranges, client.send_all(&requests)));
        }
        for ((client, _), (ranges, cookies)) in clients.iter_mut().zip(reads) {
            for ((start, length), cookie) in ranges.into_iter().zip(cookies) {
                let data = client.reply_to(cookie).data();
                assert!(data == bytes[start as usize..][..length as usize], "{start}+{length}");
            }
        }
    }
    for (client, _) in clients {
        client.finish();
    }
    end(server);
    // Each part was asked for once.
    let mut parts = HashSet::new();
    for line in store.take_log() {
        let Some((_, range)) = line.split_once("bytes=") else { continue };
        let (first, last) = range.split_once('-').expect("a range has a start and an end");
        let [first, last] = [first, last].map(|offset| offset.parse::<u64>().unwrap());
        for part in first / PART..=last / PART {
            assert!(parts.insert(part), "part {part} was asked for again: {line}");
        }
    }
    assert!(!parts.is_empty());
}

#[test]
fn hundreds_of_clients_of_an_object_have_each_part_of_it_asked_for_once() {
    many_clients_read_an_object(Setup { runtime: Runtime::Tokio, transport: Transport::Tcp });
}

#[test]
fn hundreds_of_threads_of_clients_of_an_object_have_each_part_of_it_asked_for_once() {
    many_clients_read_an_object(Setup { runtime: Runtime::Blocking, transport: Transport::Unix });
}
