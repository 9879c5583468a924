//! Reading all of a volume.

use core::ops::Range;

use bytes::Bytes;
use slatedb::DbReaderMode;

use super::PATIENCE;
use super::info::close;
use super::tables::{damaged_parts, ends_of_tables, keys_in_tables};
use crate::database::{self, Database};
use crate::encryption;
use crate::error::{chain, rooted, without_remedy};
use crate::fences::Fences;
use crate::folder::Use;
use crate::layout::{Descriptor, block_key};
use crate::patience::within;
use crate::records::{descriptor, size};
use crate::{Error, Location, Options, manifest, wal};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Blocks that were read and are as they should be.
    pub blocks: u64,
    /// What is not, in the order of the offsets.
    pub damage: Vec<Damage>,
    /// How many damaged places there are besides, which are not listed: a list has an end.
    pub unlisted: u64,
}

/// Bytes of a volume that can't be read, or make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Where they begin.
    pub offset: u64,
    /// How many there are: what can't be read without the damaged part of a table, 64 KiB or the whole table. Holes behind
    /// the part's blocks belong to it. 0 for what is no data of the volume, such as the filter of a table, and for a part of
    /// the log that is missing, as nobody can know what was in it and behind it.
    pub length: u64,
    /// What is wrong.
    pub what: String,
}

/// Places that are listed at most.
const MAX_DAMAGE: usize = 1000;

/// What it means that a filter is damaged.
const OF_FILTER: &str = "this is its filter, without which all can be read, and takes longer; a copy of the volume by nbd copy \
                         has none of that";

/// How far to go on behind a place that can't be read although every table can: as much as tables are read in.
const STEP: u64 = 64 << 10;

/// Reads all blocks of a volume, or of one of its snapshots, as they are in the store now, which verifies the
/// checksums of what SlateDB stored. `progress` gets how many blocks were read, after each: it should return soon.
/// Disturbs no server. Holes cost nothing.
///
/// When something can't be read, every part of every table is read by itself, to find out which ones are damaged; the
/// blocks outside of those are read then.
///
/// Has to be awaited in a tokio runtime. Cancel-safe.
///
/// What is read is kept from being collected by a note in the store, unless it is a snapshot: that takes the right to
/// write there.
///
/// # Errors
/// As [`inspect`](super::inspect) when the volume can't be opened at all.
pub async fn check(
    location: &Location,
    snapshot: Option<&str>,
    progress: impl FnMut(u64),
) -> Result<Report, Error> {
    let descriptor = descriptor(location, PATIENCE).await?;
    // What is read is protected from being collected meanwhile, unless it is a snapshot.
    location.check_access(Use::opening(snapshot), PATIENCE).await?;
    manifest::latest(location, PATIENCE).await?;
    let mode = match snapshot {
        Some(name) => {
            DbReaderMode::Checkpoint(super::find_snapshot(location, name, PATIENCE).await?.id)
        }
        None => DbReaderMode::ManagedCheckpoint,
    };
    let cipher = encryption::of(location, &descriptor)?;
    // A third is for walks. Nothing else takes memory here that a server would need.
    let options = Options { object_cache: 32 << 20, fetching: 384 << 20, ..Options::default() };
    let gap = match snapshot {
        Some(_) => None,
        None => wal::gap(location, Fences::of(&descriptor), PATIENCE).await?,
    };
    // What is in tables, and in other parts of the log, is read all the same.
    let fences = if gap.is_some() { Fences::Bare } else { Fences::of(&descriptor) };
    let reading = database::read(location, mode, &options, None, cipher.clone(), fences);
    let reader = within(location, "read", PATIENCE, reading).await?;
    let manifest = reader.manifest();
    let database = Database::reader(reader, &options);
    let mut report = Report::default();
    if let Some(gap) = gap {
        report.damage.push(Damage { offset: 0, length: 0, what: gap.to_string() });
    }
    let end = match size(location, &database, PATIENCE).await {
        Ok(size) => size.div_ceil(u64::from(descriptor.block_size)),
        Err(Error::Damaged { what, .. }) => {
            let what = without_remedy(what);
            report.damage.push(Damage { offset: 0, length: 0, what });
            // Of any size.
            (1 << 63) / u64::from(descriptor.block_size)
        }
        Err(error) => return Err(error),
    };
    let mut check = Check { descriptor, database, end, report, progress };
    if let Err((index, error)) = check.read(0..u64::MAX).await {
        let parts = damaged_parts(location, &manifest, cipher, 0..end).await;
        tracing::debug!(volume = %location, ?parts, error, "a volume is damaged");
        check.read_around(index, &parts, &ends_of_tables(&manifest)).await;
    }
    check.ask_filters(&keys_in_tables(&manifest)).await;
    let Check { database, mut report, .. } = check;
    close(database).await;
    for damage in &mut report.damage {
        damage.what = rooted(location.url(), core::mem::take(&mut damage.what));
    }
    report.damage.sort_by_key(|damage| damage.offset);
    report.unlisted = report.damage.len().saturating_sub(MAX_DAMAGE) as u64;
    report.damage.truncate(MAX_DAMAGE);
    Ok(report)
}

/// A check that is under way.
struct Check<P> {
    descriptor: Descriptor,
    database: Database,
    /// How many blocks there may be.
    end: u64,
    report: Report,
    progress: P,
}

impl<P: FnMut(u64)> Check<P> {
    /// Reads the blocks among these that are there.
    ///
    /// # Errors
    /// With the first block that is not known to be good then.
    async fn read(&mut self, blocks: Range<u64>) -> Result<(), (u64, String)> {
        let mut next = blocks.start;
        if blocks.is_empty() {
            return Ok(());
        }
        let failed = |next: u64, error: slatedb::Error| (next, chain(&error));
        let walk = self.database.walk(next..=blocks.end - 1, u64::MAX).await.begin(false).await;
        let mut walk = walk.map_err(|error| failed(next, error))?;
        while let Some((index, block)) = walk.next().await.map_err(|error| failed(next, error))? {
            next = index + 1;
            self.found(index, &block);
        }
        Ok(())
    }

    /// A block is there.
    fn found(&mut self, index: u64, block: &[u8]) {
        let this = index..index + 1;
        if block.len() as u64 != u64::from(self.descriptor.block_size) {
            self.damaged(this, format!("a block of {} bytes", block.len()));
        } else if index >= self.end {
            self.damaged(this, "a block beyond the end of the volume".to_owned());
        } else {
            self.report.blocks += 1;
            (self.progress)(self.report.blocks);
        }
    }

    /// Reads what is there from a block on, but for the damaged parts, which are reported.
    async fn read_around(&mut self, from: u64, parts: &[(Range<u64>, String)], ends: &[u64]) {
        let mut next = from;
        for (number, (part, what)) in parts.iter().enumerate() {
            self.read_on(next..part.start, ends).await;
            next = next.max(part.end);
            let mut part = part.clone();
            let begins_another =
                parts.get(number + 1).is_some_and(|(other, _)| other.start <= next);
            if next == part.end && next < self.end && !begins_another {
                // A walk that begins with the first block of a part of a table looks into the part before as well.
                match self.database.get(&block_key(next)).await {
                    Ok(block) => block.into_iter().for_each(|block| self.found(next, &block)),
                    Err(_) => part.end += 1,
                }
                next += 1;
            }
            self.damaged(part, what.clone());
        }
        self.read_on(next..u64::MAX, ends).await;
    }

    /// Reads blocks between the ends of tables, and goes on behind what can't be read: a table of which something else than a
    /// part is damaged, such as its filter, can't be read as a whole.
    async fn read_on(&mut self, blocks: Range<u64>, ends: &[u64]) {
        let mut next = blocks.start;
        let inside = ends.iter().copied().filter(|end| blocks.contains(end));
        for end in inside.chain([blocks.end]) {
            while let Err((index, error)) = self.read(next..end).await {
                let step = STEP / u64::from(self.descriptor.block_size);
                let behind = if index == next { end } else { end.min(index.saturating_add(step)) };
                next = behind;
                // Behind the last block there is nothing to miss.
                if index < self.end {
                    self.damaged(index..behind.min(self.end), error);
                }
            }
            next = next.max(end);
        }
    }

    /// Reports the filters of tables that can't be read. All can be read without them.
    async fn ask_filters(&mut self, keys: &[Bytes]) {
        for key in keys {
            let Some(error) = self.database.fault_of_filter(key).await else { continue };
            let what = format!("{}: {OF_FILTER}", chain(&error));
            if !self.report.damage.iter().any(|damage| damage.what == what) {
                self.report.damage.push(Damage { offset: 0, length: 0, what });
            }
        }
    }

    fn damaged(&mut self, blocks: Range<u64>, what: String) {
        let block_size = u64::from(self.descriptor.block_size);
        let offset = blocks.start.saturating_mul(block_size);
        let length = (blocks.end - blocks.start).saturating_mul(block_size);
        match self.report.damage.last_mut() {
            Some(last) if last.offset + last.length == offset && last.what == what => {
                last.length += length;
            }
            _ => self.report.damage.push(Damage { offset, length, what }),
        }
    }
}
