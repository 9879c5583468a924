//! What becomes of a request whose connection was lost.

use nbd_proto::Command;

use super::super::request_state::RequestState;
use super::Reconnect;

/// The decision about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Resend {
    /// It is sent, or sent again, on the new connection.
    Again,
    /// It fails, and says whether it may have been carried out.
    Fail,
    /// The same, since it was sent so many times.
    FailAfter(u32),
    /// It has its outcome already, or its caller has given it up.
    Finish,
}

impl Resend {
    /// Whether a request may be sent once more.
    pub(in super::super) fn decide(request: &RequestState, config: &Reconnect) -> Self {
        // Requests of the client's own begin anew with the recovery.
        let is_own = request.internal.is_some();
        if is_own || request.is_abandoned() || request.failure.is_some() {
            return Self::Finish;
        }
        // The server never had it: whatever it is, this is the first time.
        if !request.sent {
            return Self::Again;
        }
        let may_repeat = match request.command {
            Command::Resize { .. } => false,
            // A server that has answered, whatever it said, does nothing more about a write.
            command if command.is_write() => config.resent_writes() || !request.unanswered,
            // These change nothing. What is not known is taken for a change.
            Command::Read { .. }
            | Command::BlockStatus { .. }
            | Command::Cache { .. }
            | Command::Flush => true,
            _ => false,
        };
        match may_repeat {
            true if request.resends < config.max_resends() => Self::Again,
            true if request.resends > 0 => Self::FailAfter(request.resends.saturating_add(1)),
            _ => Self::Fail,
        }
    }
}
