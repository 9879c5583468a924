//! No flush succeeds that did not make durable what was acknowledged before it.

use std::sync::Arc;
use std::thread;

use nbd_proto::wire::ErrorCode;
use proptest::prelude::*;

use super::super::{File, Kind};
use super::medium::{Medium, PAGE};
use crate::export::{
    CanFlush, Export, ExportError, Fua, ReadOnly, Result, Tracked, WithAllocationDepth,
    WithBlockSize, ZeroMode,
};

const SIZE: usize = 40 * PAGE;

/// The ways to ask for durability.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Flush,
    Write { offset: u64, length: u64, byte: u8 },
    Trim { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, no_hole: bool },
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        offset: u64,
        length: u64,
        byte: u8,
        quick: bool,
    },
    Ask(Ask),
    /// The kernel writes something back.
    Pass,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SIZE as u64, 1..4 * PAGE as u64)
        .prop_map(|(offset, length)| (offset, length.min(SIZE as u64 - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    let ask = prop_oneof![
        3 => Just(Ask::Flush),
        1 => (range(), 1u8..).prop_map(|((offset, length), byte)| Ask::Write { offset, length, byte }),
        1 => range().prop_map(|(offset, length)| Ask::Trim { offset, length }),
        1 => (range(), any::<bool>())
            .prop_map(|((offset, length), no_hole)| Ask::Zero { offset, length, no_hole }),
    ];
    prop_oneof![
        4 => (range(), 1u8.., any::<bool>())
            .prop_map(|((offset, length), byte, quick)| Step::Write { offset, length, byte, quick }),
        2 => ask.prop_map(Step::Ask),
        1 => Just(Step::Pass),
    ]
}

/// An export with the layers of a number around it.
fn wrapped(disk: File, layers: u8) -> Box<dyn Export> {
    let mut disk: Box<dyn Export> = Box::new(disk);
    if layers & 1 != 0 {
        disk = Box::new(Tracked::new(disk));
    }
    if layers & 2 != 0 {
        let sizes = disk.block_size();
        disk = Box::new(WithBlockSize::new(disk, sizes));
    }
    if layers & 4 != 0 {
        disk = Box::new(WithAllocationDepth::new(disk));
    }
    disk
}

/// As the server does it.
fn ask(disk: &dyn Export, ask: Ask) -> Result<()> {
    assert_eq!(disk.can_write().unwrap().fua(), Fua::Native);
    match ask {
        Ask::Flush => disk.can_flush().unwrap().flush(),
        Ask::Write { offset, length, byte } => {
            disk.can_write().unwrap().write(&vec![byte; length as usize], offset, true)
        }
        Ask::Trim { offset, length } => disk.can_trim().unwrap().trim(offset, length, true),
        Ask::Zero { offset, length, no_hole } => {
            let mode = ZeroMode { fua: true, no_hole, fast: false };
            disk.can_write_zeroes().unwrap().write_zeroes(offset, length, mode)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Several exports of one file, by descriptors of the same description and of others. Whichever is asked: what was
    /// acknowledged by any of them is durable after a flush that succeeds. A request with FUA makes its own range
    /// durable, at least.
    #[test]
    fn what_was_acknowledged_is_durable_after_a_flush_that_succeeds(
        seed: u64,
        failures in prop_oneof![Just(0u64), 2u64..100],
        layers in prop::collection::vec(any::<u8>(), 4),
        steps in prop::collection::vec((0..4usize, step()), 1..60),
    ) {
        let medium = Medium::new(SIZE, seed, failures);
        let (one, other) = (medium.open(), medium.open());
        let disks = [one.disk(), one.disk(), other.disk(), one.disk()];
        let disks: Vec<_> =
            disks.into_iter().zip(layers).map(|(disk, layers)| wrapped(disk, layers)).collect();
        let mut content = vec![0; SIZE];
        let mut failed = false;
        for (which, step) in steps {
            let disk = &*disks[which];
            let mut fill = |offset: u64, length: u64, byte| {
                content[offset as usize..(offset + length) as usize].fill(byte);
            };
            match step {
                Step::Write { offset, length, byte, quick } => {
                    let data = vec![byte; length as usize];
                    let writes = disk.can_write().unwrap();
                    let quickly = quick.then(|| writes.try_write(&data, offset, false)).flatten();
                    quickly.unwrap_or_else(|| writes.write(&data, offset, false)).unwrap();
                    fill(offset, length, byte);
                }
                Step::Pass => medium.write_back_some(),
                Step::Ask(way) => {
                    let result = ask(disk, way);
                    // The data itself is there whether or not it is durable.
                    match way {
                        Ask::Flush => {}
                        Ask::Write { offset, length, byte } => fill(offset, length, byte),
                        Ask::Trim { offset, length } | Ask::Zero { offset, length, .. } => {
                            fill(offset, length, 0);
                        }
                    }
                    match result {
                        Ok(()) => {
                            prop_assert!(!failed, "{way:?} succeeds after a failure");
                            prop_assert!(medium.durable(0..SIZE) == content, "{way:?}");
                        }
                        Err(error) if failed => prop_assert_eq!(error.code(), ErrorCode::EIO),
                        Err(error) => {
                            prop_assert!(failures > 0, "{}", error);
                            failed = true;
                        }
                    }
                }
            }
            prop_assert!(crate::export::model::read(disk, 0, SIZE as u64) == content);
        }
    }
}

/// Threads of their own flush what they write, at the same time. Which of them the kernel reports an error to is up to
/// chance; none of them believes what is not so.
#[test]
fn flushes_at_the_same_time_share_a_failure() {
    const THREADS: usize = 6;
    for seed in 0..150 {
        let medium = Medium::new(THREADS * PAGE, seed, if seed % 3 == 0 { 0 } else { 40 });
        let (one, other) = (medium.open(), medium.open());
        let disks: Vec<_> = [&one, &one, &other].map(|open| Arc::new(open.disk())).into();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (disk, medium) = (Arc::clone(&disks[thread % disks.len()]), &medium);
                scope.spawn(move || {
                    let place = thread * PAGE..(thread + 1) * PAGE;
                    for round in 1..=20u8 {
                        let data = [round; PAGE];
                        let writes = disk.can_write().unwrap();
                        let fua = round % 3 == 0;
                        let mut done = writes.write(&data, place.start as u64, fua);
                        if !fua {
                            done = done.and_then(|()| disk.flush());
                        }
                        if done.is_err() {
                            assert!(disk.flush().is_err(), "a failure is final");
                            return;
                        }
                        assert_eq!(medium.durable(place.clone()), data, "seed {seed}");
                    }
                });
            }
        });
    }
}

#[test]
fn flushes_that_wait_share_the_next_sync() {
    const WAITING: u64 = 8;
    let medium = Medium::new(PAGE, 1, 0);
    let disk = medium.open().disk();
    thread::scope(|scope| {
        // While this sync runs, as many flushes come as there are threads: each holds on until it has counted itself.
        disk.durability
            .sync(|| {
                for _ in 0..WAITING {
                    scope.spawn(|| disk.flush().unwrap());
                }
                disk.durability.await_waiting(WAITING);
                Ok(())
            })
            .unwrap();
    });
    assert_eq!(medium.syncs(), 1, "one for all that waited");
}

#[test]
fn a_failed_flush_is_final_until_the_file_is_opened_anew() {
    let medium = Medium::new(SIZE, 7, 1);
    let disk = medium.open().disk();
    disk.can_write().unwrap().write(b"lost", 0, false).unwrap();
    let first = disk.flush().unwrap_err();
    assert!(first.text().contains("may be lost"), "{first}");
    // The storage is well again, and the kernel has nothing more to report.
    medium.failures(0);
    let again =
        |disk: &dyn Export| -> ExportError { disk.can_flush().unwrap().flush().unwrap_err() };
    let later = again(&disk);
    assert_eq!(later.code(), ErrorCode::EIO);
    assert!(later.text().contains("opened anew"), "{later}");
    let disk = ReadOnly::new(disk);
    assert_eq!(again(&disk), later, "a reader's flush fails as well");
    let beside = medium.open().disk();
    assert_eq!(again(&beside), later, "so are other exports of the file");
    drop((disk, beside));
    medium.open().disk().flush().unwrap();
}

#[test]
fn a_sync_that_panics_is_one_that_failed() {
    let medium = Medium::new(SIZE, 7, 0);
    let disk = medium.open().disk();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        disk.durability.sync(|| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert_eq!(disk.flush().unwrap_err().code(), ErrorCode::EIO);
}

/// A device that says that it can't punch holes has dropped what was cached by then.
#[test]
fn an_attempt_to_punch_a_device_loses_nothing_that_was_written() {
    const FAST: ZeroMode = ZeroMode { fast: true, fua: false, no_hole: false };
    // With storage that is well, and with one that keeps nothing: then the attempt is not made.
    for failures in [0, 1] {
        let medium = Medium::new(SIZE, 7, failures);
        medium.never_punches();
        let mut disk = medium.open().disk();
        disk.holes.kind = Kind::Block { sector: PAGE as u64 };
        disk.can_write().unwrap().write(&[5; SIZE], 0, false).unwrap();
        let zeroes = disk.can_write_zeroes().unwrap();
        let error = zeroes.write_zeroes(0, SIZE as u64, FAST).unwrap_err();
        assert_eq!(error, ExportError::not_fast());
        disk.can_trim().unwrap().trim(0, SIZE as u64, false).unwrap();
        assert!(crate::export::model::read(&disk, 0, SIZE as u64) == [5; SIZE]);
        assert_eq!(disk.flush().is_err(), failures > 0, "the error was not consumed");
        zeroes.write_zeroes(0, SIZE as u64, ZeroMode::default()).unwrap();
        assert!(crate::export::model::read(&disk, 0, SIZE as u64) == [0; SIZE]);
    }
}
