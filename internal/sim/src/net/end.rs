//! One end of a stream, as the engine's transport.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::Transport;

use super::Net;
use super::pipe::{self, Attempt, Conn};
use crate::world::{Sleep, note};

/// One end of a stream.
pub struct End {
    net: Net,
    conn: Arc<Mutex<Conn>>,
    /// 0 at the client.
    side: usize,
    number: usize,
    reading: Option<Sleep>,
    writing: Option<Sleep>,
    /// What is gathered for a write.
    gathered: Vec<u8>,
}

impl End {
    pub(super) fn new(net: &Net, conn: Arc<Mutex<Conn>>, side: usize, number: usize) -> Self {
        let net = net.clone();
        Self { net, conn, side, number, reading: None, writing: None, gathered: Vec::new() }
    }

    /// The number of the stream in its network.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// Has the task polled at that moment, at once if it has passed.
    fn wait(&self, at: Option<u64>, cx: &mut Context<'_>) -> Option<Sleep> {
        let world = &self.net.world;
        let at = at?;
        let mut sleep = world.sleep(Duration::from_nanos(at.saturating_sub(world.nanos())));
        if Pin::new(&mut sleep).poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Some(sleep)
    }

    fn write_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let now = self.net.world.nanos();
        let mut conn = pipe::lock(&self.conn);
        let split = self.net.plan.splits(&mut conn.random);
        let length = self.gathered.len();
        let offered = if split && length > 1 {
            1 + conn.random.below(length as u64) as usize
        } else {
            length
        };
        let delay = self.net.plan.delay(&mut conn.random);
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let bytes = &self.gathered[..offered];
        let (attempt, wakers) = conn.write(self.side, now, bytes, delay, cx.waker());
        let harmed = core::mem::take(&mut conn.harmed);
        drop(conn);
        if harmed {
            note(&self.net.world, || format!("stream {}: its fault happens", self.number));
            self.net.harm();
        }
        wakers.wake();
        match attempt {
            Attempt::Done(count) => {
                self.writing = None;
                Poll::Ready(Ok(count))
            }
            Attempt::Failed(kind) => Poll::Ready(Err(kind.into())),
            Attempt::Wait(at) => {
                self.writing = self.wait(at, cx);
                Poll::Pending
            }
        }
    }

    fn read_some(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        take: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let now = self.net.world.nanos();
        let mut conn = pipe::lock(&self.conn);
        let split = self.net.plan.splits(&mut conn.random);
        let room = if split && room > 1 {
            1 + conn.random.below(room.min(64) as u64) as usize
        } else {
            room
        };
        let (attempt, wakers) = conn.read(self.side, now, room, cx.waker(), take);
        drop(conn);
        wakers.wake();
        match attempt {
            Attempt::Done(count) => {
                self.reading = None;
                Poll::Ready(Ok(count))
            }
            Attempt::Failed(kind) => Poll::Ready(Err(kind.into())),
            Attempt::Wait(at) => {
                self.reading = self.wait(at, cx);
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        self.read_some(cx, buffer.len(), |bytes| {
            buffer[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        })
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = buffers.iter().map(|buffer| buffer.len()).sum();
        let (mut index, mut filled) = (0, 0);
        self.read_some(cx, room, |mut bytes| {
            while !bytes.is_empty() {
                let space = &mut buffers[index][filled..];
                if space.is_empty() {
                    (index, filled) = (index + 1, 0);
                    continue;
                }
                let count = space.len().min(bytes.len());
                space[..count].copy_from_slice(&bytes[..count]);
                filled += count;
                bytes = &bytes[count..];
            }
        })
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.gathered.clear();
        self.gathered.extend_from_slice(bytes);
        self.write_gathered(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.gathered.clear();
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        self.write_gathered(cx)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.net.world.nanos();
        let wakers = pipe::lock(&self.conn).close(self.side, now);
        wakers.wake();
        Poll::Ready(Ok(()))
    }
}

impl Transport for End {
    fn is_peer_gone(&self) -> bool {
        pipe::lock(&self.conn).is_peer_gone(self.side, self.net.world.nanos())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let world = &self.net.world;
        let side = self.side;
        note(world, || {
            format!("stream {}: closed at {}", self.number, ["the client", "the server"][side])
        });
        let wakers = pipe::lock(&self.conn).drop_end(side, world.nanos());
        wakers.wake();
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("number", &self.number).finish_non_exhaustive()
    }
}
