//! The least that a server can spend on encrypted data: the cipher, and a copy on either side of it.
//!
//! A READ copies from the disk to a record, seals that, and copies it to where the kernel keeps what is to be sent; a
//! WRITE goes the same way in the other direction. Records have 16 KiB, all that TLS allows, and the cipher is ring's
//! AES-128-GCM, which rustls uses. No system call, no protocol, no allocation.

use std::io::{self, Error};

use nbd_testkit::Random;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use rustix::time::{ClockId, clock_gettime};

use crate::load::Direction;

/// Plaintext of a record.
const RECORD: usize = 16 * 1024;

/// A record's header, the type of its content, and the tag.
const OVERHEAD: usize = 5 + 1 + MAX_TAG_LEN;

/// Records of one burst: what a socket buffer holds.
const BURST: usize = 16;

/// Bytes of the disk: more than any cache.
const DISK: usize = 256 * 1024 * 1024;

/// Bytes that are next to each other on the disk.
const BLOCK: usize = 1024 * 1024;

/// A disk, a record and a socket buffer.
#[derive(Debug)]
pub struct Floor {
    key: LessSafeKey,
    disk: Vec<u8>,
    record: Vec<u8>,
    socket: Vec<u8>,
    random: Random,
}

impl Floor {
    /// Ready to measure.
    ///
    /// # Errors
    /// When the cipher is not to be had.
    pub fn new() -> io::Result<Self> {
        let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(broken)?;
        let mut floor = Self {
            key: LessSafeKey::new(key),
            disk: vec![0x5a; DISK],
            record: vec![0x5a; RECORD + OVERHEAD],
            socket: vec![0; BURST * (RECORD + OVERHEAD)],
            random: Random::new(1),
        };
        // What is to be opened was sealed before.
        for index in 0..BURST {
            floor.seal(index)?;
        }
        Ok(floor)
    }

    /// Microseconds of CPU that a MiB takes, on average over `mib` of them.
    ///
    /// # Errors
    /// When a record can't be opened, which can't be.
    pub fn measure(&mut self, direction: Direction, mib: usize) -> io::Result<f64> {
        let before = thread_time();
        for _ in 0..mib {
            let block = self.random.below((DISK / BLOCK) as u64) as usize * BLOCK;
            for offset in (block..block + BLOCK).step_by(RECORD) {
                let index = offset / RECORD % BURST;
                match direction {
                    Direction::Read => {
                        self.record[5..5 + RECORD]
                            .copy_from_slice(&self.disk[offset..offset + RECORD]);
                        self.seal(index)?;
                    }
                    Direction::Write => self.open(index, offset)?,
                }
            }
        }
        Ok((thread_time() - before) / 1e3 / mib as f64)
    }

    /// Seals the record and puts it into the socket buffer.
    fn seal(&mut self, index: usize) -> io::Result<()> {
        let (header, content) = self.record.split_at_mut(5);
        let (content, tag) = content.split_at_mut(RECORD + 1);
        let sealed =
            self.key.seal_in_place_separate_tag(nonce(index), Aad::from(&*header), content);
        tag.copy_from_slice(sealed.map_err(broken)?.as_ref());
        slot(&mut self.socket, index).copy_from_slice(&self.record);
        Ok(())
    }

    /// Takes a record out of the socket buffer, opens it and puts it to the disk.
    fn open(&mut self, index: usize, offset: usize) -> io::Result<()> {
        self.record.copy_from_slice(slot(&mut self.socket, index));
        let (header, content) = self.record.split_at_mut(5);
        let opened = self.key.open_in_place(nonce(index), Aad::from(&*header), content);
        let opened = &opened.map_err(broken)?[..RECORD];
        self.disk[offset..offset + RECORD].copy_from_slice(opened);
        Ok(())
    }
}

fn slot(socket: &mut [u8], index: usize) -> &mut [u8] {
    &mut socket[index * (RECORD + OVERHEAD)..][..RECORD + OVERHEAD]
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
        floor.disk[..BLOCK].fill(1);
        floor.record[5..5 + RECORD].fill(0x77);
        floor.seal(3).expect("sealed");
        floor.open(3, 3 * RECORD).expect("opened");
        assert!(floor.disk[3 * RECORD..4 * RECORD].iter().all(|byte| *byte == 0x77));
        assert!(floor.measure(Direction::Read, 1).expect("a figure") > 0.0);
        assert!(floor.measure(Direction::Write, 1).expect("a figure") > 0.0);
    }
}
