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
    use super::*;

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
