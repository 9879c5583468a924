//! Making durable what a recorded copy wrote.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use nbd_blocking::Client;

use super::disk::Disk;
use super::open::{Kind, Side};
use crate::exit::Failure;

/// A destination that can be flushed.
#[derive(Debug)]
pub(super) enum Durable {
    Disk(Disk),
    /// A server, by handles of our own of all connections that wrote to it. One flush covers them all; but each connection
    /// knows alone what its server may have lost, and writes it again.
    Server(Mutex<Vec<Client>>),
}

/// What is said of a destination that has no positions.
pub(super) fn no_place(name: &str) -> Failure {
    Failure::usage(format!(
        "--resume: {name} is no file, no block device and no server, onto which a copy could go on"
    ))
}

impl Durable {
    /// # Errors
    /// For what can't be flushed, or has no positions.
    pub(super) fn of(destination: &Side) -> Result<Self, Failure> {
        let name = &destination.name;
        match &destination.kind {
            Kind::Disk { disk, .. } => Ok(Self::Disk(disk.clone())),
            Kind::Server { client, .. } if client.export().can_flush() => {
                Ok(Self::Server(Mutex::new(vec![client.clone()])))
            }
            Kind::Server { .. } => Err(Failure::usage(format!(
                "--resume: {name} can't be flushed, so that it is never known what of a copy would survive its server"
            ))),
            Kind::Stream(_) | Kind::Null => Err(no_place(name)),
        }
    }

    /// One more connection is about to write.
    pub(super) fn joins(&self, client: &Client) {
        if let Self::Server(clients) = self {
            clients.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        }
    }

    /// Makes durable what was written.
    pub(super) fn flush(&self) -> Result<(), String> {
        let text = |error: &dyn Display| error.to_string();
        match self {
            Self::Disk(disk) => disk.flush().map_err(|error| text(&error)),
            Self::Server(clients) => {
                let clients = clients.lock().unwrap_or_else(PoisonError::into_inner).clone();
                clients.iter().try_for_each(|client| client.flush().map_err(|error| text(&error)))
            }
        }
    }
}
