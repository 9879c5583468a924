//! Being built.
pub mod export;
