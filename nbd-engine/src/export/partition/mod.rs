//! Partitions as exports.
//!
//! The tables are read by pure functions over what is known of the disk: they say which bytes they need, those are read
//! by whatever means the export has, and they are called again. So there is one reading of the tables for exports of
//! either kind, and none that could wait or recurse on behalf of a hostile table.

mod gpt;
mod mbr;
mod table;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;
use std::collections::BTreeMap;

use super::slice::ByteRange;
use super::{AsyncExport, BlockSize, Export, ExportError, Slice, SliceError};

pub use table::{Partition, PartitionKind, PartitionTable, PartitionTableKind};

impl<E: Export> Slice<E> {
    /// A partition, by its number from 1 on as the kernel counts: of a GUID partition table (GPT), or of a table in
    /// the master boot record (MBR), whose logical partitions begin with 5.
    ///
    /// The headers and entries of a GPT are checked by their checksums; when those of the primary one fail, the backup
    /// at the end of the disk is taken. The table is read once: what becomes of it later does not matter. Blocks as
    /// long as reading `inner` does.
    ///
    /// # Errors
    /// When there is no table or no such partition, the table is damaged or points outside of the disk, or `inner`
    /// fails.
    pub fn partition(inner: E, number: u32) -> Result<Self, PartitionError> {
        let mut search = Search::new(inner.size(), inner.block_size(), number);
        let range = loop {
            match search.step() {
                Ok(range) => break range,
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Need { offset, length }) => {
                    let mut bytes = vec![0; length];
                    inner.read(&mut bytes, offset).map_err(PartitionError::Unreadable)?;
                    search.learn(offset, bytes);
                }
            }
        };
        Ok(Self::with(inner, search.checked(range)?))
    }
}

impl<E: AsyncExport> Slice<E> {
    /// [`partition`](Self::partition) for an export whose work is a future. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`partition`](Self::partition).
    pub async fn partition_async(inner: E, number: u32) -> Result<Self, PartitionError> {
        let mut search = Search::new(inner.size(), inner.block_size(), number);
        let range = loop {
            match search.step() {
                Ok(range) => break range,
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Need { offset, length }) => {
                    let mut bytes = vec![0; length];
                    inner.read(&mut bytes, offset).await.map_err(PartitionError::Unreadable)?;
                    search.learn(offset, bytes);
                }
            }
        };
        Ok(Self::with(inner, search.checked(range)?))
    }
}

/// The search for a partition.
struct Search {
    disk: Disk,
    number: u32,
}

/// What is known of a disk.
struct Disk {
    size: u64,
    block_size: BlockSize,
    /// What was read, by offset.
    known: BTreeMap<u64, Vec<u8>>,
}

/// Why the search does not go on.
#[derive(Debug)]
enum Stop {
    /// These bytes have to be read.
    Need {
        offset: u64,
        length: usize,
    },
    Fail(PartitionError),
}

impl From<PartitionError> for Stop {
    fn from(error: PartitionError) -> Self {
        Self::Fail(error)
    }
}

/// The table that a disk has.
enum Found<'a> {
    Mbr(mbr::Table),
    Gpt(gpt::Table<'a>),
}

impl Disk {
    const fn new(size: u64, block_size: BlockSize) -> Self {
        Self { size, block_size, known: BTreeMap::new() }
    }

    fn learn(&mut self, offset: u64, bytes: Vec<u8>) {
        self.known.insert(offset, bytes);
    }

    /// The table, as far as it shows from what is known.
    fn table(&self) -> Result<Found<'_>, Stop> {
        let Some(boot_record) = self.bytes(0, mbr::SECTOR)? else {
            return Err(PartitionError::NoTable.into());
        };
        let primary = mbr::Table::parse(boot_record);
        let damaged = match primary {
            Some(table) if !table.is_protective() => return Ok(Found::Mbr(table)),
            primary => primary.is_some(),
        };
        for sector in [512, 4096] {
            if let Some(table) = gpt::Table::find(self, sector)? {
                return Ok(Found::Gpt(table));
            }
        }
        Err(if damaged { PartitionError::Damaged } else { PartitionError::NoTable }.into())
    }

    /// Bytes of the disk, which are whole sectors. `None` if they don't lie inside.
    fn bytes(&self, offset: u64, length: usize) -> Result<Option<&[u8]>, Stop> {
        let block = u64::from(self.block_size.minimum());
        let Some(end) = offset.checked_add(length as u64).filter(|end| *end <= self.size) else {
            return Ok(None);
        };
        // Whole blocks, as the export wants them; the block of the last bytes may be cut off by the end of the disk.
        let start = offset - offset % block;
        let Some(stop) = end.checked_next_multiple_of(block).filter(|stop| *stop <= self.size)
        else {
            return Ok(None);
        };
        let Some(bytes) = self.known.get(&start).filter(|bytes| bytes.len() as u64 >= stop - start)
        else {
            return Err(Stop::Need { offset: start, length: (stop - start) as usize });
        };
        Ok(Some(&bytes[(offset - start) as usize..][..length]))
    }
}

impl Search {
    const fn new(size: u64, block_size: BlockSize, number: u32) -> Self {
        Self { disk: Disk::new(size, block_size), number }
    }

    /// The range of the partition, as far as it shows from what is known.
    fn step(&self) -> Result<Range<u64>, Stop> {
        let Self { disk, number } = self;
        match disk.table()? {
            Found::Mbr(table) => table.find(disk, *number),
            Found::Gpt(table) => Ok(table.partition(*number)?),
        }
    }

    fn learn(&mut self, offset: u64, bytes: Vec<u8>) {
        self.disk.learn(offset, bytes);
    }

    fn checked(&self, range: Range<u64>) -> Result<ByteRange, PartitionError> {
        let Disk { size, block_size, .. } = self.disk;
        ByteRange::new(size, block_size, range.start, Some(range.end - range.start))
            .map_err(PartitionError::Range)
    }
}

/// The range of sectors in bytes.
fn in_bytes(first: u64, count: u64, sector: u64) -> Result<Range<u64>, PartitionError> {
    let start = first.checked_mul(sector);
    let end = first.checked_add(count).and_then(|end| end.checked_mul(sector));
    start.zip(end).map(|(start, end)| start..end).ok_or(PartitionError::Damaged)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..offset + 4)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes
        .get(offset..offset + 8)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// A partition can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionError {
    /// The disk has no partition table of a known kind.
    NoTable,
    /// There is a table, but none whose checksums are right.
    Damaged,
    /// The table has no partition of that number.
    NoSuchPartition(u32),
    /// The partition of that number is the extended one, which holds the logical ones.
    Extended(u32),
    /// The partition is not a part of the disk that can be served.
    Range(SliceError),
    /// The disk can't be read.
    Unreadable(ExportError),
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("the disk has no partition table (neither GPT nor MBR): serve it whole",
            ),
            Self::Damaged => f.write_str(
                "the partition table is damaged, and so is its backup if it has one: repair it first, with sgdisk or \
                 fdisk",
            ),
            Self::NoSuchPartition(number) => {
                write!(f, "there is no partition {number} in the partition table: nbd info shows which there are"
                )
            }
            Self::Extended(number) => write!(
                f,
                "partition {number} is an extended one, which has no data of its own: name one of the logical \
                 partitions, from 5 on"
            ),
            Self::Range(error) => write!(f, "the partition can't be served: {error}"),
            Self::Unreadable(error) => write!(f, "the partition table can't be read: {error}"),
        }
    }
}

impl core::error::Error for PartitionError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        None // The text has it.
    }
}
