//! What both roles know of the export in use.

use alloc::string::String;

use crate::wire::{OptionReplyType, TransmissionFlags};
use crate::{BlockSize, RequestRules};

/// A metadata context that is selected on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelectedContext {
    /// Its number in block status replies; has no meaning on other connections.
    pub id: u32,
    /// Namespace, colon, leaf.
    pub name: String,
}

/// Why no metadata contexts are selected: how a server answered `NBD_OPT_SET_META_CONTEXT` that knows the option.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextRefusal {
    /// The error, such as `NBD_REP_ERR_TOO_BIG` for more queries than the server takes.
    pub reply: OptionReplyType,
    /// The server's text for people; empty if it has none.
    pub message: String,
}

/// What client and server agreed about the export in use.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ExportView<'a> {
    /// The size in bytes; on a client the lesser of both while a resize is under way.
    pub size: u64,
    /// Transmission flags as advertised; on a client without those that mean nothing under what was negotiated.
    pub flags: TransmissionFlags,
    /// Size constraints as enforced on requests: the maximum payload is at most
    /// [`Limits::max_payload`](crate::Limits::max_payload).
    pub block_size: BlockSize,
    /// Whether the size constraints were part of the negotiation. If they were not, multiples of 512 are safest for a
    /// client.
    pub block_size_advertised: bool,
    /// The canonical name, where the client asked for it and the server has one.
    pub name: Option<&'a str>,
    /// A text for people, where the client asked for it and the server has one.
    pub description: Option<&'a str>,
    /// Metadata contexts that were selected.
    pub contexts: &'a [SelectedContext],
    /// On a client: the server refused to select the [configured](crate::client::Config::contexts) contexts, and was
    /// entered without. A refusal of a selection by hand is [an event](crate::client::Event::OptionFailed) alone.
    pub contexts_refused: Option<&'a ContextRefusal>,
    /// Whether reads are answered by structured or extended replies.
    pub structured: bool,
    /// Whether extended headers are in use.
    pub extended: bool,
    /// Whether the stream runs over TLS.
    pub tls: bool,
}

impl ExportView<'_> {
    /// What requests are checked against.
    #[must_use]
    pub const fn rules(&self) -> RequestRules {
        RequestRules {
            size: self.size,
            flags: self.flags,
            block_size: self.block_size,
            extended: self.extended,
            has_contexts: !self.contexts.is_empty(),
        }
    }
}
