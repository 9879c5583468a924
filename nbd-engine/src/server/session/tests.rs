//! What one poll of a connection does.

use std::io::{IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use futures_io::{AsyncRead, AsyncWrite};
use futures_util::FutureExt;
use nbd_proto::wire::{CommandFlags, CommandType, OptionCode, OptionHeader};

use super::*;
use crate::export::{CanWrite, CanWriteZeroes, Export, ExportMap, PeerAddr, Result, ZeroMode};
use crate::runtime::BoxFuture;
use crate::server::ServerConfig;
use crate::server::budget::Account;
use crate::server::watch::{Verdict, Watch};

/// A client that has sent all that it will ever send, and takes every reply.
pub(super) struct Script {
    input: Vec<u8>,
    position: usize,
    /// Bytes that one call receives at most.
    max: usize,
    /// Whether what was sent is held back.
    holds: bool,
    /// Bytes of replies that are still taken.
    takes: usize,
    /// Whether an attempt to send more fails, rather than having to wait.
    fails: bool,
}

impl Script {
    pub(super) const fn new(input: Vec<u8>) -> Self {
        Self { input, position: 0, max: usize::MAX, holds: false, takes: usize::MAX, fails: false }
    }

    /// One that takes so many bytes of replies, after which an attempt to send more fails, or has to wait.
    pub(super) fn deaf_after(self, takes: usize, fails: bool) -> Self {
        Self { takes, fails, ..self }
    }

    /// One of which a call receives so many bytes at most.
    pub(super) fn in_pieces(self, max: usize) -> Self {
        Self { max, ..self }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let rest = &self.input[self.position..];
        if rest.is_empty() {
            return Poll::Pending;
        }
        let count = rest.len().min(buffer.len()).min(self.max);
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Poll::Ready(Ok(count))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match buffers.iter_mut().find(|buffer| !buffer.is_empty()) {
            Some(buffer) => self.poll_read(cx, buffer),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = slices.iter().map(|slice| slice.len()).sum::<usize>().min(self.takes);
        match count {
            0 if self.fails => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            0 => Poll::Pending,
            count => {
                self.takes -= count;
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Transport for Script {}

/// A runtime whose time stands still.
#[derive(Clone)]
pub(super) struct Still;

impl Runtime for Still {
    fn sleep(&self, _: Duration) -> BoxFuture {
        Box::pin(core::future::pending())
    }

    fn spawn(&self, _: BoxFuture) {}
}

/// A disk that is zeroed and read at once, and counts the bytes.
#[derive(Default)]
pub(super) struct Counter(pub(super) AtomicUsize);

impl Export for Counter {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        self.0.fetch_add(buffer.len(), Ordering::Relaxed);
        buffer.fill(0);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }
}

impl CanWrite for Counter {
    fn write(&self, data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.0.fetch_add(data.len(), Ordering::Relaxed);
        Ok(())
    }
}

impl CanWriteZeroes for Counter {
    fn write_zeroes(&self, _offset: u64, length: u64, _mode: ZeroMode) -> Result<()> {
        self.0.fetch_add(length as usize, Ordering::Relaxed);
        Ok(())
    }
}

/// What a client sends that enters the default export and then sends so many requests.
pub(super) fn script(command: CommandType, length: u32, count: u64) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(OptionHeader { code: OptionCode::EXPORT_NAME, length: 0 }.encode());
    for cookie in 0..count {
        let flags = CommandFlags::empty();
        let offset = cookie * u64::from(length);
        bytes.extend(CompactRequest { flags, command, cookie, offset, length }.encode());
        if command == CommandType::WRITE {
            bytes.resize(bytes.len() + length as usize, 1);
        }
    }
    bytes
}

/// However expensive the requests are that a client has sent ahead, the others on its thread have their turn soon.
#[test]
fn a_turn_is_short_whatever_the_client_has_sent() {
    for (command, length, count) in [
        (CommandType::WRITE_ZEROES, 256 << 10, 1000),
        (CommandType::READ, 256 << 10, 100),
        (CommandType::READ, 4096, 10_000),
        (CommandType::WRITE, 64 << 10, 100),
        (CommandType::WRITE, 4096, 1000),
    ] {
        let disk = Arc::new(Counter::default());
        let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
        let state = ServerState::new(exports, ServerConfig::new());
        let client = state.client(PeerAddr::Unix(None));
        let transport = Script::new(script(command, length, count));
        let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
        let mut session = session.now_or_never().unwrap().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let (mut turns, mut before) = (0, 0);
        while before < length as usize * count as usize {
            assert!(session.poll(&mut cx).is_pending());
            let now = disk.0.load(Ordering::Relaxed);
            // What was received and sent counts, too; a turn ends with the request that exceeds it.
            let done = now - before;
            assert!(done <= (512 << 10) + length as usize, "{command}: {done} bytes in a turn");
            before = now;
            turns += 1;
            assert!(turns < 100_000, "{command}: {before} bytes are all that is done");
        }
    }
}

/// A client whose payload the server can't receive yet is not one that does not send it.
#[test]
fn a_write_that_waits_for_memory_is_not_awaited_from_the_client() {
    let length = 4 << 20;
    let exports = ExportMap::new().with("", Counter::default()).unwrap();
    let state = ServerState::new(exports, ServerConfig::new());
    let mut hoarder = Account::new(Arc::clone(state.budget()));
    assert!(hoarder.charge(hoarder.cap(usize::MAX), Waker::noop()));
    let client = state.client(PeerAddr::Unix(None));
    let mut input = script(CommandType::WRITE, length, 1);
    input.truncate(input.len() - (1 << 20));
    let transport = Script::new(input);
    let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
    let mut session = session.now_or_never().unwrap().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        assert!(session.poll(&mut cx).is_pending());
        assert!(!session.activity().receiving);
    }
    drop(hoarder);
    for _ in 0..100 {
        assert!(session.poll(&mut cx).is_pending());
    }
    assert!(session.activity().receiving, "a mebibyte is missing");
}

/// A stream that holds replies back has not sent them, whether or not anything else is to be sent.
#[test]
fn replies_that_a_stream_holds_back_are_awaited_by_the_client() {
    let exports = ExportMap::new().with("", Counter::default()).unwrap();
    let config = ServerConfig::new().with_stall_timeout(Duration::from_secs(30));
    let state = ServerState::new(exports, config);
    let client = state.client(PeerAddr::Unix(None));
    let input = script(CommandType::READ, 4096, 3);
    let transport = Script { holds: true, ..Script::new(input) };
    let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
    let mut session = session.now_or_never().unwrap().unwrap();
    let mut verdict = || {
        let start = Instant::now();
        let mut watch = Watch::new(&state.config(), start);
        let mut cx = Context::from_waker(Waker::noop());
        for seconds in 0..100 {
            assert!(session.poll(&mut cx).is_pending());
            let now = start + seconds * Duration::from_secs(1);
            let activity = session.activity();
            assert_eq!(activity.sending, !activity.idle);
            match watch.look(now, Duration::ZERO, &activity) {
                Verdict::LookAgain(_) => {}
                verdict => {
                    let MaybeTls::Plain(script) = &mut session.pump.transport else { panic!() };
                    script.holds = false;
                    return verdict;
                }
            }
        }
        panic!("nothing is noticed");
    };
    assert!(matches!(verdict(), Verdict::SendStalled(_)));
    assert!(matches!(verdict(), Verdict::Idle(_)), "all replies have left by now");
}

/// A disk that counts how often it is asked for its size, and takes what is written.
#[derive(Default)]
struct Asked(AtomicUsize);

impl Export for Asked {
    fn size(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed);
        1 << 30
    }

    fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }
}

impl CanWrite for Asked {
    fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        Ok(())
    }
}

/// Where more of a payload arrives, nothing is checked against the size.
#[test]
fn the_size_is_asked_for_by_the_request_however_its_payload_is_cut() {
    for length in [8 << 10, 1 << 20] {
        let disk = Arc::new(Asked::default());
        let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
        let state = ServerState::new(exports, ServerConfig::new());
        let client = state.client(PeerAddr::Unix(None));
        let count = 4;
        let input = script(CommandType::WRITE, length, count);
        let transport = Script { max: 1 << 10, ..Script::new(input) };
        let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
        let mut session = session.now_or_never().unwrap().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut turns = 0;
        while session.activity().requests < count {
            assert!(session.poll(&mut cx).is_pending());
            turns += 1;
            assert!(turns < 1000, "{:?}", session.activity());
        }
        let asked = disk.0.load(Ordering::Relaxed);
        // For the header and for the last bytes of each, and where the two parts of one receive call meet.
        assert!(asked <= 4 * count as usize + 4, "asked {asked} times");
    }
}

#[cfg(feature = "tls")]
mod inside_of_tls {
    use rustls::version::TLS13;

    use super::*;
    use crate::tls::tests::{End, configurations, cx, noise, pair};
    use crate::tls::{ServerTlsMode, TlsClient, TlsServer, TlsStream};

    /// Polls after which whatever has not happened never will.
    const MANY: usize = 10_000;

    /// A server's session and its client, which has entered the default export, over a transport of so much room.
    struct Pair {
        session: Session<End>,
        client: TlsStream<End>,
    }

    impl Pair {
        fn new(room: usize) -> Self {
            let (server, client) = configurations(&TLS13);
            let tls = TlsServer::from_rustls(server);
            let config = ServerConfig::new()
                .with_stall_timeout(Duration::from_secs(30))
                .with_min_transfer_rate(1000)
                .with_tls(ServerTlsMode::Required, tls);
            let exports = ExportMap::new().with("", Counter::default()).unwrap();
            let state = ServerState::new(exports, config);
            let (near, mut far) = pair(1 << 20, room);
            let info = state.client(PeerAddr::Unix(None));
            let session = Session::new(state, near, info, None, &Still);
            let mut session = session.now_or_never().unwrap().unwrap();
            let mut option = vec![0, 0, 0, 3];
            option.extend(OptionHeader { code: OptionCode::STARTTLS, length: 0 }.encode());
            assert!(Pin::new(&mut far).poll_write(&mut cx(), &option).is_ready());
            // The greeting and the acknowledgement, in memory.
            let mut answers = [0; 18 + 20];
            let mut answered = 0;
            for _ in 0..MANY {
                assert!(session.poll(&mut cx()).is_pending());
                let room = &mut answers[answered..];
                if let Poll::Ready(count) = Pin::new(&mut far).poll_read(&mut cx(), room) {
                    answered += count.unwrap();
                }
                if answered == answers.len() {
                    break;
                }
            }
            assert_eq!(answered, answers.len());
            let client = TlsClient::from_rustls(client, Some("disk.example")).unwrap();
            let mut client = client.connect(far, None).unwrap();
            let done = (0..MANY).any(|_| {
                assert!(session.poll(&mut cx()).is_pending());
                client.poll_handshake(&mut cx()).is_ready()
            });
            assert!(done, "the handshake hangs");
            let mut pair = Self { session, client };
            let enter = OptionHeader { code: OptionCode::EXPORT_NAME, length: 0 }.encode();
            pair.send(&enter);
            // The size and the flags.
            pair.receive_all(8 + 2);
            pair
        }

        fn send(&mut self, bytes: &[u8]) {
            let sent = Pin::new(&mut self.client).poll_write(&mut cx(), bytes);
            assert!(matches!(sent, Poll::Ready(Ok(count)) if count == bytes.len()), "{sent:?}");
            assert!(Pin::new(&mut self.client).poll_flush(&mut cx()).is_ready());
        }

        /// So many bytes that the session sends.
        fn receive_all(&mut self, length: usize) {
            let (mut buffer, mut received) = (vec![0; length + 1], 0);
            for _ in 0..MANY {
                assert!(self.session.poll(&mut cx()).is_pending());
                let room = &mut buffer[received..];
                if let Poll::Ready(count) = Pin::new(&mut self.client).poll_read(&mut cx(), room) {
                    received += count.unwrap();
                }
                if received == length {
                    return;
                }
            }
            panic!("{received} of {length} bytes arrived");
        }

        /// What the deadlines make of a client that does nothing from now on.
        fn verdict(&mut self) -> Verdict {
            let second = Duration::from_secs(1);
            let start = Instant::now();
            let mut watch = Watch::new(&self.session.requests.state.config(), start);
            watch.restart(start, &self.session.activity());
            for seconds in 1..100 {
                assert!(self.session.poll(&mut cx()).is_pending());
                let activity = self.session.activity();
                match watch.look(start + seconds * second, Duration::ZERO, &activity) {
                    Verdict::LookAgain(_) => {}
                    verdict => return verdict,
                }
            }
            panic!("nothing is noticed");
        }
    }

    fn read(length: u32) -> Vec<u8> {
        let (flags, command) = (CommandFlags::empty(), CommandType::READ);
        CompactRequest { flags, command, cookie: 1, offset: 0, length }.encode().to_vec()
    }

    /// The machine has sent a reply once TLS has taken it, although it may be still here: whatever is left of it, the
    /// client is to take it.
    #[test]
    fn a_reply_that_the_client_does_not_take_is_awaited_however_little_of_it_is_left() {
        for length in (1 << 10..200 << 10).step_by(7 << 10) {
            let mut pair = Pair::new(4 << 10);
            pair.send(&read(length));
            for _ in 0..20 {
                assert!(pair.session.poll(&mut cx()).is_pending());
            }
            let verdict = pair.verdict();
            if length < 3 << 10 {
                assert!(matches!(verdict, Verdict::Idle(_)), "{length}: {verdict:?}");
                continue;
            }
            assert!(matches!(verdict, Verdict::SendStalled(_)), "{length}: {verdict:?}");
            // Once it takes it, everything is well.
            pair.receive_all(16 + length as usize);
            assert!(matches!(pair.verdict(), Verdict::Idle(_)));
        }
    }

    /// Wherever a record stops, the client is to send the rest, and the bytes that arrived end the connection's rest.
    #[test]
    fn the_rest_of_a_record_is_awaited_wherever_it_is_cut() {
        let mut pair = Pair::new(1 << 20);
        let mut record = pair.client.encrypted(&noise(100));
        record.truncate(record.len() - 1);
        for (sent, byte) in record.into_iter().enumerate() {
            if sent == 0 {
                assert!(matches!(pair.verdict(), Verdict::Idle(_)));
                pair.session.free_buffers();
                assert!(!pair.session.has_ended_rest());
            }
            pair.client.send_in_the_clear(&[byte]);
            assert!(pair.session.poll(&mut cx()).is_pending());
            assert_eq!(pair.session.has_ended_rest(), sent == 0);
            assert!(matches!(pair.verdict(), Verdict::ReceiveStalled(_)), "after byte {sent}");
        }
    }
}
