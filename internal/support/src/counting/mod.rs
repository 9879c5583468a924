//! An allocator that counts, for tests of what servers and clients allocate.

pub mod steady;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with two meters: allocations of chosen threads, and bytes held by the whole process.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
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

fn allocated(bytes: usize) {
    // A thread that ends may allocate when its thread-local values are gone already.
    if let Ok(Some(counter)) = COUNTER.try_with(Cell::get) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

fn freed(bytes: usize) {
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
