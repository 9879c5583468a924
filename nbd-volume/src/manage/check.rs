//! Reading all of a volume.

use slatedb::DbReaderMode;

use super::PATIENCE;
use super::info::close;
use crate::database::{self, Database};
use crate::encryption;
use crate::error::chain;
use crate::patience::within;
use crate::records::{descriptor, size};
use crate::{Error, Location, Options};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Blocks that were read and are as they should be.
    pub blocks: u64,
    /// What is not.
    pub damage: Vec<Damage>,
}

/// Bytes of a volume that can't be read, or make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Where reading stopped: what is damaged begins there, or in what is read at a time from there on, some MiB.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// What was found wrong is reported up to so many times.
const MAX_DAMAGE: usize = 100;

/// Reads all blocks of a volume, or of one of its snapshots, as they are in the store now, which verifies the
/// checksums of what SlateDB stored. `progress` gets how many blocks were read, after each: it should return soon.
/// Disturbs no server. Holes cost nothing.
///
/// What can't be read is reported; the check then goes on 1 GiB further, and ends after 100 reports.
///
/// Has to be awaited in a tokio runtime. Cancel-safe.
///
/// # Errors
/// As [`info`](super::info()) when the volume can't be opened at all, and [`Error::NoSnapshot`].
pub async fn check(
    location: &Location,
    snapshot: Option<&str>,
    mut progress: impl FnMut(u64),
) -> Result<Report, Error> {
    let descriptor = descriptor(location, PATIENCE).await?;
    let mode = match snapshot {
        Some(name) => {
            DbReaderMode::Checkpoint(super::find_snapshot(location, name, PATIENCE).await?.id)
        }
        // Protects what is read from being collected meanwhile.
        None => DbReaderMode::ManagedCheckpoint,
    };
    let cipher = encryption::of(location, &descriptor)?;
    let options = Options { object_cache: 32 << 20, ..Options::default() };
    let reader =
        within(location, "read", PATIENCE, database::read(location, mode, &options, None, cipher))
            .await?;
    let database = Database::Reader(reader.into());
    let size = size(location, &database, PATIENCE).await?;
    let block_size = u64::from(descriptor.block_size);
    let mut report = Report::default();
    let mut next = 0;
    while report.damage.len() < MAX_DAMAGE {
        let mut damage = |index: u64, what: String| {
            report.damage.push(Damage { offset: index.saturating_mul(block_size), what });
        };
        let mut blocks = match database.blocks(next..=u64::MAX, 4 << 20, false).await {
            Ok(blocks) => blocks,
            Err(error) => {
                damage(next, chain(&error));
                break;
            }
        };
        let failed = loop {
            match blocks.next().await {
                Ok(None) => break None,
                Err(error) => break Some(error),
                Ok(Some((index, block))) => {
                    next = index + 1;
                    if block.len() as u64 != block_size {
                        damage(index, format!("a block of {} bytes", block.len()));
                    } else if index >= size.div_ceil(block_size) {
                        damage(index, "a block beyond the end of the volume".to_owned());
                    } else {
                        report.blocks += 1;
                        progress(report.blocks);
                    }
                }
            }
        };
        let Some(error) = failed else { break };
        report.damage.push(Damage { offset: next * block_size, what: chain(&error) });
        next = next.saturating_add((1 << 30) / block_size);
        if next >= size.div_ceil(block_size) {
            break;
        }
    }
    close(database).await;
    Ok(report)
}
