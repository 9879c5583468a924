//! Streams that count what they carry, so that a slow one is not taken for one that stands still.

use core::sync::atomic::{AtomicU64, Ordering};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use crate::patient::Patient;

/// How often a stream has carried something. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves(Arc<AtomicU64>);

impl Moves {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pipe or the like. It is written in parts, since a pipe takes a long write as a whole before it says so; in smaller ones
/// while it is slow.
#[derive(Debug)]
pub(super) struct CountedStream {
    file: Patient<File>,
    moves: Moves,
    /// Bytes of the next write.
    part: usize,
}

/// What a pipe holds, as a rule.
const PART: usize = 64 << 10;

/// The same while it takes less than [`SLOW`].
const SMALL_PART: usize = 4 << 10;

/// Bytes in a millisecond.
const SLOW: u128 = 256;

impl CountedStream {
    pub(super) fn new(file: File) -> Self {
        Self { file: Patient(file), moves: Moves::default(), part: PART }
    }

    pub(super) fn moves(&self) -> &Moves {
        &self.moves
    }
}

impl Read for CountedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.moves.add();
        Ok(count)
    }
}

impl Write for CountedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let count = self.file.write(&bytes[..bytes.len().min(self.part)])?;
        self.moves.add();
        let is_slow = begun.elapsed().as_millis().saturating_mul(SLOW) > count as u128;
        self.part = if is_slow { SMALL_PART } else { PART };
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Sends zeroes to a reader; gives how often something moved.
    fn sent(length: usize, read: impl FnOnce(io::PipeReader) + Send + 'static) -> u64 {
        let (reader, writer) = io::pipe().unwrap();
        let mut stream = CountedStream::new(std::os::fd::OwnedFd::from(writer).into());
        let reading = thread::spawn(move || read(reader));
        stream.write_all(&vec![0; length]).unwrap();
        let count = stream.moves().count();
        drop(stream);
        reading.join().unwrap();
        count
    }

    #[test]
    fn a_long_write_moves_in_parts() {
        let all = |mut reader: io::PipeReader| {
            assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap(), 8 << 20);
        };
        assert!(sent(8 << 20, all) >= 128);
    }

    #[test]
    fn a_slow_reader_is_seen_to_take_less_at_a_time() {
        let slowly = |mut reader: io::PipeReader| {
            let mut piece = [0; 4096];
            while reader.read(&mut piece).unwrap() > 0 {
                // The pipe takes no more than 200 KiB in a second.
                thread::sleep(Duration::from_millis(20));
            }
        };
        // What lies beyond the first parts goes in small ones.
        assert!(sent(512 << 10, slowly) > 64);
    }

    #[test]
    fn what_is_read_moves() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut stream = CountedStream::new(std::os::fd::OwnedFd::from(reader).into());
        for count in 1..5 {
            writer.write_all(&[7; 100]).unwrap();
            assert_eq!(
                (stream.read(&mut [0; 4096]).unwrap(), stream.moves().count()),
                (100, count)
            );
        }
    }
}
