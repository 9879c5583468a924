//! The write-ahead log of a volume: whether a part of it is missing.
//!
//! SlateDB numbers the parts and writes one after the other, and looks for the last one by halving. It takes one that is
//! missing for the end of the log: what is in those behind it, which was acknowledged, would be forgotten without a word.

use core::time::Duration;
use std::fmt;

use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::path::Path;
use tokio::time::timeout;

use crate::patience::{patiently, too_late};
use crate::{Error, Location, manifest};

/// A part that is missing, with others behind it.
#[derive(Debug)]
pub(crate) struct Gap {
    /// The number of the first one that is missing.
    missing: u64,
    /// The number of the last one that is there.
    last: u64,
    /// The object that the missing one should be.
    object: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, last, object } = self;
        write!(
            f,
            "{object}, a part of its log, is missing, and what was written then and later, up to part {last}, can't be read \
             without it: restore it, such as from the bucket's versions; snapshots can be read all the same; to do without \
             what was written from then on, delete the parts from {} on",
            missing + 1
        )
    }
}

/// Fails if a part is missing, or the manifest that says which there are.
///
/// # Errors
/// [`Error::Damaged`] then, and what the store says if it can't be looked at.
pub(crate) async fn check(location: &Location, patience: Duration) -> Result<(), Error> {
    match gap(location, patience).await? {
        Some(gap) => Err(Error::Damaged { url: location.url().to_owned(), what: gap.to_string() }),
        None => Ok(()),
    }
}

/// The first part that is missing. Another server may write, and collect parts that are in tables by now, meanwhile.
pub(crate) async fn gap(location: &Location, patience: Duration) -> Result<Option<Gap>, Error> {
    let looking = async {
        let mut before = None;
        loop {
            let Some((in_tables, gap)) = look(location, patience).await? else { return Ok(None) };
            // A list is not of one moment. What was missing in two of them, and could not be collected, is; more may have been
            // written behind it.
            if before == Some((in_tables, gap.missing)) {
                return Ok(Some(gap));
            }
            before = Some((in_tables, gap.missing));
        }
    };
    let looked = timeout(patience, looking).await;
    looked.unwrap_or_else(|_| Err(too_late(location, "read the log of", patience)))
}

/// The number of the last part that is in tables, and what is missing behind it.
async fn look(location: &Location, patience: Duration) -> Result<Option<(u64, Gap)>, Error> {
    let manifest = manifest::latest(location, patience).await?;
    let in_tables = manifest.replay_after_wal_id();
    let parts = parts_behind(location, in_tables, patience).await?;
    let Some((missing, last)) = first_missing(in_tables, &parts) else { return Ok(None) };
    let object = format!("{}/{FOLDER}/{}", location.url().trim_end_matches('/'), name(missing));
    Ok(Some((in_tables, Gap { missing, last, object })))
}

/// The first number that is missing, and the last one that is not.
fn first_missing(before: u64, numbers: &[u64]) -> Option<(u64, u64)> {
    let (_, missing) = numbers.iter().zip(before + 1..).find(|(number, next)| *number != next)?;
    Some((missing, *numbers.last()?))
}

/// The numbers of the parts behind that one, in their order.
async fn parts_behind(
    location: &Location,
    number: u64,
    patience: Duration,
) -> Result<Vec<u64>, Error> {
    let (store, folder) = (location.database_store(), location.database().join(FOLDER));
    let from = folder.clone().join(name(number));
    let list = async || {
        let listed = store.list_with_offset(Some(&folder), &from);
        listed.map_ok(|object| number_of(&object.location)).try_collect::<Vec<_>>().await
    };
    let listed = patiently(location, "read the log of", patience, list).await?;
    let mut numbers = Vec::from_iter(listed.into_iter().flatten().filter(|part| *part > number));
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where SlateDB has the log.
const FOLDER: &str = "wal";

fn name(number: u64) -> String {
    format!("{number:020}.sst")
}

fn number_of(path: &Path) -> Option<u64> {
    path.filename()?.strip_suffix(".sst")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn the_first_part_that_is_missing_is_found() {
        cases(200, |random| {
            let before = random.below(1000);
            let count = random.below(20);
            let all = Vec::from_iter(before + 1..=before + count);
            assert_eq!(first_missing(before, &all), None);
            let mut left = all.clone();
            left.retain(|_| random.below(4) != 0);
            let expected = all.iter().find(|number| !left.contains(number));
            // Nobody knows of those that are missing at the end.
            let last = left.last().copied();
            let expected = expected.zip(last).filter(|(number, last)| *number < last);
            assert_eq!(first_missing(before, &left), expected.map(|(one, last)| (*one, last)));
        });
    }

    #[test]
    fn parts_have_the_names_that_slatedb_gives_them() {
        assert_eq!(name(17), "00000000000000000017.sst");
        assert_eq!(number_of(&Path::from("v/wal").join(name(17))), Some(17));
        assert_eq!(number_of(&Path::from("v/wal/gc.boundary")), None);
    }
}
