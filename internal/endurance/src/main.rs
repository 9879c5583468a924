//! The long runs. See `README.md`.

fn main() {}
