//! Overlays in files: over restarts, crashes, other bases, commits.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Waker};

use nbd_testkit::{Random, cases};
use tempfile::TempDir;

use super::*;
use crate::export::layer::later::{Later, Sooner, wait};
use crate::export::{
    AsyncCanFlush, AsyncCanWrite, AsyncExport, CanExtents, CanFlush, CanWrite, CanWriteZeroes,
    Contexts, File, Memory,
};

const SIZE: u64 = 10 * InFile::BLOCK + 777;

struct Files {
    _folder: TempDir,
    base: PathBuf,
    overlay: PathBuf,
    content: Vec<u8>,
}

impl Files {
    fn new(random: &mut Random) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (base, overlay) = (folder.path().join("base"), folder.path().join("overlay"));
        let mut content = vec![0; SIZE as usize];
        for _ in 0..3 {
            let start = random.below(SIZE) as usize;
            let end = (start + random.below(200_000) as usize).min(content.len());
            content[start..end].fill(1 + random.below(255) as u8);
        }
        fs::write(&base, &content).unwrap();
        Self { _folder: folder, base, overlay, content }
    }

    fn stamp(&self, base: &File) -> BaseStamp {
        BaseStamp::new(base, Some(fs::metadata(&self.base).unwrap().modified().unwrap())).unwrap()
    }

    fn open_as(&self, overlay: &Path) -> core::result::Result<Overlay<File, InFile>, OverlayError> {
        let base = File::options().read_only(true).open(&self.base).unwrap();
        let stamp = self.stamp(&base);
        Overlay::in_file(base, &stamp, overlay)
    }

    fn open(&self) -> Overlay<File, InFile> {
        self.open_as(&self.overlay).unwrap()
    }
}

fn content(disk: &dyn Export) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

/// Changes the disk and the array alike.
fn change(disk: &dyn Export, model: &mut [u8], random: &mut Random) {
    let offset = random.below(SIZE);
    let longest = random.of(&[600, 70_000, 300_000]);
    let length = 1 + random.below(longest.min(SIZE - offset));
    let part = &mut model[offset as usize..(offset + length) as usize];
    if random.one_in(3) {
        part.fill(0);
        let zeroes = disk.can_write_zeroes().unwrap();
        zeroes.write_zeroes(offset, length, ZeroMode::default()).unwrap();
    } else {
        part.fill(random.below(256) as u8);
        disk.can_write().unwrap().write(part, offset, false).unwrap();
    }
}

#[test]
fn an_overlay_survives_an_orderly_end_and_the_base_never_changes() {
    cases(10, |random| {
        let files = Files::new(random);
        let mut model = files.content.clone();
        for _ in 0..4 {
            let disk = files.open();
            assert!(content(&disk) == model);
            for _ in 0..6 {
                change(&disk, &mut model, random);
                assert!(content(&disk) == model);
                if random.one_in(3) {
                    CanFlush::flush(&disk).unwrap();
                }
            }
        }
        assert!(fs::read(&files.base).unwrap() == files.content);
    });
}

/// What a crash leaves: the file as it is at some moment, without what is in memory alone.
fn crashed(files: &Files, name: &str) -> PathBuf {
    let copy = files.overlay.with_file_name(name);
    fs::copy(&files.overlay, &copy).unwrap();
    copy
}

#[test]
fn after_a_crash_everything_flushed_is_there_and_each_block_is_old_or_new() {
    cases(6, |random| {
        let files = Files::new(random);
        let disk = files.open();
        let mut model = files.content.clone();
        let mut flushed = model.clone();
        // The blocks that the map in the file has, which show what was written since, too.
        let block = InFile::BLOCK as usize;
        for number in 0..12 {
            change(&disk, &mut model, random);
            if random.one_in(3) {
                CanFlush::flush(&disk).unwrap();
                flushed.copy_from_slice(&model);
            }
            let after = files.open_as(&crashed(&files, &format!("crash{number}"))).unwrap();
            let found = content(&after);
            let blocks = found.chunks(block).zip(flushed.chunks(block).zip(model.chunks(block)));
            for (found, (old, new)) in blocks {
                assert!(found == old || found == new);
            }
        }
    });
}

/// A file that loses what was not synced when the power fails, in any order, is made of the writes since the last sync.
/// The map must never get there before the data that it stands for.
#[test]
fn the_map_is_written_only_after_a_sync_of_the_data() {
    let files = Files::new(&mut Random::new(1));
    let disk = files.open();
    let map = |files: &Files| {
        let mut map = [0; blocks::PAGE];
        fs::File::open(&files.overlay).unwrap().read_exact_at(&mut map, 4096).unwrap();
        map[0]
    };
    CanWrite::write(&disk, &[1; 100], 0, false).unwrap();
    CanWrite::write(&disk, &[1; 100], 3 * InFile::BLOCK, false).unwrap();
    assert_eq!(map(&files), 0, "written before the data is durable");
    CanFlush::flush(&disk).unwrap();
    assert_eq!(map(&files), 0b1001);
}

/// An overlay is the same file over an export of either kind, in turn, and a flush by either is durable.
#[test]
fn an_overlay_over_futures_survives_restarts_and_crashes_and_changes_kinds() {
    cases(8, |random| {
        let files = Files::new(random);
        let mut model = files.content.clone();
        let mut flushed = model.clone();
        for number in 0..4 {
            let base = File::options().read_only(true).open(&files.base).unwrap();
            let modified = fs::metadata(&files.base).unwrap().modified().ok();
            let stamp = files.stamp(&base);
            let base = Later(base);
            assert_eq!(wait(BaseStamp::new_async(&base, modified)).unwrap(), stamp);
            let overlay = Overlay::in_file_async(base, &stamp, &files.overlay);
            let disk = Sooner(wait(overlay).unwrap());
            assert!(content(&disk) == model);
            for _ in 0..4 {
                change(&disk, &mut model, random);
                assert!(content(&disk) == model);
            }
            if random.one_in(2) {
                CanFlush::flush(&disk).unwrap();
                flushed.copy_from_slice(&model);
            }
            let after = files.open_as(&crashed(&files, &format!("crash{number}"))).unwrap();
            let found = content(&after);
            let block = InFile::BLOCK as usize;
            let blocks = found.chunks(block).zip(flushed.chunks(block).zip(model.chunks(block)));
            for (found, (old, new)) in blocks {
                assert!(found == old || found == new);
            }
            drop(disk);
            flushed.copy_from_slice(&model);
            let disk = files.open();
            assert!(content(&disk) == model);
            change(&disk, &mut model, random);
            CanFlush::flush(&disk).unwrap();
            flushed.copy_from_slice(&model);
        }
        assert!(fs::read(&files.base).unwrap() == files.content);
    });
}

#[test]
fn what_is_wrong_with_the_file_is_said_over_futures_too() {
    let files = Files::new(&mut Random::new(2));
    let disk = files.open();
    let stamp = files.stamp(disk.base());
    let over = || {
        let base = Later(File::options().read_only(true).open(&files.base).unwrap());
        wait(Overlay::in_file_async(base, &stamp, &files.overlay))
    };
    assert!(over().unwrap_err().is_in_use());
    drop(disk);
    drop(over().unwrap());
    fs::write(&files.overlay, "my thesis").unwrap();
    assert!(over().unwrap_err().to_string().contains("not an overlay"));
}

/// A request that is cancelled leaves the file in order, and its buffers to the thread.
#[test]
fn a_request_over_futures_that_is_cancelled_is_carried_out_or_not() {
    let files = Files::new(&mut Random::new(3));
    let base = Later(File::options().read_only(true).open(&files.base).unwrap());
    let stamp = files.stamp(&base.0);
    let disk = wait(Overlay::in_file_async(base, &stamp, &files.overlay)).unwrap();
    for number in 0..40_u8 {
        let data = vec![number; 100_000];
        let offset = u64::from(number) * 9_000;
        let mut write = Box::pin(AsyncCanWrite::write(&disk, &data, offset, false));
        let _never_waited = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(write);
        let mut body = Body::default();
        let mut read = Box::pin(AsyncExport::read_body(&disk, &mut body, 100_000, offset));
        let _never_waited = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(read);
        let mut bytes = vec![0; 100_000];
        wait(AsyncExport::read(&disk, &mut bytes, offset)).unwrap();
    }
    wait(AsyncCanFlush::flush(&disk)).unwrap();
    let after = content(&Sooner(disk));
    assert!(after.len() as u64 == SIZE);
}

#[test]
fn another_base_or_a_changed_one_is_refused() {
    let files = Files::new(&mut Random::new(2));
    // One that has nothing fits every base.
    files.open().can_write().unwrap().write(b"x", 0, false).unwrap();
    let refused = || {
        let error = files.open_as(&files.overlay).unwrap_err();
        assert!(error.is_other_base(), "{error}");
        error.to_string()
    };
    let original = fs::metadata(&files.base).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&files.base).unwrap();
    // Modified, and the time put back.
    file.write_all_at(b"changed", 0).unwrap();
    file.set_modified(original).unwrap();
    assert!(refused().contains("content"));
    file.write_all_at(&files.content[..7], 0).unwrap();
    file.set_modified(original + std::time::Duration::from_nanos(1)).unwrap();
    assert!(refused().contains("modified"));
    file.set_modified(original).unwrap();
    drop(files.open());
    file.set_len(SIZE - 1).unwrap();
    assert!(refused().contains(&format!("{SIZE} bytes; this one has {}", SIZE - 1)));
}

#[test]
fn a_file_that_is_no_overlay_is_refused_and_left_as_it_is() {
    let files = Files::new(&mut Random::new(3));
    drop(files.open());
    let sound = fs::read(&files.overlay).unwrap();
    let mut version = sound.clone();
    version[8] = 2;
    let mut damaged = sound.clone();
    damaged[16] ^= 1;
    for (bytes, says) in [
        (&b""[..], "not an overlay"),
        (b"my thesis", "not an overlay"),
        (&[0; 10_000], "not an overlay"),
        (&version, "version 2"),
        (&damaged, "checksum"),
        (&sound[..sound.len() - 1], "shorter"),
        (&sound[..4096], "shorter"),
    ] {
        fs::write(&files.overlay, bytes).unwrap();
        let error = files.open_as(&files.overlay).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
        assert!(fs::read(&files.overlay).unwrap() == bytes);
        let error = commit_overlay(&files.overlay, &files.base).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
        assert!(fs::read(&files.overlay).unwrap() == bytes);
    }
    let error = files.open_as(files.overlay.parent().unwrap()).unwrap_err().to_string();
    assert!(error.contains("not an overlay"), "{error}");
}

/// What lies over an overlay notices all that changes it, even if the change is all that a crash leaves; and nothing else.
#[test]
fn the_stamp_of_an_overlay_is_another_one_after_each_change_of_it() {
    cases(20, |random| {
        let files = Files::new(random);
        let disk = files.open();
        let mut model = files.content.clone();
        // Blocks that are there are overwritten then, which takes no flush to be seen.
        change(&disk, &mut model, random);
        drop(disk);
        let mut stamp = files.open().stamp();
        let original = fs::metadata(&files.base).unwrap().modified().unwrap();
        for number in 0..12 {
            match random.below(5) {
                0 => {
                    let disk = files.open();
                    assert!(content(&disk) == model);
                    CanFlush::flush(&disk).unwrap();
                }
                1 => {
                    let disk = files.open();
                    change(&disk, &mut model, random);
                    let left = crashed(&files, &format!("left{number}"));
                    let changed = disk.stamp();
                    assert_ne!(changed, stamp);
                    let base = File::options().read_only(true).open(&files.base).unwrap();
                    let found = Overlay::in_file(base, &files.stamp(disk.base()), left);
                    assert_eq!(found.unwrap().stamp(), changed);
                    stamp = changed;
                }
                2 => {
                    discard_overlay(&files.overlay).unwrap();
                    model = files.content.clone();
                    let discarded = files.open().stamp();
                    assert_ne!(discarded, stamp);
                    stamp = discarded;
                }
                // What has nothing is for another base in between.
                3 => {
                    let file = fs::OpenOptions::new().write(true).open(&files.base).unwrap();
                    file.set_modified(original + std::time::Duration::from_nanos(1)).unwrap();
                    let is_empty = overlay_summary(&files.overlay).unwrap().present == 0;
                    let opened = files.open_as(&files.overlay);
                    assert_eq!(opened.is_ok(), is_empty);
                    assert!(opened.is_err() || opened.unwrap().stamp() != stamp);
                    file.set_modified(original).unwrap();
                    assert_eq!(files.open().stamp(), stamp);
                }
                _ => {
                    let base = File::options().read_only(true).open(&files.base).unwrap();
                    let checked = check_overlay(&files.overlay, &files.stamp(&base));
                    assert_eq!(checked.unwrap(), stamp);
                }
            }
        }
    });
}

/// Headers that somebody made on purpose have the right checksum.
#[test]
fn no_header_whatever_is_in_it_panics_or_takes_much_memory() {
    let files = Files::new(&mut Random::new(4));
    drop(files.open());
    let sound = fs::read(&files.overlay).unwrap();
    cases(60, |random| {
        let mut bytes = sound[..8192].to_vec();
        for _ in 0..=random.below(4) {
            bytes[8 + random.below(56) as usize] = random.of(&[0, 1, 9, 16, 63, 127, 255]);
        }
        let crc = crate::export::crc32::crc32(&bytes[..64]);
        bytes[64..68].copy_from_slice(&crc.to_le_bytes());
        fs::write(&files.overlay, &bytes).unwrap();
        let _may_fail = files.open_as(&files.overlay);
        let _may_fail = overlay_summary(&files.overlay);
    });
}

#[test]
fn an_overlay_in_use_is_locked() {
    let files = Files::new(&mut Random::new(5));
    let disk = files.open();
    assert!(files.open_as(&files.overlay).unwrap_err().is_in_use());
    assert!(commit_overlay(&files.overlay, &files.base).unwrap_err().is_in_use());
    assert!(discard_overlay(&files.overlay).unwrap_err().is_in_use());
    drop(disk);
    drop(files.open());
}

#[test]
fn a_commit_brings_everything_into_the_base_and_leaves_an_empty_overlay() {
    cases(8, |random| {
        let files = Files::new(random);
        let mut model = files.content.clone();
        {
            let disk = files.open();
            (0..6).for_each(|_| change(&disk, &mut model, random));
        }
        let before = overlay_summary(&files.overlay).unwrap();
        assert_eq!((before.size, before.block), (SIZE, InFile::BLOCK));
        let committed = commit_overlay(&files.overlay, &files.base).unwrap();
        assert_eq!(committed.data + committed.zeroes, before.present);
        assert!(fs::read(&files.base).unwrap() == model);
        assert_eq!(overlay_summary(&files.overlay).unwrap().present, 0);
        assert!(content(&files.open()) == model);
    });
}

/// A commit that was interrupted has written some blocks, each wholly, in part or not at all.
#[test]
fn an_interrupted_commit_is_finished_by_another_and_the_overlay_is_not_served_meanwhile() {
    cases(8, |random| {
        let files = Files::new(random);
        let mut model = files.content.clone();
        {
            let disk = files.open();
            (0..6).for_each(|_| change(&disk, &mut model, random));
        }
        // The first half of a commit.
        let file = fs::OpenOptions::new().read(true).write(true).open(&files.overlay).unwrap();
        let mut header = [0; 4096];
        file.read_exact_at(&mut header, 0).unwrap();
        header[12] = 1;
        let crc = crate::export::crc32::crc32(&header[..64]);
        header[64..68].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&header, 0).unwrap();
        drop(file);
        let base = fs::OpenOptions::new().write(true).open(&files.base).unwrap();
        let end = random.below(SIZE) as usize;
        base.write_all_at(&model[..end], 0).unwrap();

        let error = files.open_as(&files.overlay).unwrap_err().to_string();
        assert!(error.contains("interrupted"), "{error}");
        assert!(discard_overlay(&files.overlay).unwrap_err().to_string().contains("interrupted"));
        assert!(overlay_summary(&files.overlay).unwrap().is_committing);
        commit_overlay(&files.overlay, &files.base).unwrap();
        assert!(fs::read(&files.base).unwrap() == model);
        assert!(content(&files.open()) == model);
    });
}

#[test]
fn a_commit_into_another_base_is_refused_and_changes_nothing() {
    let files = Files::new(&mut Random::new(6));
    let mut model = files.content.clone();
    change(&files.open(), &mut model, &mut Random::new(7));
    let other = files.base.with_file_name("other");
    fs::write(&other, vec![9; SIZE as usize]).unwrap();
    assert!(commit_overlay(&files.overlay, &other).unwrap_err().is_other_base());
    assert!(fs::read(&other).unwrap().iter().all(|byte| *byte == 9));
    let missing = commit_overlay(&files.overlay, files.base.with_file_name("missing"));
    assert!(missing.unwrap_err().to_string().contains("missing"));
    assert!(content(&files.open()) == model);
}

#[test]
fn a_discarded_overlay_is_empty() {
    let files = Files::new(&mut Random::new(8));
    let mut model = files.content.clone();
    change(&files.open(), &mut model, &mut Random::new(9));
    discard_overlay(&files.overlay).unwrap();
    assert!(content(&files.open()) == files.content);
    let rest = fs::read_dir(files.overlay.parent().unwrap()).unwrap().count();
    assert_eq!(rest, 2, "a temporary file is left over");
}

#[test]
fn the_depth_is_one_in_the_overlay_and_two_in_the_base_and_more_with_each_overlay() {
    let block = Memory::PAGE_SIZE;
    let base = Memory::new(8 * block).unwrap();
    base.can_write().unwrap().write(&[1; 1], 0, false).unwrap();
    base.can_write().unwrap().write(&[1; 1], 2 * block, false).unwrap();
    let lower = Overlay::in_memory(base).unwrap();
    CanWrite::write(&lower, &[2; 1], 2 * block, false).unwrap();
    let depths = |disk: &dyn Contexts| {
        let mut found = BTreeMap::new();
        let mut at = 0;
        disk.status(DEPTH, 0, 8 * block, &mut |run| {
            (at..at + run.length).step_by(block as usize).for_each(|offset| {
                found.insert(offset / block, run.status);
            });
            at += run.length;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(at, 8 * block);
        found.into_values().collect::<Vec<_>>()
    };
    assert_eq!(depths(&lower), [2, 2, 1, 2, 2, 2, 2, 2]);
    let upper = Overlay::in_memory(lower).unwrap();
    CanWriteZeroes::write_zeroes(&upper, 3 * block, block, ZeroMode::default()).unwrap();
    assert_eq!(depths(&upper), [3, 3, 2, 1, 3, 3, 3, 3]);
    // A layer that would make the context of the extents leaves it to the overlay.
    let outer = crate::export::WithAllocationDepth::new(upper);
    assert_eq!(depths(&outer), [3, 3, 2, 1, 3, 3, 3, 3]);
    assert_eq!(Contexts::list(&outer).len(), 1);
    assert_eq!((deepest_first(0, 2), deepest_first(3, 1), deepest_first(0, 0)), (2, 1, 0));
}

#[test]
fn what_is_zeroed_in_the_overlay_is_a_hole_although_the_base_has_data() {
    let base = Memory::new(4 * Memory::PAGE_SIZE).unwrap();
    base.can_write().unwrap().write(&vec![1; base.size() as usize], 0, false).unwrap();
    let disk = Overlay::in_memory(base).unwrap();
    CanWriteZeroes::write_zeroes(&disk, 0, Memory::PAGE_SIZE, ZeroMode::default()).unwrap();
    let mut first = None;
    CanExtents::extents(&disk, 0, disk.size(), &mut |run| {
        first.get_or_insert(run);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(first, Some(Allocation { length: Memory::PAGE_SIZE, hole: true, zero: true }));
    assert_eq!(disk.present_bytes(), Memory::PAGE_SIZE);
}

#[test]
fn a_base_that_shrinks_fails_what_it_lacks_and_a_huge_one_is_refused() {
    let base = Arc::new(Memory::new(4 * Memory::PAGE_SIZE).unwrap());
    let disk = Overlay::in_memory(Arc::clone(&base)).unwrap();
    CanWrite::write(&disk, &[1; 1], 3 * Memory::PAGE_SIZE, false).unwrap();
    base.can_resize().unwrap().resize(Memory::PAGE_SIZE).unwrap();
    assert_eq!(disk.size(), 4 * Memory::PAGE_SIZE);
    let mut byte = [0];
    assert_eq!(disk.read(&mut byte, 0).unwrap_err().code(), ErrorCode::EIO);
    disk.read(&mut byte, 3 * Memory::PAGE_SIZE).unwrap();
    assert_eq!(byte, [1]);
    let huge = Overlay::in_memory(Memory::new(1 << 60).unwrap()).unwrap_err();
    assert!(huge.to_string().contains("562949953421312 bytes"), "{huge}");
}

/// Many threads write parts of the same blocks, which come in from the base meanwhile.
#[test]
fn writes_to_parts_of_one_block_at_the_same_time_are_all_there() {
    let size = 4 * Memory::PAGE_SIZE;
    for _ in 0..20 {
        let base = Memory::new(size).unwrap();
        base.can_write().unwrap().write(&vec![9; size as usize], 0, false).unwrap();
        let disk = Overlay::in_memory(base).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let disk = &disk;
                scope.spawn(move || {
                    for piece in (0..size / 512).filter(|piece| piece % 8 == u64::from(thread)) {
                        CanWrite::write(disk, &[thread; 500], piece * 512, false).unwrap();
                    }
                });
            }
        });
        let found = content(&disk);
        for (piece, bytes) in found.chunks(512).enumerate() {
            assert!(bytes[..500].iter().all(|byte| usize::from(*byte) == piece % 8));
            assert!(bytes[500..].iter().all(|byte| *byte == 9));
        }
    }
}
