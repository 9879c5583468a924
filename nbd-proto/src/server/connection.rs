//! The connection: its phases, and the methods that drive it.

mod condition;

use alloc::vec::Vec;

use super::handshake::{Handshake, Shared, Shutdown, State, Step};
use super::options::Answered;
use super::pending::Progress;
use super::reply::{Answer, Reply};
use super::transmission::Transmission;
use super::{Config, Event, Listing, LookupOutcome, LookupRefusal};
use crate::outbound::{Outbound, Tail};
use crate::scratch::Scratch;
use crate::wire::{
    HandshakeFlags, NewstyleGreeting, OldstyleGreeting, OptionCode, OptionReplyType,
};
use crate::{
    Error, ExportInfo, Finished, Input, Misuse, NoSession, OrderlyEnd, PauseReason, RequestId,
    Segments, Wants,
};

/// The server's side of one connection, as a state machine that does no I/O.
///
/// After each call that reports something, ask for events by [`next_event`](Self::next_event) until there are none,
/// and send what [`segments`](Self::segments) has; then [`wants`](Self::wants) says what to wait for.
///
/// - **What happened:** [`next_event`](Self::next_event) (bytes arrived), [`payload_received`](Self::payload_received),
///   [`transmitted`](Self::transmitted), [`end_of_stream`](Self::end_of_stream),
///   [`tls_established`](Self::tls_established).
/// - **Answers:** [`answer_list`](Self::answer_list), [`answer_lookup`](Self::answer_lookup), [`reply`](Self::reply).
/// - **What it wants:** [`wants`](Self::wants), [`segments`](Self::segments).
/// - **What you want:** [`shut_down`](Self::shut_down), [`set_size`](Self::set_size).
///
/// The last event is [`Event::Closed`], exactly once, however the connection ends. After it there is nothing to send,
/// and methods that report something return [`Misuse::WrongPhase`] and do nothing.
///
/// The [crate's front page](crate) has the loop.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    scratch: Scratch,
    out: Outbound,
    phase: Phase,
    end: End,
    /// The peer closed its side of the stream.
    end_of_stream: bool,
    shutdown: Shutdown,
    /// For [`transmitted`](Self::transmitted) to give back.
    finished: Vec<RequestId>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one of them lives as long as the connection")]
enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing more is read. Requests in flight are answered and the queue is sent.
    Closing(Result<OrderlyEnd, Error>),
    /// Nothing more is read. What is queued is sent, so that what a client gets does not depend on how its bytes came;
    /// but requests in flight are not waited for.
    Failed(Error),
    /// [`Event::Closed`] was raised.
    Closed,
}

impl Connection {
    /// A connection that was just accepted. The greeting is queued: newstyle, and see [`oldstyle`](Self::oldstyle).
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut flags = HandshakeFlags::FIXED_NEWSTYLE;
        flags.set(HandshakeFlags::NO_ZEROES, config.no_zeroes);
        let phase = Phase::Handshake(Handshake::default());
        Self::greeting(config, &NewstyleGreeting { flags }.encode(), phase)
    }

    /// The same, over a stream that runs inside of TLS already, by a layer that this core has nothing to do with. It is as
    /// if `NBD_OPT_STARTTLS` had succeeded, whatever [`Config::tls`] is: exports that require TLS are open to the client,
    /// and a further `NBD_OPT_STARTTLS` is an error.
    // S-TLS-07
    ///
    /// ```
    /// use nbd_proto::server::{Config, Connection};
    /// assert!(Connection::inside_of_tls(Config::default()).is_tls());
    /// ```
    #[must_use]
    pub fn inside_of_tls(config: Config) -> Self {
        let mut connection = Self::new(config);
        if let Phase::Handshake(handshake) = &mut connection.phase {
            handshake.agreed.tls = true;
        }
        connection
    }

    /// A connection that begins with `greeting`.
    fn greeting(config: Config, greeting: &[u8], phase: Phase) -> Self {
        let mut out = Outbound::default();
        out.put(greeting);
        out.seal(Tail::None, None);
        Self {
            config,
            scratch: Scratch::default(),
            out,
            phase,
            end: End::Open,
            end_of_stream: false,
            shutdown: Shutdown::No,
            finished: Vec::new(),
        }
    }

    /// A connection without options, with this export, after an oldstyle greeting.
    pub(super) fn entered(config: Config, info: &ExportInfo) -> Self {
        let entered = Handshake::default().enter(&config, info, "");
        let greeting = OldstyleGreeting { size: entered.rules.size, flags: entered.rules.flags };
        let transmission = Transmission::new(entered, &config);
        Self::greeting(config, &greeting.encode(), Phase::Transmission(transmission))
    }

    // What happened.

    /// What happened next. Consumes from `input` what belongs to the protocol, and data that is dropped: the payload of
    /// a request that is refused, which shows as [`Wants::Bytes`] while it arrives. Takes nothing at all when an event
    /// is due anyway. `None` when [`wants`](Self::wants) has to be met first; what is left in `input` then is the data
    /// of a request, or has to wait.
    #[inline]
    pub fn next_event(&mut self, input: &mut impl Input) -> Option<Event> {
        loop {
            if let Some(fault) = self.out.fault()
                && self.end != End::Closed
            {
                // What is queued may be wrong.
                self.out.clear();
                self.end = End::Failed(fault);
            }
            if self.end != End::Open {
                return self.closed();
            }
            let shutdown = self.shutdown;
            let mut shared = Shared { config: &self.config, out: &mut self.out, shutdown };
            let step = match &mut self.phase {
                Phase::Transmission(transmission) => {
                    transmission.step(&mut shared, &mut self.scratch, input)
                }
                Phase::Handshake(handshake) => {
                    handshake.step(&mut shared, &mut self.scratch, input)
                }
            };
            match step {
                Ok(Step::Event(event)) => return Some(event),
                Ok(Step::Again) => {}
                Ok(Step::Paused) => return None,
                Ok(Step::Starved) if self.end_of_stream => self.end = self.end_here(),
                Ok(Step::Starved) => return None,
                Ok(Step::Closing(reason)) => self.end = End::Closing(Ok(reason)),
                Err(error) => self.end = End::Failed(error),
            }
        }
    }

    /// The last event, if it is time.
    #[cold]
    fn closed(&mut self) -> Option<Event> {
        let result = match self.end {
            End::Open | End::Closed => return None,
            End::Closing(_) if !self.is_idle() => return None,
            End::Failed(_) if !self.out.is_empty() => return None,
            End::Closing(result) => result,
            End::Failed(error) => Err(error),
        };
        self.end = End::Closed;
        self.out.clear();
        Some(Event::Closed(result))
    }

    /// The end of a stream that has no more bytes.
    #[cold]
    fn end_here(&mut self) -> End {
        let cut_off = match &mut self.phase {
            Phase::Handshake(handshake) => handshake.cut_off(),
            Phase::Transmission(transmission) => transmission.cut_off(),
        };
        let in_header = (self.scratch.filled() > 0).then_some("a header");
        End::Closing(match cut_off.or(in_header) {
            Some(what) => Err(Error::UnexpectedEnd(what)),
            None => Ok(OrderlyEnd::EndOfStream),
        })
    }

    /// Bytes of the payload that [`Wants::Payload`] reported were moved to where they belong.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when `count` exceeds what remained; [`Misuse::WrongPhase`] when no payload was due.
    #[inline]
    pub fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        match &mut self.phase {
            Phase::Transmission(transmission) if self.end == End::Open => {
                transmission.payload_received(count)
            }
            _ => Err(Misuse::WrongPhase),
        }
    }

    /// The first `count` bytes of [`segments`](Self::segments) went out. Gives the requests that are over with them:
    /// their buffers are yours again and their ids are void. Each request that [`Event::Request`] or
    /// [`Wants::Payload`] named comes back once, here, unless the connection closes before.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when there were fewer; [`Misuse::WrongPhase`] after [`Event::Closed`].
    #[inline]
    pub fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
        if self.end == End::Closed {
            return Err(Misuse::WrongPhase);
        }
        self.finished.clear();
        self.out.transmitted(count, &mut self.finished)?;
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.release(&mut self.finished, &mut self.out);
        }
        Ok(Finished::drain(&mut self.finished))
    }

    /// The peer closed its side of the stream: there are no more bytes than what was received already. Go on as before:
    /// what the peer asked for is still answered, in case that it only closed its writing side, and
    /// [`Event::Closed`] follows. A write whose payload was cut off is not raised.
    ///
    /// When the transport fails, drop the connection instead: [`Event::Closed`] would wait for replies to be sent that
    /// can't be. Requests that were not raised yet are lost then, even if they were received. (A
    /// [client](crate::client::Connection::end_of_stream) does call this method in that case, to learn what became of
    /// its requests. A server has nothing to learn.)
    ///
    /// Where only sending fails, there may be more to do: a client can send its requests and `NBD_CMD_DISC` and close
    /// the stream without a look at the replies, and what it asked for is to be carried out all the same.
    /// From then on, report what [`segments`](Self::segments) has as [`transmitted`](Self::transmitted) at once, and go
    /// on until [`Event::Closed`]. Hold what is raised meanwhile until [`ending`](Self::ending) says that the client has
    /// disconnected: one whose connection was lost may have sent it again by another one.
    pub const fn end_of_stream(&mut self) {
        self.end_of_stream = true;
    }

    /// The TLS handshake that [`Wants::Tls`] asked for succeeded: what follows comes out of TLS. All that was
    /// negotiated before is forgotten. A handshake that fails has no method: drop the connection.
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no handshake was due.
    // S-TLS-06
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        match &mut self.phase {
            Phase::Handshake(handshake)
                if self.end == End::Open
                    && matches!(handshake.state, State::Tls)
                    && self.out.is_empty() =>
            {
                handshake.tls_established();
                Ok(())
            }
            _ => Err(Misuse::WrongPhase),
        }
    }

    // Answers.

    /// Answers [`Event::List`]. Names that are no valid strings (at most 4096 bytes without NUL) can't be listed and
    /// are left out, and so are such descriptions.
    ///
    /// # Errors
    /// [`Misuse::NoSuchQuestion`] when the client did not ask for a list; [`Misuse::WrongPhase`] after
    /// [`Event::Closed`].
    pub fn answer_list<'e>(
        &mut self,
        exports: impl IntoIterator<Item = Listing<'e>>,
    ) -> Result<(), Misuse> {
        let (handshake, mut shared) = self.handshake()?;
        handshake.answer_list(&mut shared, exports)
    }

    /// Answers [`Event::List`] with why the client gets no list.
    ///
    /// # Errors
    /// Those of [`answer_list`](Self::answer_list).
    pub fn refuse_list(&mut self, refusal: LookupRefusal<'_>) -> Result<(), Misuse> {
        let (handshake, mut shared) = self.handshake()?;
        handshake.refuse_list(&mut shared, refusal)
    }

    /// Answers [`Event::Lookup`] with the export, or with why the client can't have it.
    ///
    /// `NBD_OPT_EXPORT_NAME` has no room for a refusal: the connection closes then, with
    /// [`NoSession::NotServed`] as the reason.
    ///
    /// # Errors
    /// [`Misuse::NoSuchQuestion`] when the client did not ask for an export; [`Misuse::WrongPhase`] after
    /// [`Event::Closed`].
    pub fn answer_lookup(
        &mut self,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Result<LookupOutcome, Misuse> {
        let (handshake, mut shared) = self.handshake()?;
        match handshake.answer_lookup(&mut shared, answer)? {
            Answered::Negotiating => Ok(LookupOutcome::Negotiating),
            Answered::Refused(reason) => {
                self.end = End::Failed(NoSession::NotServed(reason).into());
                Ok(LookupOutcome::Negotiating)
            }
            Answered::Entered(export) => {
                self.phase = Phase::Transmission(Transmission::new(export, &self.config));
                Ok(LookupOutcome::Entered)
            }
        }
    }

    fn handshake(&mut self) -> Result<(&mut Handshake, Shared<'_>), Misuse> {
        match &mut self.phase {
            Phase::Handshake(handshake) if self.end == End::Open => {
                let (config, shutdown) = (&self.config, self.shutdown);
                Ok((handshake, Shared { config, out: &mut self.out, shutdown }))
            }
            _ if self.end == End::Closed => Err(Misuse::WrongPhase),
            _ => Err(Misuse::NoSuchQuestion),
        }
    }

    /// The option that was refused last since this was asked before, and by which error, for a log: the core refuses
    /// many by itself, and the client may go away without a word of it.
    #[must_use]
    pub const fn take_refused_option(&mut self) -> Option<(OptionCode, OptionReplyType)> {
        self.out.take_refused()
    }

    /// Starts or continues the reply to a request.
    ///
    /// # Errors
    /// [`Misuse::NoSuchRequest`] when it is not in flight or was answered, [`Misuse::PayloadPending`] when it has not
    /// been raised yet, [`Misuse::WrongPhase`] when the connection is over.
    #[inline]
    pub fn reply(&mut self, id: RequestId) -> Result<Reply<'_>, Misuse> {
        let Phase::Transmission(transmission) = &mut self.phase else {
            return Err(Misuse::WrongPhase);
        };
        if self.end == End::Closed {
            return Err(Misuse::WrongPhase);
        }
        let pending = transmission.in_flight.get_mut(id).ok_or(Misuse::NoSuchRequest)?;
        match pending.progress {
            Progress::Open => {}
            Progress::Receiving => return Err(Misuse::PayloadPending),
            Progress::Hidden | Progress::Answered => return Err(Misuse::NoSuchRequest),
        }
        let export = &transmission.export;
        let answer = Answer { id, pending, out: &mut self.out, style: export.style };
        let max_extents = self.config.limits.max_extents;
        Ok(Reply::new(answer, export, &mut transmission.status, max_extents))
    }

    // What you want.

    /// The server is shutting down: options are refused with `NBD_REP_ERR_SHUTDOWN` and new requests with
    /// `NBD_ESHUTDOWN`; what is in flight can still be answered.
    ///
    /// A client that is told so has to disconnect. One that takes every error for a fault of the disk, as qemu and the
    /// kernel do, is better [hung up](Self::hang_up) on, if it connects again by itself.
    pub const fn shut_down(&mut self) {
        if matches!(self.shutdown, Shutdown::No) {
            self.shutdown = Shutdown::Refusing;
        }
    }

    /// The server is shutting down, and ends the transmission by itself: options are refused with
    /// `NBD_REP_ERR_SHUTDOWN`, and no more requests are read. Once what is in flight has been answered and sent,
    /// [`Event::Closed`] follows, with [`OrderlyEnd::HungUp`]. A request whose header has not been read by now, or that waits
    /// for room, is neither carried out nor answered.
    pub const fn hang_up(&mut self) {
        self.shutdown = Shutdown::HangingUp;
    }

    /// The export in use has a new size in bytes, by a resize on this connection or another one, or by itself. More
    /// than 2^63 - 1 counts as that.
    ///
    /// It counts for all requests that are raised from now on, those included that were received before: what lies
    /// beyond is refused, a write once its payload has arrived. (Until then [`Wants::Payload`] goes on, so that what is
    /// received straight into an export has to be checked against its end.) It does not count for requests that were
    /// raised already. If the export shrinks, check those against the size when you carry them out, or shrink it only
    /// when none is [in flight](Self::requests_in_flight).
    ///
    /// A client that was not offered `RESIZE` can't know: it keeps the size that was announced at most, so that no
    /// extents beyond that are reported to it.
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no export is in use.
    pub fn set_size(&mut self, size: u64) -> Result<(), Misuse> {
        match &mut self.phase {
            Phase::Transmission(transmission) => {
                transmission.export.set_size(size);
                Ok(())
            }
            Phase::Handshake(_) => Err(Misuse::WrongPhase),
        }
    }

    // What it wants.

    /// What the next bytes of the stream are. Ask once [`next_event`](Self::next_event) has given `None` and
    /// [`segments`](Self::segments) is empty or the transport takes no more.
    ///
    /// Don't wait for the transport to take more before you ask: a client may send all its requests before it reads a
    /// reply. [`Wants::Nothing`] stops you where the [limits](crate::Limits) demand it.
    #[must_use]
    #[inline]
    pub fn wants(&self) -> Wants {
        match self.end {
            End::Open if self.out.fault().is_some() => {
                return Wants::Nothing(PauseReason::EventDue);
            }
            End::Open => {}
            End::Closed => return Wants::Closed,
            End::Closing(_) if !self.is_idle() => return Wants::Nothing(PauseReason::Closing),
            End::Failed(_) if !self.out.is_empty() => return Wants::Nothing(PauseReason::Closing),
            End::Closing(_) | End::Failed(_) => return Wants::Nothing(PauseReason::EventDue),
        }
        let wants = match &self.phase {
            Phase::Transmission(transmission) => {
                transmission.wants(&self.config.limits, &self.scratch)
            }
            Phase::Handshake(handshake) => handshake.wants(&self.out, &self.scratch),
        };
        match wants {
            // There won't be any: `next_event` closes the connection.
            Wants::Bytes { .. } | Wants::Tls if self.end_of_stream => {
                Wants::Nothing(PauseReason::EventDue)
            }
            wants => wants,
        }
    }

    /// The bytes to send, in order. Write any prefix of it in any way, then call [`transmitted`](Self::transmitted).
    #[must_use]
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        self.out.segments()
    }

    // Getters.
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Segment;
    use crate::effort::config;
    use crate::wire::{OptionCode, OptionHeader, TransmissionFlags};

    #[test]
    fn a_fault_of_the_core_ends_the_connection_and_names_itself() {
        let mut connection = Connection::new(Config::default());
        assert_eq!(connection.next_event(&mut &[0, 0, 0, 3][..]), None);
        connection.out.fail("a test");
        assert_eq!(connection.wants(), Wants::Nothing(PauseReason::EventDue));
        let mut input = &[0; 40][..];
        let closed = Event::Closed(Err(Error::Internal("a test")));
        assert_eq!(connection.next_event(&mut input), Some(closed));
        assert_eq!(input.len(), 40);
        assert!(connection.segments().next().is_none(), "nothing that may be wrong is sent");
        assert_eq!((connection.next_event(&mut input), connection.wants()), (None, Wants::Closed));
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn no_client_sees_an_export_of_more_than_2_to_the_63_bytes(shift in 0..64u32, low: u64) {
            let size = low >> shift;
            let shown = size.min(i64::MAX as u64);
            let mut info = ExportInfo::new(size);
            info.flags = TransmissionFlags::SEND_RESIZE;
            let sent = |connection: &Connection| {
                connection.segments().flat_map(|segment| match segment {
                    Segment::Control(bytes) => bytes.to_vec(),
                    Segment::Body { .. } => Vec::new(),
                }).collect::<Vec<_>>()
            };
            let option = |code, data: &[u8]| {
                let length = u32::try_from(data.len()).unwrap();
                [&[0, 0, 0, 3][..], &OptionHeader { code, length }.encode(), data].concat()
            };
            // Where the size is, after the greeting of 18 bytes: behind a reply's header and the type, or at once.
            let ways = [(OptionCode::GO, &[0; 6][..], 18 + 20 + 2), (OptionCode::EXPORT_NAME, &[], 18)];
            let newstyle = ways.map(|(code, data, offset)| {
                let mut connection = Connection::new(Config::default());
                let event = connection.next_event(&mut &option(code, data)[..]);
                assert!(matches!(event, Some(Event::Lookup(_))), "{event:?}");
                connection.answer_lookup(Ok(&info)).unwrap();
                (connection, offset)
            });
            let oldstyle = (Connection::oldstyle(Config::default(), &info).unwrap(), 16);
            for (mut connection, offset) in newstyle.into_iter().chain([oldstyle]) {
                let sent = sent(&connection);
                assert_eq!(sent[offset..offset + 8], shown.to_be_bytes());
                assert_eq!(connection.export().unwrap().size, shown);
                connection.set_size(low).unwrap();
                assert_eq!(connection.export().unwrap().size, low.min(i64::MAX as u64));
            }
        }
    }

    #[test]
    fn a_connection_is_no_larger_than_it_has_to_be() {
        let size = size_of::<Connection>();
        assert!(size <= 768, "{size}");
        // As the formula of the limits has it.
        let slot = size_of::<crate::server::pending::Pending>();
        assert!(slot <= 192 - 8, "{slot}");
    }
}
