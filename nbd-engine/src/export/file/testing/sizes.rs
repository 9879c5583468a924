//! Files that others cut off or extend while they are served.

use std::fs;
use std::os::unix::fs::FileExt;

use nbd_proto::wire::ErrorCode;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::super::{File, check_writable};
use crate::export::{
    AnyExport, BlockSize, CanResize, CanWrite, CanWriteZeroes, Export, ReadOnly, Result, Tracked,
    WithAllocationDepth, WithBlockSize, ZeroMode,
};

const MIB: u64 = 1 << 20;

fn disk(size: u64) -> (NamedTempFile, File) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let disk = File::open(file.path()).unwrap();
    (file, disk)
}

fn length(file: &NamedTempFile) -> u64 {
    file.as_file().metadata().unwrap().len()
}

#[test]
fn a_file_that_grew_has_its_new_size_after_the_next_refresh() {
    let (file, disk) = disk(MIB);
    file.as_file().set_len(2 * MIB).unwrap();
    assert_eq!(disk.size(), MIB);
    disk.refresh();
    assert_eq!(disk.size(), 2 * MIB);
    disk.write(b"behind the old end", 3 << 19, false).unwrap();
}

#[test]
fn wrappers_pass_a_refresh_on() {
    let wrappers: [fn(File) -> AnyExport; 5] = [
        |disk| AnyExport::new(Box::new(disk) as Box<dyn Export>),
        |disk| AnyExport::new(ReadOnly::new(disk)),
        |disk| {
            AnyExport::new(WithBlockSize::new(disk, BlockSize::new(512, 4096, 1 << 20).unwrap()))
        },
        |disk| AnyExport::new(WithAllocationDepth::new(disk)),
        |disk| AnyExport::new(Tracked::new(disk)),
    ];
    for wrap in wrappers {
        let (file, disk) = disk(MIB);
        let disk = wrap(disk);
        file.as_file().set_len(3 * MIB).unwrap();
        disk.refresh();
        assert_eq!(disk.size(), 3 * MIB);
    }
}

#[test]
fn a_file_that_was_cut_off_keeps_its_size_and_is_not_extended_by_writes() {
    let (file, disk) = disk(MIB);
    disk.write(&[9; 1 << 20], 0, false).unwrap();
    file.as_file().set_len(10_000).unwrap();
    disk.refresh();
    assert_eq!(disk.size(), MIB);
    let mode = |no_hole| ZeroMode { no_hole, fua: false, fast: false };
    let write = |fua| disk.write(&[1; 4096], 500_000, fua);
    let all: [Result<()>; 6] = [
        write(false),
        write(true),
        disk.try_write(&[1; 4096], 500_000, false).unwrap_or_else(|| write(false)),
        disk.write_zeroes(500_000, 4096, mode(false)),
        disk.write_zeroes(9_000, 4096, mode(true)),
        disk.read(&mut [0; 4096], 8192),
    ];
    for result in all {
        let error = result.unwrap_err();
        assert_eq!(error.code(), ErrorCode::EIO);
        assert!(error.text().contains("cut off"), "{error}");
    }
    assert_eq!(length(&file), 10_000, "what was cut off did not come back as zeroes");
    disk.write(&[1; 1000], 9_000, false).unwrap();
}

#[test]
fn what_a_late_write_left_behind_a_cut_is_no_growth() {
    let (file, disk) = disk(MIB);
    disk.resize(MIB / 2).unwrap();
    // As if a write had passed its check before the cut, and was done after it.
    file.as_file().write_all_at(&[9; 100], MIB / 2 + 5).unwrap();
    disk.refresh();
    assert_eq!(disk.size(), MIB / 2);
}

#[test]
fn a_resize_keeps_what_another_process_put_behind_the_end() {
    let (file, disk) = disk(MIB);
    file.as_file().write_all_at(b"theirs", 2 * MIB).unwrap();
    disk.resize(3 * MIB).unwrap();
    let mut found = [0; 6];
    disk.read(&mut found, 2 * MIB).unwrap();
    assert_eq!(&found, b"theirs");
}

#[test]
fn a_file_that_is_no_device_can_be_written_as_far_as_shows() {
    let (file, _disk) = disk(MIB);
    check_writable(file.as_file()).unwrap();
    let directory = fs::File::open(std::env::temp_dir()).unwrap();
    check_writable(&directory).unwrap();
}

/// Who changes the size.
#[derive(Clone, Copy, Debug)]
enum Change {
    Outside(u64),
    Resize(u64),
    Refresh,
    Write(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let size = 0u64..200_000;
    prop_oneof![
        size.clone().prop_map(Change::Outside),
        size.clone().prop_map(Change::Resize),
        Just(Change::Refresh),
        size.prop_map(Change::Write),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whoever changes the size, in whatever order: what reads as something is in the file, what is not fails, and only
    /// resizes and others change the length.
    #[test]
    fn whatever_can_be_read_is_in_the_file(
        size in 1u64..200_000, changes in prop::collection::vec(change(), 1..30)
    ) {
        let (file, disk) = disk(size);
        for change in changes {
            let before = (length(&file), disk.size());
            match change {
                Change::Outside(size) => file.as_file().set_len(size).unwrap(),
                Change::Resize(size) => {
                    disk.resize(size).unwrap();
                    prop_assert_eq!((length(&file), disk.size()), (size, size));
                }
                Change::Refresh => {
                    disk.refresh();
                    prop_assert!(disk.size() >= before.1);
                    prop_assert!(disk.size() == before.1 || disk.size() == length(&file));
                    prop_assert_eq!(length(&file), before.0);
                }
                Change::Write(offset) => {
                    let result = disk.write(&[1; 100], offset, false);
                    prop_assert_eq!(result.is_ok(), offset + 100 <= before.0.min(before.1));
                    prop_assert_eq!(length(&file), before.0);
                }
            }
            let (length, size) = (length(&file), disk.size());
            let mut all = vec![0; size as usize];
            prop_assert_eq!(disk.read(&mut all, 0).is_ok(), size <= length);
        }
    }
}
