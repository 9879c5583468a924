//! Destinations that take what comes at once: files, pipes, and nothing at all.

use core::fmt;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};

use crate::patient::Patient;

/// A pipe or the like, which takes bytes in order only: what comes early is held until its turn.
pub(super) struct InOrder {
    file: Patient<File>,
    at: u64,
    held: BTreeMap<u64, Held>,
    nothing: Vec<u8>,
}

enum Held {
    Data(Vec<u8>),
    Zeroes(u64),
}

impl fmt::Debug for InOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InOrder")
            .field("at", &self.at)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

/// Bytes that were written, and the buffers that got free.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) bytes: u64,
    pub(super) buffers: Vec<Vec<u8>>,
}

impl InOrder {
    pub(super) fn new(file: File) -> Self {
        Self { file: Patient(file), at: 0, held: BTreeMap::new(), nothing: vec![0; 64 << 10] }
    }

    /// What is held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    pub(super) fn data(&mut self, offset: u64, buffer: Vec<u8>) -> io::Result<Drained> {
        self.held.insert(offset, Held::Data(buffer));
        self.drain()
    }

    pub(super) fn zeroes(&mut self, offset: u64, length: u64) -> io::Result<Drained> {
        self.held.insert(offset, Held::Zeroes(length));
        self.drain()
    }

    fn drain(&mut self) -> io::Result<Drained> {
        let mut drained = Drained::default();
        while let Some(held) = self.held.remove(&self.at) {
            let before = self.at;
            match held {
                Held::Data(buffer) => {
                    self.file.write_all(&buffer)?;
                    self.at += buffer.len() as u64;
                    drained.buffers.push(buffer);
                }
                Held::Zeroes(length) => {
                    while self.at < before + length {
                        let left = before + length - self.at;
                        let count =
                            self.nothing.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        self.file.write_all(&self.nothing[..count])?;
                        self.at += count as u64;
                    }
                }
            }
            drained.bytes += self.at - before;
        }
        Ok(drained)
    }
}
