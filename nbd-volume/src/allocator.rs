//! How the C library's allocator treats what volumes are read and merged by.

/// Has glibc's allocator reuse buffers of some MiB, in all of the process. Does nothing with another C library, or with
/// another allocator of Rust's.
///
/// For a program that serves volumes, before it opens the first one; `nbd serve` calls it. As the allocator comes, it asks
/// the system for each buffer that is fetched or merged and soon gives it back, and the system clears all of its pages each
/// time: measured, an eighth of the processor time of reads in sequence. With this, up to 64 MiB that are free stay with the
/// process, for each of the allocator's arenas at most: [`Options::with_memory`](crate::Options::with_memory) has room for
/// what was measured of that.
pub fn reuse_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Bytes of the largest that is reused. The allocator takes no more.
        const LARGE: libc::c_int = 32 << 20;
        /// Bytes that stay.
        const FREE: libc::c_int = 64 << 20;
        // SAFETY: it sets numbers in the allocator, under its lock; a value that it does not take changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, FREE);
        }
    }
}
