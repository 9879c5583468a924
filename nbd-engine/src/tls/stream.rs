//! A byte stream inside of another one, encrypted.

use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};
use std::io::{self, IoSlice, IoSliceMut};

use futures_io::{AsyncRead, AsyncWrite};

use super::framing::Framing;
use super::incoming::Incoming;
use super::records::{Ciphertext, MAX_PLAINTEXT, Records, Room};
use super::scatter::Scatter;
use crate::export::TlsIdentity;
use crate::maybe_tls::InTransit;
use crate::transport::Transport;

/// Receive calls of one read. A peer may send records without data for as long as it likes; others have to have their
/// turn.
const MAX_RECEIVES: usize = 16;

/// Records without data, one after the other, that a peer may send once the handshake is over: for new keys, and to hide
/// when it sends anything. Each has to be decrypted, and some have to be answered.
const MAX_WITHOUT_DATA: u64 = 64;

/// Plaintext that is encrypted ahead of a transport that takes no more at the moment.
const AHEAD: usize = 128 << 10;

/// A stream whose bytes travel as TLS records over `transport`.
///
/// Reading and writing drive the handshake where it has not finished; [`poll_handshake`](Self::poll_handshake) drives
/// nothing else, and its caller sets the deadline. Closing sends `close_notify` before the transport is closed, and so does
/// dropping, as far as the transport takes it at once: a connection may end anywhere. A peer that closes without one has
/// cut the stream off: that is an error, never an end. So is the end of a server that has not sent any data.
pub(crate) struct TlsStream<T: Transport> {
    transport: T,
    records: Box<dyn Records>,
    incoming: Incoming,
    framing: Framing,
    /// Records since the last one that had data.
    without_data: u64,
    /// Whether any record had data.
    has_received_data: bool,
    /// Decrypted bytes that nobody had room for, and how many of them were taken since.
    plaintext: Vec<u8>,
    taken: usize,
    outgoing: Ciphertext,
    /// Bytes of ciphertext that the transport has taken.
    sent: u64,
    /// Whether the transport may hold back what it was given.
    unflushed: bool,
    /// Small slices that together make a record.
    collected: Vec<u8>,
    /// The first error; everything fails with it from then on.
    failure: Option<Failure>,
    close_notified: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

/// Whether a transport fails like this because the peer has closed it.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl<T: Transport> TlsStream<T> {
    pub(crate) fn new(transport: T, records: Box<dyn Records>) -> Self {
        Self {
            transport,
            records,
            incoming: Incoming::default(),
            framing: Framing::default(),
            without_data: 0,
            has_received_data: false,
            plaintext: Vec::new(),
            taken: 0,
            outgoing: Ciphertext::default(),
            sent: 0,
            unflushed: false,
            collected: Vec::new(),
            failure: None,
            close_notified: false,
        }
    }

    /// Ready when both sides have finished the handshake as far as they wait for each other, and everything of it is sent.
    ///
    /// # Errors
    /// When the peer can't be trusted or breaks TLS; the peer is sent an alert first, if the transport takes it at once.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.check()?;
            if let Err(error) = self.process(&mut []) {
                return Poll::Ready(Err(self.fail(cx, &error)));
            }
            let delivered = self.poll_deliver(cx)?;
            if !self.records.is_handshaking() {
                return delivered.map(Ok);
            }
            // Both sides may have something to send that a narrow stream does not take before the other side reads.
            ready!(self.poll_receive(cx))?;
        }
    }

    /// Who the peer is, once the handshake has finished and if it showed that.
    pub(crate) fn peer_identity(&self) -> Option<TlsIdentity> {
        self.records.peer_identity()
    }

    /// The version and the cipher suite, once the handshake has finished.
    pub(crate) fn description(&self) -> String {
        self.records.description()
    }

    /// Gives memory back that an idle connection does not need.
    pub(crate) fn shrink(&mut self) {
        self.records.shrink();
        self.outgoing.shrink();
        self.collected = Vec::new();
        if self.taken == self.plaintext.len() {
            (self.plaintext, self.taken) = (Vec::new(), 0);
        }
        self.incoming.shrink();
    }

    /// Whether it has failed inside of TLS, and not with its transport.
    pub(crate) const fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What has arrived without a use yet, and what has not left.
    pub(crate) fn in_transit(&self) -> InTransit {
        InTransit {
            incomplete: self.framing.incomplete() as u64,
            has_unsent: self.unflushed || !self.outgoing.is_empty(),
            sent: self.sent,
        }
    }

    /// Closes the transport without a word, as a cut does.
    #[cfg(test)]
    pub(super) fn close_transport(&mut self) {
        self.close_notified = true;
        let _closed =
            Pin::new(&mut self.transport).poll_close(&mut Context::from_waker(Waker::noop()));
    }

    /// What carries the records.
    #[cfg(test)]
    pub(super) const fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Records of this data, which are not sent.
    #[cfg(test)]
    pub(crate) fn encrypted(&mut self, data: &[u8]) -> Vec<u8> {
        let (seen, mut output) = (self.incoming.seen(), Ciphertext::default());
        self.records.encrypt(seen, data, &mut output).unwrap();
        output.unsent().to_vec()
    }

    /// Gives these bytes to the transport as they are.
    #[cfg(test)]
    pub(crate) fn send_in_the_clear(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let sent = Pin::new(&mut self.transport).poll_write(&mut cx, bytes);
        assert!(matches!(sent, Poll::Ready(Ok(count)) if count == bytes.len()), "{sent:?}");
    }

    /// Bytes of all buffers.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let vectors = [&self.plaintext, &self.collected].map(Vec::capacity);
        vectors.iter().sum::<usize>() + self.incoming.held() + self.outgoing.held()
    }

    fn check(&self) -> io::Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Remembers the error, and sends the alert that may be queued if that is possible at once.
    fn fail(&mut self, cx: &mut Context<'_>, error: &io::Error) -> io::Error {
        let failure = Failure { kind: error.kind(), text: format!("TLS: {error}") };
        let error = failure.error();
        self.failure = Some(failure);
        let _best_effort = self.poll_deliver(cx);
        error
    }

    /// The peer closed or reset the transport, for the reason that it gave if it did.
    fn hung_up(
        &mut self,
        cx: &mut Context<'_>,
        closed: io::Error,
        reason: Option<io::Error>,
    ) -> io::Error {
        match reason.or_else(|| self.likely_reason(&closed)) {
            Some(reason) if self.failure.is_none() => self.fail(cx, &reason),
            _ => closed,
        }
    }

    /// What the peer sent before it stopped reading, if that is an alert. Data that comes before one is kept for the calls
    /// that read it, and ends the search. Pending while it is not known yet what has come: a write may fail before that. Of a
    /// peer that is gone, at least the end comes.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        if self.failure.is_some() {
            return Poll::Ready(None);
        }
        for _ in 0..MAX_RECEIVES {
            if !self.plaintext.is_empty() {
                break;
            }
            if let Err(reason) = self.process(&mut []) {
                return Poll::Ready(Some(reason));
            }
            match ready!(Pin::new(&mut self.transport).poll_read(cx, self.incoming.spare())) {
                Ok(count) if count > 0 => self.arrived(count),
                _ => break,
            }
        }
        Poll::Ready(None)
    }

    /// Why a peer may have closed or reset the transport that did not say so.
    fn likely_reason(&self, closed: &io::Error) -> Option<io::Error> {
        let at_end = closed.kind() == io::ErrorKind::UnexpectedEof;
        let verb = if at_end { "closed" } else { "reset" };
        let how = if self.records.is_closed_by_peer() { "" } else { " without an alert" };
        let text = if self.records.is_handshaking() {
            format!(
                "the peer {verb} the connection in the middle of the handshake{how}; its log may say why; \
                 with a pre-shared key, compare the user and the key, else certificates and versions"
            )
        } else if !self.has_received_data {
            let hint = self.records.hang_up_hint();
            format!("the peer {verb} the connection right after the handshake{how}, {hint}")
        } else if at_end {
            "the peer cut the connection off without close_notify".into()
        } else {
            return None;
        };
        Some(io::Error::new(closed.kind(), text))
    }

    /// Plaintext that was decrypted earlier.
    fn take_plaintext(&mut self, slices: &mut [IoSliceMut<'_>]) -> Option<usize> {
        let left = self.plaintext.get(self.taken..).filter(|left| !left.is_empty())?;
        let mut scatter = Scatter::new(slices);
        scatter.put(left);
        self.taken += scatter.copied;
        if self.taken == self.plaintext.len() {
            self.plaintext.clear();
            self.taken = 0;
        }
        Some(scatter.copied)
    }

    /// Decrypts what has arrived to `slices`; gives how many bytes that were.
    fn process(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut scatter = Scatter::new(slices);
        let Self { plaintext, has_received_data, .. } = self;
        let mut without_data = if self.records.is_handshaking() {
            self.framing.take_completed();
            0
        } else {
            self.without_data + self.framing.take_completed()
        };
        let consumed =
            self.records.process(self.incoming.all(), &mut self.outgoing, &mut |data| {
                without_data = 0;
                *has_received_data |= !data.is_empty();
                let rest = scatter.put(data);
                plaintext.reserve_exact(rest.len());
                plaintext.extend_from_slice(rest);
                if scatter.is_full() { Room::Full } else { Room::Left }
            })?;
        self.incoming.processed(consumed);
        self.without_data = without_data;
        if without_data > MAX_WITHOUT_DATA {
            let text = "the peer sends one record without data after the other";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(scatter.copied)
    }

    /// Receives more ciphertext.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let spare = self.incoming.spare();
        if spare.is_empty() {
            let error = io::Error::new(io::ErrorKind::InvalidData, "a record is too long");
            return Poll::Ready(Err(self.fail(cx, &error)));
        }
        match ready!(Pin::new(&mut self.transport).poll_read(cx, spare)) {
            Ok(0) => {
                let closed = io::ErrorKind::UnexpectedEof.into();
                Poll::Ready(Err(self.hung_up(cx, closed, None)))
            }
            Ok(count) => {
                self.arrived(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if is_hang_up(&error) => Poll::Ready(Err(self.hung_up(cx, error, None))),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The first `count` bytes of the spare room arrived.
    fn arrived(&mut self, count: usize) {
        self.framing.received(self.incoming.arrived(count));
    }

    /// Sends ciphertext. Ready when the transport has taken all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let slices = [IoSlice::new(self.outgoing.unsent())];
            match ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, &slices)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.outgoing.sent(count);
                    self.sent += count as u64;
                    self.unflushed = true;
                }
                Err(error) if is_hang_up(&error) => {
                    let reason = ready!(self.last_words(cx));
                    return Poll::Ready(Err(self.hung_up(cx, error, reason)));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends ciphertext. Ready when the transport holds nothing of it back: for what the peer waits for, and nobody but
    /// this stream knows of.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.transport).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Appends `close_notify`, once and where there is something to end in order.
    fn queue_close_notify(&mut self) {
        if !self.close_notified && self.failure.is_none() {
            self.close_notified = true;
            let (seen, output) = (self.incoming.seen(), &mut self.outgoing);
            // Not before the end of the handshake.
            let _handshaking = self.records.close_notify(seen, output);
        }
    }

    /// Encrypts from the front of `slices` what makes full records, or all if there is less; gives how much that was.
    fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut encrypted = 0;
        self.collected.clear();
        self.collected.reserve_exact(MAX_PLAINTEXT);
        for slice in slices {
            let mut slice = &slice[..];
            while !slice.is_empty() {
                if encrypted + self.collected.len() >= AHEAD {
                    return Ok(encrypted + self.encrypt_collected()?);
                }
                if slice.len() >= MAX_PLAINTEXT {
                    // A short record for what was collected, so that the long slice need not be copied for it.
                    encrypted += self.encrypt_collected()?;
                    let left = AHEAD.saturating_sub(encrypted).max(MAX_PLAINTEXT);
                    let full = slice.len().min(left) / MAX_PLAINTEXT * MAX_PLAINTEXT;
                    let (records, rest) = slice.split_at(full);
                    self.records.encrypt(self.incoming.seen(), records, &mut self.outgoing)?;
                    encrypted += full;
                    slice = rest;
                    continue;
                }
                let count = slice.len().min(MAX_PLAINTEXT - self.collected.len());
                let (head, rest) = slice.split_at(count);
                self.collected.extend_from_slice(head);
                slice = rest;
                if self.collected.len() == MAX_PLAINTEXT {
                    encrypted += self.encrypt_collected()?;
                }
            }
        }
        Ok(encrypted + self.encrypt_collected()?)
    }

    fn encrypt_collected(&mut self) -> io::Result<usize> {
        let length = self.collected.len();
        if length > 0 {
            let (seen, output) = (self.incoming.seen(), &mut self.outgoing);
            self.records.encrypt(seen, &self.collected, output)?;
            self.collected.clear();
        }
        Ok(length)
    }
}

impl<T: Transport> Drop for TlsStream<T> {
    fn drop(&mut self) {
        if !self.close_notified {
            self.queue_close_notify();
            let _best_effort = self.poll_deliver(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl<T: Transport> AsyncRead for TlsStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_vectored(cx, &mut [IoSliceMut::new(buffer)])
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        for _ in 0..MAX_RECEIVES {
            if let Some(copied) = this.take_plaintext(slices) {
                return Poll::Ready(Ok(copied));
            }
            this.check()?;
            let copied = match this.process(slices) {
                Ok(copied) => copied,
                Err(error) => return Poll::Ready(Err(this.fail(cx, &error))),
            };
            // Answers of TLS itself. A transport that does not take them is no reason not to read: what has arrived is
            // there, and so is the end.
            let _not_for_the_reader = this.poll_deliver(cx);
            let closed = this.records.is_closed_by_peer();
            if copied == 0 && closed && this.records.is_client() && !this.has_received_data {
                // Some servers, such as nbd-server, end the connection of one that they don't trust in order. Clients may
                // leave as soon as they have seen that there is a server.
                this.check()?;
                this.queue_close_notify();
                let closed = io::ErrorKind::UnexpectedEof.into();
                return Poll::Ready(Err(this.hung_up(cx, closed, None)));
            }
            if copied > 0 || closed {
                return Poll::Ready(Ok(copied));
            }
            if this.failure.is_none() && this.plaintext.is_empty() {
                ready!(this.poll_receive(cx))?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: Transport> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        if this.outgoing.unsent().len() >= AHEAD / 2 {
            ready!(this.poll_send(cx))?;
        }
        let count = match this.encrypt(slices) {
            Ok(count) => count,
            Err(error) => return Poll::Ready(Err(this.fail(cx, &error))),
        };
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_deliver(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.queue_close_notify();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.transport).poll_close(cx)
    }
}

impl<T: Transport> Transport for TlsStream<T> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let slices = &mut [IoSliceMut::new(buffer)];
        if let Some(copied) = self.take_plaintext(slices) {
            return Ok(copied);
        }
        // What was received earlier, and then what is there now.
        for _ in 0..2 {
            match self.process(slices) {
                Ok(0) => {}
                Ok(copied) => return Ok(copied),
                Err(error) => {
                    return Err(self.fail(&mut Context::from_waker(Waker::noop()), &error));
                }
            }
            // Neither the end of the stream nor a record that is too long is for this call: `poll_read` finds them again.
            let spare = self.incoming.spare();
            if spare.is_empty() {
                break;
            }
            let count = self.transport.try_read(spare)?;
            self.arrived(count);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn is_peer_gone(&self) -> bool {
        self.transport.is_peer_gone()
    }
}
