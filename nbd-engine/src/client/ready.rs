//! A connection on which an export was entered and nothing was asked for yet.

use core::sync::atomic::AtomicU64;
use std::sync::Arc;

use nbd_proto::RequestRules;
use nbd_proto::client::Connection;

use super::details::ExportDetails;
use crate::maybe_tls::MaybeTls;
use crate::pump::Pump;
use crate::transport::AnyTransport;

/// What a [`Client`](super::Client) is made of.
pub(super) struct ReadyConnection {
    pub(super) pump: Pump<Connection, MaybeTls<AnyTransport>>,
    /// The server and the export, as errors name them.
    pub(super) peer: Arc<str>,
    pub(super) details: ExportDetails,
    pub(super) rules: RequestRules,
}

impl ReadyConnection {
    /// Whether this can be a further connection of a client beside `first`: a flush on one covers both, whatever is valid
    /// on the first one is valid here, and the same metadata contexts are selected.
    pub(super) fn fits(&self, first: &Self) -> bool {
        let (own, firsts) = (&self.details, &first.details);
        own.can_multi_conn()
            && own.flags().contains(firsts.flags())
            && own.block_size() == firsts.block_size()
            // A file may have grown meanwhile.
            && own.size() >= firsts.size()
            && own.sorted_contexts() == firsts.sorted_contexts()
    }

    /// Makes the size one with that of the client's first connection.
    pub(super) fn share_size(&mut self, size: &Arc<AtomicU64>) {
        self.details.size = Arc::clone(size);
    }
}
