//! The server's side of a connection. See [`Connection`].

mod config;
mod connection;
mod context;
mod event;
mod haggling;
mod oldstyle;
mod option_reply;
mod reply;
mod transmission;
mod validate;

pub use config::{Config, TlsMode};
pub use connection::{Connection, ExportView, SelectedContext};
pub use event::{Event, Incoming, Lookup, PauseReason, Purpose, Request};
pub use haggling::{Listing, LookupOutcome, LookupRefusal};
pub use oldstyle::OldstyleUnfit;
pub use reply::Reply;
