//! The connection: its phases, and the methods that drive it. Only this file changes the phase.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::negotiation::Negotiation;
use super::pending::Pending;
use super::progress::Progress;
use super::transmission::Transmission;
use super::{Config, Event, OptionError, SubmitError};
use crate::in_flight::InFlight;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::{
    Command, Error, ExportView, Finished, Input, Misuse, OrderlyEnd, PauseReason, RequestId,
    RequestRules, Segments, Wants,
};

/// The client's side of one connection, as a state machine that does no I/O.
///
/// Its methods come in four families. **What happened:** [`transmitted`](Self::transmitted),
/// [`payload_received`](Self::payload_received), [`tls_established`](Self::tls_established),
/// [`end_of_stream`](Self::end_of_stream). **What you want:** [`submit`](Self::submit),
/// [`submit_block_status`](Self::submit_block_status), [`disconnect`](Self::disconnect), and during the negotiation
/// [`enter`](Self::enter) and a method for each option. **What it wants of you:** [`next_event`](Self::next_event),
/// [`segments`](Self::segments), [`wants`](Self::wants), in this order. **Getters:** [`export`](Self::export) and
/// others.
///
/// The rule: before you wait for the transport, [`next_event`](Self::next_event) has given `None` for all that you have
/// received, and [`segments`](Self::segments) is empty or the transport takes no more. Then wait for reading *and*
/// writing: a client that only writes while its server only writes waits forever, and this machine never makes one wait
/// for the other.
///
/// The [module](super) has the loop.
#[derive(Debug)]
pub struct Connection {
    pub(super) config: Config,
    scratch: Scratch,
    pub(super) out: Outbound,
    pub(super) phase: Phase,
    /// Events that methods other than [`next_event`](Self::next_event) led to.
    due: VecDeque<Event>,
    /// Writes whose payload has been transmitted, until they are given to the embedder.
    finished: Vec<RequestId>,
    stream_ended: bool,
}

/// The phases of a connection, in their order.
#[derive(Debug)]
pub(super) enum Phase {
    Negotiation(Box<Negotiation>),
    Transmission(Box<Transmission>),
    Closing(Box<Closing>),
    Closed,
}

/// The connection is over; what is left is to report it.
#[derive(Debug)]
pub(super) struct Closing {
    in_flight: InFlight<Pending>,
    /// Bytes that were transmitted in the transmission phase.
    transmitted: u64,
    result: Result<OrderlyEnd, Error>,
}

impl Connection {
    /// A connection that was just established. Nothing is sent before the server's greeting.
    ///
    /// # Errors
    /// When the configuration holds what must not be sent: [`OptionError::BadString`] for a name or a context,
    /// [`OptionError::BadQuery`] for a context without a namespace and a colon, [`OptionError::RepeatedItem`] for an
    /// information item, [`OptionError::TooLong`] for all contexts together.
    pub fn new(config: Config) -> Result<Self, OptionError> {
        config.check()?;
        Ok(Self {
            phase: Phase::Negotiation(Box::new(Negotiation::new(&config))),
            config,
            scratch: Scratch::default(),
            out: Outbound::default(),
            due: VecDeque::new(),
            finished: Vec::new(),
            stream_ended: false,
        })
    }

    // What it wants of you.

    /// The next event. Takes from the front of `input` what belongs to the connection: protocol bytes, and bytes that
    /// are to be dropped. What it leaves stays yours: it is a payload, or has to wait. It takes nothing while an event
    /// is due without it.
    ///
    /// `None` means that [`wants`](Self::wants) is to be asked what comes next. The last event is [`Event::Closed`];
    /// after it there is none.
    #[inline]
    pub fn next_event(&mut self, input: &mut impl Input) -> Option<Event> {
        let mut unread = input.unread();
        let received = unread.len();
        let event = self.advance(&mut unread);
        match received.checked_sub(unread.len()) {
            None | Some(0) => {}
            Some(consumed) => input.consume(consumed),
        }
        event
    }

    fn advance(&mut self, input: &mut &[u8]) -> Option<Event> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Some(event);
            }
            if let Some(fault) = self.out.fault() {
                self.close(Err(fault));
            }
            let Self { config, scratch, out, .. } = self;
            let progress = match &mut self.phase {
                Phase::Transmission(transmission) => {
                    transmission.receive(&config.limits, scratch, out, input)
                }
                Phase::Negotiation(negotiation) => negotiation.receive(config, scratch, out, input),
                Phase::Closing(closing) => {
                    let event = closing.next_event();
                    if let Event::Closed(_) = event {
                        self.phase = Phase::Closed;
                    }
                    return Some(event);
                }
                Phase::Closed => return None,
            };
            match progress {
                Ok(Progress::Event(event)) => return Some(event),
                Ok(Progress::Stuck) if self.stream_ended => self.close_at_end_of_stream(),
                Ok(Progress::Stuck) => return None,
                progress => self.apply(progress),
            }
        }
    }

    /// What the next bytes of the stream are. Ask once [`next_event`](Self::next_event) has given `None` and
    /// [`segments`](Self::segments) is empty, or takes no more; before that, [`PauseReason::EventDue`] may be the
    /// answer.
    #[must_use]
    #[inline]
    pub fn wants(&self) -> Wants {
        let over = self.stream_ended || self.out.fault().is_some();
        if !self.due.is_empty() {
            return Wants::Nothing(PauseReason::EventDue);
        }
        let (filled, unsent) = (self.scratch.filled(), !self.out.is_empty());
        match &self.phase {
            Phase::Closed => Wants::Closed,
            Phase::Closing(_) => Wants::Nothing(PauseReason::EventDue),
            Phase::Negotiation(_) | Phase::Transmission(_) if over => {
                Wants::Nothing(PauseReason::EventDue)
            }
            Phase::Negotiation(negotiation) => negotiation.wants(filled, unsent),
            Phase::Transmission(transmission) => transmission.wants(filled, unsent),
        }
    }

    /// What is to be sent, in order. Write any prefix of it in any way, then call [`transmitted`](Self::transmitted).
    #[must_use]
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        self.out.segments()
    }

    // What happened.

    /// The first `count` bytes of [`segments`](Self::segments) were transmitted.
    ///
    /// Gives the ids of those [writes](Command::Write) whose last payload byte is among them, each exactly once: their
    /// buffers are free, though they are still in flight. (It is never given for a write that is
    /// [abandoned](Event::Abandoned) before.) Other requests have no payload to give back and are not mentioned.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when there were fewer; [`Misuse::WrongPhase`] after [`Event::Closed`].
    #[inline]
    pub fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
        let Self { phase, out, finished, .. } = self;
        if let Phase::Closed = phase {
            return Err(Misuse::WrongPhase);
        }
        finished.clear();
        out.transmitted(count, finished)?;
        if let Phase::Transmission(transmission) = phase {
            transmission.transmitted = transmission.transmitted.wrapping_add(count as u64);
            finished.retain(|id| transmission.request_sent(out, *id));
        }
        Ok(Finished::drain(finished))
    }

    /// `count` bytes of the payload that [`Wants::Payload`] asked for were moved to the request's buffer.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when `count` exceeds what remained; [`Misuse::WrongPhase`] when no payload was due.
    #[inline]
    pub fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        match &mut self.phase {
            Phase::Transmission(transmission) => transmission.payload_received(count),
            _ => Err(Misuse::WrongPhase),
        }
    }

    /// The TLS handshake that [`Wants::Tls`] asked for succeeded: what follows comes out of TLS. All that was
    /// negotiated before is forgotten. A handshake that fails has no method: close the connection.
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no handshake was due.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        let Self { phase, out, config, .. } = self;
        let progress = match phase {
            Phase::Negotiation(negotiation) if negotiation.awaits_tls() && out.is_empty() => {
                negotiation.tls_established(config, out)
            }
            _ => return Err(Misuse::WrongPhase),
        };
        self.apply(progress);
        Ok(())
    }

    /// The server closed its side of the stream, the transport failed, or you have waited long enough. Call it when
    /// nothing that was received is left. What follows from it comes from [`next_event`](Self::next_event), without
    /// anything being sent: replies that are complete, an [`Event::Abandoned`] for each request that is not answered,
    /// and [`Event::Closed`]. To drop the connection is as good, if you need not know which requests were
    /// [sent](Event::Abandoned::sent).
    ///
    /// (A [server](crate::server::Connection::end_of_stream) calls it only when its peer closed its side, and goes on
    /// to answer. A client has nothing left to send.)
    ///
    /// That is without an error if you had [disconnected](Self::disconnect) and everything was answered, or if you had
    /// sent `NBD_OPT_ABORT`, which a server need not answer. It is [`Error::Refused`] if the server closed instead of
    /// refusing, and [`Error::UnexpectedEnd`] otherwise.
    pub const fn end_of_stream(&mut self) {
        self.stream_ended = true;
    }

    // What you want.

    /// Queues a request. The data of a write is yours to send when [`Segment::Body`](crate::Segment::Body) asks for it;
    /// that of a read is yours to receive when [`Wants::Payload`] or [`Event::Hole`] says so.
    /// [`Event::Completed`] follows, in any order, or [`Event::Abandoned`] when the connection ends before.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] when the request breaks a rule of the protocol or exceeds what the server offered,
    /// [`SubmitError::TooManyRequests`] when as many are in flight as
    /// [`Limits::max_in_flight`](crate::Limits::max_in_flight) allows; the others say why the connection takes no
    /// request, or not this one now. Nothing is queued then.
    #[inline]
    pub fn submit(&mut self, command: Command) -> Result<RequestId, SubmitError> {
        self.submit_any(command, None)
    }

    /// Queues a block status request about some of the selected metadata contexts, named by their ids in
    /// [`ExportView::contexts`]. `offset`, `length` and `one` are as in [`Command::BlockStatus`].
    ///
    /// # Errors
    /// As for [`submit`](Self::submit), and [`InvalidRequest::NotOffered`](crate::InvalidRequest::NotOffered) unless
    /// the server [takes such a list](crate::wire::TransmissionFlags::BLOCK_STATUS_PAYLOAD),
    /// [`InvalidRequest::NoContexts`](crate::InvalidRequest::NoContexts) for an empty one, and
    /// [`SubmitError::BadContext`] for a context that was not selected or occurs twice.
    pub fn submit_block_status(
        &mut self,
        offset: u64,
        length: u64,
        one: bool,
        contexts: &[u32],
    ) -> Result<RequestId, SubmitError> {
        self.submit_any(Command::BlockStatus { offset, length, one }, Some(contexts))
    }

    fn submit_any(
        &mut self,
        command: Command,
        only: Option<&[u32]>,
    ) -> Result<RequestId, SubmitError> {
        match &mut self.phase {
            Phase::Transmission(transmission) if !self.stream_ended => {
                transmission.submit(&mut self.out, self.config.strict, command, only)
            }
            _ => Err(SubmitError::NotTransmitting),
        }
    }

    /// Disconnects softly, as soon as possible: by `NBD_OPT_ABORT` when it is the client's turn, by `NBD_CMD_DISC` once
    /// all requests in flight are answered. Go on driving the connection until [`Event::Closed`], or drop it if that
    /// takes too long.
    pub fn disconnect(&mut self) {
        match &mut self.phase {
            Phase::Negotiation(negotiation) => {
                let progress = negotiation.disconnect(&mut self.out);
                self.apply(progress);
            }
            Phase::Transmission(transmission) => transmission.disconnect(&mut self.out),
            Phase::Closing(_) | Phase::Closed => {}
        }
    }

    /// As [`disconnect`](Self::disconnect), but does not wait for requests in flight before it sends `NBD_CMD_DISC`.
    /// The server has to carry them out all the same, and most servers answer them: but only as long as they can. Keep
    /// the stream open and receive until [`Event::Closed`], since common servers stop at the first reply that they
    /// can't send, and leave most of what was in flight undone.
    pub fn disconnect_now(&mut self) {
        match &mut self.phase {
            Phase::Transmission(transmission) => transmission.disconnect_now(&mut self.out),
            _ => self.disconnect(),
        }
    }

    // Getters.

    /// Whether the connection is on its way to its end: you disconnected, the machine aborts the negotiation, or
    /// [`Event::Closed`] is due or was raised. Nothing more can be submitted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        match &self.phase {
            Phase::Negotiation(negotiation) => negotiation.is_closing() || self.stream_ended,
            Phase::Transmission(transmission) => {
                transmission.is_disconnecting() || self.stream_ended
            }
            Phase::Closing(_) | Phase::Closed => true,
        }
    }

    /// Whether an export is in use.
    #[must_use]
    pub const fn is_transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// Whether the stream runs over TLS. `false` once the connection is over.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.agreed().is_some_and(|agreed| agreed.tls)
    }

    /// Whether both sides use fixed newstyle, which all options but `NBD_OPT_EXPORT_NAME` need. `false` once the
    /// connection is over.
    #[must_use]
    pub fn is_fixed_newstyle(&self) -> bool {
        self.agreed().is_some_and(|agreed| agreed.fixed)
    }

    /// Whether structured or extended replies were agreed on. `false` once the connection is over.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        self.agreed().is_some_and(super::export::Agreed::chunked)
    }

    /// Whether extended headers were agreed on. `false` once the connection is over.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.agreed().is_some_and(|agreed| agreed.extended)
    }

    const fn agreed(&self) -> Option<super::export::Agreed> {
        match &self.phase {
            Phase::Negotiation(negotiation) => Some(negotiation.agreed),
            Phase::Transmission(transmission) => Some(transmission.agreed),
            Phase::Closing(_) | Phase::Closed => None,
        }
    }

    /// Whether the server said that it is shutting down: nothing more can be submitted, and the client has to
    /// [disconnect](Self::disconnect).
    #[must_use]
    pub const fn server_is_shutting_down(&self) -> bool {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.server_is_shutting_down,
            _ => false,
        }
    }

    /// Requests that are submitted, and for which neither [`Event::Completed`] nor [`Event::Abandoned`] was raised.
    #[must_use]
    pub const fn requests_in_flight(&self) -> usize {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.in_flight.len(),
            Phase::Closing(closing) => closing.in_flight.len(),
            Phase::Negotiation(_) | Phase::Closed => 0,
        }
    }

    /// A request in flight, as it was submitted.
    #[must_use]
    pub fn command(&self, id: RequestId) -> Option<Command> {
        let in_flight = match &self.phase {
            Phase::Transmission(transmission) => &transmission.in_flight,
            Phase::Closing(closing) => &closing.in_flight,
            Phase::Negotiation(_) | Phase::Closed => return None,
        };
        in_flight.get(id).map(|pending| pending.command)
    }

    /// The export in use; `None` during the negotiation and once the connection is over.
    #[must_use]
    pub fn export(&self) -> Option<ExportView<'_>> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission.view()),
            _ => None,
        }
    }

    /// What [`submit`](Self::submit) checks requests against, for embedders that have to split them. The size is the
    /// lesser one while a resize is under way.
    #[must_use]
    pub const fn rules(&self) -> Option<RequestRules> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission.rules),
            _ => None,
        }
    }

    // From one phase to the next.

    /// Does what a phase has come to.
    pub(super) fn apply(&mut self, progress: Result<Progress, Error>) {
        match progress {
            Ok(Progress::Stuck | Progress::Continue) => {}
            Ok(Progress::Event(event)) => self.due.push_back(event),
            Ok(Progress::EventAndClose(event, reason)) => {
                self.due.push_back(event);
                self.close(Ok(reason));
            }
            Ok(Progress::Enter(export)) => {
                let limits = &self.config.limits;
                let transmission = Transmission::new(*export, limits, &mut self.out);
                self.phase = Phase::Transmission(Box::new(transmission));
                self.due.push_back(Event::Ready);
            }
            Ok(Progress::Close(reason)) => self.close(Ok(reason)),
            Err(error) => self.close(Err(error)),
        }
    }

    fn close_at_end_of_stream(&mut self) {
        let filled = self.scratch.filled();
        let result = match &self.phase {
            Phase::Negotiation(negotiation) => negotiation.end_of_stream(filled),
            Phase::Transmission(transmission) => transmission.end_of_stream(filled),
            Phase::Closing(_) | Phase::Closed => return,
        };
        self.close(result);
    }

    /// Ends the connection: nothing more will be sent or understood.
    fn close(&mut self, result: Result<OrderlyEnd, Error>) {
        self.out.clear();
        let (in_flight, transmitted, refusal) =
            match core::mem::replace(&mut self.phase, Phase::Closed) {
                Phase::Transmission(transmission) => {
                    (transmission.in_flight, transmission.transmitted, None)
                }
                Phase::Negotiation(negotiation) => (InFlight::new(0), 0, negotiation.refusal()),
                closing => {
                    self.phase = closing;
                    return;
                }
            };
        // Whatever goes wrong while the machine aborts the negotiation, the reason for that comes first.
        let result = match (result, refusal) {
            (Err(fault @ Error::Internal(_)), _) => Err(fault),
            (Err(_), Some(refusal)) => Err(Error::Refused(refusal)),
            (result, _) => result,
        };
        self.phase = Phase::Closing(Box::new(Closing { in_flight, transmitted, result }));
    }
}

impl Closing {
    fn next_event(&mut self) -> Event {
        let Some((id, mut pending)) = self.in_flight.pop() else {
            return Event::Closed(self.result);
        };
        match pending.answer.take() {
            // The server was quicker than the transport.
            Some(result) if pending.sent || result.is_err() => Event::Completed { id, result },
            _ => Event::Abandoned { id, sent: pending.has_begun(self.transmitted) },
        }
    }
}
