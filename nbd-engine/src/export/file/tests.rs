use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nbd_proto::wire::ErrorCode;
use nbd_testkit::SOON;
use nbd_testkit::process::wait_until;
use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::export::model::{self, runs};
use crate::export::{Allocation, Export, ZeroMode};

const MIB: u64 = 1 << 20;
const NO_HOLE: ZeroMode = ZeroMode { no_hole: true, fua: false, fast: false };
const FAST: ZeroMode = ZeroMode { no_hole: false, fua: false, fast: true };

/// A sparse file, and an export of it.
fn disk(size: u64) -> (NamedTempFile, File) {
    in_directory(size, &std::env::temp_dir())
}

fn in_directory(size: u64, path: &Path) -> (NamedTempFile, File) {
    let file = NamedTempFile::new_in(path).unwrap();
    file.as_file().set_len(size).unwrap();
    let disk = File::open(file.path()).unwrap();
    (file, disk)
}

/// A file in memory, where the platform has a folder for that.
fn in_memory(size: u64) -> Option<(NamedTempFile, File)> {
    let path = Path::new("/dev/shm");
    let made = path.is_dir().then(|| in_directory(size, path)).filter(|(_, disk)| disk.in_memory);
    if made.is_none() {
        eprintln!("skipped: no file system in memory at {}", path.display());
    }
    made
}

/// Whether the file system can do what a test is about; says so if not.
fn supported(what: &str, ability: &ability::Ability) -> bool {
    if ability.is_missing() {
        eprintln!("skipped: the file system can't {what}");
    }
    !ability.is_missing()
}

/// An export of a file system that can do nothing but read and write.
fn poor(size: u64) -> (NamedTempFile, File) {
    let (file, disk) = disk(size);
    let (at_once, holes) = (&disk.abilities, &disk.holes);
    for ability in [&at_once.try_read, &at_once.try_write, &holes.punch_hole, &holes.zero_range] {
        ability.forget();
    }
    holes.seek_hole.forget();
    (file, disk)
}

fn taken(file: &NamedTempFile) -> u64 {
    file.as_file().sync_all().unwrap();
    file.as_file().metadata().unwrap().blocks() * 512
}

fn refused(result: core::result::Result<File, OpenError>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_is_the_same_as_an_array(size in 0u64..400_000, steps in model::steps()) {
        model::check(&disk(size).1, steps);
    }

    #[test]
    fn it_is_the_same_as_an_array_in_memory(size in 0u64..400_000, steps in model::steps()) {
        if let Some((_file, disk)) = in_memory(size) {
            model::check(&disk, steps);
        }
    }

    #[test]
    fn it_is_the_same_as_an_array_where_nothing_else_is_supported(
        size in 0u64..400_000, steps in model::steps()
    ) {
        model::check(&poor(size).1, steps);
    }
}

#[test]
fn data_is_there_when_the_file_is_opened_again() {
    let (file, disk) = disk(MIB);
    disk.write(b"plain", 1000, false).unwrap();
    disk.write(b"through", 2000, true).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let disk = File::open(file.path()).unwrap();
    assert_eq!(model::read(&disk, 1000, 5), b"plain");
    assert_eq!(model::read(&disk, 2000, 7), b"through");
    assert_eq!(disk.size(), MIB);
}

#[test]
fn requests_outside_are_refused_and_the_file_keeps_its_size() {
    let (file, disk) = disk(1000);
    let code = |result: Result<()>| result.unwrap_err().code();
    assert_eq!(code(disk.read(&mut [0; 2], 999)), ErrorCode::EINVAL);
    assert_eq!(code(disk.write(&[0; 2], 999, false)), ErrorCode::ENOSPC);
    assert_eq!(code(disk.write(&[0; 2], u64::MAX, true)), ErrorCode::ENOSPC);
    assert_eq!(code(disk.write_zeroes(0, 1001, NO_HOLE)), ErrorCode::ENOSPC);
    assert_eq!(code(disk.trim(1000, 1, false)), ErrorCode::EINVAL);
    assert!(disk.try_read(&mut Body::default(), 2, 999).is_none_or(|result| result.is_err()));
    assert!(disk.try_write(&[0; 2], 999, false).is_none_or(|result| result.is_err()));
    assert_eq!(file.as_file().metadata().unwrap().len(), 1000);
}

#[test]
fn trimming_and_zeroing_give_space_back() {
    let (file, disk) = disk(4 * MIB);
    disk.write(&vec![1; 4 << 20], 0, false).unwrap();
    let full = taken(&file);
    disk.trim(0, MIB, true).unwrap();
    if !supported("punch holes", &disk.holes.punch_hole) {
        return;
    }
    assert!(full - taken(&file) >= MIB);
    disk.write_zeroes(2 * MIB, MIB, FAST).unwrap();
    assert!(full - taken(&file) >= 2 * MIB);
    assert!(model::read(&disk, 0, MIB).iter().all(|&byte| byte == 0));
    assert!(model::read(&disk, 2 * MIB, MIB).iter().all(|&byte| byte == 0));
}

#[test]
fn zeroing_with_no_hole_takes_space_and_is_reported_as_allocated() {
    for (file, disk) in [disk(4 * MIB), poor(4 * MIB)] {
        disk.write_zeroes(MIB, MIB, ZeroMode { fua: true, ..NO_HOLE }).unwrap();
        assert!(taken(&file) >= MIB);
        let mut at = 0;
        for run in runs(&disk, 0, 4 * MIB) {
            let end = at + run.length;
            assert!(!run.hole || end <= MIB || at >= 2 * MIB, "{run:?} at {at}");
            at = end;
        }
    }
}

#[test]
fn what_has_space_set_aside_is_a_hole_again_after_a_trim() {
    let (_file, disk) = disk(4 * MIB);
    disk.write_zeroes(0, 4 * MIB, NO_HOLE).unwrap();
    disk.trim(MIB, MIB, false).unwrap();
    let runs = runs(&disk, 0, 4 * MIB);
    if supported("punch holes", &disk.holes.punch_hole)
        && supported("report holes", &disk.holes.seek_hole)
    {
        let reported: Vec<_> = runs.iter().map(|run| (run.length, run.hole)).collect();
        assert_eq!(reported, [(MIB, false), (MIB, true), (2 * MIB, false)]);
    }
}

#[test]
fn a_fast_zero_that_would_be_slow_is_refused_and_changes_nothing() {
    let (_file, disk) = poor(MIB);
    disk.write(&[7; 4096], 0, false).unwrap();
    for mode in [FAST, ZeroMode { no_hole: true, ..FAST }] {
        let error = disk.write_zeroes(0, MIB, mode).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ENOTSUP);
    }
    assert_eq!(model::read(&disk, 0, 4096), [7; 4096]);
}

#[test]
fn a_trim_that_is_not_supported_changes_nothing() {
    let (_file, disk) = poor(MIB);
    disk.write(&[7; 4096], 0, false).unwrap();
    disk.trim(0, 4096, true).unwrap();
    assert_eq!(model::read(&disk, 0, 4096), [7; 4096]);
}

#[test]
fn zeroes_are_written_in_pieces_where_there_is_no_better_way() {
    let (_file, disk) = poor(4 * MIB);
    disk.write(&vec![7; 4 << 20], 0, false).unwrap();
    disk.write_zeroes(1, 3 * MIB, ZeroMode::default()).unwrap();
    let content = model::read(&disk, 0, 4 * MIB);
    assert!(content[1..=3 << 20].iter().all(|&byte| byte == 0));
    assert!(content[0] == 7 && content[(3 << 20) + 1..].iter().all(|&byte| byte == 7));
}

#[test]
fn a_sparse_file_has_holes_around_its_data() {
    let (_file, disk) = disk(1 << 30);
    disk.write(&vec![1; 1 << 20], 512 * MIB, false).unwrap();
    let reported = runs(&disk, 0, 1 << 30);
    if supported("report holes", &disk.holes.seek_hole) {
        let hole = |length| Allocation { length, hole: true, zero: true };
        let data = Allocation { length: MIB, hole: false, zero: false };
        assert_eq!(reported, [hole(512 * MIB), data, hole(511 * MIB)]);
    }
}

#[test]
fn a_file_system_that_knows_no_holes_has_data_everywhere() {
    let (_file, disk) = poor(MIB);
    assert_eq!(runs(&disk, 5, 10), [Allocation { length: MIB - 5, hole: false, zero: false }]);
}

#[test]
fn reading_what_was_cut_off_is_an_input_error() {
    let (file, disk) = disk(MIB);
    disk.write(&vec![1; 1 << 20], 0, false).unwrap();
    file.as_file().set_len(10_000).unwrap();
    assert_eq!(disk.size(), MIB);
    let error = disk.read(&mut [0; 4096], 8192).unwrap_err();
    assert_eq!(error.code(), ErrorCode::EIO);
    assert!(error.text().contains("cut off"), "{error}");
    assert!(disk.try_read(&mut Body::default(), 4096, 8192).is_none_or(|result| result.is_err()));
    disk.read(&mut [0; 10_000], 0).unwrap();
}

#[test]
fn reading_what_a_resize_has_just_cut_off_is_an_invalid_range() {
    let (_file, disk) = disk(MIB);
    disk.resize(8192).unwrap();
    // As of a read that had found its range inside before.
    let error = disk.read_inside(&mut [0; 4096], 6000).unwrap_err();
    assert_eq!(error.code(), ErrorCode::EINVAL, "{error}");
}

#[test]
fn a_file_that_was_cut_off_does_not_pass_for_zeroes() {
    let (file, disk) = disk(MIB);
    file.as_file().set_len(64 << 10).unwrap();
    let last = *runs(&disk, 0, MIB).last().unwrap();
    assert!(!last.zero && last.length >= MIB - (64 << 10), "{last:?}");
}

#[test]
fn cached_data_is_read_at_once() {
    let (_file, disk) = disk(MIB);
    disk.write(&[5; 8192], 4096, false).unwrap();
    let mut body = Body::default();
    let read = disk.try_read(&mut body, 8192, 4096);
    if supported("read without waiting", &disk.abilities.try_read) {
        read.unwrap().unwrap();
        assert_eq!(body.buffer(), [5; 8192]);
    }
}

#[test]
fn long_requests_are_left_to_a_worker() {
    let (_file, disk) = disk(4 * MIB);
    let max = File::AT_ONCE;
    assert!(disk.try_read(&mut Body::default(), max + 1, 0).is_none());
    assert!(disk.try_write(&vec![0; max + 1], 0, false).is_none());
}

#[test]
fn a_durable_write_is_never_done_at_once() {
    let (_file, disk) = disk(MIB);
    assert!(disk.in_memory || disk.try_write(&[0; 512], 0, true).is_none());
}

#[test]
fn a_file_in_memory_is_read_and_written_at_once() {
    let Some((_file, disk)) = in_memory(MIB) else { return };
    for fua in [false, true] {
        disk.try_write(&[5; 4096], 1 << 19, fua).unwrap().unwrap();
    }
    let mut body = Body::default();
    disk.try_read(&mut body, 8192, 1 << 19).unwrap().unwrap();
    assert_eq!(body.buffer()[..4096], [5; 4096]);
    assert_eq!(body.buffer()[4096..], [0; 4096]);
}

#[test]
fn a_resize_changes_the_file() {
    let (file, disk) = disk(MIB);
    disk.write(&[1; 100], MIB - 100, false).unwrap();
    for size in [MIB / 2, MIB, 3 * MIB] {
        disk.can_resize().unwrap().resize(size).unwrap();
        assert_eq!((disk.size(), file.as_file().metadata().unwrap().len()), (size, size));
    }
    assert_eq!(model::read(&disk, MIB - 100, 100), [0; 100]);
}

#[test]
fn a_resize_that_fails_leaves_the_size() {
    let (_file, disk) = disk(MIB);
    let error = disk.resize(i64::MAX as u64 + 1).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ENOSPC);
    // More than most file systems can hold; a platform that can keeps it sparse.
    match disk.resize(i64::MAX as u64) {
        Ok(()) => assert_eq!(disk.size(), i64::MAX as u64),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::ENOSPC);
            assert_eq!(disk.size(), MIB);
        }
    }
}

#[test]
fn a_read_only_file_can_only_be_read() {
    let (file, _disk) = disk(MIB);
    let disk = File::options().read_only(true).open(file.path()).unwrap();
    assert!(disk.can_write().is_none() && disk.can_trim().is_none());
    assert!(disk.can_write_zeroes().is_none() && disk.can_resize().is_none());
    assert_eq!(model::read(&disk, 100, 10), [0; 10]);
    disk.can_flush().unwrap().flush().unwrap();
}

#[test]
fn an_open_file_is_writable_if_it_was_opened_so() {
    let (file, _disk) = disk(MIB);
    let disk = File::from_std(fs::File::open(file.path()).unwrap()).unwrap();
    assert!(disk.can_write().is_none());
    let both = fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
    let disk = File::from_std(both).unwrap();
    disk.can_write().unwrap().write(b"x", 0, false).unwrap();
    assert_eq!(disk.size(), MIB);
}

#[test]
fn a_file_opened_for_writing_alone_or_appending_is_refused() {
    let (file, _disk) = disk(MIB);
    let write = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    let (kind, text) = refused(File::from_std(write));
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(text.contains("open it for reading as well"), "{text}");
    let append = fs::OpenOptions::new().read(true).append(true).open(file.path()).unwrap();
    let (_, text) = refused(File::from_std(append));
    assert!(text.contains("open it without O_APPEND"), "{text}");
}

#[test]
fn the_error_says_what_is_missing_of_a_path() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("my disk.img");
    let error = File::open(&path).unwrap_err();
    assert_eq!((error.kind(), error.missing()), (ErrorKind::NotFound, Some(Missing::File)));
    let text = format!("cannot open '{}': no such file; create it first", path.display());
    assert_eq!(error.to_string(), text);
    let parent = directory.path().join("none");
    let error = File::open(parent.join("disk.img")).unwrap_err();
    assert_eq!(error.missing(), Some(Missing::Directory(&parent)));
    let text = format!("no such directory; create '{}' first", parent.display());
    assert!(error.to_string().ends_with(&text), "{error}");
    let error = File::open("/dev/no-such-disk").unwrap_err();
    assert_eq!(error.missing(), Some(Missing::Device));
    assert_eq!(File::open(directory.path()).unwrap_err().missing(), None);
}

#[test]
fn a_missing_device_is_not_created_as_a_file() {
    let (kind, text) = refused(File::open("/dev/no-such-disk"));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("no such device") && !text.contains("truncate"), "{text}");
}

#[test]
fn a_directory_is_refused() {
    let directory = TempDir::new().unwrap();
    for read_only in [false, true] {
        let result = File::options().read_only(read_only).open(directory.path());
        let (kind, text) = refused(result);
        assert_eq!(kind, ErrorKind::IsADirectory);
        assert!(text.contains("is a directory; name a regular file"), "{text}");
    }
    let open = fs::File::open(directory.path()).unwrap();
    assert_eq!(refused(File::from_std(open)).0, ErrorKind::IsADirectory);
}

#[test]
fn a_character_device_is_refused() {
    let (_, text) = refused(File::open("/dev/null"));
    assert!(text.contains("is a character device"), "{text}");
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (_, text) = refused(File::open(&path));
    assert!(text.contains("is a pipe"), "{text}");
}

#[test]
fn a_file_that_may_not_be_written_is_refused_with_the_remedy() {
    let (file, _disk) = disk(MIB);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o444)).unwrap();
    if fs::OpenOptions::new().write(true).open(file.path()).is_ok() {
        eprintln!("skipped: this user may write everything");
        return;
    }
    let (kind, text) = refused(File::open(file.path()));
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(text.contains("open it read-only"), "{text}");
}

#[test]
fn other_errors_are_passed_on_with_the_path() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("loop");
    symlink(&path, &path).unwrap();
    let error = io::Error::from(File::open(&path).unwrap_err());
    assert!(error.to_string().contains(&format!("cannot open '{}': ", path.display())));
    assert_eq!(error.kind(), fs::File::open(&path).unwrap_err().kind());
}

#[test]
fn a_regular_file_takes_any_alignment_and_prefers_its_blocks() {
    let (file, disk) = disk(MIB);
    let blocks = file.as_file().metadata().unwrap().blksize();
    assert_eq!(disk.block_size().minimum(), 1);
    assert!(blocks > 1 << 20 || u64::from(disk.block_size().preferred()) >= blocks);
    assert!(!disk.rotational() && disk.multi_conn() && !disk.never_blocks());
    disk.cache(0, MIB).unwrap();
}

#[test]
fn threads_read_and_write_ranges_of_their_own() {
    const EACH: u64 = 100_000;
    let (file, disk) = disk(4 * EACH);
    let disk = Arc::new(disk);
    let threads: Vec<_> = (0..4u8)
        .map(|thread| {
            let disk = disk.clone();
            thread::spawn(move || {
                let at = u64::from(thread) * EACH;
                for round in 1..20 {
                    let data = vec![thread << 6 | round; EACH as usize];
                    disk.write(&data, at, round % 8 == 0).unwrap();
                    assert!(model::read(&*disk, at, EACH) == data);
                    runs(&*disk, 0, 4 * EACH);
                    disk.write_zeroes(at, EACH, ZeroMode::default()).unwrap();
                    assert!(model::read(&*disk, at, EACH).iter().all(|&byte| byte == 0));
                    disk.write(&data, at, false).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut content = vec![0; 4 * EACH as usize];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    for (thread, range) in (0u8..).zip(content.chunks(EACH as usize)) {
        assert!(range.iter().all(|&byte| byte == thread << 6 | 19));
    }
}

#[test]
fn caching_reads_a_long_range_ahead() {
    let (_file, disk) = disk(16 * MIB);
    disk.write(&vec![7; 16 << 20], 0, false).unwrap();
    disk.sync().unwrap();
    let pieces = 16 * MIB / File::AT_ONCE as u64;
    let is_cached = |n: u64| {
        let mut body = Body::default();
        disk.try_read(&mut body, File::AT_ONCE, n * File::AT_ONCE as u64).is_some()
    };
    rustix::fs::fadvise(disk.system.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if disk.in_memory || disk.abilities.try_read.is_missing() || (0..pieces).all(is_cached) {
        eprintln!("skipped: the file system keeps everything cached, or does not tell");
        return;
    }
    disk.can_cache().unwrap().cache(0, 16 * MIB).unwrap();
    // Some may be dropped again, where the system needs the memory for something else.
    let mut missing = Vec::from_iter(0..pieces);
    wait_until("all pieces have been read ahead", SOON, || {
        missing.retain(|&n| !is_cached(n));
        missing.is_empty()
    });
}

#[test]
fn growing_brings_zeroes_where_a_late_write_left_something() {
    let (file, disk) = disk(MIB);
    disk.resize(MIB / 2).unwrap();
    // As if a write had passed its check before the cut, and was done after it.
    file.as_file().write_all_at(&[9; 100], MIB / 2 + 5).unwrap();
    disk.resize(MIB).unwrap();
    assert!(model::read(&disk, MIB / 2, MIB / 2).iter().all(|&byte| byte == 0));
}
