//! What can be asked about a connection: how far it has come, and what was agreed on.

use super::{Connection, End, Phase};
use crate::server::SelfAnswered;
use crate::server::handshake::{Handshake, State};
use crate::server::question::Question;
use crate::server::reply::Style;
use crate::wire::valid_string;
use crate::{Error, ExportView, OrderlyEnd};

impl Connection {
    /// Whether the client will send no more requests than what was received already, or is not listened to any more.
    /// [`Event::Closed`](crate::server::Event::Closed) follows once what is in flight has been answered and sent: long work can be cut short, and a
    /// deadline be set.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.end_of_stream || self.end != End::Open
    }

    /// Whether no request is in flight and nothing is queued.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests_in_flight() == 0 && self.out.is_empty()
    }

    /// How the connection is about to be closed, while what is queued is still to be sent; then
    /// [`Event::Closed`](crate::server::Event::Closed) says the same. For an embedder whose transport takes no more, so that
    /// it does not report that in place of the cause: a client need not wait for the answer to `NBD_OPT_ABORT`, for example.
    #[must_use]
    pub const fn ending(&self) -> Option<Result<OrderlyEnd, Error>> {
        match self.end {
            End::Closing(result) => Some(result),
            End::Failed(error) => Some(Err(error)),
            End::Open | End::Closed => None,
        }
    }

    /// Whether the handshake is over and an export is in use.
    #[must_use]
    pub const fn is_transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// Exports in the longest list that the client was given, about which it may want to ask. Zero once it has entered one.
    #[must_use]
    pub const fn listed_exports(&self) -> u32 {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.listed,
            Phase::Transmission(_) => 0,
        }
    }

    /// Whether the stream runs over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.agreed.tls,
            Phase::Transmission(transmission) => transmission.export.tls,
        }
    }

    /// Requests whose reply is not wholly transmitted.
    #[must_use]
    pub const fn requests_in_flight(&self) -> usize {
        match &self.phase {
            Phase::Handshake(_) => 0,
            Phase::Transmission(transmission) => transmission.in_flight.len(),
        }
    }

    /// What the core answered by itself since the export was entered, for statistics: an entry for each command and error
    /// that there was. Counts only grow.
    #[must_use]
    pub fn self_answered(&self) -> &[SelfAnswered] {
        match &self.phase {
            Phase::Handshake(_) => &[],
            Phase::Transmission(transmission) => transmission.self_answers.entries(),
        }
    }

    /// The metadata queries of the option that awaits an answer, in the client's order: for exports that make contexts
    /// on demand, by [`ContextInfo::answering`](crate::ContextInfo::answering). Empty unless the
    /// [purpose](crate::server::LookupQuestion::purpose) of the lookup is [`Purpose::MetaContext`](crate::server::Purpose::MetaContext).
    /// Queries that are no valid strings are left out.
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        let question = match &self.phase {
            Phase::Handshake(Handshake { state: State::Asked(Question::Contexts(it)), .. }) => {
                Some(it)
            }
            _ => None,
        };
        question.into_iter().flat_map(|question| question.queries()).filter_map(valid_string)
    }

    /// The export in use, `None` during the negotiation.
    #[must_use]
    pub fn export(&self) -> Option<ExportView<'_>> {
        let Phase::Transmission(transmission) = &self.phase else { return None };
        let export = &transmission.export;
        Some(ExportView {
            size: export.rules.size,
            flags: export.rules.flags,
            block_size: export.rules.block_size,
            block_size_advertised: export.block_size_advertised,
            name: export.name.as_deref(),
            description: export.description.as_deref(),
            contexts: &export.contexts,
            contexts_refused: None,
            structured: export.style != Style::Simple,
            extended: export.style == Style::Extended,
            tls: export.tls,
        })
    }
}
