//! What becomes of a request whose connection breaks while the server carries it out.

use std::thread;

use nbd_blocking::client::{Chunk, ClientConfig, Command, Error, Flags};
use nbd_support::bounded;
use nbd_testkit::Random;

use super::fragile::{Fragile, Moment, SIZE};
use super::serial::reconnect;

const BOTH: [Moment; 2] = [Moment::BreakBefore, Moment::BreakAfter];

#[test]
fn reads_and_what_asks_are_sent_again_and_answered_once() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect_by(reconnect());
        client.write(4096, vec![7; 4096], Flags::FUA).unwrap();
        let expected = client.read_chunks(0, 16384, Flags::empty()).unwrap();
        let status = client.block_status(0, SIZE, Flags::empty()).unwrap();
        for moment in BOTH {
            disk.plan("read", moment, 2);
            assert_eq!(client.read(4096, 4096, Flags::empty()).unwrap(), vec![7; 4096]);
            assert_eq!(disk.calls("read"), 3);
            disk.plan("read", moment, 1);
            let chunks = client.read_chunks(0, 16384, Flags::empty()).unwrap();
            let ends = |chunks: &[Chunk]| chunks.iter().map(Chunk::offset).collect::<Vec<_>>();
            assert_eq!(ends(&chunks), ends(&expected), "{chunks:?}");
            disk.plan("extents", moment, 1);
            assert_eq!(client.block_status(0, SIZE, Flags::empty()).unwrap(), status);
        }
    });
}

#[test]
fn writes_and_flushes_are_sent_again() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect_by(reconnect());
        for moment in BOTH {
            disk.plan("write", moment, 2);
            client.write(0, vec![moment as u8 + 1; 512], Flags::empty()).unwrap();
            assert_eq!(disk.calls("write"), 3);
            assert_eq!(client.read(0, 1, Flags::empty()).unwrap()[..], [moment as u8 + 1]);
            client.flush().unwrap();
            disk.plan("flush", moment, 2);
            client.flush().unwrap();
            assert_eq!(disk.calls("flush"), 3);
            // This one was in flight as the connection broke, and there was something to be flushed.
            client.write(0, vec![moment as u8 + 1; 512], Flags::empty()).unwrap();
            disk.plan("flush", moment, 1);
            let error = client.flush().unwrap_err();
            assert!(matches!(error, Error::InDoubt { requests: 1, bytes: 512, .. }), "{error}");
            client.flush().unwrap();
        }
    });
}

#[test]
fn writes_are_sent_once_if_so_chosen() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect_by(reconnect().with_resent_writes(false));
        for moment in BOTH {
            disk.plan("write", moment, 1);
            let error = client.write(0, vec![1; 512], Flags::empty()).unwrap_err();
            assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
            assert_eq!(disk.calls("write"), 1);
            client.write(0, vec![2; 512], Flags::empty()).unwrap();
        }
    });
}

#[test]
fn a_resize_is_never_sent_twice_and_its_outcome_is_found_out() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect_by(reconnect());
        let mut size = SIZE;
        for moment in [Moment::BreakAfter, Moment::BreakBefore, Moment::BreakAfter] {
            size += SIZE / 2;
            disk.plan("resize", moment, 1);
            let error = client.resize(size).unwrap_err();
            assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
            client.read(0, 512, Flags::empty()).unwrap();
            assert_eq!(disk.calls("resize"), 1);
            assert_eq!(client.size(), size, "as it is on the server");
            assert!(client.check(&Command::read(size - 512, 512)).is_ok());
            client.write(size - 512, vec![1; 512], Flags::FUA).unwrap();
        }
    });
}

#[test]
fn a_request_that_kills_the_server_is_given_up_and_others_go_on() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect_by(reconnect().with_max_resends(3));
        disk.plan("write", Moment::BreakBefore, u32::MAX);
        let write = client.submit_write(0, vec![1; 512], Flags::empty());
        let error = write.wait().unwrap_err();
        assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
        assert_eq!(disk.calls("write"), 4);
        client.read(0, 512, Flags::empty()).unwrap();
    });
}

/// Whatever becomes of writes that nobody waits for any more, they hold no room among the kept changes for good: then those of
/// others would wait without end.
#[test]
fn writes_that_are_given_up_hold_no_room() {
    bounded(|| {
        let disk = Fragile::new();
        let config = ClientConfig::new()
            .with_connections(4)
            .with_reconnect(reconnect().with_kept_writes(5000));
        let (client, _folder) = disk.connect(config);
        thread::scope(|scope| {
            for seed in 0..6 {
                let client = client.clone();
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..3000 {
                        let length = 1 + random.below(5000);
                        let offset = random.below(SIZE - length);
                        let data = vec![random.next() as u8; length as usize];
                        let pending = client.submit_write(offset, data, Flags::empty());
                        if random.one_in(3) {
                            pending.wait().unwrap();
                            continue;
                        }
                        for _ in 0..random.below(2000) {
                            core::hint::spin_loop();
                        }
                        drop(pending);
                    }
                });
            }
        });
        client.flush().unwrap();
    });
}
