//! How the C library's allocator treats what volumes are read and merged by.

/// Has glibc's allocator reuse buffers of some MiB, in all of the process. Does nothing with another C library, or with
/// another allocator of Rust's.
///
/// For a program that serves volumes, before it opens the first one; `nbd serve` calls it. As the allocator comes, it asks
/// the system for each buffer that is fetched or merged and soon gives it back, and the system clears all of its pages each
/// time: measured, an eighth of the processor time of reads in sequence. With this, up to 64 MiB that are free stay with the
/// process, or 8 MiB for each processor where there are more than eight; and there are not more of the allocator's arenas
/// than processors, as each keeps what it has for itself.
pub fn reuse_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Bytes of the largest that is reused. The allocator takes no more.
        const LARGE: libc::c_int = 32 << 20;
        /// Bytes that stay.
        const FREE: usize = 64 << 20;
        /// And of each arena at least.
        const MIN_FREE: usize = 8 << 20;
        let arenas = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
        let number = |value: usize| libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
        // SAFETY: it sets numbers in the allocator, under its lock; a value that it does not take changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, number((FREE / arenas).max(MIN_FREE)));
            libc::mallopt(libc::M_ARENA_MAX, number(arenas));
        }
    }
}
