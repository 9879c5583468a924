//! A program without the standard library that serves a session with `nbd-proto`.
//!
//! It has a panic handler and an allocator of its own. If the core or one of its dependencies used the standard
//! library, there would be two panic handlers, and this would not build. It also runs: exit code 0 says that a client's
//! bytes led to the reply that was expected.
#![no_std]
#![no_main]

extern crate alloc;

mod arena;
mod session;

use core::ffi::c_int;
use core::panic::PanicInfo;

// The C library has the start of the program, `memcpy` and its like, and `abort`; a bare machine has its own.
#[link(name = "c")]
unsafe extern "C" {
    safe fn abort() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    abort()
}

// The `alloc` that comes with the compiler was built to unwind, and names what it would unwind with. Nothing unwinds
// here, so that neither is ever called.

// SAFETY: no other symbol has this name: the standard library, which would define it, is not there.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    abort()
}

// SAFETY: no other symbol has this name: the unwinder is not linked.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    abort()
}

/// Called by the start of the program. Its value is the exit code.
// SAFETY: no other symbol is called `main`, since the standard library, which would define one, is not there.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const u8) -> c_int {
    match session::run() {
        Some(()) => 0,
        None => 1,
    }
}
