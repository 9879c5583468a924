//! Something between a server and its stream that breaks replies, for the tests of the oracle. It understands simple
//! replies only.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::collections::VecDeque;
use std::io;

use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::Transport;

use crate::mutation::Mutation;
use crate::net::End;

const REQUEST_MAGIC: [u8; 4] = [0x25, 0x60, 0x95, 0x13];
const REQUEST_SIZE: usize = 28;
const REPLY_SIZE: usize = 16;
const READ: u16 = 0;
const WRITE: u16 = 1;

/// A server's end of a stream, with a fault if the run has one.
#[derive(Debug)]
pub struct Meddler {
    end: End,
    fault: Option<Fault>,
}

#[derive(Debug)]
struct Fault {
    mutation: Mutation,
    /// What came from the client and is not understood yet.
    incoming: Vec<u8>,
    /// Bytes of a write's payload that are to come.
    payload: usize,
    transmitting: bool,
    /// Requests that are not answered: cookie, kind and length.
    open: Vec<([u8; 8], u16, usize)>,
    /// What the server sent and is not a whole reply yet.
    outgoing: Vec<u8>,
    /// What goes on to the client.
    ready: VecDeque<u8>,
    /// A reply that waits for another one to swap cookies with.
    held: Option<Reply>,
    replies: u64,
}

#[derive(Clone, Debug)]
struct Reply {
    bytes: Vec<u8>,
    kind: u16,
}

impl Meddler {
    /// Breaks replies if `mutation` says so.
    #[must_use]
    pub fn new(end: End, mutation: Option<Mutation>) -> Self {
        let fault = mutation.filter(|mutation| mutation.is_on_the_wire()).map(|mutation| Fault {
            mutation,
            incoming: Vec::new(),
            payload: 0,
            transmitting: false,
            open: Vec::new(),
            outgoing: Vec::new(),
            ready: VecDeque::new(),
            held: None,
            replies: 0,
        });
        Self { end, fault }
    }
}

impl Fault {
    /// Learns the requests from what the server receives.
    fn received(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        if !self.transmitting {
            let found = self.incoming.windows(4).position(|window| window == REQUEST_MAGIC);
            let keep = found.unwrap_or(self.incoming.len().saturating_sub(3));
            self.incoming.drain(..keep);
            self.transmitting = found.is_some();
        }
        while self.transmitting {
            let skipped = self.payload.min(self.incoming.len());
            self.incoming.drain(..skipped);
            self.payload -= skipped;
            if self.payload > 0 || self.incoming.len() < REQUEST_SIZE {
                break;
            }
            let header: Vec<u8> = self.incoming.drain(..REQUEST_SIZE).collect();
            let kind = u16::from_be_bytes([header[6], header[7]]);
            let mut cookie = [0; 8];
            cookie.copy_from_slice(&header[8..16]);
            let length = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
            self.open.push((cookie, kind, length as usize));
            self.payload = if kind == WRITE { length as usize } else { 0 };
        }
    }

    /// Takes what the server sends, and does to it what the mutation says.
    fn sent(&mut self, bytes: &[u8]) {
        if !self.transmitting {
            self.ready.extend(bytes);
            return;
        }
        self.outgoing.extend_from_slice(bytes);
        while self.outgoing.len() >= REPLY_SIZE {
            let cookie = &self.outgoing[8..16];
            let known = self.open.iter().position(|(known, ..)| known == cookie);
            let Some(index) = known else { break };
            let (_, kind, length) = self.open[index];
            let good = self.outgoing[4..8] == [0; 4];
            let size = REPLY_SIZE + if kind == READ && good { length } else { 0 };
            if self.outgoing.len() < size {
                break;
            }
            self.open.remove(index);
            let bytes: Vec<u8> = self.outgoing.drain(..size).collect();
            self.reply(Reply { bytes, kind });
        }
    }

    fn reply(&mut self, mut reply: Reply) {
        self.replies += 1;
        let strikes = self.replies.is_multiple_of(3);
        match self.mutation {
            Mutation::ReplyDropped if strikes => return,
            Mutation::ReplyDoubled if strikes => self.ready.extend(&reply.bytes),
            Mutation::DataCorrupted if strikes && reply.bytes.len() > REPLY_SIZE => {
                let last = reply.bytes.len() - 1;
                reply.bytes[last] ^= 0x40;
            }
            Mutation::CookiesCrossed => {
                let fits =
                    |held: &Reply| held.kind == reply.kind && held.bytes.len() == reply.bytes.len();
                match self.held.take() {
                    Some(mut held) => {
                        if fits(&held) {
                            held.bytes[8..16].swap_with_slice(&mut reply.bytes[8..16]);
                        }
                        self.ready.extend(held.bytes);
                    }
                    // One is held back only as long as another one is sure to follow.
                    None if !self.open.is_empty() => {
                        self.held = Some(reply);
                        return;
                    }
                    None => {}
                }
            }
            _ => {}
        }
        self.ready.extend(reply.bytes);
    }
}

impl AsyncRead for Meddler {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.end).poll_read(cx, buffer);
        if let (Poll::Ready(Ok(count)), Some(fault)) = (&read, &mut self.fault) {
            fault.received(&buffer[..*count]);
        }
        read
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.fault.is_none() {
            return Pin::new(&mut self.end).poll_read_vectored(cx, buffers);
        }
        match buffers.iter_mut().find(|buffer| !buffer.is_empty()) {
            Some(buffer) => self.poll_read(cx, buffer),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl Meddler {
    /// Passes on what is ready.
    fn push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(fault) = &mut self.fault else { return Poll::Ready(Ok(())) };
        while !fault.ready.is_empty() {
            let (front, _) = fault.ready.as_slices();
            match Pin::new(&mut self.end).poll_write(cx, front) {
                Poll::Ready(Ok(count)) => fault.ready.drain(..count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Meddler {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(fault) = &mut this.fault else {
            return Pin::new(&mut this.end).poll_write(cx, bytes);
        };
        fault.sent(bytes);
        match this.push(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is not passed on yet follows with the next flush.
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.fault.is_none() {
            return Pin::new(&mut self.end).poll_write_vectored(cx, slices);
        }
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.push(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.push(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.end).poll_close(cx),
            other => other,
        }
    }
}

impl Transport for Meddler {
    fn is_peer_gone(&self) -> bool {
        self.end.is_peer_gone()
    }
}
