//! Resizing while an export is served.

use core::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nbd_blocking::ServerConfig;
use nbd_engine::export::{
    BlockSize, Export, ExportEntry, ExportMap, File, Memory, ReadOnly, Tracked, WithBlockSize,
};
use nbd_suite::Served;
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, flag};
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn resize(size: u64) -> Request {
    Request::new(Cmd::RESIZE, size, 0)
}

/// Memory and a file of that size, each served.
fn each(size: u64, mut script: impl FnMut(&Served)) {
    script(&Served::only(Memory::new(size).unwrap()));
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    script(&Served::only(Tracked::new(File::open(file.path()).unwrap())));
}

#[test]
fn a_disk_grows_and_shrinks_and_every_connection_follows() {
    each(MIB, |served| {
        for mode in MODES {
            let mut one = RawClient::go_in(mode, served.endpoint());
            let mut other = RawClient::go_in(mode, served.endpoint());
            assert!(one.has_flag(flag::SEND_RESIZE));
            one.call(&resize(2 * MIB)).ok();
            for client in [&mut other, &mut one] {
                client.write(2 * MIB - 3, b"end");
                assert_eq!(client.read(2 * MIB - 4, 4), b"\0end");
                client.call(&Request::read(2 * MIB, 1)).expect_error(Errno::EINVAL);
            }
            one.call(&resize(MIB)).ok();
            for client in [&mut other, &mut one] {
                client.call(&Request::read(2 * MIB - 4, 4)).expect_error(Errno::EINVAL);
                client.call(&Request::write(MIB - 1, b"ab")).expect_error(Errno::ENOSPC);
                client.call(&Request::write_zeroes(MIB, 1)).expect_error(Errno::ENOSPC);
                client.write(MIB - 1, b"a");
            }
            other.finish();
            one.finish();
        }
        let mut late = RawClient::negotiate(served.endpoint());
        assert_eq!(late.info("", &[]).unwrap().size, MIB);
        late.finish();
    });
}

#[test]
fn what_was_cut_off_comes_back_as_zeroes() {
    each(MIB, |served| {
        let mut client = RawClient::go_structured(served.endpoint());
        client.write(MIB / 2, &[5; 4096]);
        client.call(&resize(MIB / 2)).ok();
        client.call(&resize(MIB)).ok();
        assert_eq!(client.read(MIB / 2, 4096), [0; 4096]);
        client.finish();
    });
}

#[test]
fn more_than_there_can_be_is_enospc_and_leaves_the_size() {
    each(MIB, |served| {
        let mut client = RawClient::go_structured(served.endpoint());
        for size in [1 << 63, u64::MAX] {
            client.call(&resize(size)).expect_error(Errno::ENOSPC);
        }
        client.call(&Request::read(MIB, 1)).expect_error(Errno::EINVAL);
        client.write(MIB - 1, b"a");
        client.finish();
    });
}

#[test]
fn a_new_size_is_a_multiple_of_the_minimum_block_size() {
    let sizes = BlockSize::new(512, 4096, 1 << 20).unwrap();
    let served = Served::only(WithBlockSize::new(Memory::new(MIB).unwrap(), sizes));
    let mut client = RawClient::go_simple(served.endpoint());
    client.call(&resize(1000)).expect_error(Errno::EINVAL);
    client.call(&resize(1024)).ok();
    client.finish();
}

#[test]
fn without_permission_resize_is_an_unknown_command() {
    let config = ServerConfig::new().with_resize(false);
    let exports = ExportMap::new().with("", Memory::new(MIB).unwrap()).unwrap();
    let forbidden = Served::start(exports, config);
    let entry = ExportEntry::new("", Memory::new(MIB).unwrap()).unwrap().without_resize();
    let entry = Served::start(ExportMap::new().with_entry(entry), ServerConfig::new());
    let read_only = Served::only(ReadOnly::new(Memory::new(MIB).unwrap()));
    for (served, error) in
        [(forbidden, Errno::EINVAL), (entry, Errno::EINVAL), (read_only, Errno::EPERM)]
    {
        let mut client = RawClient::go_simple(served.endpoint());
        assert!(!client.has_flag(flag::SEND_RESIZE));
        client.call(&resize(2 * MIB)).expect_error(error);
        client.call(&Request::read(MIB, 1)).expect_error(Errno::EINVAL);
        client.finish();
    }
}

#[test]
fn requests_that_race_with_a_resize_succeed_or_fail_cleanly() {
    each(MIB, |served| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for seed in 0..2 {
                let stop = &stop;
                // Before the size changes: the client checks extents against the one that was announced.
                let mut client = RawClient::go_structured(served.endpoint());
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Both sides of the place where the size comes and goes.
                        let offset = MIB / 2 - 4096 + 8192 * seed;
                        let write = client.call(&Request::write(offset, &[1; 4096]));
                        let read = client.call(&Request::read(offset, 4096));
                        let status = client.call(&Request::block_status(offset, 4096));
                        if seed == 0 {
                            assert_eq!((write.error(), read.error()), (None, None));
                        }
                        assert!([None, Some(Errno::ENOSPC)].contains(&write.error()));
                        assert!([None, Some(Errno::EINVAL)].contains(&read.error()));
                        assert!(
                            [None, Some(Errno::EINVAL)].contains(&status.error()),
                            "{status:?}"
                        );
                    }
                    client.finish();
                });
            }
            let mut client = RawClient::go_simple(served.endpoint());
            for _ in 0..200 {
                client.call(&resize(MIB / 2)).ok();
                client.call(&resize(MIB)).ok();
            }
            stop.store(true, Ordering::Relaxed);
            client.finish();
        });
    });
}

#[test]
fn an_export_that_changes_its_size_by_itself_is_followed() {
    let disk = std::sync::Arc::new(Memory::new(MIB).unwrap());
    let exports = ExportMap::new().with("", std::sync::Arc::clone(&disk)).unwrap();
    let served = Served::start(exports, ServerConfig::default());
    let mut client = RawClient::go_simple(served.endpoint());
    client.call(&Request::read(MIB, 1)).expect_error(Errno::EINVAL);
    disk.can_resize().unwrap().resize(2 * MIB).unwrap();
    assert_eq!(client.read(MIB, 1), [0]);
    client.finish();
}
