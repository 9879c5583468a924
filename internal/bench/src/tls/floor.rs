//! The least that a server can spend on encrypted data: the cipher, and a copy on either side of it.
//!
//! A READ copies from the disk to a record, seals that, and copies it to where the kernel keeps what is to be sent; a
//! WRITE goes the same way in the other direction. Records have 16 KiB, all that TLS allows, and the cipher is ring's
//! AES-128-GCM, which rustls uses. No protocol, no allocation.
//!
//! The copies are measured in three ways: both in memory; the one on the socket's side by the kernel, through a Unix
//! socket whose other end a thread serves that is not counted; and both by the kernel, the other one out of or into a
//! file in `/dev/shm`, as the servers of files have it. The last is the whole of what a server of a file has to do with
//! requests of a mebibyte, four at a time: read, seal in place, send; or receive, open in place, write.

use std::fs::File;
use std::io::{self, Error, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nbd_testkit::Random;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use rustix::time::{ClockId, clock_gettime};

use crate::load::Direction;

/// Plaintext of a record.
const RECORD: usize = 16 * 1024;

/// A record's header.
const HEADER: usize = 5;

/// A record as it travels: behind the data are the type of its content and the tag.
const WIRE: usize = HEADER + RECORD + 1 + MAX_TAG_LEN;

/// Records of one burst: what a socket buffer holds.
const BURST: usize = 16;

/// Records of a request of a mebibyte.
const REQUEST: usize = BLOCK / RECORD;

/// Requests that have buffers of their own, as the workloads with such requests have in flight.
const DEPTH: usize = 4;

/// Bytes of the disk: more than any cache.
const DISK: usize = 256 * 1024 * 1024;

/// Bytes that are next to each other on the disk.
const BLOCK: usize = 1024 * 1024;

/// Which of the copies the kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Neither.
    Memory,
    /// Out of, or into, a Unix socket.
    Socket,
    /// That, and out of, or into, the file that is the disk.
    SocketAndFile,
}

/// A disk, a buffer for a burst of records, and the kernel's side.
#[derive(Debug)]
pub struct Floor {
    key: LessSafeKey,
    disk: Vec<u8>,
    file: File,
    burst: Vec<u8>,
    /// Buffers for the records of requests.
    requests: Vec<Vec<u8>>,
    /// A burst that is sealed.
    kernel: Vec<u8>,
    random: Random,
}

impl Floor {
    /// Ready to measure.
    ///
    /// # Errors
    /// When the cipher is not to be had, or no file can be made in `/dev/shm`.
    pub fn new() -> io::Result<Self> {
        let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(broken)?;
        let disk = vec![0x5a; DISK];
        let mut file = tempfile::tempfile_in("/dev/shm")?;
        file.write_all(&disk)?;
        let mut floor = Self {
            key: LessSafeKey::new(key),
            disk,
            file,
            burst: vec![0; BURST * WIRE],
            requests: vec![vec![0; REQUEST * WIRE]; DEPTH],
            kernel: Vec::new(),
            random: Random::new(1),
        };
        // What is to be opened was sealed before.
        floor.load(0);
        seal(&floor.key, &mut floor.burst)?;
        floor.kernel.clone_from(&floor.burst);
        Ok(floor)
    }

    /// Microseconds of CPU that a MiB takes, on average over `mib` of them.
    ///
    /// # Errors
    /// When a record can't be opened or a socket fails, which can't be.
    pub fn measure(&mut self, direction: Direction, kernel: Kernel, mib: usize) -> io::Result<f64> {
        let mut peer = match kernel {
            Kernel::Memory => None,
            Kernel::Socket | Kernel::SocketAndFile => {
                Some(Peer::new(direction, self.kernel.clone())?)
            }
        };
        let before = thread_time();
        for number in 0..mib {
            let block = self.random.below((DISK / BLOCK) as u64) as usize * BLOCK;
            match (&mut peer, kernel) {
                (Some(peer), Kernel::SocketAndFile) => {
                    let request = &mut self.requests[number % DEPTH];
                    match direction {
                        Direction::Read => {
                            load_file(&self.file, request, block)?;
                            seal(&self.key, request)?;
                            peer.stream.write_all(request)?;
                        }
                        Direction::Write => {
                            peer.stream.read_exact(request)?;
                            open(&self.key, request)?;
                            store_file(&self.file, request, block)?;
                        }
                    }
                }
                (peer, _) => self.with_disk_in_memory(direction, block, peer)?,
            }
        }
        Ok((thread_time() - before) / 1e3 / mib as f64)
    }

    /// A block, burst by burst.
    fn with_disk_in_memory(
        &mut self,
        direction: Direction,
        block: usize,
        peer: &mut Option<Peer>,
    ) -> io::Result<()> {
        for offset in (block..block + BLOCK).step_by(BURST * RECORD) {
            match direction {
                Direction::Read => {
                    self.load(offset);
                    seal(&self.key, &mut self.burst)?;
                    match peer {
                        None => self.kernel.copy_from_slice(&self.burst),
                        Some(peer) => peer.stream.write_all(&self.burst)?,
                    }
                }
                Direction::Write => {
                    match peer {
                        None => self.burst.copy_from_slice(&self.kernel),
                        Some(peer) => peer.stream.read_exact(&mut self.burst)?,
                    }
                    open(&self.key, &mut self.burst)?;
                    self.store(offset);
                }
            }
        }
        Ok(())
    }

    /// Copies from that offset of the disk to the burst.
    fn load(&mut self, offset: usize) {
        for (content, data) in contents(&mut self.burst).zip(self.disk[offset..].chunks(RECORD)) {
            content.copy_from_slice(data);
        }
    }

    /// Copies the burst to that offset of the disk.
    fn store(&mut self, offset: usize) {
        let disk = self.disk[offset..].chunks_mut(RECORD);
        for (content, data) in contents(&mut self.burst).zip(disk) {
            data.copy_from_slice(content);
        }
    }
}

/// Reads from that offset of the file to the records of a request, by one call.
fn load_file(file: &File, request: &mut [u8], offset: usize) -> io::Result<()> {
    let mut contents = contents(request);
    let mut slices: [_; REQUEST] =
        core::array::from_fn(|_| IoSliceMut::new(contents.next().unwrap_or_default()));
    whole(rustix::io::preadv(file, &mut slices, offset as u64)?)
}

/// Writes the records of a request to that offset of the file, by one call.
fn store_file(file: &File, request: &mut [u8], offset: usize) -> io::Result<()> {
    let mut contents = contents(request);
    let slices: [_; REQUEST] =
        core::array::from_fn(|_| IoSlice::new(contents.next().unwrap_or_default()));
    whole(rustix::io::pwritev(file, &slices, offset as u64)?)
}

/// Encrypts records in place.
fn seal(key: &LessSafeKey, records: &mut [u8]) -> io::Result<()> {
    for (index, record) in records.chunks_mut(WIRE).enumerate() {
        let (header, content) = record.split_at_mut(HEADER);
        let (content, tag) = content.split_at_mut(RECORD + 1);
        let nonce = nonce(index % BURST);
        let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(&*header), content);
        tag.copy_from_slice(sealed.map_err(broken)?.as_ref());
    }
    Ok(())
}

/// Decrypts records in place.
fn open(key: &LessSafeKey, records: &mut [u8]) -> io::Result<()> {
    for (index, record) in records.chunks_mut(WIRE).enumerate() {
        let (header, content) = record.split_at_mut(HEADER);
        let nonce = nonce(index % BURST);
        key.open_in_place(nonce, Aad::from(&*header), content).map_err(broken)?;
    }
    Ok(())
}

/// The plaintext of each record.
fn contents(records: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    records.chunks_mut(WIRE).map(|record| &mut record[HEADER..HEADER + RECORD])
}

/// A file in memory moves all that it is asked to.
fn whole(count: usize) -> io::Result<()> {
    if count == BLOCK { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// The other end of a socket, and the thread that serves it until this end is closed.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Drains what is sent, or sends `burst` again and again.
    fn new(direction: Direction, mut burst: Vec<u8>) -> io::Result<Self> {
        let (stream, mut other) = UnixStream::pair()?;
        let thread = thread::spawn(move || match direction {
            Direction::Read => while other.read(&mut burst).is_ok_and(|count| count > 0) {},
            Direction::Write => while other.write_all(&burst).is_ok() {},
        });
        Ok(Self { stream, thread: Some(thread) })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _closed_already = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn broken(_: Unspecified) -> Error {
    Error::other("the cipher does not work")
}

/// Used again for the same key, which no one relies on here.
fn nonce(index: usize) -> Nonce {
    let mut nonce = [0; 12];
    nonce[11] = index as u8;
    Nonce::assume_unique_for_key(nonce)
}

/// Nanoseconds of CPU that this thread has used.
fn thread_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_what_was_sealed() {
        let mut floor = Floor::new().expect("the cipher is there");
        floor.disk[..BURST * RECORD].fill(0x77);
        floor.load(0);
        seal(&floor.key, &mut floor.burst).expect("sealed");
        assert!(contents(&mut floor.burst).all(|content| content != [0x77; RECORD]));
        open(&floor.key, &mut floor.burst).expect("opened");
        floor.store(BLOCK);
        assert!(floor.disk[BLOCK..][..BURST * RECORD].iter().all(|byte| *byte == 0x77));
        let request = &mut floor.requests[0];
        contents(request).for_each(|content| content.fill(0x66));
        seal(&floor.key, request).expect("sealed");
        open(&floor.key, request).expect("opened");
        store_file(&floor.file, request, BLOCK).expect("written");
        request.fill(0);
        load_file(&floor.file, request, BLOCK).expect("read");
        assert!(contents(request).all(|content| content == [0x66; RECORD]));
        for direction in [Direction::Read, Direction::Write] {
            for kernel in [Kernel::Memory, Kernel::Socket, Kernel::SocketAndFile] {
                assert!(floor.measure(direction, kernel, 1).expect("a figure") > 0.0);
            }
        }
    }
}
