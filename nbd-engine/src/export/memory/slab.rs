//! Memory straight from the system, by slabs, and handed out by frames of a page each.
//!
//! The only unsafe code of the disk. A general allocator won't do: what it is given back it keeps, for the thread that
//! gave it back, whereas the memory of one frame can be returned to the system whatever happens to its neighbours.

use core::ptr::NonNull;
use std::ffi::c_void;
use std::io;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::PAGE;

/// Frames of a slab, 4 MiB of address space: enough that mapping them costs nothing beside filling them, and few enough
/// that whole slabs become free now and then.
pub(super) const FRAMES: usize = 256;
const BYTES: usize = FRAMES * PAGE;

/// A mapping, which its frames own together.
struct Slab {
    start: NonNull<c_void>,
}

// SAFETY: the mapping is not bound to a thread. The slab itself gives no access to its bytes.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: it is the range that `map` mapped. No frame is left, since each keeps the slab alive, so that nothing
        // has a reference into it.
        let unmapped = unsafe { munmap(self.start.as_ptr(), BYTES) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// A page's worth of memory. There is one of it for each part of a slab, ever, so that it owns its bytes as a box does.
pub(super) struct Frame {
    start: NonNull<u8>,
    slab: Arc<Slab>,
}

// SAFETY: a frame owns its bytes, which are plain, and its slab may be dropped by any thread.
unsafe impl Send for Frame {}
// SAFETY: with a shared frame bytes can only be read.
unsafe impl Sync for Frame {}

/// A new slab's frames, the last one first. They are zero, and take memory when they are first written.
pub(super) fn map() -> io::Result<Vec<Frame>> {
    // The list is made first, so that there is nothing to undo if there is no memory for it.
    let mut frames = Vec::new();
    frames.try_reserve_exact(FRAMES).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: with no address asked for, the system picks one where nothing is.
    let start = unsafe { mmap_anonymous(core::ptr::null_mut(), BYTES, prot, flags) }?;
    let Some(start) = NonNull::new(start) else { return Err(io::ErrorKind::OutOfMemory.into()) };
    no_huge_pages(start);
    let slab = Arc::new(Slab { start });
    frames.extend((0..FRAMES).rev().map(|index| {
        // SAFETY: the mapping has `FRAMES * PAGE` bytes, so that the frame begins inside of it.
        let start = unsafe { start.cast::<u8>().add(index * PAGE) };
        Frame { start, slab: Arc::clone(&slab) }
    }));
    Ok(frames)
}

impl Frame {
    /// What identifies the slab.
    pub(super) fn slab(&self) -> usize {
        self.slab.start.as_ptr().addr()
    }

    pub(super) const fn bytes(&self) -> &[u8] {
        // SAFETY: `PAGE` bytes from there on are mapped, and initialised by the system, as long as the slab lives. They
        // are the frame's own, and change only through an exclusive reference to it.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), PAGE) }
    }

    pub(super) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the reference to the frame is exclusive, and so is the one to its bytes.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), PAGE) }
    }
}

/// What the system is to do with the memory of frames.
#[derive(Clone, Copy)]
enum Advice {
    Discard,
    Populate,
}

/// Returns the memory of frames to the system; they are zero then. `false` if that can't be done, or not for all: where
/// the system's pages are larger than ours, or its name isn't Linux. Sorts them, since neighbours go by one call.
pub(super) fn discard(frames: &mut [Frame]) -> bool {
    frames.sort_unstable_by_key(|frame| frame.start);
    frames.chunk_by_mut(neighbours).all(|run| advise(run, Advice::Discard))
}

/// Has the system find memory for frames now, and not page by page when they are written, which takes longer. Leaves
/// that to the writes where it can't be done.
pub(super) fn populate(frames: &mut [Frame]) {
    frames.sort_unstable_by_key(|frame| frame.start);
    for run in frames.chunk_by_mut(neighbours) {
        advise(run, Advice::Populate);
    }
}

fn neighbours(one: &Frame, other: &Frame) -> bool {
    Arc::ptr_eq(&one.slab, &other.slab)
        && one.start.as_ptr().addr() + PAGE == other.start.as_ptr().addr()
}

/// Advises on the memory of neighbours in one slab, which are in order.
#[cfg(target_os = "linux")]
fn advise(frames: &mut [Frame], advice: Advice) -> bool {
    let Some(first) = frames.first() else { return true };
    let length = frames.len() * PAGE;
    let advice = match advice {
        Advice::Discard => rustix::mm::Advice::LinuxDontNeed,
        Advice::Populate => rustix::mm::Advice::LinuxPopulateWrite,
    };
    // SAFETY: the range consists of the frames' bytes, which no other reference can be to, for these references
    // are exclusive. Discarded pages of a private anonymous mapping read as zeroes, which is initialised; populated
    // ones keep their bytes.
    unsafe { rustix::mm::madvise(first.start.as_ptr().cast(), length, advice) }.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn advise(_frames: &mut [Frame], _advice: Advice) -> bool {
    false
}

/// A huge page would have a single frame take 2 MiB, and be put together again after frames of it were discarded.
#[cfg(target_os = "linux")]
fn no_huge_pages(start: NonNull<c_void>) {
    // SAFETY: the range was just mapped; the advice doesn't change its bytes.
    let _not_on_all_kernels =
        unsafe { rustix::mm::madvise(start.as_ptr(), BYTES, rustix::mm::Advice::LinuxNoHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn no_huge_pages(_start: NonNull<c_void>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_zero_and_apart_from_each_other() {
        let mut frames = map().unwrap();
        assert_eq!(frames.len(), FRAMES);
        for (number, frame) in frames.iter_mut().enumerate() {
            assert!(frame.bytes().iter().all(|&byte| byte == 0));
            frame.bytes_mut().fill(number as u8);
        }
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|&byte| byte == number as u8));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_discarded_is_zero_and_its_neighbours_stay() {
        let mut frames = map().unwrap();
        frames.iter_mut().for_each(|frame| frame.bytes_mut().fill(7));
        // One, three in a row and the last, in no order.
        let mut chosen: Vec<Frame> =
            [200, 10, 99, 11, 9].map(|at| frames.swap_remove(at)).into_iter().collect();
        assert!(discard(&mut chosen));
        assert!(chosen.iter().all(|frame| frame.bytes().iter().all(|&byte| byte == 0)));
        assert!(frames.iter().all(|frame| frame.bytes().iter().all(|&byte| byte == 7)));
    }

    #[test]
    fn the_slab_lives_as_long_as_one_of_its_frames() {
        let mut frame = map().unwrap().swap_remove(100);
        frame.bytes_mut().fill(1);
        let frame = std::thread::spawn(move || frame).join().unwrap();
        assert_eq!(frame.bytes()[PAGE - 1], 1);
    }
}
