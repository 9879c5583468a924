//! `nbd serve`: exports disks until a signal stops it.

mod access;
mod accounts;
mod activation;
mod announce;
mod arguments;
mod backend;
mod block_size;
mod captive;
mod check;
mod claims;
mod config;
mod control;
mod denied;
mod export_word;
mod folder;
mod identity;
mod layers;
mod linger;
mod listeners;
mod live;
mod metrics;
mod places;
mod predecessor;
mod process;
mod reload;
mod run;
mod sandbox;
mod security;
mod shared;
mod signals;
mod sockets;
mod stdio;
mod supervisor;
mod timed;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "volume")]
mod volumes;
#[cfg(not(feature = "volume"))]
#[path = "no_volumes.rs"]
mod volumes;

pub(crate) use arguments::Arguments;
pub(crate) use control::{
    Answer, CLEAR, Client, DISCONNECT, Disconnect, EXPORT_ADD, EXPORT_REMOVE, Export, ExportName,
    LIST, MAX_ANSWER, Named, RELOAD, Request, START, STATUS, STOP, Status, receive, send,
};
pub(crate) use export_word::{export_of, is_disk};
#[cfg(test)]
pub(crate) use layers::Layer;
pub(crate) use layers::beginnings as layers;
pub(crate) use live::Changes;
pub(crate) use run::run;
pub(crate) use timed::Timed;
