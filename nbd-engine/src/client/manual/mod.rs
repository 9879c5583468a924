//! Clients of the engine in tests: a network in memory, a clock that the test sets, and servers that answer when it says.
//! Nothing happens but by [`Net::run`] and by polling.

mod line;

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures_io::{AsyncRead, AsyncWrite};

pub(super) use line::{Line, Received, Said};

use super::timer::tests::Manual;
use super::{
    Client, ClientConfig, ConnectionEvent, Connector, DriveMode, Error, Negotiation, Reconnect,
};
use crate::runtime::{BoxFuture, Runtime};
use crate::transport::{AnyTransport, Plain};

/// A network with one server on it. A client's connections are driven by tasks if `SPAWNED`, and by callers otherwise.
#[derive(Clone)]
pub(super) struct Net<const SPAWNED: bool> {
    clock: Manual,
    shared: Arc<Mutex<Shared>>,
}

pub(super) type Called = Net<false>;
pub(super) type Spawned = Net<true>;

#[derive(Default)]
struct Shared {
    said: Said,
    refuses: bool,
    attempts: usize,
    lines: Vec<Arc<Mutex<Line>>>,
    tasks: Vec<BoxFuture>,
    events: Vec<ConnectionEvent>,
}

/// Polls of which at least one brings a future further, if anything does: tasks don't wake here.
const POLLS: usize = 40;

impl<const SPAWNED: bool> Net<SPAWNED> {
    pub(super) fn new(said: Said) -> Self {
        let shared = Shared { said, ..Shared::default() };
        Self { clock: Manual::default(), shared: Arc::new(Mutex::new(shared)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// What the server says of its export from now on.
    pub(super) fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.shared().said);
    }

    /// Whether connections are refused from now on.
    pub(super) fn refuse(&self, refuses: bool) {
        self.shared().refuses = refuses;
    }

    /// How often anybody tried to connect.
    pub(super) fn attempts(&self) -> usize {
        self.shared().attempts
    }

    /// Connections that were made.
    pub(super) fn lines(&self) -> usize {
        self.shared().lines.len()
    }

    /// What a connection's server does, counted from the first one that was ever made.
    pub(super) fn line<R>(&self, index: usize, act: impl FnOnce(&mut Line) -> R) -> R {
        let line = Arc::clone(&self.shared().lines[index]);
        let mut line = line.lock().unwrap();
        act(&mut line)
    }

    /// Time passes, and everything has its turn.
    pub(super) fn pass(&self, duration: Duration) {
        self.clock.advance(duration);
        self.run();
    }

    /// All tasks go on as far as they can.
    pub(super) fn run(&self) {
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..POLLS {
            let tasks = core::mem::take(&mut self.shared().tasks);
            let mut left: Vec<_> = tasks
                .into_iter()
                .filter_map(|mut task| task.as_mut().poll(cx).is_pending().then_some(task))
                .collect();
            self.shared().tasks.append(&mut left);
        }
    }

    /// Tasks that are not over.
    pub(super) fn tasks(&self) -> usize {
        self.shared().tasks.len()
    }

    /// A future goes on as far as it can, and so do all tasks.
    pub(super) fn poll<F: Future + Unpin>(&self, future: &mut F) -> Poll<F::Output> {
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..POLLS {
            self.run();
            if let Poll::Ready(output) = Pin::new(&mut *future).poll(cx) {
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    }

    /// The outcome of a future that has nothing to wait for any more.
    #[track_caller]
    pub(super) fn now<F: Future>(&self, future: F) -> F::Output {
        match self.poll(&mut Box::pin(future)) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it still waits"),
        }
    }

    /// Time passes in steps until a future has its outcome.
    #[track_caller]
    pub(super) fn wait<F: Future + Unpin>(&self, mut future: F, step: Duration) -> F::Output {
        for _ in 0..1000 {
            if let Poll::Ready(output) = self.poll(&mut future) {
                return output;
            }
            self.clock.advance(step);
        }
        panic!("it still waits after {:?}", step * 1000)
    }

    #[track_caller]
    pub(super) fn connect(&self, config: &ClientConfig) -> Client<Self> {
        let uri = "nbd://127.0.0.1/".parse().unwrap();
        let config = config.clone().with_busy_poll(Duration::ZERO);
        self.now(Client::connect_by(self.clone(), &uri, &config)).unwrap()
    }

    /// A connection on which no export is entered yet.
    #[track_caller]
    pub(super) fn negotiate(&self, config: &ClientConfig) -> Negotiation<Self> {
        let uri = "nbd://127.0.0.1/".parse().unwrap();
        self.now(Negotiation::connect_by(self.clone(), &uri, config)).unwrap()
    }

    /// One that tries again each second, notes its events here, and gives up never by itself.
    pub(super) fn reconnect(&self) -> Reconnect {
        let shared = Arc::clone(&self.shared);
        Reconnect::new()
            .with_delays(SECOND, SECOND)
            .with_jitter(0.0)
            .with_max_outage(None)
            .with_observer(move |event| shared.lock().unwrap().events.push(event.clone()))
    }

    /// The events since this was asked before.
    pub(super) fn events(&self) -> Vec<ConnectionEvent> {
        core::mem::take(&mut self.shared().events)
    }
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

impl<const SPAWNED: bool> Runtime for Net<SPAWNED> {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Runtime::sleep(&self.clock, duration)
    }

    fn now(&self) -> Instant {
        Runtime::now(&self.clock)
    }

    fn spawn(&self, task: BoxFuture) {
        self.shared().tasks.push(task);
    }
}

impl<const SPAWNED: bool> Connector for Net<SPAWNED> {
    type Runtime = Self;

    const DRIVE_MODE: DriveMode = if SPAWNED { DriveMode::Spawned } else { DriveMode::Caller };

    fn runtime(&self) -> Self {
        self.clone()
    }

    async fn connect_tcp(&self, _: SocketAddr) -> io::Result<AnyTransport> {
        let mut shared = self.shared();
        shared.attempts += 1;
        if shared.refuses {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let line = Arc::new(Mutex::new(Line::new(shared.said.clone())));
        shared.lines.push(Arc::clone(&line));
        Ok(Box::new(Plain(Stream(line))))
    }

    fn adopt_unix(&self, _: UnixStream) -> io::Result<AnyTransport> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A client's end of a line.
struct Stream(Arc<Mutex<Line>>);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().read(buffer, cx).map(Ok)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().write(data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = self.0.lock().unwrap();
        line.is_closed = !line.holds_back;
        if line.is_closed { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.lock().unwrap().hang_up();
    }
}

/// Whether a request was not answered in time.
pub(super) fn timed_out<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::TimedOut { .. }))
}
