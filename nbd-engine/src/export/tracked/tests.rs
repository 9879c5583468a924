#![expect(clippy::single_range_in_vec_init, reason = "lists of dirty ranges, some with one")]

use core::ops::ControlFlow;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::export::model;
use crate::export::{
    AsyncCanWrite, AsyncExport, CanWrite, Contexts, Export, ExportError, Memory, ZeroMode,
};

const K64: u64 = 64 << 10;

fn tracked(size: u64) -> Tracked<Memory> {
    let disk = Tracked::new(Memory::new(size).unwrap().with_allocation_limit(64 << 20));
    disk.tracker().start("b").unwrap();
    disk
}

fn dirty(disk: &Tracked<impl Export>) -> Vec<Range<u64>> {
    disk.tracker().dirty("b", 0..disk.size()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn it_is_the_same_as_an_array(size in 0u64..6 * K64, steps in model::steps()) {
        model::check(&tracked(size), steps);
    }

    #[test]
    fn whatever_has_changed_is_dirty(size in 0u64..6 * K64, steps in model::steps()) {
        let disk = tracked(size);
        disk.write(&vec![9; size as usize], 0, false).unwrap();
        let before = vec![9; size as usize];
        disk.tracker().clear("b");
        model::change(&disk, steps);
        let now = model::read(&disk, 0, disk.size());
        let dirty = dirty(&disk);
        for (at, byte) in (0_u64..).zip(&now) {
            if before.get(at as usize) != Some(byte) {
                prop_assert!(dirty.iter().any(|run| run.contains(&at)), "{at} of {dirty:?}");
            }
        }
    }
}

#[test]
fn each_kind_of_change_makes_its_blocks_dirty() {
    let disk = tracked(64 * K64);
    disk.can_write().unwrap().write(&[1; 2], K64 - 1, false).unwrap();
    disk.can_trim().unwrap().trim(5 * K64, 1, false).unwrap();
    disk.can_write_zeroes().unwrap().write_zeroes(7 * K64, K64, ZeroMode::default()).unwrap();
    let takes = disk.can_write().unwrap().takes_pages().unwrap();
    takes.write_page(takes.new_page().unwrap(), 10 * K64).unwrap();
    assert_eq!(dirty(&disk), [0..2 * K64, 5 * K64..6 * K64, 7 * K64..8 * K64, 10 * K64..11 * K64]);
    assert!(disk.tracker().clear("b"));
    assert_eq!(dirty(&disk), []);

    disk.can_resize().unwrap().resize(66 * K64).unwrap();
    assert_eq!(dirty(&disk), [64 * K64..66 * K64]);
    disk.can_resize().unwrap().resize(60 * K64).unwrap();
    disk.can_resize().unwrap().resize(64 * K64).unwrap();
    assert_eq!(dirty(&disk), [60 * K64..64 * K64]);
}

#[test]
fn reading_flushing_and_caching_change_nothing() {
    let disk = tracked(K64);
    model::read(&disk, 0, K64);
    disk.can_flush().unwrap().flush().unwrap();
    disk.can_cache().unwrap().cache(0, K64).unwrap();
    assert_eq!(dirty(&disk), []);
}

#[test]
fn bitmaps_have_names_and_lives_of_their_own() {
    let disk = tracked(4 * K64);
    let tracker = disk.tracker();
    disk.write(&[1], 0, false).unwrap();
    tracker.start("c").unwrap();
    disk.write(&[1], K64, false).unwrap();
    assert_eq!(tracker.dirty("b", 0..4 * K64).unwrap(), [0..2 * K64]);
    assert_eq!(tracker.dirty("c", 0..4 * K64).unwrap(), [K64..2 * K64]);
    assert_eq!(tracker.names(), ["b", "c"]);
    let names: Vec<_> = Contexts::list(&disk).iter().map(|info| info.name().to_owned()).collect();
    assert_eq!(names, ["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:c"]);

    assert!(tracker.stop("b"));
    assert!(!tracker.stop("b") && !tracker.clear("b"));
    assert_eq!(tracker.dirty("b", 0..1), None);
    let mut visit = |_| ControlFlow::Continue(());
    assert!(Contexts::status(&disk, "qemu:dirty-bitmap:b", 0, K64, &mut visit).is_err());
    assert!(Contexts::status(&disk, "x-other:b", 0, K64, &mut visit).is_err());
}

#[test]
fn names_that_no_context_can_have_are_refused() {
    let disk = tracked(K64);
    let start = |name: &str| disk.tracker().start(name);
    assert_eq!(start("b"), Err(BitmapError::Exists));
    assert_eq!(start(""), Err(BitmapError::InvalidName));
    assert_eq!(start("a\0b"), Err(BitmapError::InvalidName));
    let longest = Tracker::LONGEST_NAME;
    assert_eq!(start(&"x".repeat(longest + 1)), Err(BitmapError::InvalidName));
    assert_eq!(start(&"x".repeat(longest)), Ok(()));
}

#[test]
fn the_number_of_bitmaps_is_bounded() {
    let disk = tracked(K64);
    let tracker = disk.tracker();
    for at in 1..Tracker::MAX_BITMAPS {
        tracker.start(&at.to_string()).unwrap();
    }
    assert_eq!(tracker.start("more"), Err(BitmapError::TooMany));
    assert_eq!(tracker.start("b"), Err(BitmapError::Exists), "that is what is to be mended");
    assert_eq!(tracker.names().len(), Tracker::MAX_BITMAPS);
    assert!(tracker.stop("b"));
    assert_eq!(tracker.start("more"), Ok(()));
}

#[test]
fn the_granularity_is_a_power_of_two() {
    for (asked, got) in [(0, 512), (513, 1024), (K64, K64), (u64::MAX, 1 << 31)] {
        let disk = Tracked::with_granularity(Memory::new(1).unwrap(), asked);
        disk.tracker().start("b").unwrap();
        assert_eq!(disk.tracker().granularity("b"), Some(got));
    }
}

/// A disk that looks at its bitmap, and clears it, in the middle of a write.
struct Nosy {
    tracker: Mutex<Option<Arc<Tracker>>>,
    fails: bool,
}

impl Nosy {
    fn look(&self) -> Result<()> {
        let tracker = self.tracker.lock().unwrap().clone().unwrap();
        assert_eq!(tracker.dirty("b", 0..K64).unwrap(), [0..K64], "marked before");
        tracker.clear("b");
        if self.fails { Err(ExportError::io("half done")) } else { Ok(()) }
    }

    fn tracked(fails: bool) -> Tracked<Self> {
        let disk = Tracked::new(Self { tracker: Mutex::default(), fails });
        disk.tracker().start("b").unwrap();
        *disk.inner.tracker.lock().unwrap() = Some(Arc::clone(disk.tracker()));
        disk
    }
}

impl Export for Nosy {
    fn size(&self) -> u64 {
        K64
    }

    fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }
}

impl CanWrite for Nosy {
    fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.look()
    }
}

impl AsyncExport for Nosy {
    fn size(&self) -> u64 {
        K64
    }

    async fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }
}

impl AsyncCanWrite for Nosy {
    async fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.look()
    }
}

#[test]
fn a_block_is_dirty_before_it_changes_and_after_a_clear_in_the_middle() {
    for fails in [false, true] {
        let disk = Nosy::tracked(fails);
        assert_eq!(CanWrite::write(&disk, &[1], 0, false).is_err(), fails);
        assert_eq!(disk.tracker().dirty("b", 0..K64).unwrap(), [0..K64]);
        disk.tracker().clear("b");
        let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
        let write = core::pin::pin!(AsyncCanWrite::write(&disk, &[1], 0, false));
        assert!(write.poll(&mut cx).is_ready());
        assert_eq!(disk.tracker().dirty("b", 0..K64).unwrap(), [0..K64]);
    }
}
