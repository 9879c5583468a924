//! The write-ahead log of a volume: whether a part of it is missing, or empty.
//!
//! SlateDB numbers the parts and writes one after the other, and looks for the last one by halving. It takes one that is
//! missing for the end of the log: what is in those behind it, which was acknowledged, would be forgotten without a word. It
//! takes one without a byte for a fence: see [`fences`](crate::fences).

use core::time::Duration;
use std::fmt;

use futures_util::TryStreamExt as _;
use object_store::ObjectMeta;
use object_store::path::Path;
use tokio::time::timeout;

use crate::fences::Fences;
use crate::layout::Descriptor;
use crate::patience::{patiently, too_late};
use crate::{Error, Location, manifest};

/// A part that is missing, with others behind it, or has lost its bytes.
#[derive(Debug)]
pub(crate) struct Gap {
    lost: Lost,
    /// The object that the part should be.
    object: String,
}

/// The first part that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    number: u64,
    /// Whether it is there, without a byte.
    is_emptied: bool,
    /// The number of the last one that is there.
    last: u64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost: Lost { number, is_emptied, last }, object } = self;
        let (is_lost, from) = match is_emptied {
            true => ("has no bytes left", *number),
            false => ("is missing", number + 1),
        };
        let and_later = match last > number {
            true => format!(" and later, up to part {last},"),
            false => String::new(),
        };
        write!(
            f,
            "{object}, a part of its log, {is_lost}, and what was written then{and_later} can't be read without it: restore it, \
             such as from the bucket's versions; snapshots can be read all the same; to do without what was written from then \
             on, delete the parts from {from} on"
        )
    }
}

/// Fails if a part is missing or empty, or the manifest that says which there are is missing.
///
/// # Errors
/// [`Error::Damaged`] then, and what the store says if it can't be looked at.
pub(crate) async fn check(
    location: &Location,
    descriptor: &Descriptor,
    patience: Duration,
) -> Result<(), Error> {
    match gap(location, Fences::of(descriptor), patience).await? {
        Some(gap) => Err(Error::Damaged { url: location.url().to_owned(), what: gap.to_string() }),
        None => Ok(()),
    }
}

/// The first part that can't be read. Another server may write, and collect parts that are in tables by now, meanwhile.
pub(crate) async fn gap(
    location: &Location,
    fences: Fences,
    patience: Duration,
) -> Result<Option<Gap>, Error> {
    let looking = async {
        let mut before = None;
        loop {
            let Some((in_tables, lost)) = look(location, fences, patience).await? else {
                return Ok(None);
            };
            let this = (in_tables, lost.number, lost.is_emptied);
            // A list is not of one moment. What was missing in two of them, and could not be collected, is; more may have been
            // written behind it.
            if before == Some(this) {
                let url = location.url().trim_end_matches('/');
                let object = format!("{url}/{FOLDER}/{}", name(lost.number));
                return Ok(Some(Gap { lost, object }));
            }
            before = Some(this);
        }
    };
    let looked = timeout(patience, looking).await;
    looked.unwrap_or_else(|_| Err(too_late(location, "read the log of", patience)))
}

/// The number of the last part that is in tables, and the first one behind it that can't be read.
async fn look(
    location: &Location,
    fences: Fences,
    patience: Duration,
) -> Result<Option<(u64, Lost)>, Error> {
    let manifest = manifest::latest(location, patience).await?;
    let in_tables = manifest.replay_after_wal_id();
    let parts = parts_behind(location, in_tables, fences, patience).await?;
    Ok(first_lost(in_tables, &parts).map(|lost| (in_tables, lost)))
}

/// The first part that is not there or emptied, of those behind a number: theirs, and whether they are emptied.
fn first_lost(before: u64, parts: &[(u64, bool)]) -> Option<Lost> {
    let lost = |((number, is_emptied), next): (&(u64, bool), u64)| match *number != next {
        true => Some((next, false)),
        false => is_emptied.then_some((next, true)),
    };
    let (number, is_emptied) = parts.iter().zip(before + 1..).find_map(lost)?;
    Some(Lost { number, is_emptied, last: parts.last()?.0 })
}

/// The numbers of the parts behind that one, in their order, and whether they have lost their bytes.
async fn parts_behind(
    location: &Location,
    number: u64,
    fences: Fences,
    patience: Duration,
) -> Result<Vec<(u64, bool)>, Error> {
    // As it is: SlateDB sees the lengths of fences otherwise.
    let (store, folder) = (location.store(), location.object(FOLDER));
    let from = folder.clone().join(name(number));
    let list = async || {
        let listed = store.list_with_offset(Some(&folder), &from);
        let part = |object: ObjectMeta| {
            number_of(&object.location).map(|number| (number, fences.is_emptied(&object)))
        };
        listed.map_ok(part).try_collect::<Vec<_>>().await
    };
    let listed = patiently(location, "read the log of", patience, list).await?;
    let mut parts = Vec::from_iter(listed.into_iter().flatten().filter(|part| part.0 > number));
    parts.sort_unstable();
    Ok(parts)
}

/// Where SlateDB has the log.
pub(crate) const FOLDER: &str = "wal";

fn name(number: u64) -> String {
    format!("{number:020}.sst")
}

pub(crate) fn number_of(path: &Path) -> Option<u64> {
    path.filename()?.strip_suffix(".sst")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn the_first_part_that_is_missing_or_emptied_is_found() {
        cases(400, |random| {
            let before = random.below(1000);
            let count = random.below(20);
            let all = Vec::from_iter((before + 1..=before + count).map(|number| (number, false)));
            assert_eq!(first_lost(before, &all), None);
            let mut left = all.clone();
            let (missing, emptied) = (random.one_in(2), random.one_in(2));
            left.retain(|_| !missing || random.below(6) != 0);
            for part in &mut left {
                part.1 = emptied && random.below(6) == 0;
            }
            // Nobody knows of those that are missing at the end.
            let last = left.last().map_or(before, |last| last.0);
            let is_lost = |number: &u64| !left.contains(&(*number, false));
            let expected = (before + 1..=last).find(is_lost).map(|number| Lost {
                number,
                is_emptied: left.contains(&(number, true)),
                last,
            });
            assert_eq!(first_lost(before, &left), expected);
        });
    }

    #[test]
    fn parts_have_the_names_that_slatedb_gives_them() {
        assert_eq!(name(17), "00000000000000000017.sst");
        assert_eq!(number_of(&Path::from("v/wal").join(name(17))), Some(17));
        assert_eq!(number_of(&Path::from("v/wal/gc.boundary")), None);
    }
}
