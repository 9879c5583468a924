//! One set of scenarios that every adapter passes, over TCP and over Unix sockets, and many of them inside of TLS.
//!
//! A scenario is a function that takes a [`Setup`], starts a server by it, and plays clients against it, scripted ones
//! that share no code with the project. It may use everything that the adapters have in common and nothing else, so
//! that it says the same of all of them. The list of scenarios is in [`scenarios`]; [`suite!`] makes a test of each, by
//! transport.
//!
//! **A new adapter** implements [`Adapter`] in a file of [`adapters`], and gets a file in `tests/` with one line. A
//! program that only listens (an event loop of its own, in any language) is a [`Program`] and passes the scenarios that
//! need no more than a disk.
//!
//! **Clients** of an adapter implement [`client::ClientAdapter`] in a file of [`clients`]. Their scenarios are in
//! [`client_scenarios`] and take a [`ClientSetup`] beside the server's [`Setup`]; [`client_suites!`] makes a test of each
//! for a client with each server that it names. Those with hostile servers are in [`mod@hostile`], and
//! [`hostile_suite!`] makes their tests.
//!
//! Nothing here asserts how long something takes, nothing waits without a bound, and what must happen before something
//! else is made to happen before it: by exports whose work the scenario lets go on ([`exports::Gate`]).

pub mod adapters;
pub mod client;
pub mod client_scenarios;
pub mod clients;
pub mod exports;
pub mod hostile;
pub mod scenarios;
pub mod tasks;

mod adapter;
mod certificates;
mod every_command;
mod served;
mod setup;

pub use adapter::{Adapter, Control, Listened, Place, Said, Started};
pub use certificates::require_tls;
pub use served::Served;
pub use setup::{
    ClientSetup, Program, Server, Setup, Subject, Transport, run, run_client, run_pair,
};

pub use nbd_testkit::SOON;

/// The examples of a page that is about several adapters, which `cargo test` compiles, too.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../../docs/migrate.md")]
    struct Migrate;
}
