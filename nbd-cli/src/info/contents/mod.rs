//! What an export contains: its partition table and file systems, by their magic numbers.
//!
//! The bytes come from the server, and may be anything. At most [`FIRST`] bytes of the export and of each partition are
//! read, besides the tables; what is found is a word of ours, and labels are shown between quotes and escaped.

mod bytes;
mod labels;
mod partitions;
mod report;
mod signatures;
mod udf;

#[cfg(test)]
mod tests;

use nbd_blocking::Client;
use nbd_blocking::client::Error;
use nbd_engine::export::ExportError;

pub(super) use partitions::{Table, TableKind};
pub(super) use report::{json, lines};

/// How much is read of an export and of each partition: the last signature ends there.
const FIRST: u64 = 68 << 10;

/// Partitions that are looked into. Further ones are listed.
const MAX_PARTITIONS: usize = 32;

/// What an export contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// What begins with the first byte, apart from a partition table.
    pub(super) found: Option<Found>,
    pub(super) table: Option<Table>,
}

/// What a disk or a partition begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// A word for programs, such as `ext4`.
    pub(super) kind: &'static str,
    /// The same for people, such as `ext4 file system`.
    pub(super) words: &'static str,
    /// The name that somebody gave it.
    pub(super) label: Option<String>,
    /// The identifier that it was given when it was made.
    pub(super) uuid: Option<String>,
}

/// A disk, of which ranges can be read.
trait Disk {
    fn size(&self) -> u64;

    fn block_size(&self) -> nbd_engine::export::BlockSize;

    /// Fills the buffer, which is of whole blocks.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error>;

    /// The first bytes of a part of the disk, as many as there are up to [`FIRST`].
    fn first(&self, start: u64, size: u64) -> Result<Vec<u8>, Error> {
        self.bytes(start, size.min(FIRST))
    }

    /// So many bytes of the disk, or as many as there are.
    fn bytes(&self, start: u64, length: u64) -> Result<Vec<u8>, Error> {
        let block = u64::from(self.block_size().minimum());
        let start = start.min(self.size());
        let from = start / block * block;
        let end = start.saturating_add(length).min(self.size());
        // The end of the disk may not be that of a block, which can't be read then.
        let stop = end.checked_next_multiple_of(block).filter(|stop| *stop <= self.size());
        let stop = stop.unwrap_or(self.size() / block * block);
        let length = usize::try_from(stop.saturating_sub(from)).unwrap_or(0);
        let mut bytes = vec![0; length];
        if length > 0 {
            self.read(&mut bytes, from)?;
        }
        bytes.truncate(usize::try_from(end.saturating_sub(from)).unwrap_or(0));
        bytes.drain(..usize::try_from(start - from).unwrap_or(0).min(bytes.len()));
        Ok(bytes)
    }
}

impl Disk for Client {
    fn size(&self) -> u64 {
        self.size()
    }

    fn block_size(&self) -> nbd_engine::export::BlockSize {
        self.export().block_size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.read_exact_at(buffer, offset)
    }
}

/// Looks at what an export contains; `None` if nothing is known of it.
///
/// # Errors
/// If its first bytes can't be read. A partition that can't be read is as one that nothing is known of.
pub(crate) fn contents(client: &Client) -> Result<Option<Contents>, Error> {
    look(client)
}

fn look(disk: &impl Disk) -> Result<Option<Contents>, Error> {
    let found = find(disk, 0, disk.size())?;
    let table = match &found {
        // Their first sector ends with the same two bytes as a boot record.
        Some(found) if matches!(found.kind, "vfat" | "exfat" | "ntfs") => None,
        _ => partitions::table(disk),
    };
    let is_known = found.is_some() || table.is_some();
    Ok(is_known.then_some(Contents { found, table }))
}

/// What a part of a disk begins with.
///
/// # Errors
/// If its first bytes can't be read. A label that can't be read is as none.
fn find(disk: &impl Disk, start: u64, size: u64) -> Result<Option<Found>, Error> {
    let first = disk.first(start, size)?;
    let Some(mut found) = signatures::find(&first) else { return Ok(None) };
    let mut place = labels::place(found.kind, &first);
    // Each leads further on, to others.
    while let Some(labels::Place { range, find }) = place.take()
        && range.end <= size
        && let Ok(bytes) = disk.bytes(start + range.start, range.end - range.start)
    {
        match find(&bytes) {
            Some(labels::Next::Place(next)) => place = Some(next),
            Some(labels::Next::Names { label, uuid }) => {
                found.label = label.or(found.label);
                found.uuid = uuid.or(found.uuid);
            }
            None => {}
        }
    }
    Ok(Some(found))
}

/// An error of a client as that of an export.
fn of_export(error: Error) -> ExportError {
    std::io::Error::from(error).into()
}
