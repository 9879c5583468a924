//! Whether an earlier copy is still there, by a few samples of it.

use nbd_blocking::client::Flags;

use super::open::{Kind, Side, cannot};
use crate::exit::Failure;

/// How many ranges are compared, the last one at the end of what was copied.
const COUNT: u64 = 16;

/// Bytes of such a range. A server reads blocks of so many bytes at most.
const LENGTH: u64 = 64 << 10;

/// Whether the beginning of a destination, which was copied, is what the source has there as far as samples show. Somebody
/// may have written to it since, or one of the two may be another disk by now.
///
/// # Errors
/// When one of them can't be read.
pub(super) fn agree(source: &Side, destination: &Side, copied: u64) -> Result<bool, Failure> {
    for (offset, length) in ranges(copied, source.unit().max(destination.unit())) {
        if read(source, offset, length)? != read(destination, offset, length)? {
            tracing::info!(offset, "what was copied is not there any more");
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(side: &Side, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
    match &side.kind {
        Kind::Server { target, client, .. } => {
            let read = client.read(offset, length, Flags::empty());
            read.map(Vec::from).map_err(|error| target.explain(&error))
        }
        Kind::Disk { disk, .. } => {
            let mut buffer = vec![0; length];
            let read = disk.read(&mut buffer, offset);
            read.map(|()| buffer).map_err(|error| cannot("read", &side.name, &error))
        }
        // No record is about these.
        Kind::Stream(_) | Kind::Null => Ok(Vec::new()),
    }
}

/// Offsets and lengths of the samples, in whole blocks, none beyond what was copied.
fn ranges(copied: u64, unit: u64) -> impl Iterator<Item = (u64, usize)> {
    let whole = move |offset: u64| offset - offset % unit;
    (1..=COUNT).filter_map(move |index| {
        let end =
            whole(u64::try_from(u128::from(copied) * u128::from(index) / u128::from(COUNT)).ok()?);
        let start = whole(end.saturating_sub(LENGTH));
        Some((start, usize::try_from(end - start).ok()?)).filter(|(_, length)| *length > 0)
    })
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn samples_are_whole_blocks_of_what_was_copied_and_the_last_is_its_end() {
        assert_eq!(ranges(0, 512).count(), 0);
        cases(200, |random| {
            let unit = 1 << random.below(17);
            let shift = random.below(60);
            let copied = random.next() >> shift;
            let all: Vec<_> = ranges(copied, unit).collect();
            for &(offset, length) in &all {
                let end = offset + length as u64;
                assert!(offset.is_multiple_of(unit) && end.is_multiple_of(unit) && end <= copied);
                assert!((1..2 * LENGTH).contains(&(length as u64)), "{copied} {unit}: {length}");
            }
            let end = all.last().map_or(0, |(offset, length)| offset + *length as u64);
            assert_eq!(end, copied - copied % unit);
        });
    }
}
