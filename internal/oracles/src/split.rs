//! Ways to cut a stream into pieces.

/// How many bytes go at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// All that there is.
    Whole,
    /// These many, over and over.
    Cycle(Vec<usize>),
}

impl Split {
    /// Ways that have found mistakes before: whole, single bytes, and headers less one byte.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let cycles: [&[usize]; 6] = [&[1], &[3], &[15, 1], &[19], &[27, 1, 31], &[1000]];
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
        };
        wanted.min(available)
    }
}
