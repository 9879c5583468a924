//! Addresses of a test's own.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

/// An address of this machine that no other test uses: a port of it that is closed stays free, and nobody connects from it.
pub fn own_ip() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) & 0x7f;
    Ipv4Addr::from_bits(0x7f80_0000 | (std::process::id() & 0xffff) << 7 | count)
}
