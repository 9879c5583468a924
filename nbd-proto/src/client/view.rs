//! What an embedder can ask a connection at any time.

use alloc::string::String;
use alloc::vec::Vec;

use super::connection::{Connection, State};
use super::transmission::Resizing;
use super::validate::Rules;
use crate::BlockSize;
use crate::wire::TransmissionFlags;

/// A metadata context that is selected on this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelectedContext {
    /// Its number in [`Event::Extents`](super::Event::Extents); has no meaning on other connections (C-OPT-SM-11).
    pub id: u32,
    /// Namespace, colon, leaf.
    pub name: String,
}

/// The export in use during transmission.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) rules: Rules,
    pub(super) block_size_advertised: bool,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) contexts: Vec<SelectedContext>,
    pub(super) resizing: Option<Resizing>,
}

/// What the server told of the export in use.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ExportView<'a> {
    /// The size in bytes; the lesser of both while a resize is under way.
    pub size: u64,
    /// Transmission flags, without those that mean nothing under what was negotiated.
    pub flags: TransmissionFlags,
    /// Size constraints as enforced on what you submit: the maximum payload is at most
    /// [`Limits::max_payload`](crate::Limits::max_payload).
    pub block_size: BlockSize,
    /// Whether the server told size constraints. If it did not, multiples of 512 are safest (C-SZ-17).
    pub block_size_advertised: bool,
    /// The canonical name, if asked for and told.
    pub name: Option<&'a str>,
    /// A text for people, if asked for and told.
    pub description: Option<&'a str>,
    /// Metadata contexts that were selected.
    pub contexts: &'a [SelectedContext],
    /// Whether reads are answered by structured or extended replies.
    pub structured: bool,
    /// Whether extended headers are in use.
    pub extended: bool,
    /// Whether the stream runs over TLS.
    pub tls: bool,
}

impl<C> Connection<C> {
    /// Whether all is said and done: nothing more will be read or sent, and no event is ready. Close.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ready.is_empty()
            && (self.error.is_some() || (matches!(self.state, State::Ended) && self.out.is_empty()))
    }

    /// Whether the handshake is over and an export is in use.
    #[must_use]
    pub const fn is_transmitting(&self) -> bool {
        self.export.is_some()
    }

    /// Whether the stream runs over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.negotiation.tls
    }

    /// Whether both sides speak fixed newstyle, which all options but `NBD_OPT_EXPORT_NAME` need.
    #[must_use]
    pub const fn is_fixed_newstyle(&self) -> bool {
        self.negotiation.fixed
    }

    /// Whether structured or extended replies were agreed on.
    #[must_use]
    pub const fn is_structured(&self) -> bool {
        self.negotiation.structured || self.negotiation.extended
    }

    /// Whether extended headers were agreed on.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.negotiation.extended
    }

    /// Whether the server said that it is shutting down: nothing more can be submitted, and the client has to
    /// [leave](Self::disconnect) (C-END-06).
    #[must_use]
    pub const fn server_is_shutting_down(&self) -> bool {
        self.server_is_shutting_down
    }

    /// Requests that are submitted and not completed.
    #[must_use]
    pub const fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The export in use, `None` during haggling.
    #[must_use]
    pub fn export(&self) -> Option<ExportView<'_>> {
        self.export.as_ref().map(|entered| ExportView {
            size: entered.rules.size,
            flags: entered.rules.flags,
            block_size: entered.rules.block_size,
            block_size_advertised: entered.block_size_advertised,
            name: entered.name.as_deref(),
            description: entered.description.as_deref(),
            contexts: &entered.contexts,
            structured: self.negotiation.structured || self.negotiation.extended,
            extended: self.negotiation.extended,
            tls: self.negotiation.tls,
        })
    }
}
