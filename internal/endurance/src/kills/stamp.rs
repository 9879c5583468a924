//! Sectors that say which write they are from.

use nbd_testkit::Random;

/// Bytes of a sector: what a disk writes as a whole.
pub const SECTOR: usize = 512;

const WORD: usize = 8;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Zeroes: nothing was written, or zeroes were.
    Zero,
    /// The data of the write of this number, which is not 0, for this sector.
    Write(u64),
    /// Anything else: parts of two writes, or another sector's data.
    Torn,
}

/// The data of a write from a sector on.
pub fn data(write: u64, first_sector: u64, sectors: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(sectors as usize * SECTOR);
    for sector in first_sector..first_sector + sectors {
        fill(write, sector, |word| data.extend_from_slice(&word.to_le_bytes()));
    }
    data
}

/// Tells what a sector holds.
pub fn read(sector: u64, bytes: &[u8]) -> Value {
    let (words, _) = bytes.as_chunks::<WORD>();
    let write = u64::from_le_bytes(words[0]);
    if write == 0 {
        let is_zero = words.iter().all(|word| *word == [0; WORD]);
        return if is_zero { Value::Zero } else { Value::Torn };
    }
    let (mut found, mut same) = (words.iter(), true);
    fill(write, sector, |word| same &= found.next() == Some(&word.to_le_bytes()));
    if same { Value::Write(write) } else { Value::Torn }
}

/// The number of the write, then numbers that depend on it and on the sector.
fn fill(write: u64, sector: u64, mut word: impl FnMut(u64)) {
    word(write);
    let mut random = Random::new(write.rotate_left(32) ^ sector);
    for _ in 1..SECTOR / WORD {
        word(random.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_which_write_it_is_from() {
        let data = data(7, 100, 3);
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            assert_eq!(read(100 + index as u64, sector), Value::Write(7));
            assert_eq!(read(101 + index as u64, sector), Value::Torn, "another sector's data");
        }
        assert_eq!(read(5, &[0; SECTOR]), Value::Zero);
    }

    #[test]
    fn a_mixture_of_two_writes_is_torn_wherever_it_is_cut() {
        let (one, other) = (data(7, 100, 1), data(8, 100, 1));
        for cut in 1..SECTOR {
            let mixed = [&one[..cut], &other[cut..]].concat();
            let expected = if mixed == one { Value::Write(7) } else { Value::Torn };
            // A number's upper bytes are the same in both.
            let expected = if mixed == other { Value::Write(8) } else { expected };
            assert_eq!(read(100, &mixed), expected, "cut after {cut}");
            let zeroed = [&vec![0; cut], &other[cut..]].concat();
            assert_eq!(read(100, &zeroed), Value::Torn, "zeroes up to {cut}");
        }
    }
}
