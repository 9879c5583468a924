//! What `nbd serve` is to be: one value, whether it comes from the command line or from a file.
//!
//! [`Config`] is all that the server is started from. `arguments.rs` makes one of the command line, [`load`] one of a
//! TOML file; both go through the same [rules](check()).

mod check;
mod document;
mod export;
mod fields;
mod kind;
mod model;
mod print;
mod read;
#[cfg(test)]
mod reference;
mod source;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use check::check;
#[cfg(feature = "volume")]
pub(crate) use check::{MIN_OBJECT_MEMORY, MIN_VOLUME_CACHE, MIN_VOLUME_MEMORY};
pub(crate) use export::{Backend, Export, noun};
pub(crate) use model::{Access, Address, Config, Listen, LogLevel, RuntimeName, Server};
#[cfg(any(feature = "tls", test))]
pub(crate) use model::{Tls, TlsMode};
pub(crate) use print::print;
pub(crate) use read::{MAX_FAULTS, load};
pub(crate) use source::Source;
#[cfg(target_os = "linux")]
pub(crate) use words::VsockAddress;
pub(crate) use words::{BlockSizes, Cidr, Period, Size, TcpAddress, VolumeCache};
