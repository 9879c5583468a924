//! What the adapters' own tests share: exports to play with, an allocator that counts, and a bound for tests.

mod bounded;
pub mod counting;
pub mod exports;
pub mod volatile;

pub use bounded::bounded;
