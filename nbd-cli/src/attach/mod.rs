//! `nbd attach`, `nbd detach`, `nbd devices`: exports as block devices, by the kernel's own client.
//!
//! The kernel takes sockets on which the negotiation is over ([`link`]), by messages of [`netlink`]. It speaks the
//! transmission phase by itself from then on; this program is needed only where it carries the bytes, as for TLS, or where
//! it replaces connections that are lost ([`keeper`]).

mod arguments;
mod control;
mod detach;
mod device;
mod devices;
mod explain;
mod keeper;
mod link;
mod netlink;
mod plan;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use arguments::Arguments;
pub(crate) use detach::{Arguments as DetachArguments, run as detach};
pub(crate) use devices::{Arguments as DevicesArguments, run as devices};
pub(crate) use run::run;
