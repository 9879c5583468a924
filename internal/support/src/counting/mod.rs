//! An allocator that counts, for tests of what servers and clients allocate.

pub mod steady;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with three meters: allocations of chosen threads, and bytes held by the whole process and by
/// each thread.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
    static THREAD_HELD: Cell<isize> = const { Cell::new(0) };
    static THREAD_PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Makes a test of each claim about a server's allocations.
#[macro_export]
macro_rules! allocation_suite {
    ($connect:path) => {
        $crate::allocation_suite! { @tests $connect,
            writes_allocate_nothing
            reads_allocate_nothing
            flushes_and_trims_allocate_nothing
            requests_side_by_side_allocate_nothing
            futures_allocate_nothing
            a_client_that_does_not_read_is_held_within_the_limits
        }
    };
    (@tests $connect:path, $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                $crate::counting::steady::$test($connect);
            }
        )*
    };
}

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// From now on the calling thread's allocations are counted there, those of memory that it makes larger included.
pub fn count_this_thread(counter: &'static AtomicUsize) {
    COUNTER.set(Some(counter));
}

/// Bytes that the process holds.
pub fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// The most bytes that the process has held at a time.
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Bytes that the calling thread has allocated and not freed; negative if it has freed what others allocated.
pub fn thread_held() -> isize {
    THREAD_HELD.get()
}

/// The peak of [`thread_held`] since the latest [`reset_thread_peak`].
pub fn thread_peak() -> isize {
    THREAD_PEAK.get()
}

/// Begins to look for the peak anew.
pub fn reset_thread_peak() {
    THREAD_PEAK.set(THREAD_HELD.get());
}

/// Adds to the thread's meter. A thread that ends may allocate when its thread-local values are gone already.
fn count_for_thread(bytes: isize) {
    let _gone = THREAD_HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _gone = THREAD_PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn allocated(bytes: usize) {
    count_for_thread(bytes as isize);
    // A thread that ends may allocate when its thread-local values are gone already.
    if let Ok(Some(counter)) = COUNTER.try_with(Cell::get) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

fn freed(bytes: usize) {
    count_for_thread(-(bytes as isize));
    HELD.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: everything is the system's allocator's work; counting neither allocates nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        allocated(size);
        freed(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}
