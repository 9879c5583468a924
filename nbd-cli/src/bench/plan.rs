//! Which requests are sent: a function of the seed and of a request's number alone, so that a seed gives the same requests
//! whatever the number of connections and whichever is answered first.

use core::ops::Range;

use clap::ValueEnum;
use nbd_engine::counted;

use nbd_blocking::client::BlockSize;

/// In which order an export is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Pattern {
    /// Read one block after the other
    Read,
    /// Write one block after the other
    Write,
    /// Read blocks at random
    Randread,
    /// Write blocks at random
    Randwrite,
    /// Read and write blocks at random
    Mixed,
}

impl Pattern {
    /// The word on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Mixed => "mixed",
        }
    }

    /// Whether some of the requests are reads.
    pub(super) const fn reads(self) -> bool {
        !matches!(self, Self::Write | Self::Randwrite)
    }

    /// Whether some of the requests are writes.
    pub(super) const fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }

    const fn is_sequential(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// All requests of a run, by their numbers.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pattern: Pattern,
    /// The part of a mixed run that are reads, in per cent.
    pub(super) read_percent: u8,
    pub(super) block: usize,
    /// What the requests are about: whole blocks.
    pub(super) range: Range<u64>,
    pub(super) seed: u64,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) writes: bool,
    pub(super) offset: u64,
}

impl Plan {
    /// The request of that number.
    pub(super) fn request(&self, number: u64) -> Request {
        let block = self.block as u64;
        let blocks = (self.range.end - self.range.start) / block;
        let index = match self.pattern.is_sequential() {
            true => number % blocks,
            false => below(random(self.seed, number.wrapping_mul(2)), blocks),
        };
        let writes = match self.pattern {
            Pattern::Mixed => {
                let percent = below(random(self.seed, number.wrapping_mul(2).wrapping_add(1)), 100);
                percent >= u64::from(self.read_percent)
            }
            pattern => pattern.writes(),
        };
        Request { writes, offset: self.range.start + index * block }
    }
}

/// The number of that index in a sequence, by splitmix64.
pub(super) const fn random(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A random number, scaled to what is below `bound`.
const fn below(random: u64, bound: u64) -> u64 {
    ((random as u128 * bound as u128) >> 64) as u64
}

/// The length of requests if nothing is said, in bytes, and the server takes such.
pub(super) const DEFAULT_BLOCK: u64 = 4096;

/// The length of each request: what is asked for, or 4 KiB if the server takes such.
///
/// # Errors
/// For lengths that the server would refuse.
pub(super) fn block(wanted: Option<u64>, sizes: BlockSize) -> Result<usize, String> {
    let (minimum, maximum) = (u64::from(sizes.minimum()), u64::from(sizes.maximum_payload()));
    let block = wanted.unwrap_or_else(|| DEFAULT_BLOCK.next_multiple_of(minimum).min(maximum));
    if !block.is_multiple_of(minimum) {
        return Err(format!("--bs {block}: the server takes multiples of {minimum} bytes only"));
    }
    if block > maximum {
        return Err(format!("--bs {block}: the server takes at most {maximum} bytes in a request"));
    }
    usize::try_from(block).map_err(|_| format!("--bs {block} does not fit into memory"))
}

/// As many whole blocks as there are in a part of an export of `size` bytes.
///
/// # Errors
/// If there is none, or if the server would refuse all of them.
pub(super) fn range(
    size: u64,
    (offset, given): (u64, Option<u64>),
    block: usize,
    minimum: u64,
) -> Result<Range<u64>, String> {
    if size == 0 {
        return Err("the export has 0 bytes: there is nothing to measure".to_owned());
    }
    let length = given.unwrap_or_else(|| size.saturating_sub(offset));
    let range = crate::quantity::range(size, offset, length)?;
    if !offset.is_multiple_of(minimum) {
        return Err(format!("--offset {offset}: the server takes multiples of {minimum} only"));
    }
    let block = block as u64;
    match length - length % block {
        0 => {
            // Of what was given, what is in the way of a block.
            let option = match () {
                () if given.is_some() && block <= size.saturating_sub(offset) => "larger --length",
                () if block <= size => "smaller --offset",
                () => "smaller --bs",
            };
            Err(format!(
                "the range from offset {offset} on has {}, which is less than one block of {block}: choose a {option}",
                counted(length, "byte")
            ))
        }
        whole => Ok(range.start..range.start + whole),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(minimum: u32, maximum: u32) -> BlockSize {
        BlockSize::new(minimum, minimum.max(512), maximum).unwrap()
    }

    fn patterns() -> impl Strategy<Value = Pattern> {
        proptest::sample::select(Pattern::value_variants())
    }

    proptest! {
        #[test]
        fn every_request_is_one_that_the_server_takes(
            pattern in patterns(),
            shift in 0u32..17,
            blocks in 1u64..9,
            size in 0u64..1 << 24,
            offset in 0u64..1 << 10,
            numbers in proptest::collection::vec(any::<u64>(), 1..20),
            seed in any::<u64>(),
        ) {
            let minimum = 1 << shift;
            let sizes = sizes(minimum, 1 << 20);
            let minimum = u64::from(minimum);
            let Ok(block) = block(Some(blocks * minimum), sizes) else {
                prop_assert!(blocks * minimum > 1 << 20);
                return Ok(());
            };
            let part = (offset * minimum, None);
            let Ok(range) = range(size, part, block, minimum) else { return Ok(()) };
            let plan = Plan { pattern, read_percent: 50, block, range, seed };
            for number in numbers {
                let Request { writes, offset } = plan.request(number);
                prop_assert_eq!(offset % minimum, 0);
                prop_assert!(offset >= part.0 && offset + block as u64 <= size);
                prop_assert!(!writes || pattern.writes());
            }
        }

        #[test]
        fn a_mixed_run_has_about_as_many_reads_as_were_asked_for(
            percent in 0u8..=100,
            seed in any::<u64>(),
        ) {
            let (pattern, range) = (Pattern::Mixed, 0..1 << 20);
            let plan = Plan { pattern, read_percent: percent, block: 4096, range, seed };
            let reads = (0..10_000).filter(|number| !plan.request(*number).writes).count();
            let expected = usize::from(percent) * 100;
            prop_assert!(reads.abs_diff(expected) < 400, "{reads} of 10000 at {percent} %");
            prop_assert!(!matches!(percent, 0 | 100) || reads == expected);
        }
    }

    #[test]
    fn sequential_runs_begin_anew_at_the_end_and_random_ones_reach_everything() {
        let plan =
            |pattern| Plan { pattern, read_percent: 50, block: 512, range: 1024..4096, seed: 7 };
        let offsets = |pattern| -> Vec<u64> {
            let plan = plan(pattern);
            (0..100).map(|number| plan.request(number).offset).collect()
        };
        let read = offsets(Pattern::Read);
        assert_eq!(read[..8], [1024, 1536, 2048, 2560, 3072, 3584, 1024, 1536]);
        let mut random = offsets(Pattern::Randread);
        assert_ne!(random, read);
        random.sort_unstable();
        random.dedup();
        assert_eq!(random, read[..6]);
    }

    #[test]
    fn blocks_that_make_no_sense_are_refused_with_the_numbers_that_do() {
        assert_eq!(block(None, sizes(1, 1 << 25)), Ok(4096));
        assert_eq!(block(None, sizes(65536, 1 << 25)), Ok(65536));
        assert_eq!(block(None, sizes(1, 512)), Ok(512));
        assert!(block(Some(1000), sizes(512, 4096)).unwrap_err().contains("multiples of 512"));
        assert!(block(Some(8192), sizes(512, 4096)).unwrap_err().contains("at most 4096 bytes"));
        assert_eq!(range(10_000, (0, None), 4096, 1), Ok(0..8192));
        assert_eq!(range(10_000, (512, Some(9000)), 4096, 512), Ok(512..8704));
        for (part, says) in [
            ((0, Some(4095)), "less than one block of 4096: choose a larger --length"),
            ((512, Some(0)), "the range from offset 512 on has 0 bytes"),
            ((10_000 - 16, None), "multiples of 512 only"),
            ((9728, None), "less than one block of 4096: choose a smaller --offset"),
            ((9728, Some(272)), "less than one block of 4096: choose a smaller --offset"),
            ((10_001, None), "the export has 10000 bytes"),
            ((0, Some(10_001)), "the export has 10000 bytes"),
            ((256, None), "multiples of 512 only"),
        ] {
            assert!(range(10_000, part, 4096, 512).unwrap_err().contains(says), "{part:?}");
        }
        assert!(range(0, (0, None), 4096, 1).unwrap_err().contains("nothing to measure"));
        let small = range(4095, (0, None), 4096, 512).unwrap_err();
        assert!(small.contains("choose a smaller --bs"), "{small}");
    }
}
