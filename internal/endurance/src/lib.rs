//! Long runs of real servers: [`kills`] at random moments under load, and [`soak`]s of many minutes. See `README.md`.

pub mod kills;
pub mod process;
pub mod soak;
