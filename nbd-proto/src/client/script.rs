//! What the machine negotiates by itself, and in which order.

use super::export::Agreed;
use super::negotiation::Negotiation;
use super::{Config, TlsMode};

/// What the machine negotiates by itself, in the order of [`Negotiation::next_move`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// TLS and headers.
    Prepare,
    /// And contexts and the export. When that is refused, `give_up` says whether to disconnect, or to let the embedder
    /// choose.
    Enter { give_up: bool },
}

/// What need not be asked again.
// (C-OPT-15)
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) tls: bool,
    pub(super) extended: bool,
    pub(super) structured: bool,
    /// `NBD_OPT_GO` turned out to be unknown to the server.
    pub(super) go: bool,
}

/// What to do when it is the client's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// It is the embedder's turn, as it was before.
    AwaitOption,
    /// The machine is done: the embedder's turn begins.
    HandOver,
    StartTls,
    ExtendedHeaders,
    StructuredReplies,
    Contexts,
    Go,
    ExportName,
}

impl Negotiation {
    /// What comes next.
    pub(super) fn next_move(&self, config: &Config) -> Move {
        let Some(script) = self.script else { return Move::AwaitOption };
        let Agreed { fixed, tls, extended, .. } = self.agreed;
        let chunked = self.agreed.chunked();
        let tried = &self.tried;
        if fixed && config.tls != TlsMode::Off && !tls && !tried.tls {
            Move::StartTls
        } else if fixed && config.extended_headers && !extended && !tried.extended {
            Move::ExtendedHeaders
        } else if fixed && config.structured_replies && !chunked && !tried.structured {
            Move::StructuredReplies
        } else if script == Script::Prepare {
            Move::HandOver
        } else if !config.contexts.is_empty() && chunked && !self.has_selected() {
            Move::Contexts
        } else if fixed && !tried.go {
            Move::Go
        } else {
            Move::ExportName
        }
    }

    /// Whether contexts were selected for the export that the script enters, or should have been.
    fn has_selected(&self) -> bool {
        let selected = self.selection.as_ref().and_then(|selection| selection.export.as_deref());
        selected == Some(&self.export)
    }
}
