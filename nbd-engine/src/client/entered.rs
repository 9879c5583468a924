//! A connection whose export was entered, for something else than a client.

use core::fmt;
use std::os::fd::BorrowedFd;

use super::ExportDetails;
use super::ready::ReadyConnection;
use crate::maybe_tls::MaybeTls;
use crate::transport::{AnyTransport, Transport};

/// A connection on which an export was entered, and on which no request was sent: for those that speak the transmission
/// phase by themselves, such as the kernel. Made by [`Negotiation::hand_over`](super::Negotiation::hand_over).
///
/// Nothing of the stream is kept back: the next byte that the server sends is the next one that is read. Dropping it closes
/// the connection without `NBD_CMD_DISC`.
pub struct Entered {
    transport: MaybeTls<AnyTransport>,
    details: ExportDetails,
}

impl Entered {
    pub(super) fn new(ready: ReadyConnection) -> Self {
        Self { transport: ready.pump.transport, details: ready.details }
    }

    /// What was agreed about the export.
    #[must_use]
    pub const fn export(&self) -> &ExportDetails {
        &self.details
    }

    /// The socket, which may be duplicated and handed on, and is in non-blocking mode; `None` if the bytes on it are
    /// not those of the protocol, as with TLS, or if the stream is no socket.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.transport.socket()
    }

    /// The byte stream.
    #[must_use]
    pub fn into_transport(self) -> AnyTransport {
        Box::new(self.transport)
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("details", &self.details).finish_non_exhaustive()
    }
}
