//! Zeroes in what was read.

use core::ops::Range;

/// Bytes that are compared at a time.
const STEP: usize = 64;

/// Whether all bytes are zero. Data gives itself away at its first bytes as a rule.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    steps.iter().all(|step| step.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Splits bytes into runs of blocks that are zero and of others. The last block may be shorter: it is never zero.
pub(super) fn runs(bytes: &[u8], block: usize) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for start in (0..bytes.len()).step_by(block) {
        let end = start.saturating_add(block).min(bytes.len());
        let zero = end - start == block && is_zero(&bytes[start..end]);
        match runs.last_mut() {
            Some((range, kind)) if *kind == zero => range.end = end,
            _ => runs.push((start..end, zero)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    /// Few bytes, of which some are the same: none hides another one.
    #[test]
    fn bytes_are_zero_if_each_of_them_is() {
        cases(500, |random| {
            let mut bytes = vec![0; random.below(200) as usize];
            if !bytes.is_empty() {
                for _ in 0..random.below(4) {
                    let index = random.below(bytes.len() as u64) as usize;
                    bytes[index] = random.of(&[0, 1, 1, 3, 0x80]);
                }
            }
            assert_eq!(is_zero(&bytes), bytes.iter().all(|byte| *byte == 0), "{bytes:?}");
        });
    }

    #[test]
    fn runs_are_all_bytes_in_order_and_say_of_each_block_what_it_is() {
        cases(500, |random| {
            let block = 1 + random.below(20) as usize;
            let mut bytes = vec![0; random.below(120) as usize];
            for part in bytes.chunks_mut(7) {
                part.fill(u8::from(random.one_in(3)));
            }
            let runs = runs(&bytes, block);
            let mut end = 0;
            for (range, zero) in &runs {
                assert_eq!((range.start, range.is_empty()), (end, false), "{runs:?}");
                end = range.end;
                for part in bytes[range.clone()].chunks(block) {
                    let is = part.len() == block && part.iter().all(|byte| *byte == 0);
                    assert_eq!(is, *zero, "{runs:?}");
                }
            }
            assert_eq!(end, bytes.len());
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1), "{runs:?}");
        });
    }

    #[test]
    fn a_single_bit_makes_it_data() {
        for length in [0, 1, 63, 64, 65, 4096, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if at < length {
                    bytes[at] = 1;
                    assert!(!is_zero(&bytes), "{length} {at}");
                    bytes[at] = 0;
                }
            }
        }
    }

    #[test]
    fn runs_are_of_whole_blocks() {
        let mut bytes = [0; 70];
        bytes[25] = 1;
        assert_eq!(runs(&bytes, 10), [(0..20, true), (20..30, false), (30..70, true)]);
        assert_eq!(
            runs(&bytes, 20),
            [(0..20, true), (20..40, false), (40..60, true), (60..70, false)]
        );
        assert_eq!(runs(&[], 10), []);
    }
}
