//! How connections end, as metrics distinguish it.

use nbd_proto::OrderlyEnd;

use crate::metrics::kinds;
use crate::server::ConnectionError;
use crate::server::session::End;

kinds! {
    /// How a connection ended.
    Ending {
        /// The client disconnected in order, or gave up the negotiation.
        Disconnected = "disconnected";
        /// The client closed the stream between two messages, and all its requests were answered.
        HungUp = "hung_up";
        /// The server or the export shut down.
        ShutDown = "shut_down";
        /// The transport failed.
        Transport = "transport";
        /// The client broke the protocol or exceeded a limit.
        Protocol = "protocol";
        /// TLS could not begin, or its handshake failed.
        Tls = "tls";
        /// The client is none of those that are allowed.
        NotAllowed = "not_allowed";
        /// No export was chosen in time.
        HandshakeTimeout = "handshake_timeout";
        /// The client did not go on with sending a request.
        ReceiveStalled = "receive_stalled";
        /// The client did not go on with receiving its replies.
        SendStalled = "send_stalled";
        /// The client was idle while another one waited for a free connection.
        Displaced = "displaced";
        /// The client was gone while its requests were being carried out.
        PeerGone = "peer_gone";
        /// Requests were still in flight when the time to shut down was over.
        DrainTimeout = "drain_timeout";
        /// An oldstyle client could not be given its export.
        ExportRefused = "export_refused";
        /// The program dropped the connection.
        Dropped = "dropped";
        /// A fault of this crate.
        Internal = "internal";
    }
}

impl Ending {
    /// That of a connection that ended in order.
    pub(in crate::server) const fn of(end: End) -> Self {
        match end {
            End::Closed(OrderlyEnd::Disconnected | OrderlyEnd::Aborted) => Self::Disconnected,
            End::Closed(_) => Self::HungUp,
            End::ShutDown => Self::ShutDown,
        }
    }

    pub(in crate::server) const fn of_error(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::Transport(_) => Self::Transport,
            ConnectionError::Protocol(_) => Self::Protocol,
            #[cfg(feature = "tls")]
            ConnectionError::Tls(_) | ConnectionError::TlsHandshake(_) => Self::Tls,
            #[cfg(feature = "tls")]
            ConnectionError::NotAllowed(_) => Self::NotAllowed,
            ConnectionError::ServerFull { .. } | ConnectionError::ShuttingDown => Self::ShutDown,
            ConnectionError::HandshakeTimeout(_) => Self::HandshakeTimeout,
            ConnectionError::ReceiveStalled(_) => Self::ReceiveStalled,
            ConnectionError::SendStalled(_) => Self::SendStalled,
            ConnectionError::Displaced(_) => Self::Displaced,
            ConnectionError::PeerGone => Self::PeerGone,
            ConnectionError::DrainTimeout(_) => Self::DrainTimeout,
            ConnectionError::ExportRefused { .. } | ConnectionError::Oldstyle(_) => {
                Self::ExportRefused
            }
            ConnectionError::Internal(_) => Self::Internal,
        }
    }
}
