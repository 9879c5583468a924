//! Destinations that take what comes at once: files, pipes, and nothing at all.

use core::fmt;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};

use super::moves::{CountedStream, Moves};

/// A pipe or the like, which takes bytes in order only: what comes early is held until its turn.
pub(super) struct InOrder {
    file: CountedStream,
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
        let file = CountedStream::new(file);
        Self { file, at: 0, held: BTreeMap::new(), nothing: vec![0; 64 << 10] }
    }

    /// How often it has taken something.
    pub(super) fn moves(&self) -> &Moves {
        self.file.moves()
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use nbd_testkit::{assert_same_bytes, cases};

    use super::*;

    /// Pieces in any order: what is written is always all that there is without a gap.
    #[test]
    fn pieces_are_written_in_order_whenever_they_come() {
        cases(60, |random| {
            let mut file = tempfile::tempfile().unwrap();
            let mut sink = InOrder::new(file.try_clone().unwrap());
            let (mut pieces, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..random.below(12) {
                let zero = random.one_in(2);
                let longest = if zero { 200_000 } else { 1000 };
                let length = 1 + random.below(longest) as usize;
                let data = vec![if zero { 0 } else { 1 + random.below(255) as u8 }; length];
                pieces.push((expected.len(), zero, length));
                expected.extend(data);
            }
            let (mut done, mut lent) = (vec![false; expected.len()], 0);
            while !pieces.is_empty() {
                let index = random.below(pieces.len() as u64) as usize;
                let (offset, zero, length) = pieces.swap_remove(index);
                let range = offset..offset + length;
                let before = sink.position();
                let drained = match zero {
                    true => sink.zeroes(offset as u64, length as u64),
                    false => sink.data(offset as u64, expected[range.clone()].to_vec()),
                };
                let Drained { bytes, buffers } = drained.unwrap();
                done[range].fill(true);
                lent += usize::from(!zero);
                lent -= buffers.len();
                let gap = done.iter().position(|done| !done).unwrap_or(done.len());
                assert_eq!((sink.position(), bytes), (gap as u64, gap as u64 - before));
                assert!(lent <= sink.held(), "{lent} buffers of {} pieces", sink.held());
                assert_eq!(sink.held() == 0, done[gap..].iter().all(|done| !done));
            }
            assert_eq!((lent, sink.held()), (0, 0));
            let mut found = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut found).unwrap();
            assert_same_bytes(&found, &expected, "what was written");
        });
    }
}
