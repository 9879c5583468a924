//! Ways to cut a stream into pieces.

/// How many bytes go at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// All that there is.
    Whole,
    /// These many, over and over.
    Cycle(Vec<usize>),
    /// Any number, mostly small, from a seed that is not zero.
    Random(u64),
}

impl Split {
    /// Everything but the random ones: whole, single bytes, and each header less one byte.
    #[must_use]
    pub fn fixed() -> Vec<Self> {
        let cycles: [&[usize]; 8] =
            [&[1], &[3], &[15], &[19], &[27], &[31], &[27, 1, 19, 1], &[1000]];
        let cycles = cycles.into_iter().map(|cycle| Self::Cycle(cycle.to_vec()));
        [Self::Whole].into_iter().chain(cycles).collect()
    }

    /// The size of the next piece of `available` bytes: 0 only if that is 0.
    pub fn next(&mut self, available: usize) -> usize {
        let wanted = match self {
            Self::Whole => usize::MAX,
            Self::Cycle(cycle) => {
                let next = cycle.first().copied().unwrap_or(1);
                if !cycle.is_empty() {
                    cycle.rotate_left(1);
                }
                next.max(1)
            }
            Self::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let bits = *state >> 32;
                1 + (bits & [0, 3, 31, 63, 1023, 65535][bits as usize / 7 % 6]) as usize
            }
        };
        wanted.min(available)
    }

    /// Another splitter of the same kind; a random one does not run in step with this one.
    #[must_use]
    pub fn fork(&self) -> Self {
        match self {
            Self::Random(state) => Self::Random(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            other => other.clone(),
        }
    }
}
