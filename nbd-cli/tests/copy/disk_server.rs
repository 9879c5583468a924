//! A server in the test's own process that has a disk, keeps strictly to its minimum block, and answers block status
//! requests in any legal way: one extent or several, cut anywhere, short, or reaching past what was asked about.

use core::time::Duration;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use nbd_testkit::raw::{
    ChunkType, Cmd, Errno, Info, Opt, REPLY_DONE, Rep, cmd_flag, flag, handshake, magic,
};
use nbd_testkit::{Endpoint, Random};
use tempfile::TempDir;

const CONTEXT: &[u8] = b"base:allocation";

/// A disk, and what its server can do.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    /// Where runs of data and zeroes end, and which are zero; up to the end of the disk.
    pub(crate) runs: Vec<(u64, bool)>,
    /// A power of two that divides the size.
    pub(crate) minimum: u32,
    pub(crate) write_zeroes: bool,
    pub(crate) multi_conn: bool,
    /// Block status can be asked for, and the answers come out of these numbers.
    pub(crate) status: Option<Random>,
}

impl Disk {
    /// Extents from `offset` on, for a request of `length` bytes.
    fn extents(&mut self, offset: u64, length: u64) -> Vec<(u32, u32)> {
        let random = self.status.as_mut().expect("it was offered");
        let most = random.of(&[1, 1, 1, 2, 5, 1000]);
        let (mut extents, mut at) = (Vec::new(), offset);
        for &(end, zero) in self.runs.iter().filter(|(end, _)| *end > offset) {
            if at >= offset + length || extents.len() == most {
                break;
            }
            let mut count = end - at;
            let whole = !random.one_in(6);
            if !whole {
                count = 1 + random.below(count);
            }
            let zero = zero && !random.one_in(20);
            at += count;
            // What reaches past the end is clipped by the client, as no byte is there.
            let past =
                if end == self.bytes.len() as u64 && whole { random.below(2) << 20 } else { 0 };
            extents.push(((count + past) as u32, if zero { 3 } else { 0 }));
            if !whole {
                break;
            }
        }
        extents
    }
}

#[derive(Debug)]
struct Shared {
    disk: Mutex<Disk>,
    over: AtomicBool,
    accepted: Mutex<usize>,
    /// There is one more connection.
    another: Condvar,
    /// How many connections there are to be before one has a command answered, and how long one waits for them.
    gathers: Mutex<(usize, Duration)>,
}

impl Shared {
    /// Waits for connections that this one is to have company of.
    fn gather(&self) {
        let (wanted, limit) = *self.gathers.lock().unwrap();
        let accepted = self.accepted.lock().unwrap();
        drop(self.another.wait_timeout_while(accepted, limit, |accepted| *accepted < wanted));
    }
}

/// The server; it goes when it is dropped.
#[derive(Debug)]
pub(crate) struct DiskServer {
    shared: Arc<Shared>,
    path: PathBuf,
    listening: Option<JoinHandle<Vec<JoinHandle<()>>>>,
    _dir: TempDir,
}

impl DiskServer {
    pub(crate) fn start(disk: Disk) -> Self {
        assert_eq!(disk.bytes.len() % disk.minimum as usize, 0, "a disk has whole blocks");
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (disk, over) = (Mutex::new(disk), AtomicBool::new(false));
        let (accepted, another) = (Mutex::new(0), Condvar::new());
        let gathers = Mutex::new((0, Duration::ZERO));
        let shared = Arc::new(Shared { disk, over, accepted, another, gathers });
        let ours = Arc::clone(&shared);
        let listening = thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if ours.over.load(Ordering::SeqCst) {
                    break;
                }
                *ours.accepted.lock().unwrap() += 1;
                ours.another.notify_all();
                let shared = Arc::clone(&ours);
                connections.push(thread::spawn(move || match serve(&shared, stream) {
                    Err(error) if !is_end(&error) => panic!("a client misbehaved: {error}"),
                    _ => {}
                }));
            }
            connections
        });
        Self { shared, path, listening: Some(listening), _dir: dir }
    }

    /// Has a connection answer no command before there are so many, or the time has passed: a copy begins with its first
    /// one, and may be over before there is another.
    pub(crate) fn gather(&self, connections: usize, limit: Duration) {
        *self.shared.gathers.lock().unwrap() = (connections, limit);
    }

    pub(crate) fn uri(&self) -> String {
        Endpoint::Unix(self.path.clone()).uri("")
    }

    /// Ends it, and gives how many connections there were, and what is on the disk now.
    pub(crate) fn finish(mut self) -> (usize, Vec<u8>) {
        for connection in self.end() {
            connection.join().expect("its clients kept to the rules");
        }
        let bytes = core::mem::take(&mut self.shared.disk.lock().unwrap().bytes);
        (*self.shared.accepted.lock().unwrap(), bytes)
    }

    fn end(&mut self) -> Vec<JoinHandle<()>> {
        self.shared.over.store(true, Ordering::SeqCst);
        let Some(listening) = self.listening.take() else { return Vec::new() };
        let _wakes = UnixStream::connect(&self.path);
        listening.join().unwrap_or_default()
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::BrokenPipe | Kind::ConnectionReset)
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_long(stream: &mut UnixStream, length: u32) -> io::Result<Vec<u8>> {
    assert!(length <= 33 << 20, "{length} bytes are more than any request has");
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    let flags = (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) as u16;
    stream.write_all(&magic::INIT.to_be_bytes())?;
    stream.write_all(&magic::IHAVEOPT.to_be_bytes())?;
    stream.write_all(&flags.to_be_bytes())?;
    take::<4>(&mut stream)?;
    let mut structured = false;
    loop {
        let option = u64::from_be_bytes(take(&mut stream)?);
        assert_eq!(option, magic::IHAVEOPT);
        let option = Opt(u32::from_be_bytes(take(&mut stream)?));
        let length = u32::from_be_bytes(take(&mut stream)?);
        take_long(&mut stream, length)?;
        let mut reply = |kind: Rep, data: &[u8]| {
            let mut bytes = magic::OPTION_REPLY.to_be_bytes().to_vec();
            bytes.extend_from_slice(&option.0.to_be_bytes());
            bytes.extend_from_slice(&kind.0.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            stream.write_all(&bytes)
        };
        let disk = shared.disk.lock().unwrap().clone_shape();
        match option {
            Opt::STRUCTURED_REPLY => structured = true,
            Opt::SET_META_CONTEXT if structured => {
                if disk.status {
                    reply(Rep::META_CONTEXT, &[&1_u32.to_be_bytes()[..], CONTEXT].concat())?;
                }
            }
            Opt::INFO | Opt::GO => {
                let export = [&Info::EXPORT.0.to_be_bytes()[..], &disk.size.to_be_bytes()];
                let export = [export.concat(), disk.flags.to_be_bytes().to_vec()].concat();
                reply(Rep::INFO, &export)?;
                let mut sizes = Info::BLOCK_SIZE.0.to_be_bytes().to_vec();
                for size in [disk.minimum, disk.minimum.max(4096), 32 << 20] {
                    sizes.extend_from_slice(&size.to_be_bytes());
                }
                reply(Rep::INFO, &sizes)?;
            }
            Opt::ABORT => return reply(Rep::ACK, &[]),
            _ => {
                reply(Rep::ERR_UNSUP, &[])?;
                continue;
            }
        }
        reply(Rep::ACK, &[])?;
        if option == Opt::GO {
            break;
        }
    }
    shared.gather();
    while transmit(shared, &mut stream, structured)? {}
    Ok(())
}

/// What clients learn of a disk.
struct Shape {
    size: u64,
    minimum: u32,
    flags: u16,
    status: bool,
}

impl Disk {
    fn clone_shape(&self) -> Shape {
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH;
        flags |= if self.write_zeroes { flag::SEND_WRITE_ZEROES } else { 0 };
        flags |= if self.multi_conn { flag::CAN_MULTI_CONN } else { 0 };
        let (size, minimum) = (self.bytes.len() as u64, self.minimum);
        Shape { size, minimum, flags, status: self.status.is_some() }
    }
}

/// One request, and its answer; `false` once the client has left.
fn transmit(shared: &Shared, stream: &mut UnixStream, structured: bool) -> io::Result<bool> {
    assert_eq!(u32::from_be_bytes(take(stream)?), magic::REQUEST);
    let flags = u16::from_be_bytes(take(stream)?);
    let command = Cmd(u16::from_be_bytes(take(stream)?));
    let cookie = u64::from_be_bytes(take(stream)?);
    let offset = u64::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    let payload = if command == Cmd::WRITE { take_long(stream, length)? } else { Vec::new() };
    let mut disk = shared.disk.lock().unwrap();
    let minimum = u64::from(disk.minimum);
    let end = offset + u64::from(length);
    if matches!(command, Cmd::READ | Cmd::WRITE | Cmd::WRITE_ZEROES | Cmd::BLOCK_STATUS) {
        let aligned = offset.is_multiple_of(minimum) && end.is_multiple_of(minimum);
        assert!(aligned && length > 0, "{command:?} of {length} at {offset}: blocks of {minimum}");
        assert!(end <= disk.bytes.len() as u64, "{command:?} of {length} at {offset}");
    }
    let range = offset as usize..end as usize;
    let simple = |data: &[u8]| {
        let mut reply = magic::SIMPLE_REPLY.to_be_bytes().to_vec();
        reply.extend_from_slice(&Errno(0).0.to_be_bytes());
        reply.extend_from_slice(&cookie.to_be_bytes());
        reply.extend_from_slice(data);
        reply
    };
    let chunk = |kind: ChunkType, done: bool, payload: &[u8]| {
        let mut reply = magic::STRUCTURED_REPLY.to_be_bytes().to_vec();
        reply.extend_from_slice(&(if done { REPLY_DONE } else { 0 }).to_be_bytes());
        reply.extend_from_slice(&kind.0.to_be_bytes());
        reply.extend_from_slice(&cookie.to_be_bytes());
        reply.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        reply.extend_from_slice(payload);
        reply
    };
    let reply = match command {
        Cmd::DISC => return Ok(false),
        Cmd::READ if structured => {
            let bytes = &disk.bytes[range];
            let (kind, data) = match bytes.iter().all(|byte| *byte == 0) {
                true => (ChunkType::OFFSET_HOLE, length.to_be_bytes().to_vec()),
                false => (ChunkType::OFFSET_DATA, bytes.to_vec()),
            };
            chunk(kind, true, &[offset.to_be_bytes().to_vec(), data].concat())
        }
        Cmd::READ => simple(&disk.bytes[range]),
        Cmd::WRITE => {
            disk.bytes[range].copy_from_slice(&payload);
            simple(&[])
        }
        Cmd::WRITE_ZEROES => {
            assert!(disk.write_zeroes && flags & !cmd_flag::NO_HOLE == 0, "flags {flags:#x}");
            disk.bytes[range].fill(0);
            simple(&[])
        }
        Cmd::FLUSH => simple(&[]),
        Cmd::BLOCK_STATUS => {
            let mut data = 1_u32.to_be_bytes().to_vec();
            for (length, status) in disk.extents(offset, length.into()) {
                data.extend_from_slice(&length.to_be_bytes());
                data.extend_from_slice(&status.to_be_bytes());
            }
            chunk(ChunkType::BLOCK_STATUS, true, &data)
        }
        command => panic!("{command:?} was not offered"),
    };
    drop(disk);
    stream.write_all(&reply)?;
    Ok(true)
}
