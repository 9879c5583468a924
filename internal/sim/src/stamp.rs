//! What cells hold: zeroes, or the stamp of the step that wrote them, so that each read says whose data it is.

/// The stamp of a step's cell, counted from the step's first one. Never zero.
#[must_use]
pub const fn of(step: u64, index: u64) -> u64 {
    (step << 16) | (index + 1)
}

/// The step of a stamp.
#[must_use]
pub const fn step_of(stamp: u64) -> u64 {
    stamp >> 16
}

const WORD: usize = 8;
/// Makes each word of a cell another one, so that bytes that moved inside a cell show.
const TWIST: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills a cell, which has a multiple of eight bytes.
pub fn fill(cell: &mut [u8], stamp: u64) {
    for (index, word) in cell.chunks_exact_mut(WORD).enumerate() {
        let value = if stamp == 0 { 0 } else { stamp ^ (index as u64).wrapping_mul(TWIST) };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The stamp of a cell: zero for zeroes, `None` if the cell is none that [`fill`] makes.
#[must_use]
pub fn read(cell: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let stamp = word(cell.get(..WORD)?);
    let expected = |index: usize| match stamp {
        0 => 0,
        stamp => stamp ^ (index as u64).wrapping_mul(TWIST),
    };
    let whole = cell.len().is_multiple_of(WORD);
    let fits =
        cell.chunks_exact(WORD).enumerate().all(|(index, bytes)| word(bytes) == expected(index));
    (whole && fits).then_some(stamp)
}

/// The data of a step's write.
#[must_use]
pub fn data(step: u64, cells: u64, cell: u64) -> Vec<u8> {
    let mut data = vec![0; (cells * cell) as usize];
    for (index, bytes) in data.chunks_exact_mut(cell as usize).enumerate() {
        fill(bytes, of(step, index as u64));
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_who_wrote_it_and_what_became_of_it() {
        let mut data = data(7, 3, 64);
        let stamps: Vec<_> = data.chunks(64).map(read).collect();
        assert_eq!(stamps, [Some(of(7, 0)), Some(of(7, 1)), Some(of(7, 2))]);
        assert_eq!(step_of(of(7, 2)), 7);
        assert_eq!(read(&[0; 64]), Some(0));
        for index in 0..64 {
            data[index] ^= 1;
            assert_ne!(read(&data[..64]), Some(of(7, 0)), "byte {index}");
            data[index] ^= 1;
        }
        data.swap(8, 16);
        assert_eq!(read(&data[..64]), None);
    }
}
