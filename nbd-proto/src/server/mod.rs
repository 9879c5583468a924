//! The server's side of a connection. See [`Connection`].

mod config;
mod connection;
mod contexts;
mod event;
mod handshake;
mod header;
mod oldstyle;
mod option_reply;
mod options;
mod question;
mod reply;
mod status;
mod transmission;

pub use config::{Config, TlsMode};
pub use connection::Connection;
pub use event::{Event, Lookup, Purpose};
pub use oldstyle::OldstyleUnfit;
pub use options::{Listing, LookupOutcome, LookupRefusal};
pub use reply::Reply;
pub use status::{StatusExtents, StatusIter, StatusQuery};
