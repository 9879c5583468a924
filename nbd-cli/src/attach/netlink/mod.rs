//! The kernel's interface for NBD devices: messages of generic netlink, and dialogues of them.
//!
//! [`message`] knows the layout of messages, [`kernel`] how one is answered, and [`family`] what NBD's mean.

mod family;
mod kernel;
mod message;
#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
mod tests;

pub(super) use family::{Connect, Nbd, Reconfigure, State};
pub(super) use kernel::{Channel, Error, Socket};
