//! Objects as disks: what is read of them, by which requests, and what goes wrong.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use nbd_engine::export::{AsyncCanCache as _, AsyncExport as _, Body, ErrorCode, Result};
use nbd_testkit::objects::{Manners, ObjectServer};
use nbd_testkit::{Random, cases};
use nbd_volume::{Error, Location, Object, ObjectOptions};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::faulty::{Faults, Faulty};
use crate::in_virtual_time;

const PART: usize = 64 << 10;

/// Bytes that differ from part to part.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; length];
    bytes.chunks_mut(61).for_each(|chunk| chunk.fill(random.below(256) as u8));
    bytes
}

async fn read(object: &Object, range: Range<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0xaa; range.len()];
    object.read(&mut buffer, range.start as u64).await?;
    Ok(buffer)
}

/// An object in a store in memory, and the way there.
async fn object(
    bytes: &[u8],
    faults: Faults,
    options: &ObjectOptions,
) -> (Arc<dyn ObjectStore>, Arc<Faulty>, Object) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    store.put(&Path::from("disk"), bytes.to_vec().into()).await.unwrap();
    let way = Faulty::new(&store, Random::new(1), faults);
    let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "disk");
    let object = loop {
        match Object::open(&location, options).await {
            Ok(object) => break object,
            // Opening is not patient.
            Err(error) => assert!(faults.fails > 0, "{error}"),
        }
    };
    (store, way, object)
}

/// Some bytes of a disk, few or many, which may be none.
fn some_range(random: &mut Random, length: usize) -> Range<usize> {
    let start = random.below(length as u64 + 1) as usize;
    let longest = [5, PART, 10 * PART][random.below(3) as usize];
    start..start + random.below((length - start).min(longest) as u64 + 1) as usize
}

#[test]
fn what_is_read_is_the_object_whatever_the_store_does() {
    cases(60, |random| {
        in_virtual_time(async {
            let length = 1 + random.below(40 * PART as u64) as usize;
            let bytes = pattern(length, random.below(1 << 32));
            let often = |random: &mut Random| [0, 15, 4][random.below(3) as usize];
            let faults = Faults {
                fails: often(random),
                loses_reply: often(random),
                cuts: often(random),
                delay: random.below(30),
            };
            let mut options = ObjectOptions::default();
            options.cache = random.below(30 * PART as u64);
            options.read_ahead = random.below(20 * PART as u64);
            options.requests = random.below(5) as usize;
            options.max_request = random.below(9) * PART as u64;
            options.patience = Duration::from_secs(3600);
            let (.., object) = object(&bytes, faults, &options).await;
            assert_eq!(object.size(), length as u64);
            let reader = async |mut random: Random| {
                let mut next = 0;
                for _ in 0..20 {
                    let mut range = some_range(&mut random, length);
                    // Some read in sequence.
                    if random.below(2) == 0 && next < length {
                        range = next..(next + range.len()).min(length);
                    }
                    next = range.end;
                    let moment = Duration::from_millis(random.below(100));
                    if random.below(5) == 0 {
                        // One that does not wait for what it asked for.
                        let _ = tokio::time::timeout(moment, read(&object, range)).await;
                        continue;
                    }
                    if random.below(5) == 0 {
                        object.cache(range.start as u64, range.len() as u64).await.unwrap();
                    }
                    let mut body = Body::default();
                    object.read_body(&mut body, range.len(), range.start as u64).await.unwrap();
                    assert!(body.to_vec() == bytes[range.clone()], "{range:?} differs in a body");
                    assert!(read(&object, range.clone()).await.unwrap() == bytes[range.clone()]);
                }
            };
            let readers = (0..4).map(|_| reader(Random::new(random.below(u64::MAX))));
            futures_util::future::join_all(readers).await;
        });
    });
}

#[test]
fn reads_of_the_same_and_of_neighbouring_bytes_share_a_request() {
    in_virtual_time(async {
        let bytes = pattern(64 * PART, 1);
        let mut options = ObjectOptions::default();
        options.requests = 1;
        let faults = Faults { delay: 50, ..Faults::default() };
        let (.., object) = object(&bytes, faults, &options).await;
        let gets = || object.location().traffic().gets;
        let opened = gets();
        // The first one is asked for at once, and the others together when it is there.
        let parts = (2..18).rev().flat_map(|part| [part * PART; 3]).map(|start| start..start + 5);
        let all = futures_util::future::join_all(parts.map(|range| read(&object, range))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(gets() - opened, 2);
        // What is there is not asked for again.
        read(&object, 2 * PART..18 * PART).await.unwrap();
        assert_eq!(gets() - opened, 2);
    });
}

#[test]
fn reading_in_sequence_takes_few_requests_and_as_many_bytes_as_there_are() {
    in_virtual_time(async {
        let bytes = pattern(256 * PART, 1);
        let mut options = ObjectOptions::default();
        // Much less than what is read.
        options.cache = 128 * PART as u64;
        let (.., object) = object(&bytes, Faults::default(), &options).await;
        for start in (0..bytes.len()).step_by(4096) {
            assert!(
                read(&object, start..start + 4096).await.unwrap() == bytes[start..start + 4096]
            );
        }
        let traffic = object.location().traffic();
        assert_eq!(traffic.get_bytes, bytes.len() as u64);
        assert!(traffic.gets <= 256 / 2, "{traffic:?}");
    });
}

#[test]
fn a_store_that_is_away_is_waited_for_and_given_up_with_the_reason() {
    in_virtual_time(async {
        let bytes = pattern(8 * PART, 1);
        let options = ObjectOptions::default();
        let (_, way, object) = object(&bytes, Faults::default(), &options).await;
        way.set_away(true);
        let back = async {
            tokio::time::sleep(options.patience / 2).await;
            way.set_away(false);
        };
        let (found, ()) = tokio::join!(read(&object, PART..2 * PART), back);
        assert!(found.unwrap() == bytes[PART..2 * PART]);
        way.set_away(true);
        let error = read(&object, 4 * PART..4 * PART + 1).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::EIO);
        assert!(error.text().contains("the store is away"), "{error}");
        // What is there is read all the same, and the rest when the store is back.
        assert!(read(&object, PART..PART + 9).await.is_ok());
        way.set_away(false);
        assert!(read(&object, 4 * PART..5 * PART).await.unwrap() == bytes[4 * PART..5 * PART]);
    });
}

/// Runs a test that talks to a server, for which time has to pass.
fn by_http<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

async fn open(url: &str) -> core::result::Result<Object, Error> {
    Object::open(&Location::of_object(url)?, &ObjectOptions::default()).await
}

#[test]
fn an_object_that_was_changed_fails_from_then_on() {
    let (was, is) = (pattern(8 * PART, 1), pattern(8 * PART, 2));
    let longer = [&is[..], b"more"].concat();
    let shorter = &is[..3 * PART];
    let none = Manners::default();
    for (manners, next) in [
        (none.clone(), &is[..]),
        (Manners { no_conditions: true, ..none.clone() }, &is),
        (Manners { weak_etags: true, ..none.clone() }, &is),
        (Manners { no_etags: true, ..none.clone() }, &longer),
        (Manners { no_etags: true, no_times: true, ..none.clone() }, &longer),
        (Manners { no_etags: true, no_head: true, ..none.clone() }, &longer),
        (Manners { no_etags: true, no_times: true, ..none }, shorter),
    ] {
        by_http(async {
            let server = ObjectServer::start();
            server.put("b/disk", was.clone());
            server.set_manners(manners.clone());
            let object = open(&format!("{}/b/disk", server.url())).await.unwrap();
            assert!(read(&object, PART..2 * PART).await.unwrap() == was[PART..2 * PART]);
            server.put("b/disk", next);
            for range in [5 * PART..6 * PART, PART..2 * PART] {
                let error = read(&object, range).await.expect_err(&format!("{manners:?}"));
                assert_eq!(error.code(), ErrorCode::EIO);
                assert!(error.text().contains("was changed"), "{manners:?}: {error}");
            }
            // Not even when it is what it was.
            server.put("b/disk", was.clone());
            assert!(read(&object, 7 * PART..8 * PART).await.is_err());
        });
    }
}

#[test]
fn a_reply_that_does_not_tell_whether_it_is_of_the_same_object_is_not_taken() {
    by_http(async {
        let server = ObjectServer::start();
        server.put("b/disk", pattern(4 * PART, 1));
        let object = open(&format!("{}/b/disk", server.url())).await.unwrap();
        let no_etags = Manners { no_etags: true, no_conditions: true, ..Manners::default() };
        server.set_manners(Manners { no_times: true, ..no_etags });
        server.put("b/disk", pattern(4 * PART, 2));
        let error = read(&object, 2 * PART..3 * PART).await.unwrap_err();
        assert!(error.text().contains("has none"), "{error}");
    });
}

#[test]
fn replies_that_break_off_go_on_where_they_were() {
    by_http(async {
        let server = ObjectServer::start();
        let bytes = pattern(5 * PART + 1234, 3);
        server.put("b/disk", bytes.clone());
        let object = open(&format!("{}/b/disk", server.url())).await.unwrap();
        // Less than a part comes each time.
        server.set_manners(Manners { cut_after: Some(50_000), ..Manners::default() });
        assert!(read(&object, 0..bytes.len()).await.unwrap() == bytes);
    });
}

#[test]
fn a_reply_without_end_is_read_as_far_as_it_was_asked_for() {
    by_http(async {
        let server = ObjectServer::start();
        let bytes = pattern(5 * PART + 1234, 3);
        server.put("b/disk", bytes.clone());
        let location = Location::of_object(&format!("{}/b/disk", server.url())).unwrap();
        let mut options = ObjectOptions::default();
        (options.requests, options.read_ahead) = (1, 0);
        options.patience = Duration::from_secs(20);
        let object = Object::open(&location, &options).await.unwrap();
        server.set_manners(Manners { endless: true, ..Manners::default() });
        // Each takes the turn of the one before it.
        for part in [4, 2, 1] {
            let range = part * PART..(part + 1) * PART;
            assert!(read(&object, range.clone()).await.unwrap() == bytes[range]);
        }
    });
}

#[test]
fn servers_of_many_kinds_are_read() {
    by_http(async {
        let server = ObjectServer::start();
        let front = ObjectServer::start();
        let bytes = pattern(2 * PART + 7, 4);
        server.put("b/a disk+é.img", bytes.clone());
        server.put("b/empty", "");
        front.set_manners(Manners { redirect: Some(server.url()), ..Manners::default() });
        for base in [server.url(), front.url()] {
            let url = format!("{base}/b/a%20disk%2B%C3%A9.img?signature=secret");
            for no_head in [false, true] {
                server.set_manners(Manners { no_head, ..Manners::default() });
                let object = open(&url).await.unwrap();
                assert!(read(&object, 3..bytes.len()).await.unwrap() == bytes[3..], "{url}");
                assert!(!format!("{object:?} {:?}", object.description()).contains("secret"));
            }
            // What clients of S3 leave behind, and what says nothing.
            for encoding in ["aws-chunked", "identity", ""] {
                let headers = vec![("content-encoding", encoding.to_owned())];
                server.set_manners(Manners { headers, ..Manners::default() });
                assert_eq!(open(&url).await.unwrap().size(), bytes.len() as u64);
            }
            server.set_manners(Manners::default());
            let empty = open(&format!("{base}/b/empty")).await.unwrap();
            assert_eq!(empty.size(), 0);
            assert!(read(&empty, 0..0).await.is_ok());
        }
    });
}

#[test]
fn what_can_not_be_opened_is_refused_with_what_to_do() {
    by_http(async {
        let server = ObjectServer::start();
        server.put("b/disk", pattern(2 * PART, 5));
        let signed = format!("{}/b/disk?signature=secret", server.url());
        let with = |manners: &Manners, expected: &'static str| {
            server.set_manners(manners.clone());
            let signed = &signed;
            async move {
                let error = open(signed).await.expect_err(expected).to_string();
                assert!(error.contains(expected) && !error.contains("secret"), "{error}");
                assert!(error.contains("/b/disk") && !error.contains('\n'), "{error}");
            }
        };
        let status = |status| Manners { status: Some(status), ..Manners::default() };
        with(&status(404), "there is no object").await;
        with(&status(403), "signed").await;
        with(&status(401), "signed").await;
        with(&status(400), "400").await;
        with(&Manners { no_ranges: true, ..Manners::default() }, "download it").await;
        let header = |name, value: &str| Manners {
            headers: vec![(name, value.to_owned())],
            ..Manners::default()
        };
        for encoding in ["gzip", "GZIP", "identity, br", "aws-chunked,zstd"] {
            with(&header("content-encoding", encoding), "decompress it").await;
        }
        for size in [1 << 63, u64::MAX] {
            let range = format!("bytes 0-{}/{size}", PART - 1);
            with(&header("content-range", &range), "2^63 - 1").await;
        }
        // A text without end is not waited for.
        with(&Manners { endless: true, ..status(403) }, "signed").await;
        with(&Manners { endless: true, ..status(400) }, "400").await;
        with(&Manners { endless: true, ..Manners::default() }, "more bytes came").await;
        let to_itself = Manners { redirect: Some(server.url()), ..Manners::default() };
        with(&to_itself, "redirect").await;
        drop(server);
        let error = open("http://127.0.0.1:1/disk?secret").await.unwrap_err().to_string();
        assert!(error.contains("refuses the connection") && !error.contains("secret"), "{error}");
    });
}
